"""The reverse proxy one would write by hand with aiohttp: no policies, no log.

Its arguments are its port and the origin's. It is written with care: uvloop, the bare `web.Server`
without a router, one shared session without limits, the raw path, undecoded bodies that stream both ways.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

HOP_BY_HOP = (
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)


def end_to_end(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """The headers that may be forwarded (RFC 9110, 7.6.1)."""
    for nominated in headers.getall("Connection", ()):
        for name in nominated.split(","):
            headers.popall(name.strip(), None)
    for name in HOP_BY_HOP:
        headers.popall(name, None)
    return headers


class Proxy:
    def __init__(self, session: ClientSession, origin: str) -> None:
        self.session = session
        self.origin = origin

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        async with self.session.request(
            request.method,
            URL(self.origin + request.raw_path, encoded=True),
            headers=end_to_end(request.headers.copy()),
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
        ) as upstream:
            response = web.StreamResponse(status=upstream.status, headers=end_to_end(upstream.headers.copy()))
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


async def serve(port: int, origin: str) -> None:
    async with ClientSession(
        connector=TCPConnector(limit=0),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    ) as session:
        runner = web.ServerRunner(web.Server(Proxy(session, origin), access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), f"http://127.0.0.1:{sys.argv[2]}"))

"""An app for tests, run as a process: `tiny_app.py PORT [--exit-on-signal CODE]`."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def hello(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response({"path": request.path})


async def slow(_: web.Request) -> web.Response:
    await asyncio.sleep(0.5)
    return web.Response(text="slow")


def main() -> None:
    app = web.Application(client_max_size=2**30)
    app.router.add_get("/slow", slow)
    app.router.add_route("*", "/{tail:.*}", hello)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()

"""An app for tests, run as a process: `tiny_app.py PORT [CERTIFICATE KEY]`, with those two over TLS."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import ssl
import sys
from collections import Counter

from aiohttp import WSMsgType, web

PIECE = 64 * 1024
SHOWN = 1024
"""Bytes of a request's body that /echo gives back; of the rest it tells the hash."""
UNZIPPED = b'{"zipped": true}' * 100
ZIPPED = gzip.compress(UNZIPPED, mtime=0)
NEXT = web.AppKey("NEXT", dict[str, asyncio.Semaphore])
"""By topic: how many events after the first may be sent."""
CALLS = web.AppKey("CALLS", Counter[str])
"""By path: how often something that may be cached was asked for."""
GATES = web.AppKey("GATES", dict[str, asyncio.Event])


def payload(size: int) -> bytes:
    """The same `size` bytes in every process; no two pieces of them are alike."""
    return hashlib.shake_128(b"payload").digest(size)


async def hello(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response({"path": request.path})


async def slow(_: web.Request) -> web.Response:
    await asyncio.sleep(0.5)
    return web.Response(text="slow")


async def echo(request: web.Request) -> web.Response:
    """The request as it came in."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "body": body[:SHOWN].decode("latin-1"),
        }
    )


async def counted(request: web.Request) -> web.Response:
    """`/bytes/SIZE`: a body with a Content-Length."""
    return web.Response(body=payload(int(request.match_info["size"])))


async def streamed(request: web.Request) -> web.StreamResponse:
    """`/stream/SIZE`: a body in chunks."""
    body = payload(int(request.match_info["size"]))
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for start in range(0, len(body), PIECE):
        await response.write(body[start : start + PIECE])
    return response


async def zipped(_: web.Request) -> web.Response:
    return web.Response(body=ZIPPED, headers={"Content-Encoding": "gzip"})


async def redirect(request: web.Request) -> web.Response:
    """`/redirect?status=…&to=…`."""
    return web.Response(
        status=int(request.query["status"]), headers={"Location": request.query["to"]}, text="elsewhere"
    )


async def events(request: web.Request) -> web.StreamResponse:
    """`/events/TOPIC`: three server-sent events; each after the first waits for a POST to the same URL."""
    more = request.app[NEXT].setdefault(request.match_info["topic"], asyncio.Semaphore(0))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in (1, 2, 3):
        if number > 1:
            await more.acquire()
        await response.write(b"data: %d\n\n" % number)
    return response


async def next_event(request: web.Request) -> web.Response:
    request.app[NEXT].setdefault(request.match_info["topic"], asyncio.Semaphore(0)).release()
    return web.Response(status=204)


async def websocket(request: web.Request) -> web.WebSocketResponse:
    """Gives each message back; closes with 4000 when told `close`."""
    socket = web.WebSocketResponse(protocols=["echo"])
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.data == "close":
            await socket.close(code=4000, message=b"as told")
        else:
            await socket.send_str(message.data)
    return socket


async def shared(request: web.Request) -> web.Response:
    """`/shared/NAME?seconds=…&vary=…`: may be cached by all, and tells how often it was asked for."""
    seen = request.app[CALLS]
    seen[request.path] += 1
    if "seconds" in request.query:
        await asyncio.sleep(float(request.query["seconds"]))
    headers = {"Cache-Control": "public, max-age=60"}
    if "vary" in request.query:
        headers["Vary"] = request.query["vary"]
    return web.json_response({"path": request.path, "calls": seen[request.path]}, headers=headers)


async def gated(request: web.Request) -> web.Response:
    """`/gated/NAME`: as `/shared/NAME`, but no answer before a POST to the same URL."""
    gate = request.app[GATES].setdefault(request.path, asyncio.Event())
    if request.method == "POST":
        gate.set()
        return web.Response(status=204)
    request.app[CALLS][request.path] += 1
    await gate.wait()
    return web.json_response({"path": request.path}, headers={"Cache-Control": "public, max-age=60"})


async def calls(request: web.Request) -> web.Response:
    """`/calls`: how often each path that may be cached was asked for."""
    return web.json_response(request.app[CALLS])


def main() -> None:
    port, *files = sys.argv[1:]
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
    app = web.Application(client_max_size=2**30)
    app[NEXT] = {}
    app[CALLS] = Counter()
    app[GATES] = {}
    app.router.add_get("/slow", slow)
    app.router.add_route("*", "/echo", echo)
    app.router.add_get("/bytes/{size}", counted)
    app.router.add_get("/stream/{size}", streamed)
    app.router.add_get("/zipped", zipped)
    app.router.add_route("*", "/redirect", redirect)
    app.router.add_get("/events/{topic}", events)
    app.router.add_post("/events/{topic}", next_event)
    app.router.add_get("/ws", websocket)
    app.router.add_get("/shared/{name}", shared)
    app.router.add_route("*", "/gated/{name}", gated)
    app.router.add_get("/calls", calls)
    app.router.add_route("*", "/{tail:.*}", hello)
    web.run_app(app, host="127.0.0.1", port=int(port), ssl_context=context, print=None, access_log=None)


if __name__ == "__main__":
    main()

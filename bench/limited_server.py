"""A server of a known capacity: so many requests at a time, the others wait their turn in it.

`python -m bench.limited_server PORT WORKERS SECONDS [BURDEN]`: each request takes between half and one and a
half times SECONDS, and longer by the share BURDEN for each request that waits. `POST /capacity?workers=8`
changes what it can do. Like most servers it goes on with a request whose client has left.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import deque

import uvloop
from aiohttp import web


class Workers:
    def __init__(self, count: int, seconds: float, burden: float = 0.0) -> None:
        self.count = count
        self._seconds = seconds
        self._burden = burden
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._chance = random.Random(1)

    async def work(self, _: web.Request) -> web.Response:
        if self._busy >= self.count:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._busy += 1
        slower = 1 + self._burden * len(self._waiting)
        await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._seconds * slower)
        self._busy -= 1
        self._go_on()
        return web.Response(text="done")

    async def change(self, request: web.Request) -> web.Response:
        self.count = int(request.query["workers"])
        self._go_on()
        return web.Response(status=204)

    def _go_on(self) -> None:
        while self._waiting and self._busy < self.count:
            self._busy += 1
            self._waiting.popleft().set_result(None)


async def serve(port: int, workers: Workers) -> None:
    app = web.Application()
    app.router.add_post("/capacity", workers.change)
    app.router.add_get("/work", workers.work)
    app.router.add_get("/ready", lambda _: asyncio.sleep(0, web.Response()))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Workers(int(sys.argv[2]), *map(float, sys.argv[3:]))))

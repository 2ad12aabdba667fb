"""A scripted upstream, and a pipeline over it in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sidecar.caching.cache import Caching
from sidecar.config.schema import Route
from sidecar.errors import SidecarError
from sidecar.exchange import Exchange, Request, Response, Stream
from sidecar.headers import Line
from sidecar.pipeline import Place, Services, compile_pipeline
from sidecar.state import State
from sidecar.stores.memory import Memory
from sidecar.stores.tiered import Tiered
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics
from tests.support.clock import ManualClock, ScriptedRandom

Outcome = Callable[[Exchange], Any]


def answer(status: int = 200, body: bytes = b"ok", *headers: tuple[bytes, bytes]) -> Outcome:
    """An answer that is all here at once."""

    async def outcome(_: Exchange) -> Response:
        return Response(status, [Line(*pair) for pair in headers], body)

    return outcome


def stream(body: Stream, status: int = 200) -> Outcome:
    """An answer whose body the test feeds."""

    async def outcome(_: Exchange) -> Response:
        return Response(status, [], body)

    return outcome


def fail(error: SidecarError) -> Outcome:
    """An attempt that ends in `error`."""

    async def outcome(_: Exchange) -> Response:
        raise error

    return outcome


def hang() -> Outcome:
    """An attempt that never answers."""

    async def outcome(_: Exchange) -> Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    return outcome


class Bench:
    """Routes over one scripted upstream called `app`; time stands still until a test moves it."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.script = list(outcomes)
        """What attempts come to, in order; the last one for ever."""
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.services = Services(
            clock=self.clock,
            random=ScriptedRandom(0.5),
            state=State(self.metrics, self.clock),
            metrics=self.metrics,
            access_log=AccessLog(None, self.clock),
            caching=Caching(Tiered(Memory(1 << 20, self.clock), None, self.clock), self.clock, in_use=False),
        )
        self.calls: list[float] = []
        """`now()` at each attempt that reached the upstream."""
        self.seen: list[Exchange] = []

    async def _upstream(self, exchange: Exchange) -> Response:
        exchange.attempts += 1
        outcome = self.script[min(len(self.calls), len(self.script) - 1)]
        self.calls.append(self.clock.now())
        self.seen.append(exchange)
        response: Response = await outcome(exchange)
        return response

    def route(self, name: str = "all", **settings: Any) -> Callable[..., asyncio.Task[Response]]:
        """A sender of requests through a route with these policies."""
        place = Place(Route.model_validate({"name": name, **settings}), "app", self.services)
        handler = compile_pipeline(place, self._upstream)

        def send(method: str = "GET", body: bytes | Stream = b"") -> asyncio.Task[Response]:
            request = Request(method, b"/", [], body, host=b"test")
            exchange = Exchange(request, "127.0.0.1", self.clock.now())
            return asyncio.ensure_future(handler(exchange))

        return send

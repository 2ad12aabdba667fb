"""A scripted upstream, and a pipeline over it in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from sidecar.caching.cache import Caching
from sidecar.config.inject_policy import AppKeeps
from sidecar.config.schema import Route
from sidecar.decisions.verdict import Verdict
from sidecar.errors import SidecarError
from sidecar.exchange import Exchange, Request, Response, Stream
from sidecar.headers import Line
from sidecar.layers import cache
from sidecar.overlap import Overlaps
from sidecar.pipeline import Handler, Place, Services, compile_alternate, compile_pipeline
from sidecar.state import State
from sidecar.stores.memory import Memory
from sidecar.stores.redis_nodes import Nodes
from sidecar.stores.tiered import Tiered
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics
from tests.support.clock import ManualClock, ScriptedRandom

Outcome = Callable[[Exchange], Any]
Send = Callable[..., asyncio.Task[Response]]


def answer(status: int = 200, body: bytes = b"ok", *headers: tuple[bytes, bytes]) -> Outcome:
    """An answer that is all here at once."""

    async def outcome(_: Exchange) -> Response:
        return Response(status, [Line(*pair) for pair in headers], body)

    return outcome


def stream(body: Stream, status: int = 200, **headers: str) -> Outcome:
    """An answer whose body the test feeds."""

    async def outcome(_: Exchange) -> Response:
        return Response(status, list(lines(**headers)), body)

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


def after(seconds: float, outcome: Outcome) -> Outcome:
    """An attempt that takes its time, on the bench's clock, before it comes to `outcome`."""
    return _Slow(seconds, outcome)


class _Slow:
    def __init__(self, seconds: float, outcome: Outcome) -> None:
        self.seconds = seconds
        self.outcome = outcome

    async def __call__(self, exchange: Exchange) -> Response:
        response: Response = await self.outcome(exchange)
        return response


class Bench:
    """Routes over one scripted upstream called `app`; time stands still until a test moves it."""

    def __init__(
        self, *outcomes: Outcome, clock: ManualClock | None = None, shared: Nodes | None = None
    ) -> None:
        self.script = list(outcomes)
        """What attempts come to, in order; the last one for ever."""
        self.clock = clock or ManualClock()
        self.metrics = Metrics()
        self.services = Services(
            clock=self.clock,
            overlaps=Overlaps(self.clock),
            random=ScriptedRandom(0.5),
            state=State(self.metrics, self.clock, shared),
            metrics=self.metrics,
            access_log=AccessLog(None, self.clock),
            caching=Caching(Tiered(Memory(1 << 20, self.clock), None, self.clock), self.clock, in_use=False),
        )
        self.calls: list[float] = []
        """`now()` at each attempt that reached the upstream."""
        self.seen: list[Exchange] = []
        """What those attempts were for."""
        self.sent: list[Exchange] = []
        """What clients sent."""
        self._tasks: list[asyncio.Task[Response]] = []
        """What became of it: a task that waits for what never comes is held by nothing else."""
        self.others: dict[str, list[Outcome]] = {}
        """What the upstreams that fallbacks name come to, by their URL: in order, the last one for ever."""
        self.asked: list[tuple[str, Exchange]] = []
        """Those of them that were asked, and for what."""

        self.depends_on: frozenset[str] = frozenset()
        """The policy files of the app's calls that count for routes made from now on."""

        self.expects: frozenset[str] = frozenset()
        """Those of them that a policy file names."""

    @property
    def caching(self) -> Caching:
        return self.services.caching

    @property
    def outcomes(self) -> list[str]:
        """What the cache did with each request, in the order they were sent."""
        return [exchange.cache for exchange in self.sent]

    async def _upstream(self, exchange: Exchange) -> Response:
        exchange.attempts += 1
        outcome = self.script[min(len(self.calls), len(self.script) - 1)]
        self.calls.append(self.clock.now())
        self.seen.append(exchange)
        if isinstance(outcome, _Slow):
            await self.clock.sleep(outcome.seconds)
        response: Response = await outcome(exchange)
        return response

    def _other(self, name: str) -> Handler:
        async def upstream(exchange: Exchange) -> Response:
            exchange.attempts += 1
            exchange.upstream = name
            script = self.others[name]
            outcome = script[min(sum(name == other for other, _ in self.asked), len(script) - 1)]
            self.asked.append((name, exchange))
            response: Response = await outcome(exchange)
            return response

        return upstream

    def route(self, name: str = "all", **settings: Any) -> Send:
        """A sender of requests through a route with these policies."""
        return self.of(Route.model_validate({"name": name, **settings}))

    def calls_of_the_app(
        self, policy: str, *outcomes: Outcome, keeps: AppKeeps | None = None, **settings: Any
    ) -> Send:
        """A sender of calls of the app to a provider with a script of its own, in virtual time."""
        script = iter(outcomes)
        last = outcomes[-1]

        async def provider(exchange: Exchange) -> Response:
            exchange.attempts += 1
            outcome = next(script, last)
            if isinstance(outcome, _Slow):
                await self.clock.sleep(outcome.seconds)
            response: Response = await outcome(exchange)
            return response

        route = Route.model_validate({"name": policy, **settings})
        place = Place(route, policy, self.services, policy=policy, plane="egress")
        self.caching.in_use = self.caching.in_use or route.cache is not None
        handler = compile_pipeline(place, provider)
        return self._sender(self.services.overlaps.noting(policy, handler, keeps), plane="egress")

    def of(self, route: Route) -> Send:
        """A sender of requests through `route`."""
        return self._sender(compile_pipeline(self._stand(route), self._upstream))

    def cache_alone(self, name: str = "all", **settings: Any) -> Send:
        """A sender through nothing but the cache: what the script says of a response's verdict stands."""
        layer = cache.layer(self._place(name, {"cache": settings}))
        assert layer is not None
        return self._sender(layer(self._upstream))

    def _place(self, name: str, settings: dict[str, Any]) -> Place:
        return self._stand(Route.model_validate({"name": name, **settings}))

    def _stand(self, route: Route) -> Place:
        alternates = []
        for rung in route.fallback or ():
            if rung.upstream is not None:
                other = str(rung.upstream)
                below = Place(rung.route(route), other, self.services)
                alternates.append(compile_alternate(below, self._other(other)))
        place = Place(
            route,
            "app",
            self.services,
            depends_on=self.depends_on,
            expects=self.expects,
            alternates=tuple(alternates),
        )
        if place.route.cache is not None:
            self.caching.in_use = True
        return place

    def _sender(self, handler: Handler, plane: str = "ingress") -> Send:
        def send(
            method: str = "GET",
            body: bytes | Stream = b"",
            *,
            target: bytes = b"/",
            host: bytes = b"test",
            client: str = "127.0.0.1",
            trace: bytes = b"",
            **headers: str,
        ) -> asyncio.Task[Response]:
            request = Request(method, target, list(lines(**headers)), body, host=host)
            exchange = Exchange(request, client, self.clock.now())
            exchange.plane = plane
            if trace:
                exchange.traceparent = (trace, b"01")
            if plane == "ingress":
                self.sent.append(exchange)
            task = asyncio.ensure_future(_answered(handler, exchange))
            self._tasks.append(task)
            return task

        return send


async def _answered(handler: Handler, exchange: Exchange) -> Response:
    """The answer with what a listener puts on it."""
    response = await handler(exchange)
    for told in exchange.told.splitlines():
        name, _, value = told.partition(b": ")
        response.add(Line(name, value))
    return response


def lines(**headers: str) -> Iterator[Line]:
    """Header lines by keyword: `cache_control="no-store"` is `Cache-Control: no-store`."""
    for name, value in headers.items():
        yield Line(name.replace("_", "-").title().encode(), value.encode())


def ok(body: bytes = b"ok", status: int = 200, **headers: str) -> Outcome:
    """As `answer`, with its headers by keyword."""

    async def outcome(_: Exchange) -> Response:
        return Response(status, list(lines(**headers)), body)

    return outcome


def stated(body: bytes | Stream, verdict: Verdict, status: int = 200, **headers: str) -> Outcome:
    """An answer with a verdict of its own, for `cache_alone`."""

    async def outcome(_: Exchange) -> Response:
        response = Response(status, list(lines(**headers)), body)
        response.verdict = verdict
        return response

    return outcome


def shown(response: Response, name: str) -> str | None:
    """The value of a field as the client gets it: of the joined lines where there are some."""
    if response.plain is None:
        found = response.header(name.lower().encode())
        return None if found is None else found.decode()
    for line in response.plain.decode().split("\r\n"):
        field, _, value = line.partition(": ")
        if field.lower() == name.lower():
            return value
    return None


async def content(response: Response) -> bytes:
    """The whole body, read as a client would. Raises what broke it."""
    if isinstance(response.body, bytes):
        return response.body
    parts = []
    while part := await response.body.read():
        parts.append(part)
    return b"".join(parts)

"""Drives the requests of a log through the pipelines of a configuration, in virtual time.

The layers, what they decide and what they learn are those that serve traffic, composed as for traffic. What
is not there is the network: an attempt comes to what the log tells (`recorded.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.alternates import Pools, compile_route, pools
from sidecar.caching.cache import Caching
from sidecar.clock import seeded_random
from sidecar.config.classify_policy import ClassifyRule
from sidecar.config.features import without_features
from sidecar.config.policy import Route
from sidecar.decisions.verdict import Verdict
from sidecar.errors import (
    AttemptTimeout,
    BadCertificate,
    BadUpstreamResponse,
    ConnectFailed,
    ConnectionReset,
    NameNotFound,
    NameNotResolved,
    SidecarError,
    TlsFailed,
    UpstreamError,
)
from sidecar.exchange import Exchange, Request, Response, Stream
from sidecar.generation import UNMATCHED
from sidecar.headers import Line as Field
from sidecar.overlap import Overlaps
from sidecar.pipeline import Handler, Place, Services
from sidecar.replay.figures import HITS, Figures
from sidecar.replay.recorded import FORBIDDEN, Recorded, Said
from sidecar.replay.virtual_time import START, VirtualClock, VirtualLoop
from sidecar.routing import Matcher
from sidecar.state import State, Use
from sidecar.stores.memory import Memory
from sidecar.stores.tiered import Tiered
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from sidecar.config.load import Loaded
    from sidecar.config.policy import PolicyFile
    from sidecar.replay.log import Line

VERDICT: Final = b"sidecar-replay-verdict"
"""Field of answers whose verdict was made of what the log does not have, their bodies above all."""
HANGS: Final = 3600.0
"""Seconds of an attempt that timed out then: it would have come to an answer at some time, or never."""
LARGEST: Final = 16 << 20
"""Bytes of a body; of larger ones the rest makes no difference to any policy."""
REDACTED: Final = b"***"

_ERRORS: Final[Mapping[str, type[UpstreamError]]] = {
    error.code: error
    for error in (
        AttemptTimeout,
        BadCertificate,
        BadUpstreamResponse,
        ConnectFailed,
        ConnectionReset,
        NameNotFound,
        NameNotResolved,
        TlsFailed,
    )
}
_VERDICT_RULES: Final = tuple(
    ClassifyRule.model_validate({"header": {VERDICT.decode(): verdict.value}, "verdict": verdict.value})
    for verdict in Verdict
)


class _Provider:
    """Stands where the pool of connections does."""

    def __init__(self, simulation: _Simulation, name: str, *, alternate: bool = False) -> None:
        self.name = name
        self._simulation = simulation
        self._alternate = alternate

    def handler(self, idle: float | None) -> Handler:
        return self._other if self._alternate else self._attempt

    async def _attempt(self, exchange: Exchange) -> Response:
        exchange.attempts += 1
        exchange.upstream = self.name
        return await self._simulation.attempt(exchange)

    async def _other(self, exchange: Exchange) -> Response:
        """Another upstream, which the log does not know: it answers, in the usual time."""
        exchange.attempts += 1
        exchange.upstream = self.name
        await self._simulation.clock.sleep(self._simulation.latency)
        return Response(200, [])


class _Routes:
    """Which of some routes a request is for. The log has neither hosts nor headers."""

    def __init__(self, routes: Sequence[tuple[Route, Handler]], rest: tuple[Route, Handler]) -> None:
        self._all = {route.name: (route, handler) for route, handler in routes}
        self._plain = [
            (route, handler) for route, handler in routes if not route.match.host and not route.match.headers
        ]
        self._match = Matcher([route.match for route, _ in self._plain]).match
        self._rest = rest

    def find(self, line: Line) -> tuple[Route, Handler]:
        """The route; one that asks for a host or headers is right where it was then."""
        then = self._all.get(line.route)
        if then is not None and (then[0].match.host or then[0].match.headers):
            return then
        path = line.target.partition(b"?")[0].decode("latin-1")
        index = self._match(line.method, b"", path, ())
        return self._rest if index is None else self._plain[index]


class _Simulation:
    """One configuration and one log."""

    def __init__(
        self,
        loop: VirtualLoop,
        loaded: Loaded,
        lines: Sequence[Line],
        recorded: Recorded,
        homes: Mapping[str, str],
        figures: Figures,
        *,
        latency: float,
        prices: Mapping[str, float],
    ) -> None:
        self.latency = latency
        self._lines, self._recorded, self._homes, self._figures = lines, recorded, homes, figures
        self._prices = prices
        self._began = lines[0].at
        self.clock = VirtualClock(loop, self._began)
        self._attempts: Counter[int] = Counter()
        config = loaded.config
        policies = without_features(loaded.policies, config.features)
        self._metrics = Metrics(config.metrics.namespace)
        store = Tiered(Memory(config.cache.memory, self.clock), None, self.clock)
        in_use = any(route.cache is not None for policy in policies for route in policy.routes)
        self._services = Services(
            clock=self.clock,
            random=seeded_random(0),
            state=State(self._metrics, self.clock),
            metrics=self._metrics,
            access_log=AccessLog(None, self.clock),
            caching=Caching(store, self.clock, in_use=in_use),
            overlaps=Overlaps(self.clock),
        )
        self._services.state.begin(Use())
        others = pools(policies, lambda name, _: _Provider(self, name, alternate=True))
        self._ingress = self._compiled(
            [policy for policy in policies if policy.direction == "ingress"],
            Route(
                name="any",
                rate_limit=config.limits.rate_limit if config.features.rate_limit else None,
            ).model_copy(update={"name": UNMATCHED}),
            others,
        )
        self._egress = {
            policy.name: self._compiled(
                [policy], Route(name="any").model_copy(update={"name": f"{policy.name}/unmatched"}), others
            )
            for policy in policies
            if policy.direction == "egress"
        }
        self._bodies: dict[int, bytes] = {}

    def _compiled(self, policies: Sequence[PolicyFile], rest: Route, others: Pools) -> _Routes:
        """The pipelines of some files; `rest` is for what none of their routes takes."""
        routes: list[tuple[Route, Handler]] = []
        for policy in policies:
            incoming = policy.direction == "ingress"
            upstream = _Provider(self, "app" if incoming and policy.upstream is None else policy.name)
            for route in policy.routes:
                judged = route.model_copy(update={"classify": (*_VERDICT_RULES, *(route.classify or ()))})
                place = Place(
                    judged, upstream.name, self._services, policy=policy.name, plane=policy.direction
                )
                routes.append((route, compile_route(place, upstream, others)))
        passed = compile_route(Place(rest, "app", self._services), _Provider(self, "app"), others)
        return _Routes(routes, (rest, passed))

    async def run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        for number, line in enumerate(self._lines):
            at = START + line.at - self._began
            if at > self.clock.now():
                await self.clock.until(at)
            task = loop.create_task(self._request(number, line))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        await self._services.caching.close()
        for name, cells in self._metrics.routes.items():
            if name not in self._figures.routes:
                continue
            figures = self._figures.route(name)
            figures.outcomes.update(cells.cache)
            figures.retries = sum(cells.retries.values())
            figures.shadow.update(cells.shadow_rejections)
            figures.fallbacks = sum(cells.fallbacks.values())

    def _routes_of(self, line: Line) -> _Routes:
        if line.plane != "egress":
            return self._ingress
        name = self._homes.get(line.route) or line.route.partition("/")[0]
        return self._egress.get(name) or next(iter(self._egress.values()), self._ingress)

    async def _request(self, number: int, line: Line) -> None:
        route, handler = self._routes_of(line).find(line)
        exchange = Exchange(_request(number, line, route), line.client, self.clock.now())
        exchange.request_id = str(number)
        exchange.plane = "egress" if line.plane == "egress" else "ingress"
        response = await handler(exchange)
        how = "done"
        exchange.first_byte = self.clock.now()
        try:
            if isinstance(response.body, Stream):
                while await response.body.read():
                    pass
        except SidecarError:
            how = "broken"
        if exchange.on_sent is not None:
            exchange.on_sent(exchange, response, how)
        figures = self._figures.route(exchange.route)
        figures.price = self._prices.get(route.name, route.price or 0.0)
        figures.requests += 1
        figures.failed += response.status >= 500
        figures.seconds.append(self.clock.now() - exchange.started)
        if exchange.error is not None and not isinstance(exchange.error, UpstreamError):
            figures.rejected[exchange.error.code] += 1
        if exchange.cache:
            self._figures.looked_up(line.at, hit=exchange.cache in HITS)

    async def attempt(self, exchange: Exchange) -> Response:
        """Comes to what the log tells. Raises UpstreamError."""
        number = int(exchange.request_id)
        line = self._lines[number]
        wall = self.clock.wall()
        self._figures.called(exchange.route, wall)
        attempt = self._attempts[number]
        self._attempts[number] += 1
        said = self._recorded.attempt(number, attempt, line, wall)
        await self.clock.sleep(HANGS if said.error == AttemptTimeout.code else said.seconds)
        if said.error:
            raise _ERRORS.get(said.error, ConnectionReset)
        return Response(said.status, _fields(said), self._body(said.size, exchange.request.method))

    def _body(self, size: int, method: str) -> bytes:
        size = 0 if method == "HEAD" else min(size, LARGEST)
        body = self._bodies.get(size)
        if body is None:
            if len(self._bodies) >= 64:
                self._bodies.clear()
            body = self._bodies[size] = bytes(size)
        return body


def _request(number: int, line: Line, route: Route) -> Request:
    """A request that is to the cache what the one in the log was."""
    headers: list[Field] = []
    target = line.target
    body = b""
    if route.cache is not None:
        if REDACTED in target and line.key:
            target = target.replace(REDACTED, line.key.encode())
        if line.method not in {"GET", "HEAD"} and line.method in route.cache.methods:
            # Without a digest nobody knows whether two bodies are the same: then each is another.
            body = b'{"replay":"%b"}' % (line.key or str(number)).encode()
        headers += [Field(name.encode(), line.key.encode()) for name in route.cache.key.headers if line.key]
        if line.cache == "bypass" and line.key:
            headers.append(Field(b"Cache-Control", b"no-store"))
    limit = route.rate_limit
    if limit is not None and limit.key != "client":
        headers.append(Field(limit.key.removeprefix("header:").encode(), line.client.encode()))
    return Request(line.method, target, headers, body, host=b"replay")


def _fields(said: Said) -> list[Field]:
    fields: list[Field] = []
    if said.verdict:
        fields.append(Field(VERDICT, said.verdict.encode()))
    if said.lasts == FORBIDDEN:
        fields.append(Field(b"Vary", b"*"))
    elif said.lasts is not None:
        fields.append(Field(b"Cache-Control", b"max-age=%d" % said.lasts))
    return fields


def homes_of(loaded: Loaded) -> dict[str, str]:
    """The policy file of each route, by its name."""
    return {route.name: policy.name for policy in loaded.policies for route in policy.routes}


async def simulate(
    loop: VirtualLoop,
    name: str,
    loaded: Loaded,
    lines: Sequence[Line],
    recorded: Recorded,
    homes: Mapping[str, str],
    *,
    latency: float,
    prices: Mapping[str, float],
) -> Figures:
    """What the requests of a log, in order, would have come to under a configuration.

    `homes` are the policy files of the routes that the log names; `latency` as for `Recorded`; `prices` of a
    call, by route, go before those in the configuration.
    """
    figures = Figures(name, lines[0].at, lines[-1].at)
    await _Simulation(loop, loaded, lines, recorded, homes, figures, latency=latency, prices=prices).run()
    return figures

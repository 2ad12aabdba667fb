"""Routes that the sidecar answers itself."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.clock import Ids
from sidecar.config.addresses import Address
from sidecar.config.schema import PolicyFile
from sidecar.exchange import Exchange, Request, Response
from sidecar.generation import Generation
from sidecar.upstreams.pool import Upstream
from tests.support.script import Bench, shown

NOWHERE = Address("127.0.0.1", 1)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def generation(bench: Bench, *routes: dict[str, Any], **defaults: Any) -> Generation:
    """Compiled as the app compiles it; nothing listens where the upstream is."""
    written = [{**defaults, **route} for route in routes]
    policy = PolicyFile.model_validate({"name": "shop", "routes": written})
    app = Upstream("app", NOWHERE, clock=bench.clock, ids=Ids(), cells=bench.metrics.upstream("app"))
    return Generation([policy], {"shop": app}, app, bench.services)


async def ask(made: Generation, target: bytes, method: str = "GET") -> tuple[Exchange, Response]:
    exchange = Exchange(Request(method, target, [], host=b"shop"), "127.0.0.1", 1000.0)
    return exchange, await made.route(exchange)(exchange)


async def test_the_route_is_answered(bench: Bench) -> None:
    """With status, headers and body as written; no upstream is asked."""
    settings = {"status": 503, "headers": {"Retry-After": "60"}, "json": {"item": "{item}", "q": "{query.q}"}}
    made = generation(bench, {"name": "gone", "match": {"path": "/gone/{item}"}, "respond": settings})
    exchange, response = await ask(made, b"/gone/a%2Fb?q=1")
    assert (response.status, response.body) == (503, b'{"item":"a/b","q":"1"}')
    assert shown(response, "retry-after") == "60"
    assert shown(response, "sidecar-degraded") is None
    assert shown(response, "cache-control") is None
    assert (exchange.route, exchange.attempts, exchange.upstream) == ("gone", 0, "")
    assert exchange.note_list == [("respond", "status=503")]
    assert bench.metrics.upstream("app").connections_opened == 0


async def test_no_policy_has_a_part_in_it(bench: Bench) -> None:
    """A breaker from the file's defaults learns nothing from our own 503; nothing is retried or stored."""
    made = generation(
        bench,
        {"name": "gone", "match": {"path": "/gone"}, "respond": {"status": 503}},
        deadline="1s",
        retry={"attempts": 3},
        circuit_breaker={"consecutive": 1},
        cache={"ttl": "1m"},
        fallback=[{"respond": {"status": 200}}],
    )
    for _ in range(3):
        exchange, response = await ask(made, b"/gone")
        assert response.status == 503
        assert (exchange.breaker, exchange.cache, exchange.rung) == ("", "", "")
    assert bench.clock.slept == []


async def test_a_head(bench: Bench) -> None:
    """Gets what a GET would, without the body."""
    made = generation(bench, {"name": "gone", "respond": {"text": "gone"}})
    _, response = await ask(made, b"/", "HEAD")
    assert (response.body, response.header(b"content-length")) == (b"", b"4")


async def test_a_route_without_it_goes_on(bench: Bench) -> None:
    """The next route, to the upstream; here nobody listens."""
    made = generation(bench, {"name": "gone", "match": {"path": "/gone"}, "respond": {}}, {"name": "rest"})
    exchange, response = await ask(made, b"/other")
    assert (exchange.route, response.status, shown(response, "sidecar-error")) == (
        "rest",
        502,
        "connect_failed",
    )


async def test_a_rate_limit_holds_for_it_too(bench: Bench) -> None:
    """It protects the sidecar itself; no ladder softens it."""
    limit = {"rate": "1/m", "burst": 1}
    made = generation(bench, {"name": "gone", "respond": {"text": "gone"}, "rate_limit": limit})
    assert [(await ask(made, b"/"))[1].status for _ in range(2)] == [200, 429]
    laddered = {"name": "all", "rate_limit": limit, "fallback": [{"respond": {"text": "later"}}]}
    made = generation(bench, laddered)
    assert [(await ask(made, b"/"))[1].status for _ in range(2)] == [200, 429]

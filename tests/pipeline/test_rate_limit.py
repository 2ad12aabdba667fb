"""`rate_limit` among the other layers."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from sidecar.errors import ConnectionReset
from sidecar.exchange import Response
from sidecar.stores.found import Lost
from sidecar.stores.redis_wire import Answer
from sidecar.stores.resp import ReplyError
from tests.support.script import Bench, answer, content, fail, shown

THREE = {"rate": "1/s", "burst": 3}


class Server:
    """A stand-in for the links to a Redis: it gives the listed answers, and None where there is no link."""

    clustered = False
    ready = True

    def __init__(self, *answers: Answer | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[bytes, ...]] = []

    def link(self, key: bytes) -> Server:
        return self

    def call(self, *parts: bytes) -> asyncio.Future[Answer] | None:
        self.asked.append(parts)
        given = self.answers.pop(0)
        if given is None:
            return None
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        future.set_result(given)
        return future


def bench_with(server: Server, *outcomes: Any) -> Bench:
    return Bench(*(outcomes or (answer(),)), shared=server)  # type: ignore[arg-type]


def fields(response: Response) -> tuple[str | None, str | None]:
    return shown(response, "RateLimit-Policy"), shown(response, "RateLimit")


def notes(bench: Bench) -> list[Any]:
    return [exchange.note_list for exchange in bench.sent]


async def test_the_fourth_of_three_is_refused() -> None:
    """With 429, a problem document, Retry-After and what is left; the upstream is not asked."""
    bench = Bench(answer())
    send = bench.route(rate_limit=THREE)
    assert [(await send()).status for _ in range(4)] == [200, 200, 200, 429]
    assert len(bench.calls) == 3
    response = await send()
    assert response.status == 429
    assert shown(response, "Content-Type") == "application/problem+json"
    assert shown(response, "Sidecar-Error") == "rate_limited"
    assert shown(response, "Retry-After") == "1"
    assert fields(response) == ('"default";q=1;w=1', '"default";r=0;t=3')
    assert orjson.loads(await content(response))["status"] == 429


async def test_every_answer_says_what_is_left() -> None:
    """The quota as it is configured, and the burst as it is now."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1000/m", "burst": 20})
    assert fields(await send()) == ('"default";q=1000;w=60', '"default";r=19;t=1')
    assert fields(await send()) == ('"default";q=1000;w=60', '"default";r=18;t=1')
    await bench.clock.advance(10)
    assert fields(await send())[1] == '"default";r=19;t=1'


async def test_an_error_says_it_too() -> None:
    """An attempt that failed has cost the client a request like any other."""
    response = await Bench(fail(ConnectionReset())).route(rate_limit=THREE)()
    assert response.status == 502
    assert fields(response) == ('"default";q=1;w=1', '"default";r=2;t=1')


async def test_the_headers_of_the_upstream_stay() -> None:
    """Ours are added to what it said, and what it said is not changed for others."""
    bench = Bench(answer(200, b"ok", (b"RateLimit", b'"theirs";r=5'), (b"X-Own", b"1")))
    response = await bench.route(rate_limit=THREE)()
    lines = [(line.name, line.value) for line in response.headers]
    assert lines == [
        (b"ratelimit", b'"theirs";r=5'),
        (b"x-own", b"1"),
        (b"ratelimit-policy", b'"default";q=1;w=1'),
        (b"ratelimit", b'"default";r=2;t=1'),
    ]


async def test_clients_have_each_their_own() -> None:
    """By address; those of one IPv6 /64 are one client."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1})
    clients = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "192.0.2.1"]
    assert [(await send(client=client)).status for client in clients] == [200, 200, 200, 429, 429]


async def test_the_sidecar_itself_is_no_client() -> None:
    """What it asks for to warm its cache is not limited, and tells nobody of a limit."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1})
    responses = [await send(client="") for _ in range(5)]
    assert [(response.status, fields(response)) for response in responses] == [(200, (None, None))] * 5
    assert len(bench.metrics.buckets["all"]) == 0


async def test_by_a_header() -> None:
    """By the value of a header; without it by address."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1, "key": "header:X-API-Key"})
    asked: list[dict[str, str]] = [{"x_api_key": "a"}, {"x_api_key": "b"}, {"x_api_key": "a"}, {}, {}]
    assert [(await send(**headers)).status for headers in asked] == [200, 200, 429, 200, 429]


async def test_stands_above_the_cache() -> None:
    """A hit counts, too: the limit protects the sidecar itself. What is stored says nothing of a client."""
    bench = Bench(answer())
    send = bench.route(rate_limit=THREE, cache={"ttl": "1h"})
    responses = [await send() for _ in range(4)]
    assert [response.status for response in responses] == [200, 200, 200, 429]
    assert len(bench.calls) == 1
    assert [fields(response)[1] for response in responses[:3]] == [
        '"default";r=2;t=1',
        '"default";r=1;t=2',
        '"default";r=0;t=3',
    ]


async def test_a_refusal_is_not_retried() -> None:
    """It stands above retry, and is final."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1}, retry={"attempts": 5})
    await send()
    assert (await send()).status == 429
    assert bench.clock.slept == []


async def test_routes_count_by_themselves_unless_told_otherwise() -> None:
    """`scope: all` counts those of the same settings together."""
    bench = Bench(answer())
    own = {"rate": "1/h", "burst": 1}
    for scope, statuses in (("route", [200, 200]), ("all", [200, 429])):
        senders = [bench.route(f"{scope}-{name}", rate_limit={**own, "scope": scope}) for name in "ab"]
        assert [(await send()).status for send in senders] == statuses


async def test_counts_and_notes() -> None:
    """Refusals by route, and the clients that are remembered."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1})
    for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        await send(client=client)
    assert bench.metrics.routes["all"].rate_rejections == 1
    assert len(bench.metrics.buckets["all"]) == 2
    assert notes(bench) == [None, None, [("rate_limit", "rejected")]]


async def test_in_shadow_nobody_is_refused() -> None:
    """Noted and counted; and no client is told of a limit that does not bind it."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1, "mode": "shadow"})
    responses = [await send() for _ in range(3)]
    assert [(response.status, fields(response)) for response in responses] == [(200, (None, None))] * 3
    cells = bench.metrics.routes["all"]
    assert (cells.rate_rejections, cells.shadow_rejections) == (0, {"rate_limit": 2})
    assert notes(bench) == [None, *[[("rate_limit", "would-reject")]] * 2]


# -- shared --------------------------------------------------------------------------------------


async def test_what_the_server_says_counts() -> None:
    """Microseconds until the burst is whole, or, less than zero, to wait."""
    server = Server(2_000_000, -1_500_000)
    bench = bench_with(server)
    send = bench.route(rate_limit={**THREE, "shared": True})
    response = await send()
    assert (response.status, fields(response)[1]) == (200, '"default";r=1;t=2')
    response = await send()
    assert (response.status, shown(response, "Retry-After")) == (429, "2")
    assert len(bench.metrics.buckets["all"]) == 0


async def test_a_key_is_not_shown_to_the_server() -> None:
    """An API key stays here; routes and settings do not mix."""
    server = Server(1, 1, 1)
    bench = bench_with(server)
    limit = {**THREE, "shared": True, "key": "header:x-api-key"}
    for name, settings in (("a", limit), ("b", limit), ("a", {**limit, "burst": 4})):
        await bench.route(name, rate_limit=settings)(x_api_key="hunter2")
    keys = [parts[3] for parts in server.asked]
    assert len(set(keys)) == 3
    assert all(key.startswith(b"nextvision:#rate:") for key in keys)
    assert not any(b"hunter2" in part for parts in server.asked for part in parts)


GONE: list[Answer | None] = [None, Lost.TIMEOUT, Lost.RESET, ReplyError("OOM no memory"), b"what?"]


@pytest.mark.parametrize("gone", GONE, ids=str)
@pytest.mark.parametrize(
    ("failure", "statuses", "note"),
    [
        ("local", [200, 429], "local"),
        ("open", [200, 200], "open"),
        ("closed", [503, 503], "error=rate_limit_unavailable"),
    ],
)
async def test_without_an_answer_the_policy_decides(
    gone: Answer | None, failure: str, statuses: list[int], note: str
) -> None:
    """`local` counts here, `open` lets pass, `closed` refuses: 503, for it is not the client's fault."""
    bench = bench_with(Server(gone, gone))
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1, "shared": True, "failure": failure})
    responses = [await send() for _ in range(2)]
    assert [response.status for response in responses] == statuses
    noted = notes(bench)
    assert noted[0] == [("rate_limit", note)]
    assert ("rate_limit", note) in noted[1]
    assert bench.metrics.routes["all"].rate_unshared == 2
    if failure == "closed":
        assert shown(responses[0], "Sidecar-Error") == "rate_limit_unavailable"
        assert shown(responses[0], "Retry-After") == "1"
        assert bench.calls == []


async def test_a_shadow_of_a_closed_limit_refuses_nobody() -> None:
    """Without an answer it would have, and says so."""
    bench = bench_with(Server(None))
    limit = {**THREE, "shared": True, "failure": "closed", "mode": "shadow"}
    assert (await bench.route(rate_limit=limit)()).status == 200
    assert notes(bench) == [[("rate_limit", "would-reject")]]


async def test_shared_without_a_redis_counts_here() -> None:
    """A development machine has none: the limit still holds, in this process."""
    bench = Bench(answer())
    send = bench.route(rate_limit={"rate": "1/h", "burst": 1, "shared": True})
    assert [(await send()).status for _ in range(2)] == [200, 429]

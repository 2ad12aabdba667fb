"""When the retry layer repeats an attempt, how long it waits, and what it says of both."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.quantile import SEEDS
from sidecar.decisions.verdict import Verdict
from sidecar.errors import ConnectFailed, ConnectionReset, UpstreamError
from sidecar.exchange import Exchange, Request, Response
from sidecar.layers import retry
from tests.support.script import Bench, Outcome, answer, fail, hang, ok

QUICK = {"strategy": "fixed", "base": "100ms", "max": "100ms"}


def skipped(bench: Bench) -> dict[str, int]:
    return bench.metrics.route("all", "app").retries_skipped


def trail(bench: Bench, number: int = -1) -> list[tuple[str, str]]:
    """What the retry layer noted."""
    return [note for note in bench.sent[number].note_list or [] if note[0] == "retry"]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, 0.1),
        ({"retry_after": "3"}, 3.0),
        ({"retry_after": "0"}, 0.1),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:27 GMT"}, 7.0),
        ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "12s"}, 12.0),
        ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "250ms"}, 0.25),
        ({"x_ratelimit_remaining_requests": "7", "x_ratelimit_reset_requests": "12s"}, 0.1),
    ],
)
async def test_what_the_answer_asks_for_is_a_floor(headers: dict[str, str], wait: float) -> None:
    """The next attempt comes no sooner than the answer asks, in any of the forms that providers use."""
    bench = Bench(ok(b"", 429, **headers), ok())
    response = await bench.clock.complete(bench.route(retry={"attempts": 2, "backoff": QUICK})())
    assert response.status == 200
    assert bench.calls == [1000.0, pytest.approx(1000.0 + wait)]
    assert trail(bench) == [("retry", "rate_limited")]


@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "21"},
        {"retry_after_ms": "20001"},
        {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0s"},
    ],
)
async def test_beyond_the_patience_the_answer_is_passed_on_at_once(headers: dict[str, str]) -> None:
    """What asks for more than `retry_after_max` is not waited for: who stands above may do better."""
    bench = Bench(ok(b"", 429, **headers), ok())
    response = await bench.route(retry={"attempts": 2})()
    assert response.status == 429
    assert (len(bench.calls), bench.clock.slept) == (1, [])
    assert trail(bench) == [("retry", "skipped=retry-after")]
    assert skipped(bench) == {"retry-after": 1}


async def test_an_upstream_that_advises_against_it_is_obeyed() -> None:
    """`x-should-retry: false` ends the retrying, whatever the status."""
    bench = Bench(ok(b"", 503, x_should_retry="false"), ok())
    response = await bench.route(retry={"attempts": 3})()
    assert response.status == 503
    assert trail(bench) == [("retry", "skipped=x-should-retry")]


@pytest.mark.parametrize(("status", "calls"), [(503, 2), (404, 1)])
async def test_advice_to_retry_changes_nothing(status: int, calls: int) -> None:
    """`x-should-retry: true` has what the route retries retried, and nothing else."""
    bench = Bench(ok(b"", status, x_should_retry="true"), ok())
    await bench.clock.complete(bench.route(retry={"attempts": 3, "backoff": QUICK})())
    assert len(bench.calls) == calls


def judged(bench: Bench, verdict: Verdict, **settings: Any) -> Any:
    """A sender through the retry layer alone, over answers that have this verdict."""
    layer = retry.layer(bench._place("all", {"retry": settings}))
    assert layer is not None

    async def upstream(exchange: Exchange) -> Response:
        response = await bench._upstream(exchange)
        response.verdict = verdict if len(bench.calls) == 1 else Verdict.OK
        return response

    return bench._sender(layer(upstream))


@pytest.mark.parametrize(
    ("verdict", "calls", "said"),
    [
        (Verdict.OK, 1, []),
        (Verdict.NEGATIVE, 1, []),
        (Verdict.CLIENT, 1, []),
        (Verdict.TRANSIENT, 2, ["transient"]),
        (Verdict.RATE_LIMITED, 2, ["rate_limited"]),
        (Verdict.QUOTA, 1, ["skipped=quota"]),
        (Verdict.AUTH, 1, ["skipped=auth"]),
    ],
)
async def test_the_verdict_decides(verdict: Verdict, calls: int, said: list[str]) -> None:
    """On a 200 as on any other status; and the trail says of each failure why it was not repeated."""
    bench = Bench(answer(200))
    send = judged(bench, verdict, attempts=3, backoff=QUICK)
    await bench.clock.complete(send())
    assert len(bench.calls) == calls
    assert trail(bench) == [("retry", word) for word in said]


async def test_a_quota_is_not_retried_though_its_wait_is_short() -> None:
    """Neither a listed status nor a Retry-After of a second makes a spent quota worth another attempt."""
    bench = Bench(ok(b"", 429, retry_after="1"))
    send = judged(bench, Verdict.QUOTA, attempts=3, on={"statuses": [429]})
    assert (await send()).status == 429
    assert (len(bench.calls), bench.clock.slept) == (1, [])


@pytest.mark.parametrize(
    ("headers", "calls"),
    [
        ({"x_stainless_retry_count": "0"}, 3),
        ({"x_stainless_retry_count": "1"}, 1),
        ({"x_envoy_attempt_count": "1"}, 3),
        ({"x_envoy_attempt_count": "2"}, 1),
        ({"x_sidecar_retry": "1"}, 1),
    ],
)
@pytest.mark.parametrize(
    "outcome", [fail(ConnectFailed()), fail(ConnectionReset()), answer(503), answer(429)]
)
async def test_a_client_that_retries_gets_one_attempt(
    outcome: Outcome, headers: dict[str, str], calls: int
) -> None:
    """A request that says that it is a repetition is not repeated: its client does that."""
    bench = Bench(outcome)
    send = bench.route(retry={"attempts": 3, "backoff": QUICK})
    await bench.clock.complete(send(**headers))
    assert len(bench.calls) == calls
    assert trail(bench)[-1] == ("retry", "skipped=client-retries" if calls == 1 else "skipped=attempts")


async def test_a_client_that_retries_pays_for_nothing() -> None:
    """Its failing repetitions leave the budget as it was."""
    bench = Bench(answer(503))
    budget = {"ratio": "100%", "min_per_second": 0}
    send = bench.route(retry={"attempts": 2, "backoff": QUICK, "budget": budget})
    for _ in range(5):
        await send(x_stainless_retry_count="1")
    assert bench.metrics.budgets["app"].available(bench.clock.now()) == 0
    await bench.clock.complete(send(x_stainless_retry_count="0"))
    assert len(bench.calls) == 7


async def test_what_we_refused_pays_for_nothing() -> None:
    """Requests that an open breaker kept from the upstream allow no retries."""
    bench = Bench(fail(ConnectionReset()))
    budget = {"ratio": "100%", "min_per_second": 0}
    send = bench.route(retry={"attempts": 2, "backoff": QUICK, "budget": budget}, circuit_breaker={})
    for _ in range(20):
        await bench.clock.complete(send())
    available = bench.metrics.budgets["app"].available(bench.clock.now())
    assert available <= len(bench.calls)


async def test_no_attempt_that_cannot_finish() -> None:
    """With less time left than an attempt usually takes, none is made: the error is the answer."""

    async def takes_a_second(_: Exchange) -> Response:
        await bench.clock.sleep(1.0)
        return Response(200, [], b"ok")

    def fails_after(seconds: float) -> Outcome:
        async def outcome(_: Exchange) -> Response:
            await bench.clock.sleep(seconds)
            raise ConnectionReset

        return outcome

    bench = Bench(takes_a_second)
    send = bench.route(deadline="5s", retry={"attempts": 2, "backoff": QUICK})
    for _ in range(SEEDS):
        await bench.clock.complete(send())
    for seconds, calls, status in ((3.8, 2, 200), (3.95, 1, 502)):
        bench.calls.clear()
        bench.script = [fails_after(seconds), takes_a_second]
        response = await bench.clock.complete(send())
        assert (response.status, len(bench.calls)) == (status, calls)
    assert trail(bench) == [("retry", "skipped=deadline")]


async def test_while_nothing_is_known_attempts_are_made() -> None:
    """Before enough was seen, any time that is left is taken to be enough."""
    bench = Bench(fail(ConnectionReset()), ok())
    send = bench.route(deadline="200ms", retry={"attempts": 2, "backoff": QUICK})
    assert (await bench.clock.complete(send())).status == 200


# -- Idempotency-Key -----------------------------------------------------------------------------


def keys(bench: Bench) -> list[bytes]:
    """What the attempts had as their key, of those that the sidecar gave them."""
    return [
        line.partition(b": ")[2]
        for exchange in bench.seen
        for line in exchange.forwarded.split(b"\r\n")
        if line.startswith(b"Idempotency-Key: ")
    ]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_key_makes_a_post_repeatable(method: str) -> None:
    """Where the policy declares it, one key a request, the same on all attempts; another for the next."""
    bench = Bench(fail(ConnectionReset()), answer(503), ok(), ok())
    send = bench.route(retry={"attempts": 3, "backoff": QUICK, "idempotency_key": "true"})
    assert (await bench.clock.complete(send(method, b"{}"))).status == 200
    assert len(bench.calls) == 3
    first = set(keys(bench))
    assert len(first) == 1
    bench.seen.clear()
    await send(method, b"{}")
    assert len(first | set(keys(bench))) == 2
    key = first.pop()
    assert key.startswith(b'"')
    assert key.endswith(b'"')
    assert key[1:-1].isalnum()


async def test_the_clients_own_key_is_kept() -> None:
    """It is repeatable as well, and gets no second key."""
    bench = Bench(fail(ConnectionReset()), ok())
    send = bench.route(retry={"attempts": 2, "backoff": QUICK, "idempotency_key": "true"})
    assert (await bench.clock.complete(send("POST", b"{}", idempotency_key='"mine"'))).status == 200
    assert keys(bench) == []
    assert bench.seen[1].request.header(b"idempotency-key") == b'"mine"'


async def test_a_key_counts_only_where_the_policy_says_so() -> None:
    """A client may send one to an upstream that does not honour it: that POST is not repeated."""
    bench = Bench(fail(ConnectionReset()), ok())
    send = bench.route(retry={"attempts": 2, "backoff": QUICK})
    assert (await send("POST", b"{}", idempotency_key='"mine"')).status == 502
    assert keys(bench) == []
    assert trail(bench) == [("retry", "skipped=method")]


async def test_other_methods_need_no_key() -> None:
    """What is idempotent by itself gets none."""
    bench = Bench(ok())
    send = bench.route(retry={"attempts": 2, "idempotency_key": "true"})
    for method in ("GET", "PUT", "DELETE"):
        await send(method)
    assert keys(bench) == []


async def test_a_request_that_goes_elsewhere_keeps_its_key() -> None:
    """Passed through the layer a second time, as for another upstream, it gets no second key."""
    bench = Bench(answer(503))
    layer = retry.layer(bench._place("all", {"retry": {"attempts": 2, "idempotency_key": "true"}}))
    assert layer is not None
    exchange = Exchange(Request("POST", b"/", []), "", bench.clock.now())
    for _ in range(2):
        await layer(bench._upstream)(exchange)
    assert exchange.forwarded.count(b"Idempotency-Key") == 1


async def test_the_adaptive_back_off_learns() -> None:
    """Failures lengthen its delays, successes shorten them again."""
    bench = Bench(answer(503), answer(503), answer(503), ok())
    backoff = {"strategy": "adaptive", "base": "100ms", "max": "10s"}
    send = bench.route(retry={"attempts": 2, "backoff": backoff, "budget": "off"})
    await bench.clock.complete(send())
    await bench.clock.complete(send())
    for _ in range(20):
        await send()
    bench.script = [answer(503)]
    await bench.clock.complete(send())
    first, second, third = bench.clock.slept
    assert second > first
    assert third < second


# -- another address -----------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [fail(ConnectFailed()), answer(503)])
async def test_a_retry_avoids_the_address_that_failed(outcome: Outcome) -> None:
    """Each attempt is told which addresses have failed this request before."""
    told: list[tuple[str, ...]] = []

    def at(address: str, outcome: Outcome) -> Outcome:
        async def attempt(exchange: Exchange) -> Response:
            told.append(exchange.avoid)
            exchange.address = address
            response: Response = await outcome(exchange)
            return response

        return attempt

    bench = Bench(at("10.0.0.1", outcome), at("10.0.0.2", outcome), at("10.0.0.3", ok()))
    await bench.clock.complete(bench.route(retry={"attempts": 3, "backoff": QUICK})())
    assert told == [(), ("10.0.0.1",), ("10.0.0.1", "10.0.0.2")]


async def test_no_reason_is_unknown_to_metrics() -> None:
    """The reasons are few: every skip of every cause stays far below the bound on label values."""
    reasons: set[str] = set()
    causes: list[tuple[Outcome, dict[str, Any], dict[str, str]]] = [
        (answer(503), {"attempts": 2, "budget": {"ratio": "0%", "min_per_second": 0}}, {}),
        (answer(503), {"attempts": 2, "backoff": {**QUICK, "base": "9s", "max": "9s"}}, {}),
        (answer(503), {"attempts": 2, "backoff": QUICK}, {}),
        (answer(401), {"attempts": 2}, {}),
        (fail(ConnectionReset()), {"attempts": 2, "on": {"errors": ["connect"]}}, {}),
        (ok(b"", 503, retry_after="99"), {"attempts": 2}, {}),
        (ok(b"", 503, x_should_retry="false"), {"attempts": 2}, {}),
        (answer(503), {"attempts": 2}, {"x_stainless_retry_count": "1"}),
    ]
    for outcome, settings, headers in causes:
        bench = Bench(outcome)
        await bench.clock.complete(bench.route(deadline="5s", retry=settings)(**headers))
        reasons |= set(skipped(bench))
    assert reasons == {
        "attempts",
        "auth",
        "budget",
        "client-retries",
        "deadline",
        "not-listed",
        "retry-after",
        "x-should-retry",
    }


async def test_an_error_beyond_the_list_is_raised_as_it_is() -> None:
    """The error of the last attempt is the answer, unchanged."""
    error: UpstreamError = ConnectionReset("by peer")
    bench = Bench(fail(error))
    await bench.clock.complete(bench.route(retry={"attempts": 2, "backoff": QUICK})())
    assert bench.sent[0].error is error


async def test_a_hanging_attempt_without_limits_is_waited_for() -> None:
    """Retry has no timer of its own."""
    bench = Bench(hang())
    sent = bench.route(retry={"attempts": 2})()
    await bench.clock.advance(3600)
    assert not sent.done()
    sent.cancel()


# -- with verdicts from the body -------------------------------------------------------------------

RULES = [
    {"json": {"status": "OVER_QUERY_LIMIT", "error_message": "*daily*"}, "verdict": "quota"},
    {"json": {"status": "OVER_QUERY_LIMIT"}, "verdict": "rate_limited"},
    {"json": {"status": "UNKNOWN_ERROR"}, "verdict": "transient"},
    {"json": {"status": "REQUEST_DENIED"}, "verdict": "auth"},
    {"json": {"status": "INVALID_REQUEST"}, "verdict": "client"},
]
TOO_FAST = b'{"status": "OVER_QUERY_LIMIT"}'
SPENT = b'{"status": "OVER_QUERY_LIMIT", "error_message": "daily quota"}'


@pytest.mark.parametrize(
    ("body", "headers", "calls", "waited", "breaker"),
    [
        (TOO_FAST, {"retry_after": "4"}, 3, [4.0, 4.0], "closed"),
        (TOO_FAST, {"retry_after": "6"}, 1, [], "closed"),
        (TOO_FAST, {}, 3, [0.1, 0.1], "closed"),
        (SPENT, {"retry_after": "1"}, 1, [], "closed"),
        (b'{"status": "REQUEST_DENIED"}', {}, 1, [], "closed"),
        (b'{"status": "INVALID_REQUEST"}', {}, 1, [], "closed"),
        (b'{"status": "UNKNOWN_ERROR"}', {"retry_after": "6"}, 1, [], "open"),
    ],
)
async def test_a_200_that_is_none(
    body: bytes, headers: dict[str, str], calls: int, waited: list[float], breaker: str
) -> None:
    """Its body decides whether it is repeated, how long that waits, and what the breaker makes of it."""
    bench = Bench(ok(body, 200, **headers))
    send = bench.route(
        classify=RULES,
        retry={"attempts": 3, "backoff": QUICK, "retry_after_max": "5s"},
        circuit_breaker={"consecutive": 1, "open_for": "1h", "open_max": "1h"},
    )
    response = await bench.clock.complete(send())
    assert (response.status, response.body) == (200, body)
    assert len(bench.calls) == calls
    assert bench.clock.slept == waited
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == breaker

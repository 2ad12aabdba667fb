"""How the ladder acts together with the layers below it: settings, outcomes, and what must follow."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import AttemptTimeout, CircuitOpen, ConnectFailed, ConnectionReset, QuotaHeld
from sidecar.exchange import Response
from tests.support.clock import settle
from tests.support.script import Bench, answer, fail, hang, ok, shown

BREAKER: dict[str, Any] = {"consecutive": 2, "open_for": "10s", "half_open_probes": 1}
QUICK: dict[str, Any] = {"strategy": "fixed", "base": "100ms", "max": "100ms"}
BACKUP = "http://backup.example.com"
LATER: dict[str, Any] = {"respond": {"json": {"status": "later"}}}
STALE: dict[str, Any] = {"ttl": "10s", "stale_if_error": "1h"}
WHOLE: dict[str, Any] = {
    "deadline": "8s",
    "attempt_timeout": "3s",
    "retry": {"attempts": 2, "backoff": QUICK},
    "circuit_breaker": BREAKER,
    "cache": STALE,
    "fallback": [{"upstream": BACKUP, "attempt_timeout": "1s"}, LATER],
}


async def open_breaker(bench: Bench) -> None:
    script, bench.script = bench.script, [fail(ConnectionReset())]
    opener = bench.route("opener", circuit_breaker=BREAKER)
    for _ in range(2):
        await opener()
    bench.script, bench.calls[:] = script, []


async def test_a_stale_entry_goes_before_the_ladder() -> None:
    """Row 2. Breaker open, stale entry inside stale-if-error: 200 stale, fallback unused."""
    bench = Bench(ok(b"one"))
    send = bench.route(circuit_breaker=BREAKER, cache=STALE, fallback=[LATER])
    await send()
    await bench.clock.advance(11)
    await open_breaker(bench)
    response = await send()
    assert (response.status, response.body) == (200, b"one")
    assert shown(response, "sidecar-degraded") == "stale"
    assert bench.calls == []
    assert bench.sent[-1].rung == "stale"
    assert bench.metrics.route("all", "app").fallbacks == {"stale": 1}


async def test_a_fallback_is_not_stored() -> None:
    """Row 3. Breaker open, no entry, fallback set: fallback served; the next request is still a miss."""
    bench = Bench(ok(b"one"))
    send = bench.route(circuit_breaker=BREAKER, cache=STALE, fallback=[LATER])
    await open_breaker(bench)
    response = await send()
    assert (response.status, response.body) == (200, b'{"status":"later"}')
    assert shown(response, "sidecar-degraded") == "fallback;rung=respond"
    assert (bench.calls, bench.clock.slept) == ([], [])
    await bench.clock.advance(10)
    response = await send()
    assert (response.body, bench.sent[-1].cache) == (b"one", "miss")


async def test_the_whole_ladder() -> None:
    """Fresh, stale while revalidating, stale for an error, another upstream, a template, a problem."""
    cache = {"ttl": "10s", "stale_while_revalidate": "10s", "stale_if_error": "30s"}
    down = fail(ConnectFailed())
    bench = Bench(ok(b"real"), down)
    bench.others[BACKUP] = [ok(b"backup"), down]
    steps = [{"upstream": BACKUP}, {**LATER, "on": ["transient"]}]
    send = bench.route(cache=cache, fallback=steps)
    seen: list[tuple[object, str | None, str]] = []

    async def ask() -> None:
        response = await send()
        await settle()
        seen.append((response.body, shown(response, "sidecar-degraded"), bench.sent[-1].rung))

    for seconds in (0, 5, 10, 10, 20, 0):
        await bench.clock.advance(seconds)
        await ask()
    bench.script = [fail(QuotaHeld())]
    await bench.clock.advance(1)
    await ask()
    *answers, (last, *_) = seen
    assert answers == [
        (b"real", None, ""),
        (b"real", None, ""),
        (b"real", None, ""),  # stale, while a refresh fails in the background
        (b"real", "stale", "stale"),
        (b"backup", "fallback;rung=upstream", "upstream"),
        (b'{"status":"later"}', "fallback;rung=respond", "respond"),
    ]
    assert isinstance(last, bytes)
    assert b'"code":"quota_held"' in last
    assert bench.metrics.route("all", "app").fallbacks == {
        "stale": 1,
        "upstream": 1,
        "respond": 1,
        "problem": 1,
    }


async def test_retries_come_before_the_ladder() -> None:
    """A failure that a second attempt mends is nobody's business."""
    bench = Bench(fail(ConnectionReset()), ok(b"real"))
    send = bench.route(retry={"attempts": 2, "backoff": QUICK}, fallback=[LATER])
    response = await bench.clock.complete(send())
    assert (response.body, bench.sent[0].rung) == (b"real", "")


async def test_an_open_breaker_asks_the_other_upstream_at_once() -> None:
    """The first is not called, nobody sleeps, and a POST may go: nothing was sent."""
    bench = Bench(ok(b"real"))
    bench.others[BACKUP] = [ok(b"backup")]
    send = bench.route(**{**WHOLE, "cache": "off"})
    await open_breaker(bench)
    response = await send("POST", b"body")
    assert response.body == b"backup"
    assert (bench.calls, bench.clock.slept) == ([], [])


async def test_a_failing_other_upstream_does_not_open_the_first_ones_breaker() -> None:
    """Each upstream is judged by its own attempts."""
    bench = Bench(answer(429))
    bench.others[BACKUP] = [fail(ConnectionReset())]
    steps = [{"upstream": BACKUP, "circuit_breaker": BREAKER}, LATER]
    send = bench.route(circuit_breaker=BREAKER, fallback=steps)
    for _ in range(5):
        assert (await send()).status == 200
    now = bench.clock.now()
    states = {name: cells.breaker.state(now).value for name, cells in bench.metrics.breakers.items()}
    assert states == {"app": "closed", BACKUP: "open"}
    assert (len(bench.calls), len(bench.asked)) == (5, 2)


async def test_a_slot_is_free_before_the_ladder_is_climbed() -> None:
    """The concurrency limit of the first upstream holds nothing for the second."""
    bench = Bench(answer(503))
    bench.others[BACKUP] = [hang()]
    send = bench.route(concurrency_limit={"max": 1}, fallback=[{"upstream": BACKUP}])
    waiting = send()
    await settle()
    assert bench.metrics.limits["app"].in_flight == 0
    waiting.cancel()


def seen_by_the_client(response: Response) -> str:
    """The rung, by what is on the wire alone; `normal` where none was needed."""
    degraded = shown(response, "sidecar-degraded")
    if degraded is not None:
        return degraded.removeprefix("fallback;rung=")
    return "problem" if response.status >= 500 or response.status == 429 else "normal"


OUTCOMES = {
    "ok": ok(b"new"),
    "missing": answer(404),
    "busy": answer(429),
    "down": answer(503),
    "refused": fail(ConnectFailed()),
    "reset": fail(ConnectionReset()),
    "slow": fail(AttemptTimeout()),
    "open": fail(CircuitOpen()),
    "quota": fail(QuotaHeld()),
    "hang": hang(),
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(OUTCOMES)), st.sampled_from([0.0, 0.5, 6.0, 11.0, 70.0]), st.integers(0, 2)
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=5), st.booleans())
async def test_the_sums_are_equal(
    steps: list[tuple[str, float, int]], backup: list[str], template: bool
) -> None:
    """Answers by rung, and those that needed none, are all answers, as counted and as clients saw them."""
    bench = Bench(ok(b"new"))
    bench.others[BACKUP] = [OUTCOMES[word] for word in backup]
    ladder = WHOLE["fallback"] if template else WHOLE["fallback"][:1]
    cache = {"ttl": "10s", "stale_while_revalidate": "5s", "stale_if_error": "1m"}
    send = bench.route(**{**WHOLE, "cache": cache, "fallback": ladder})
    saw: Counter[str] = Counter()
    for outcome, seconds, key in steps:
        bench.script = [OUTCOMES[outcome]]
        await bench.clock.advance(seconds)
        saw[seen_by_the_client(await bench.clock.complete(send(target=b"/%d" % key)))] += 1
    assert Counter(exchange.rung or "normal" for exchange in bench.sent) == saw
    counted = bench.metrics.route("all", "app").fallbacks
    assert {rung: count for rung, count in saw.items() if rung != "normal"} == counted
    assert sum(counted.values()) + saw["normal"] == len(bench.sent)


async def test_a_whole_ladder_is_idle_when_all_is_well() -> None:
    """Nothing is noted, counted or added where the upstream answers."""
    bench = Bench(ok(b"real"))
    bench.others[BACKUP] = [ok(b"backup")]
    response = await bench.route(**WHOLE)()
    assert shown(response, "sidecar-degraded") is None
    assert bench.sent[0].note_list is None
    assert bench.metrics.route("all", "app").fallbacks == {}
    assert bench.asked == []

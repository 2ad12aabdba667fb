"""From the trail alone a checker recomputes what the client got: status and rung, in each of these scenarios.

Each is a row: the policies, what the upstream comes to, what happened before, the request, and its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest

from sidecar.config.schema import Route
from sidecar.decisions.trail import Member, parse
from sidecar.errors import BodyTooLarge, ConnectFailed, ConnectionReset
from sidecar.exchange import Exchange, Response, Stream
from sidecar.pipeline import compile_pipeline
from sidecar.responder import Responder
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.sink import Make, Sink
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, Send, after, answer, fail, hang, ok
from tests.support.trail_checker import Conclusion, conclude

QUICK = {"strategy": "fixed", "base": "100ms", "max": "100ms"}
RETRY: dict[str, Any] = {"attempts": 3, "backoff": QUICK}
BREAKER: dict[str, Any] = {"consecutive": 1, "open_for": "10s", "half_open_probes": 1}
CACHE: dict[str, Any] = {"ttl": "10s", "stale_if_error": "1h", "probe_interval": "off"}
BACKUP = "http://backup.example"
ASK: dict[str, Any] = {"upstream": BACKUP}
LATER: dict[str, Any] = {"respond": {"status": 200, "json": {"status": "later"}}}
RULES = [
    {"json": {"status": "OVER_QUERY_LIMIT", "error_message": "*daily*"}, "verdict": "quota"},
    {"json": {"status": "OVER_QUERY_LIMIT"}, "verdict": "rate_limited"},
    {"json": {"status": "ZERO_RESULTS"}, "verdict": "negative"},
    {"json": {"status": "LIE"}, "verdict": "ok", "degraded": "google-maps"},
]
HEDGE: dict[str, Any] = {"attempts": 2, "backoff": QUICK, "hedge": {"after": "100ms"}}

Before = Callable[[Bench, Send], Awaitable[None]]


def body(status: str, **members: str) -> Outcome:
    """A Google-like answer: 200, whatever it says."""
    return ok(orjson.dumps({"status": status, **members}), content_type="application/json")


async def nothing(bench: Bench, send: Send) -> None: ...


def stored(seconds: float) -> Before:
    """The answer was stored so many seconds ago."""

    async def before(bench: Bench, send: Send) -> None:
        await bench.clock.complete(send())
        await bench.clock.advance(seconds)

    return before


def asked(times: int, then: float = 0.0) -> Before:
    """So many requests came before, one after the other; then so many seconds passed."""

    async def before(bench: Bench, send: Send) -> None:
        for _ in range(times):
            await bench.clock.complete(send())
        await bench.clock.advance(then)

    return before


def stored_then_opened(seconds: float) -> Before:
    """Something is stored; after so many seconds another request opens the breaker."""

    async def before(bench: Bench, send: Send) -> None:
        await send()
        await bench.clock.advance(seconds)
        await send(target=b"/other")

    return before


async def one_in_flight(bench: Bench, send: Send) -> None:
    send(target=b"/in-flight")
    await settle()


def both(*befores: Before) -> Before:
    async def before(bench: Bench, send: Send) -> None:
        for each in befores:
            await each(bench, send)

    return before


@dataclass
class Row:
    policies: dict[str, Any]
    script: list[Outcome]
    status: int
    rung: str = ""
    before: Before = nothing
    request: dict[str, Any] = field(default_factory=dict)
    others: list[Outcome] = field(default_factory=list)
    """What the backup comes to."""
    waited: float = 0.0
    """Seconds that the request has waited when its turn comes."""
    says: str = ""
    """A decision that must be in the trail: that the row is about what it says."""


RESET, REFUSED = fail(ConnectionReset()), fail(ConnectFailed())

SCENARIOS: dict[str, Row] = {
    # -- nothing asked for
    "pass-through": Row({}, [answer()], 200, says="upstream;status=200"),
    "a client error": Row({}, [answer(404)], 404, says="classify;client"),
    "a failure": Row({}, [answer(500)], 500, says="classify;transient"),
    "no connection": Row({}, [REFUSED], 502, says="upstream;error=connect_failed"),
    "a body over the limit": Row({}, [fail(BodyTooLarge())], 413, says="upstream;error=body_too_large"),
    # -- retry
    "repeated once": Row({"retry": RETRY}, [answer(503), answer()], 200, says="retry;transient"),
    "repeated twice": Row({"retry": RETRY}, [RESET, RESET, answer()], 200, says="retry;reset"),
    "all attempts in vain": Row({"retry": RETRY}, [answer(503)], 503, says="retry;skipped=attempts"),
    "another failure at last": Row({"retry": RETRY}, [answer(503), RESET], 502),
    "an unsafe method": Row(
        {"retry": RETRY}, [answer(503)], 503, request={"method": "POST"}, says="retry;skipped=method"
    ),
    "an unsafe method, nothing sent": Row(
        {"retry": RETRY}, [REFUSED, answer(201)], 201, request={"method": "POST"}, says="retry;connect"
    ),
    "no budget": Row(
        {"retry": {**RETRY, "budget": {"ratio": "0%", "min_per_second": 0}}},
        [RESET],
        502,
        says="retry;skipped=budget",
    ),
    "no time left": Row(
        {"deadline": "1s", "retry": {**RETRY, "backoff": {**QUICK, "base": "2s", "max": "2s"}}},
        [answer(503)],
        503,
        says="retry;skipped=deadline",
    ),
    "asked for too much patience": Row(
        {"retry": RETRY}, [ok(status=503, retry_after="3600")], 503, says="retry;skipped=retry-after"
    ),
    # -- time
    "an attempt too slow": Row({"attempt_timeout": "1s"}, [hang()], 504, says="attempt_timeout;expired"),
    "too slow, then not": Row({"attempt_timeout": "1s", "retry": RETRY}, [hang(), answer()], 200),
    "the deadline ends it": Row({"deadline": "2s", "retry": RETRY}, [hang()], 504),
    "the deadline had passed": Row(
        {"deadline": "2s"}, [answer()], 504, waited=3.0, says="attempt_timeout;rejected"
    ),
    # -- circuit breaker
    "open": Row({"circuit_breaker": BREAKER}, [RESET], 503, before=asked(1), says="circuit_breaker;rejected"),
    "opened by the first attempt": Row(
        {"circuit_breaker": BREAKER, "retry": RETRY}, [RESET], 503, says="circuit_breaker;rejected"
    ),
    "a probe": Row(
        {"circuit_breaker": BREAKER},
        [RESET, answer()],
        200,
        before=asked(1, then=10),
        says="circuit_breaker;half_open",
    ),
    "a probe that fails": Row({"circuit_breaker": BREAKER}, [RESET], 502, before=asked(1, then=10)),
    "another probe is out": Row(
        {"circuit_breaker": BREAKER}, [RESET, hang()], 503, before=both(asked(1, then=10), one_in_flight)
    ),
    "open in shadow": Row(
        {"circuit_breaker": {**BREAKER, "mode": "shadow"}},
        [RESET, answer()],
        200,
        before=asked(1),
        says="circuit_breaker;would-reject",
    ),
    "open in shadow, failing, repeated": Row(
        {"circuit_breaker": {**BREAKER, "mode": "shadow"}, "retry": RETRY},
        [REFUSED, REFUSED, answer()],
        200,
        says="circuit_breaker;would-reject",
    ),
    # -- concurrency limit
    "full": Row(
        {"concurrency_limit": {"max": 1}},
        [hang()],
        503,
        before=one_in_flight,
        says="concurrency_limit;rejected",
    ),
    "queued": Row(
        {"concurrency_limit": {"max": 1, "queue": "5s"}},
        [after(1, answer()), answer()],
        200,
        before=one_in_flight,
        says="concurrency_limit;queued",
    ),
    "full in shadow": Row(
        {"concurrency_limit": {"max": 1, "mode": "shadow"}},
        [hang(), answer()],
        200,
        before=one_in_flight,
        says="concurrency_limit;would-reject",
    ),
    # -- rate limit
    "too often": Row(
        {"rate_limit": {"rate": "1/m", "burst": 1}},
        [answer()],
        429,
        before=asked(1),
        says="rate_limit;rejected",
    ),
    "too often in shadow": Row(
        {"rate_limit": {"rate": "1/m", "burst": 1, "mode": "shadow"}},
        [answer()],
        200,
        before=asked(1),
        says="rate_limit;would-reject",
    ),
    "nobody can count": Row(
        {"rate_limit": {"rate": "1/m", "shared": True, "failure": "closed"}},
        [answer()],
        503,
        says="rate_limit;error=rate_limit_unavailable",
    ),
    "counted here alone": Row(
        {"rate_limit": {"rate": "1/m", "shared": True}}, [answer()], 200, says="rate_limit;local"
    ),
    # -- pace
    "a turn in time": Row(
        {"pace": {"rate": "1/s", "burst": 1, "patience": "5s"}},
        [answer()],
        200,
        before=asked(1),
        says="pace;waited=1.000",
    ),
    "no turn in time": Row(
        {"pace": {"rate": "1/m", "burst": 1, "patience": "5s"}},
        [answer()],
        503,
        before=asked(1),
        says="pace;rejected=patience",
    ),
    "a quota that is used up": Row(
        {"pace": {}, "classify": RULES},
        [body("OVER_QUERY_LIMIT", error_message="daily quota")],
        503,
        before=asked(1),
        says="pace;rejected=held",
    ),
    "a template while a quota is held": Row(
        {"pace": {}, "classify": RULES, "fallback": [LATER]},
        [body("OVER_QUERY_LIMIT", error_message="daily quota")],
        200,
        "respond",
        before=asked(1),
        says="pace;rejected=held",
    ),
    "no turn, in shadow": Row(
        {"pace": {"rate": "1/m", "burst": 1, "patience": "5s", "mode": "shadow"}},
        [answer()],
        200,
        before=asked(1),
        says="pace;would-reject",
    ),
    # -- cache
    "a miss": Row({"cache": CACHE}, [answer()], 200, says="cache;miss"),
    "a hit": Row({"cache": CACHE}, [answer(), RESET], 200, before=stored(5), says="cache;hit;status=200"),
    "a hit that says 404": Row(
        {"cache": {**CACHE, "negative_ttl": "1m"}},
        [ok(status=404, cache_control="max-age=60")],
        404,
        before=stored(5),
        says="cache;hit;status=404",
    ),
    "a condition of the client": Row(
        {"cache": CACHE},
        [ok(etag='"a"')],
        304,
        before=stored(5),
        request={"if_none_match": '"a"'},
        says="cache;hit;status=304",
    ),
    "a condition, and nothing stored": Row(
        {"cache": CACHE}, [ok(etag='"a"')], 304, request={"if_none_match": '"a"'}, says="cache;not_modified"
    ),
    "a part": Row(
        {"cache": CACHE},
        [ok(b"0123456789")],
        206,
        before=stored(5),
        request={"range": "bytes=0-3"},
        says="cache;hit;status=206",
    ),
    "stale while it is refreshed": Row(
        {"cache": {"ttl": "10s", "stale_while_revalidate": "1m"}},
        [answer()],
        200,
        before=stored(11),
        says="cache;updating;status=200",
    ),
    "stale, and the client takes it": Row(
        {"cache": CACHE},
        [answer(), RESET],
        200,
        before=stored(11),
        request={"cache_control": "max-stale"},
        says="cache;stale;status=200",
    ),
    "stale for an error": Row(
        {"cache": CACHE}, [answer(), RESET], 200, "stale", before=stored(11), says="cache;stale;rung=stale"
    ),
    "stale for a failure": Row({"cache": CACHE}, [answer(), answer(503)], 200, "stale", before=stored(11)),
    "stale after repetitions": Row(
        {"cache": CACHE, "retry": RETRY}, [answer(), answer(503), RESET], 200, "stale", before=stored(11)
    ),
    "stale for an open breaker": Row(
        {"cache": CACHE, "circuit_breaker": BREAKER},
        [answer(), RESET],
        200,
        "stale",
        before=stored_then_opened(11),
        says="circuit_breaker;rejected",
    ),
    "stale without asking": Row(
        {"cache": {**CACHE, "probe_interval": "5s"}},
        [answer(), RESET],
        200,
        "stale",
        before=both(stored(11), asked(1)),
        says="cache;stale;rung=stale;status=200",
    ),
    "validated": Row(
        {"cache": CACHE},
        [ok(etag='"a"'), answer(304)],
        200,
        before=stored(11),
        says="cache;revalidated;status=200",
    ),
    "past the cache": Row(
        {"cache": CACHE}, [answer(503)], 503, request={"cache_control": "no-store"}, says="cache;bypass"
    ),
    "an unsafe method past it": Row({"cache": CACHE}, [answer(201)], 201, request={"method": "POST"}),
    "only what is stored": Row(
        {"cache": CACHE},
        [answer()],
        504,
        request={"cache_control": "only-if-cached"},
        says="cache;miss;error=only_if_cached",
    ),
    "another's fill": Row(
        {"cache": CACHE},
        [after(1, answer())],
        200,
        before=lambda bench, send: one_in_flight(bench, lambda **_: send()),
        says="cache;collapsed;status=200",
    ),
    "another's fill that fails": Row(
        {"cache": CACHE},
        [after(1, RESET)],
        502,
        before=lambda bench, send: one_in_flight(bench, lambda **_: send()),
        says="cache;collapsed;error=upstream_reset",
    ),
    # -- verdicts
    "a limit in the body, twice": Row(
        {"classify": RULES, "retry": RETRY, "circuit_breaker": BREAKER},
        [body("OVER_QUERY_LIMIT"), body("OVER_QUERY_LIMIT"), body("OK")],
        200,
        says="retry;rate_limited",
    ),
    "nothing found": Row({"classify": RULES}, [body("ZERO_RESULTS")], 200, says="classify;negative"),
    "made without its provider": Row(
        {"classify": RULES, "cache": CACHE}, [body("LIE")], 200, says="classify;ok;degraded=google-maps"
    ),
    # -- fallback
    "not needed": Row({"fallback": [LATER]}, [answer()], 200, says="fallback;ok"),
    "a template": Row(
        {"fallback": [LATER]}, [answer(503)], 200, "respond", says="fallback;rung=respond;status=200"
    ),
    "a template after all attempts": Row(
        {"fallback": [LATER], "retry": RETRY}, [RESET], 200, "respond", says="retry;skipped=attempts"
    ),
    "a template for a timeout": Row({"fallback": [LATER], "attempt_timeout": "1s"}, [hang()], 200, "respond"),
    "a template for an open breaker": Row(
        {"fallback": [LATER], "circuit_breaker": BREAKER}, [RESET], 200, "respond", before=asked(1)
    ),
    "a template for a used-up quota": Row(
        {"fallback": [LATER], "classify": RULES, "retry": RETRY},
        [body("OVER_QUERY_LIMIT", error_message="daily quota")],
        200,
        "respond",
        says="classify;quota",
    ),
    "a template for another's fill": Row(
        {"fallback": [LATER], "cache": CACHE},
        [after(1, RESET)],
        200,
        "respond",
        before=lambda bench, send: one_in_flight(bench, lambda **_: send()),
    ),
    "stale goes first": Row(
        {"fallback": [LATER], "cache": CACHE}, [answer(), RESET], 200, "stale", before=stored(11)
    ),
    "another upstream": Row({"fallback": [ASK, LATER]}, [answer(503)], 201, "upstream", others=[answer(201)]),
    "another upstream says that there is none": Row(
        {"fallback": [ASK]}, [RESET], 404, "upstream", others=[answer(404)]
    ),
    "another upstream repeats too": Row(
        {"fallback": [{**ASK, "retry": RETRY}, LATER]}, [RESET], 200, "upstream", others=[REFUSED, answer()]
    ),
    "another upstream in vain": Row(
        {"fallback": [ASK, LATER]},
        [answer(503)],
        200,
        "respond",
        others=[RESET],
        says="fallback;failed=upstream_reset",
    ),
    "no rung has an answer": Row({"fallback": [ASK]}, [answer(503)], 503, "problem", others=[answer(500)]),
    "no rung, and an error": Row({"fallback": [ASK]}, [RESET], 502, "problem", others=[RESET]),
    "no rung for an unsafe method": Row(
        {"fallback": [ASK]},
        [answer(503)],
        503,
        "problem",
        request={"method": "POST"},
        says="fallback;skipped=method",
    ),
    "none of its affair": Row({"fallback": [LATER]}, [answer(401)], 401, says="fallback;declined"),
    # -- faults
    "an injected reset": Row({"fault": {"reset": True}}, [answer()], 502, says="fault;reset"),
    "an injected answer, repeated": Row(
        {"fault": {"first": 1, "respond": {"status": 503}}, "retry": RETRY},
        [answer()],
        200,
        says="fault;respond=503",
    ),
    "injected latency": Row({"fault": {"delay": "5s"}, "attempt_timeout": "1s"}, [answer()], 504),
    # -- hedges
    "a hedge is faster": Row({"retry": HEDGE}, [hang(), answer()], 200, says="retry;hedge-won"),
    "a hedge says that there is none": Row(
        {"retry": HEDGE}, [hang(), answer(404)], 404, says="retry;hedge-won"
    ),
    "a hedge too late": Row({"retry": HEDGE}, [after(0.2, answer()), hang()], 200, says="retry;hedge-lost"),
    "a hedge in vain": Row(
        {"retry": HEDGE}, [after(0.2, answer()), answer(503)], 200, says="upstream;status=503;hedge"
    ),
    "a hedge for one that failed": Row(
        {"retry": HEDGE}, [after(0.2, RESET), after(0.3, answer())], 200, says="retry;hedge-won"
    ),
    "both in vain": Row(
        {"retry": HEDGE}, [after(0.2, RESET), after(0.3, answer(503))], 503, says="retry;hedge-failed"
    ),
}


class Lines(Sink):
    """Keeps the lines of the access log."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.lines: list[dict[str, Any]] = []

    def write(self, data: bytes, lines: int = 1) -> None:
        self.lines += [orjson.loads(line) for line in data.splitlines()]

    def write_made(self, make: Make, lines: int) -> None:
        self.write(make(), lines)


def told(response: Response) -> bytes:
    """What `Sidecar-Decision` says."""
    [value] = [line.value for line in response.headers if line.name == b"sidecar-decision"]
    return value


def parsed(trail: bytes) -> list[Member]:
    members = parse(trail)
    assert members is not None, trail
    return members


def logging_to(bench: Bench) -> Lines:
    sink = Lines()
    bench.services = replace(bench.services, access_log=AccessLog(sink, bench.clock))
    return sink


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_trail_alone_tells_status_and_rung(name: str) -> None:
    """In the answer's header and in the log: who sees nothing else comes to what the client got."""
    row = SCENARIOS[name]
    bench = Bench(*row.script)
    log = logging_to(bench)
    if row.others:
        bench.others = {BACKUP: row.others}
    send = bench.route(**row.policies)
    await row.before(bench, send)
    rungs = dict(bench.metrics.route("all", "app").fallbacks)

    sent = send(**row.request)
    exchange = bench.sent[-1]
    exchange.debug = True
    exchange.started -= row.waited
    response = await bench.clock.complete(sent)
    now = bench.metrics.route("all", "app").fallbacks
    took = [rung for rung in now if now[rung] != rungs.get(rung, 0)]
    assert (response.status, *took) == (row.status, *filter(None, [row.rung]))

    trail = told(response).decode()
    assert conclude(parsed(trail.encode())) == Conclusion(row.status, row.rung), trail
    assert row.says in trail
    assert exchange.on_sent is not None
    exchange.on_sent(exchange, response, "done")
    bench.services.access_log.flush()
    assert log.lines[-1]["trail"] == trail.rpartition(", observe;ms=")[0]
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def test_there_are_enough() -> None:
    """The product promises forty."""
    assert len(SCENARIOS) >= 40


async def test_no_two_stories_are_told_alike() -> None:
    """Scenarios that end alike, but by another way, have other trails: these tell more than the answer."""
    trails = []
    for script in ([answer()], [answer(503), answer()], [RESET, answer()]):
        bench = Bench(*script)
        sent = bench.route(retry=RETRY, circuit_breaker={"consecutive": 5})()
        bench.sent[-1].debug = True
        trails.append(told(await bench.clock.complete(sent)).rpartition(b", ")[0])
    assert len(set(trails)) == 3


async def test_a_route_that_answers_itself() -> None:
    """No upstream is asked, and the trail says who answered."""
    bench = Bench(answer())
    log = logging_to(bench)
    route = Route.model_validate(
        {"name": "all", "rate_limit": {"rate": "9/s"}, "respond": {"status": 503, "text": "gone"}}
    )
    assert route.respond is not None
    handler = compile_pipeline(bench._stand(route), Responder(route.respond, route.match).handler())
    sent = bench._sender(handler)()
    bench.sent[-1].debug = True
    response = await sent
    trail = parsed(told(response))
    assert conclude(trail) == (503, "")
    assert trail[0] == ("rate_limit", {"ok": True})
    assert log.lines == []


@pytest.mark.parametrize(
    ("seconds", "status", "rung", "says"),
    [
        (5.0, 200, "", "upstream;status=200, classify;ok, overlap;degraded=maps, fallback;ok"),
        (15.0, 200, "stale", "overlap;degraded=maps, cache;stale;rung=stale;status=200, fallback;ok"),
    ],
)
async def test_an_answer_made_while_a_call_of_the_app_failed(
    seconds: float, status: int, rung: str, says: str
) -> None:
    """Marked, or replaced by what is stored: told in the order in which it was decided."""
    bench = Bench(answer(), after(1.0, answer()))
    bench.depends_on = frozenset({"maps"})
    policies: dict[str, Any] = {"cache": CACHE, "fallback": [LATER]}
    send = bench.route(**policies)
    if rung:
        await send()
    else:
        bench.script = bench.script[1:]
    await bench.clock.advance(seconds)
    sent = send()
    bench.sent[-1].debug = True
    await bench.clock.advance(0.5)
    assert (await bench.calls_of_the_app("maps", RESET)()).status == 502
    response = await bench.clock.complete(sent)
    trail = told(response).rpartition(b", ")[0]
    assert response.status == status
    assert trail.decode().endswith(says)
    assert conclude(parsed(trail)) == (status, rung)


async def test_a_client_that_leaves() -> None:
    """The log says 499, and the trail how far the request had come."""
    none: dict[str, Any] = {}
    for script, policies, way in (
        ([hang()], none, "observe;client_gone"),
        ([hang()], {"circuit_breaker": BREAKER}, "circuit_breaker;closed, observe;client_gone"),
        (
            [answer(503), hang()],
            {"retry": {**RETRY, "backoff": {**QUICK, "base": "9s", "max": "9s"}}},
            "upstream;status=503, classify;transient, retry;transient, observe;client_gone",
        ),
    ):
        bench = Bench(*script)
        log = logging_to(bench)
        sent = bench.route(**policies)()
        await bench.clock.advance(1)
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        bench.services.access_log.flush()
        [line] = log.lines
        assert (line["status"], line["trail"]) == (499, way)
        assert conclude(parsed(line["trail"].encode())) == (499, "")


async def test_a_body_that_breaks_off() -> None:
    """The status had gone out; that the body broke is told by the log alone."""
    broken = Stream(None)

    async def breaks(_: Exchange) -> Response:
        return Response(200, [], broken)

    bench = Bench(breaks)
    log = logging_to(bench)
    response = await bench.route()()
    broken.fail(ConnectionReset())
    exchange = bench.sent[0]
    assert exchange.on_sent is not None
    exchange.on_sent(exchange, response, "broken")
    bench.services.access_log.flush()
    assert log.lines[0]["trail"] == "upstream;status=200, classify;ok, observe;cut=broken"
    assert conclude(parsed(log.lines[0]["trail"].encode())) == (200, "")


async def test_a_bug() -> None:
    """What no layer expected is an error of `observe`, and the trail ends where it is known to have come."""

    async def bug(_: Exchange) -> Response:
        raise KeyError("a bug")

    bench = Bench(bug)
    sent = bench.route(retry=RETRY)()
    bench.sent[-1].debug = True
    response = await sent
    assert response.status == 500
    assert conclude(parsed(told(response))) == (500, "")

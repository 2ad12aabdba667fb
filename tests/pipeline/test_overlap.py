"""Answers of the app, and what became of its own calls meanwhile: row 19, and what follows from it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.config.inject_policy import AppKeeps
from sidecar.errors import CircuitOpen, ConnectFailed, PaceExceeded, QuotaHeld
from sidecar.exchange import Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, after, answer, content, fail, hang, ok, shown, stream

CACHED: dict[str, Any] = {"ttl": "1m", "stale_if_error": "1h"}
LATER: dict[str, Any] = {"respond": {"json": {"status": "OK"}}}
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = b"00000000000000000000000000000001"


def bench(*outcomes: Outcome) -> Bench:
    """The app takes 10 s for an answer: time for calls of its own."""
    made = Bench(*(outcomes or (after(10, ok(b"one")), after(10, ok(b"two")))))
    made.depends_on = frozenset({"maps"})
    return made


async def answered(bench: Bench, sent: asyncio.Task[Response]) -> Response:
    return await bench.clock.complete(sent)


@pytest.mark.parametrize(
    "outcome",
    [
        fail(ConnectFailed()),
        fail(CircuitOpen()),
        fail(QuotaHeld()),
        fail(PaceExceeded()),
        answer(503),
        answer(429),
        answer(401),
    ],
)
async def test_made_while_a_call_failed(outcome: Outcome) -> None:
    """Row 19. An answer computed while an egress call failed, or was held: marked, counted, not stored."""
    app = bench()
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", outcome)
    sent = send()
    await settle()
    await call()
    response = await answered(app, sent)
    assert (response.status, response.body) == (200, b"one")
    assert shown(response, "sidecar-degraded") == "upstream=maps"
    assert app.metrics.route("all", "app").degradations == {"maps": 1}
    assert ("overlap", "degraded=maps") in (app.sent[0].note_list or [])
    assert (await answered(app, send())).body == b"two"
    assert app.outcomes == ["miss", "miss"]


@pytest.mark.parametrize("outcome", [answer(200), answer(404), answer(400)])
async def test_made_while_calls_went_well(outcome: Outcome) -> None:
    """What the provider answers for good, a 404 too, says nothing against the app's answer: it is stored."""
    app = bench()
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", outcome)
    sent = send()
    await settle()
    await call()
    response = await answered(app, sent)
    assert shown(response, "sidecar-degraded") is None
    assert (await answered(app, send())).body == b"one"
    assert app.outcomes == ["miss", "hit"]


async def test_a_fallback_of_a_call_counts() -> None:
    """The app got an answer, but not the provider's: what it makes of it is degraded."""
    app = bench()
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", answer(503), fallback=[LATER])
    sent = send()
    await settle()
    assert (await call()).status == 200
    assert shown(await answered(app, sent), "sidecar-degraded") == "upstream=maps"


async def test_a_fallback_that_the_app_has_kept_counts_later() -> None:
    """By the text that was asked for; until the provider has answered for it."""
    app = bench(ok(b"one"), ok(b"two"), ok(b"three"))
    call = app.calls_of_the_app(
        "maps",
        answer(503),
        answer(200),
        fallback=[LATER],
        keeps=AppKeeps.model_validate({"query": "address", "ttl": "1d"}),
    )
    send = app.route()
    await call(target=b"/geocode?address=1+Rue+X&key=k")
    await app.clock.advance(3600)
    job = {"method": "POST", "body": b'{"job": {"address": "1 rue x"}}'}
    other = {"method": "POST", "body": b'{"job": {"address": "2 rue x"}}'}
    assert shown(await send(**job), "sidecar-degraded") == "upstream=maps"
    assert shown(await send(**other), "sidecar-degraded") is None
    await call(target=b"/geocode?address=1+Rue+X&key=k")
    assert shown(await send(**job), "sidecar-degraded") is None


async def test_a_retry_that_succeeds_does_not_count() -> None:
    """The app got the provider's answer, at the second attempt."""
    app = bench()
    backoff = {"strategy": "fixed", "base": "100ms", "max": "100ms"}
    call = app.calls_of_the_app("maps", answer(503), answer(200), retry={"attempts": 2, "backoff": backoff})
    sent = app.route(cache=CACHED)()
    await settle()
    assert (await app.clock.complete(call())).status == 200
    assert shown(await answered(app, sent), "sidecar-degraded") is None


async def test_stale_for_an_error_counts_stale_meanwhile_does_not() -> None:
    """A stale answer in place of an error is not the provider's word; one that is being refreshed is."""
    app = bench(after(10, ok(b"one")))
    cache = {"ttl": "10s", "stale_while_revalidate": "10s", "stale_if_error": "1h"}
    call = app.calls_of_the_app("maps", answer(200), answer(200), answer(503), cache=cache)
    await call()
    await app.clock.advance(15)
    send = app.route()
    sent = send()
    await settle()
    await call()  # stale while revalidate
    assert shown(await answered(app, sent), "sidecar-degraded") is None
    await app.clock.advance(60)
    sent = send()
    await settle()
    stale = await app.clock.complete(call())
    assert shown(stale, "sidecar-degraded") == "stale"
    assert shown(await answered(app, sent), "sidecar-degraded") == "upstream=maps"


async def test_only_what_overlaps_counts() -> None:
    """A call that failed before the client asked has no part in the answer."""
    app = bench()
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", answer(503))
    await call()
    await app.clock.advance(1)
    assert shown(await answered(app, send()), "sidecar-degraded") is None
    assert (await answered(app, send())).body == b"one"


async def test_a_call_that_began_before_counts_by_its_end() -> None:
    """A call in flight when the client asks, that fails before the app answers, overlaps."""
    app = bench()
    call = app.calls_of_the_app("maps", after(5, answer(503)))()
    await app.clock.advance(1)
    sent = app.route()()
    assert shown(await answered(app, sent), "sidecar-degraded") == "upstream=maps"
    await call


async def test_depends_on_narrows() -> None:
    """A failing call to a provider that the file does not depend on marks nothing."""
    app = bench()
    send, call = app.route(cache=CACHED), app.calls_of_the_app("openai", answer(503))
    sent = send()
    await settle()
    await call()
    assert shown(await answered(app, sent), "sidecar-degraded") is None


async def test_nothing_is_stored_before_a_named_providers_call_was_seen() -> None:
    """An app that calls past the sidecar may say anything: its answers pass, unmarked, and are not kept."""
    app = bench()
    app.expects = app.depends_on
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", answer(200))
    assert shown(await answered(app, send()), "sidecar-degraded") is None
    await call()
    assert (await answered(app, send())).body == b"two"
    assert (await answered(app, send())).body == b"two"
    assert app.outcomes == ["miss", "miss", "hit"]


async def test_several_providers() -> None:
    """Two that failed are both named, in one member."""
    app = bench()
    app.depends_on = frozenset({"maps", "openai"})
    sent = app.route()()
    await settle()
    for policy in ("openai", "maps"):
        await app.calls_of_the_app(policy, answer(503))()
    assert shown(await answered(app, sent), "sidecar-degraded") == "upstream=(maps openai)"
    assert app.metrics.route("all", "app").degradations == {"maps": 1, "openai": 1}


@pytest.mark.parametrize(
    ("policies", "told", "counted"),
    [
        (("maps",), "upstream=maps", {"maps": 1}),
        (("openai",), "upstream=(maps openai)", {"maps": 1, "openai": 1}),
    ],
)
async def test_what_a_rule_knows_is_said_once(
    policies: tuple[str, ...], told: str, counted: dict[str, int]
) -> None:
    """The body gives it away as well: one field, each provider once."""
    app = bench(after(10, ok(b'{"km": 0}', content_type="application/json")))
    app.depends_on = frozenset({"maps", "openai"})
    sent = app.route(classify=[{"json": {"km": 0}, "verdict": "ok", "degraded": "maps"}])()
    await settle()
    for policy in policies:
        await app.calls_of_the_app(policy, answer(503))()
    response = await answered(app, sent)
    assert shown(response, "sidecar-degraded") == told
    assert [line.name for line in response.headers].count(b"sidecar-degraded") == 1
    assert app.metrics.route("all", "app").degradations == counted


async def test_a_trace_tells_whose_call_it_is() -> None:
    """A failing call that carries the trace of one request marks that one, and no other in flight."""
    app = bench(after(10, ok()))
    send, call = app.route(), app.calls_of_the_app("maps", answer(503), answer(200))
    mine, theirs, untraced = send(trace=TRACE), send(trace=OTHER), send()
    await settle()
    await call(trace=TRACE)
    await call(trace=OTHER)
    degraded = [shown(await answered(app, sent), "sidecar-degraded") for sent in (mine, theirs, untraced)]
    assert degraded == ["upstream=maps", None, None]


async def test_where_the_app_passes_traces_on_only_those_count() -> None:
    """A call without a trace that fails is not of a request whose own calls carry one."""
    app = bench(after(10, ok()))
    send, call = app.route(), app.calls_of_the_app("maps", answer(200), answer(503))
    passed_on, dropped = send(trace=TRACE), send(trace=OTHER)
    await settle()
    await call(trace=TRACE)
    await call()
    degraded = [shown(await answered(app, sent), "sidecar-degraded") for sent in (passed_on, dropped)]
    assert degraded == [None, "upstream=maps"]


async def test_traces_are_forgotten() -> None:
    """Nothing is left of requests that are over, failed, or whose clients left."""
    app = bench(after(10, ok()), fail(ConnectFailed()), hang())
    send = app.route()
    await answered(app, send(trace=TRACE))
    await answered(app, send(trace=TRACE))
    gone = send(trace=TRACE)
    await settle()
    assert app.services.overlaps._traces
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert not app.services.overlaps._traces


async def test_who_waits_for_the_same_answer_gets_the_mark() -> None:
    """100 requests share one fill that overlapped with a failure: each is marked."""
    app = bench()
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", answer(503))
    everybody = [send() for _ in range(100)]
    await settle()
    await call()
    await app.clock.advance(10)
    marks = {shown(await sent, "sidecar-degraded") for sent in everybody}
    assert marks == {"upstream=maps"}
    assert len(app.calls) == 1


async def test_a_stale_answer_goes_before_a_degraded_one() -> None:
    """What is stored stays, and stands in where the policy lets it stand in for errors."""
    app = bench()
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", answer(503))
    await answered(app, send())
    await app.clock.advance(61)
    sent = send()
    await settle()
    await call()
    response = await answered(app, sent)
    assert (response.body, shown(response, "sidecar-degraded")) == (b"one", "stale")


async def test_a_refresh_made_while_a_call_failed_replaces_nothing() -> None:
    """Stale while revalidate: what the background fill brings is dropped, the entry stays."""
    app = bench(after(10, ok(b"one")), after(10, ok(b"lie")))
    send = app.route(cache={"ttl": "1m", "stale_while_revalidate": "1h"})
    call = app.calls_of_the_app("maps", answer(503))
    await answered(app, send())
    await app.clock.advance(61)
    assert (await send()).body == b"one"
    await settle()
    await call()
    await app.clock.advance(10)
    assert (await send()).body == b"one"


async def test_a_304_made_while_a_call_failed_renews_nothing() -> None:
    """A 304 is an answer of the app as well: let through, marked, and not believed for long."""
    app = bench(after(10, ok(b"one", etag='"1"')), after(10, ok(b"", 304, etag='"1"')))
    send, call = app.route(cache={"ttl": "1m"}), app.calls_of_the_app("maps", answer(503), answer(200))
    await answered(app, send())
    await app.clock.advance(61)
    sent = send()
    await settle()
    await call()
    response = await answered(app, sent)
    assert (response.body, shown(response, "sidecar-degraded")) == (b"one", "upstream=maps")
    response = await answered(app, send())
    assert app.outcomes == ["miss", "revalidated", "revalidated"]
    assert shown(response, "sidecar-degraded") is None


async def test_a_failure_while_the_body_streams_prevents_storing() -> None:
    """The head is out, without a mark; but the answer is not kept."""
    body = Stream(None)
    app = bench(stream(body), ok(b"two"))
    send, call = app.route(cache=CACHED), app.calls_of_the_app("maps", answer(503))
    response = await send()
    assert shown(response, "sidecar-degraded") is None
    await app.clock.advance(1)
    await call()
    body.feed(b"one")
    body.finish()
    assert await content(response) == b"one"
    await settle()
    assert (await send()).body == b"two"


async def test_a_call_whose_body_breaks_counts() -> None:
    """The provider's answer ended early: the app did not get it."""
    app = bench()
    body = Stream(None)
    call = app.calls_of_the_app("maps", stream(body))
    sent = app.route()()
    await settle()
    await call()
    body.fail(ConnectionResetError())
    assert shown(await answered(app, sent), "sidecar-degraded") == "upstream=maps"


async def test_a_call_that_the_app_gave_up_counts() -> None:
    """A provider that is slower than the app is patient."""
    app = bench()
    sent = app.route()()
    call = app.calls_of_the_app("maps", hang())()
    await app.clock.advance(5)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert shown(await answered(app, sent), "sidecar-degraded") == "upstream=maps"


def test_without_egress_policies_there_is_no_such_layer() -> None:
    """A route that depends on no call does not pay for it."""

    async def made() -> list[str]:
        from sidecar.pipeline import composed

        return [step.name for step in composed(Bench(ok())._place("all", {}))]

    assert "overlap" not in asyncio.run(made())

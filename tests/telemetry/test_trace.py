"""What the data plane records for spans: which requests have one, what it knows, and how much may wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from sidecar.clock import Ids
from sidecar.config.schema import Route
from sidecar.errors import ConnectFailed
from sidecar.exchange import Exchange, Request, Response
from sidecar.headers import REQUEST_KINDS, Line
from sidecar.listeners.ingress import parse_traceparent
from sidecar.pipeline import Place, compile_pipeline
from sidecar.telemetry.access_lines import NO_LAYERS
from sidecar.telemetry.trace import BATCH, MOST, Attempt, Served, Tracer
from tests.support.clock import ManualClock
from tests.support.script import Bench

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = b"00f067aa0ba902b7"


class Chance:
    """Draws the same each time."""

    def __init__(self, drawn: float) -> None:
        self.drawn = drawn

    def random(self) -> float:
        return self.drawn


def tracer(drawn: float = 0.0, ratio: float = 0.5) -> Tracer:
    return Tracer(ManualClock(), Ids(), Chance(drawn), ratio)


def exchange(traceparent: bytes = b"") -> Exchange:
    """As the listener makes it."""
    lines = [Line(b"traceparent", traceparent, REQUEST_KINDS)] if traceparent else []
    made = Exchange(Request("GET", b"/", lines, host=b"app"), "192.0.2.7", 1000.0)
    made.traceparent = parse_traceparent(traceparent) if traceparent else None
    return made


def place() -> Place:
    return Place(Route.model_validate({"name": "things"}), "app", Bench().services)


@pytest.mark.parametrize(("flags", "sampled"), [(b"01", True), (b"00", False), (b"03", True), (b"02", False)])
def test_the_flag_of_the_caller_decides(flags: bytes, *, sampled: bool) -> None:
    """Bit 0 of the flags, whatever the ratio; the caller's span is the parent."""
    traced = exchange(b"00-%b-%b-%b" % (TRACE, CALLER, flags))
    tracer(drawn=0.0, ratio=0.0).begin(traced)
    assert traced.traceparent == (TRACE, flags)
    assert (traced.span is not None) is sampled
    if traced.span is not None:
        assert (traced.span.trace_id, traced.span.parent) == (TRACE, CALLER)
        assert traced.span.span_id not in {CALLER, b"0" * 16}


@pytest.mark.parametrize(("drawn", "flags"), [(0.0999, b"01"), (0.1, b"00")])
def test_chance_decides_about_a_trace_that_begins_here(drawn: float, flags: bytes) -> None:
    """And the upstream is told which way: all spans of a trace are kept, or none."""
    traced = exchange()
    tracer(drawn, ratio=0.1).begin(traced)
    assert traced.traceparent is not None
    assert traced.traceparent[1] == flags
    assert (traced.span is not None) is (flags == b"01")
    if traced.span is not None:
        assert traced.span.parent == b""


def test_each_trace_has_an_id_of_its_own() -> None:
    """Valid ones: 32 hexadecimal digits, not all zero."""
    begun = tracer()
    ids = set()
    for _ in range(1000):
        traced = exchange()
        begun.begin(traced)
        assert traced.traceparent is not None
        assert parse_traceparent(b"00-%b-%b-01" % (traced.traceparent[0], CALLER)) is not None
        ids.add(traced.traceparent[0])
    assert len(ids) == 1000


async def answers(exchange: Exchange) -> Response:
    exchange.attempts += 1
    return Response(204, [])


async def refuses(exchange: Exchange) -> Response:
    exchange.attempts += 1
    raise ConnectFailed("refused")


async def breaks(exchange: Exchange) -> Response:
    raise ZeroDivisionError


async def is_cancelled(exchange: Exchange) -> Response:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("upstream", "status", "error"),
    [
        (answers, 204, ""),
        (refuses, 0, "connect_failed"),
        (breaks, 0, "internal_error"),
        (is_cancelled, 0, "cancelled"),
    ],
)
async def test_each_attempt_is_recorded_however_it_ends(
    upstream: Callable[[Exchange], Awaitable[Response]], status: int, error: str
) -> None:
    """One record, with the id that the upstream was told, and the outcome passes through unchanged."""
    begun = tracer()
    traced = exchange()
    begun.begin(traced)
    handler = begun.attempts(place(), upstream)
    try:
        assert (await handler(traced)).status == status
    except (ConnectFailed, ZeroDivisionError, asyncio.CancelledError):
        assert not status
    [attempt] = begun.take()
    assert isinstance(attempt, Attempt)
    assert traced.span is not None
    assert (attempt.status, attempt.error) == (status, error)
    assert attempt.span_id == traced.span.current != traced.span.span_id


async def test_an_unsampled_request_records_nothing() -> None:
    """Neither attempts nor itself."""
    begun = tracer(drawn=0.9)
    traced = exchange()
    begun.begin(traced)
    await begun.attempts(place(), answers)(traced)
    begun.finish(place())(traced, 200, 1001.0, "done", NO_LAYERS)
    assert begun.take() == []


def test_what_waits_is_bounded() -> None:
    """Beyond `MOST` spans are dropped and counted; the exporter was woken; taking them makes room."""
    begun = tracer()
    woken = []
    begun.wake = lambda: woken.append(len(woken))
    finish = begun.finish(place())
    for _ in range(MOST + 7):
        traced = exchange()
        begun.begin(traced)
        finish(traced, 200, 1001.0, "done", NO_LAYERS)
    assert begun.counts.dropped == 7
    assert woken == [0]
    taken = begun.take()
    assert len(taken) == MOST > BATCH
    assert isinstance(taken[0], Served)
    assert begun.take() == []


def test_off_costs_no_frame() -> None:
    """Without a tracer the pipeline is what it was: nothing around `observe`, the upstream as it is."""
    plain = place()
    composed = [
        compile_pipeline(each, answers).__qualname__.rpartition(".")[2]
        for each in (plain, replace(plain, services=replace(plain.services, tracer=tracer())))
    ]
    assert composed == ["observe", "traced"]


def test_sampled_out_costs_a_fraction_of_sampled() -> None:
    """A request that is not sampled pays for its trace id and the draw alone."""
    costs = {}
    for drawn in (0.0, 0.9):
        begun = tracer(drawn)
        finish = begun.finish(place())
        best = float("inf")
        for _ in range(30):
            requests = [exchange() for _ in range(200)]
            begin = time.thread_time()
            for traced in requests:
                begun.begin(traced)
                finish(traced, 200, 1001.0, "done", NO_LAYERS)
            best = min(best, time.thread_time() - begin)
            begun.take()
        costs[drawn] = best
    assert costs[0.9] < costs[0.0]

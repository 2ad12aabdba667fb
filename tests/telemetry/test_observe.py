"""The outermost layer: one count and one line a request, and every error an answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.caching.cache import Caching
from sidecar.clock import SystemRandom
from sidecar.config.schema import Route
from sidecar.errors import (
    AttemptTimeout,
    BodyTooLarge,
    CircuitOpen,
    ConnectFailed,
    LimitExceeded,
    SidecarError,
)
from sidecar.exchange import Exchange, Request, Response
from sidecar.headers import Line
from sidecar.layers import observe
from sidecar.overlap import Overlaps
from sidecar.pipeline import Handler, Place, Services
from sidecar.state import State
from sidecar.telemetry import log as logs
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics, RouteCells
from sidecar.telemetry.sink import Sink
from tests.support.clock import ManualClock


class Stage:
    """The layer over a handler, with real metrics and a real log; ends answers as the listener does."""

    def __init__(self, path: Path, *, access: bool = True) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.sink = Sink(self._fd)
        self.access_log = AccessLog(self.sink if access else None, self.clock)
        services = Services(
            clock=self.clock,
            overlaps=Overlaps(self.clock),
            random=SystemRandom(),
            state=State(self.metrics, self.clock),
            metrics=self.metrics,
            access_log=self.access_log,
            caching=Caching.unused(self.clock),
        )
        self.place = Place(Route.model_validate({"name": "things"}), "app", services)
        self.exchange = Exchange(Request("GET", b"/things", []), "192.0.2.7", self.clock.now())
        self.exchange.request_id = "r1"

    @property
    def cells(self) -> RouteCells:
        return self.metrics.routes["things"]

    def handler(self, inner: Handler) -> Handler:
        return observe.layer(self.place)(inner)

    async def answer(self, outcome: Response | BaseException, how: str = "done") -> Response:
        """One request through the layer, its answer sent 50 ms later."""

        async def inner(_: Exchange) -> Response:
            if isinstance(outcome, Response):
                return outcome
            raise outcome

        response = await self.handler(inner)(self.exchange)
        self.exchange.first_byte = self.clock.now()
        await self.clock.advance(0.05)
        self.end(response, how)
        return response

    def end(self, response: Response | None, how: str) -> None:
        assert self.exchange.on_sent is not None
        self.exchange.on_sent(self.exchange, response, how)

    def lines(self) -> list[dict[str, Any]]:
        self.access_log.close()
        self.sink.close()
        return [orjson.loads(line) for line in self._path.read_bytes().splitlines()]

    def close(self) -> None:
        self.sink.close()
        os.close(self._fd)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "access.log")
    yield stage
    stage.close()


async def test_an_answer_passes_unchanged(stage: Stage) -> None:
    """The same response object comes back, and nothing is counted before it was sent."""
    response = Response(200, [], b"hello")

    async def inner(_: Exchange) -> Response:
        return response

    assert await stage.handler(inner)(stage.exchange) is response
    assert stage.cells.requests == {}
    assert stage.lines() == []


async def test_an_answer_is_counted_and_logged_when_it_was_sent(stage: Stage) -> None:
    """One count and one line, with the time until the last byte."""
    await stage.answer(Response(200, [], b"hello"))
    assert stage.cells.requests == {("GET", 200): [1]}
    assert stage.cells.durations.seconds == pytest.approx(0.05)
    [line] = stage.lines()
    assert (line["route"], line["status"], line["end"]) == ("things", 200, "done")
    assert line["duration_ms"] == 50


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (ConnectFailed("connection refused"), 502, "connect_failed", None),
        (AttemptTimeout(), 504, "attempt_timeout", None),
        (CircuitOpen(retry_after=4.2), 503, "circuit_open", b"5"),
        (CircuitOpen(retry_after=3.0), 503, "circuit_open", b"3"),
        (LimitExceeded(retry_after=0.01), 503, "limit_exceeded", b"1"),
        (BodyTooLarge(), 413, "body_too_large", None),
    ],
)
async def test_an_error_becomes_an_answer(
    stage: Stage, error: SidecarError, status: int, code: str, retry_after: bytes | None
) -> None:
    """RFC 9457, Sidecar-Error, and Retry-After in whole seconds, never too early."""
    response = await stage.answer(error)
    assert response.status == status
    assert response.header(b"content-type") == b"application/problem+json"
    assert response.header(b"sidecar-error") == code.encode()
    assert response.header(b"retry-after") == retry_after
    assert isinstance(response.body, bytes)
    problem = orjson.loads(response.body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert (problem["request_id"], problem["route"]) == ("r1", "things")
    assert stage.cells.errors == {code: 1}
    assert stage.cells.requests == {("GET", status): [1]}
    assert stage.lines()[0]["error"] == code


async def test_a_bug_becomes_500_and_a_traceback(stage: Stage, tmp_path: Path) -> None:
    """The client learns nothing of it; the log has the traceback, with the request id."""
    fd = os.open(tmp_path / "own.log", os.O_WRONLY | os.O_CREAT)
    sink = Sink(fd)
    logs.configure(sink, stage.clock)
    response = await stage.answer(ZeroDivisionError("the secret"))
    sink.close()
    os.close(fd)
    assert response.status == 500
    assert response.header(b"sidecar-error") == b"internal_error"
    assert isinstance(response.body, bytes)
    assert b"secret" not in response.body
    [event] = [orjson.loads(line) for line in (tmp_path / "own.log").read_bytes().splitlines()]
    assert (event["level"], event["request_id"], event["route"]) == ("ERROR", "r1", "things")
    assert "ZeroDivisionError: the secret" in event["exception"]
    assert stage.lines()[0]["error"] == "internal_error"


async def test_a_client_that_leaves_is_499(stage: Stage) -> None:
    """The cancellation goes on, and the request is counted and logged as 499, once."""

    async def inner(_: Exchange) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.ensure_future(stage.handler(inner)(stage.exchange))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.exchange.on_sent is None
    assert stage.cells.requests == {("GET", 499): [1]}
    assert stage.cells.clients_gone == 1
    [line] = stage.lines()
    assert (line["status"], line["end"]) == (499, "client_gone")


@pytest.mark.parametrize(
    ("how", "count"),
    [("done", (0, 0)), ("aborted", (1, 0)), ("broken", (1, 0)), ("client_gone", (0, 1))],
)
async def test_the_end_of_an_answer_is_counted(stage: Stage, how: str, count: tuple[int, int]) -> None:
    """An answer that began keeps its status; how it ended has counts of its own."""
    await stage.answer(Response(200, []), how)
    assert (stage.cells.aborts, stage.cells.clients_gone) == count
    [line] = stage.lines()
    assert (line["status"], line["end"]) == (200, how)


async def test_a_client_gone_before_the_first_byte_saw_no_status(stage: Stage) -> None:
    """An answer that was ready for nobody is 499, whatever its status would have been."""
    response = Response(200, [])

    async def inner(_: Exchange) -> Response:
        return response

    await stage.handler(inner)(stage.exchange)
    stage.end(response, "client_gone")
    assert stage.cells.requests == {("GET", 499): [1]}


async def test_an_end_told_twice_counts_once(stage: Stage) -> None:
    """Even a listener that reports an end twice makes one count and one line."""
    response = Response(200, [])

    async def inner(_: Exchange) -> Response:
        return response

    await stage.handler(inner)(stage.exchange)
    told = stage.exchange.on_sent
    assert told is not None
    told(stage.exchange, response, "done")
    told(stage.exchange, response, "client_gone")
    assert stage.cells.requests == {("GET", 200): [1]}
    assert len(stage.lines()) == 1


@pytest.mark.parametrize(("flags", "kept"), [(b"01", True), (b"00", False), (b"03", True)])
async def test_a_sampled_trace_becomes_an_exemplar(stage: Stage, flags: bytes, kept: bool) -> None:
    """Only a trace that somebody recorded is worth a link."""
    stage.exchange.traceparent = (b"4bf92f3577b34da6a3ce929d0e0e4736", flags)
    await stage.answer(Response(200, []))
    assert any(stage.cells.durations.exemplars) == kept


async def test_without_an_access_log_requests_are_still_counted(tmp_path: Path) -> None:
    """`access: false` writes nothing and counts all."""
    stage = Stage(tmp_path / "access.log", access=False)
    await stage.answer(Response(200, [Line(b"A", b"b")]))
    assert stage.cells.requests == {("GET", 200): [1]}
    assert stage.lines() == []
    stage.close()

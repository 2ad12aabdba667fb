"""The access log: what a line holds, and when lines are written."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.decisions.verdict import Verdict
from sidecar.errors import CircuitOpen
from sidecar.exchange import Exchange, Request
from sidecar.headers import REQUEST_KINDS, Line
from sidecar.telemetry.access_lines import LONGEST_TARGET, Stack
from sidecar.telemetry.access_log import BATCH, FLUSH_SECONDS, AccessLog, Sampling
from sidecar.telemetry.correlation import Fields
from sidecar.telemetry.sink import Sink
from sidecar.telemetry.stamp import Stamp
from tests.support.clock import ManualClock

STACK = Stack(("cache", "retry", "circuit_breaker", "classify"))
WAY = "cache;miss, circuit_breaker;closed, upstream;status=200, classify;ok, retry;ok"


class Lines:
    """A real sink into a file, and what it wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.sink = Sink(self._fd)

    def all(self) -> list[bytes]:
        """Closes the sink and gives what was written."""
        self.sink.close()
        return self._path.read_bytes().splitlines()

    def close(self) -> None:
        self.sink.close()
        os.close(self._fd)


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    lines = Lines(tmp_path / "access.log")
    yield lines
    lines.close()


def exchange(clock: ManualClock, target: bytes = b"/api/v1/things/42?key=S3CR3T&q=x") -> Exchange:
    """A finished exchange, as the listener and the layers leave it."""
    made = Exchange(Request("GET", target, []), "192.0.2.7", clock.now())
    made.request_id = "a" * 32
    made.traceparent = (b"4bf92f3577b34da6a3ce929d0e0e4736", b"01")
    made.route = "things"
    made.upstream = "app"
    made.upstream_seconds = 0.0125
    made.attempts = 2
    made.verdict = Verdict.OK
    made.breaker = "closed"
    made.cache = "miss"
    made.first_byte = clock.now() + 0.02
    made.received = 7
    made.sent = 1024
    made.note("retry", "connect")
    return made


def test_a_line_tells_the_whole_request(lines: Lines) -> None:
    """Every member, with times in milliseconds and the query's secret hidden."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    log.append(exchange(clock), 200, clock.now() + 0.0256789, "done", STACK)
    log.close()
    [line] = lines.all()
    assert orjson.loads(line) == {
        "timestamp": "2023-11-14T22:13:20.025Z",
        "level": "INFO",
        "logger": "sidecar.access",
        "component": "ingress",
        "operation": "GET things",
        "correlation_id": "a" * 32,
        "message": "GET /api/v1/things/42?key=***&q=x 200",
        "request_id": "a" * 32,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "client": "192.0.2.7",
        "method": "GET",
        "path": "/api/v1/things/42?key=***&q=x",
        "route": "things",
        "status": 200,
        "duration_ms": 25.679,
        "first_byte_ms": 20.0,
        "upstream": "app",
        "upstream_ms": 12.5,
        "attempts": 2,
        "verdict": "ok",
        "breaker": "closed",
        "cache": "miss",
        "error": None,
        "rung": None,
        "trail": f"cache;miss, retry;connect, {WAY.removeprefix('cache;miss, ')}",
        "bytes_in": 7,
        "bytes_out": 1024,
        "end": "done",
    }


def test_what_did_not_happen_is_null(lines: Lines) -> None:
    """A request that reached no upstream has no upstream times; the error has its code."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    refused = Exchange(Request("POST", b"/", []), "192.0.2.7", clock.now())
    refused.error = CircuitOpen()
    log.append(refused, 503, clock.now(), "done")
    log.close()
    line: dict[str, Any] = orjson.loads(lines.all()[0])
    nulls = ("trace_id", "first_byte_ms", "upstream", "upstream_ms", "verdict", "breaker")
    assert all(line[name] is None for name in nulls)
    assert line["error"] == "circuit_open"
    assert line["trail"] == "observe;error=circuit_open"


def test_the_trail_is_of_its_own_request(lines: Lines) -> None:
    """Nothing that is remembered of one request gets into the line of another."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    trails = []
    for _ in range(2):
        usual = exchange(clock)
        usual.note_list = None
        log.append(usual, 200, clock.now(), "done", STACK)
        trails.append(WAY)
        log.append(usual, 200, clock.now(), "done", Stack(("cache", "classify")))
        trails.append("cache;miss, upstream;status=200, classify;ok")
        for reason in ("reset", "timeout"):
            repeated = exchange(clock)
            repeated.note_list = [("retry", reason)]
            log.append(repeated, 200, clock.now(), "done", STACK)
            trails.append(f"cache;miss, retry;{reason}, {WAY.removeprefix('cache;miss, ')}")
    log.close()
    assert [orjson.loads(line)["trail"] for line in lines.all()] == trails


@pytest.mark.parametrize(
    ("status", "how", "level"),
    [
        (200, "done", "INFO"),
        (399, "done", "INFO"),
        (404, "done", "WARNING"),
        (499, "client_gone", "WARNING"),
        (503, "done", "ERROR"),
        (200, "client_gone", "INFO"),
        (200, "broken", "ERROR"),
        (200, "aborted", "ERROR"),
    ],
)
def test_the_level_follows_the_answer(lines: Lines, status: int, how: str, level: str) -> None:
    """By status; an answer that was cut short is an error whatever its status said."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    log.append(exchange(clock), status, clock.now(), how)
    log.close()
    line = orjson.loads(lines.all()[0])
    assert (line["level"], line["end"]) == (level, how)


async def test_lines_wait_for_a_flush_at_most(lines: Lines) -> None:
    """A lone request is written after `FLUSH_SECONDS`, and nothing is armed while there is nothing."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    log.append(exchange(clock), 200, clock.now(), "done")
    log.append(exchange(clock), 200, clock.now(), "done")
    assert clock.armed == 1
    await clock.advance(FLUSH_SECONDS)
    assert clock.armed == 0
    assert len(lines.all()) == 2


async def test_the_next_batch_is_flushed_too(lines: Lines) -> None:
    """The timer is armed anew for the first line after a flush."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    for _ in range(3):
        log.append(exchange(clock), 200, clock.now(), "done")
        await clock.advance(FLUSH_SECONDS)
    assert len(lines.all()) == 3


def test_a_full_batch_does_not_wait(lines: Lines) -> None:
    """`BATCH` requests are written at once, so that the buffer is bounded."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    for _ in range(BATCH + 1):
        log.append(exchange(clock), 200, clock.now(), "done")
    assert len(lines.all()) == BATCH


def test_close_flushes(lines: Lines) -> None:
    """A clean stop loses no line and leaves no timer."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    log.append(exchange(clock), 200, clock.now(), "done")
    log.close()
    assert clock.armed == 0
    assert len(lines.all()) == 1


def test_an_exchange_is_not_kept(lines: Lines) -> None:
    """The buffer holds no request: what a body weighs is freed with its exchange."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    one = exchange(clock)
    log.append(one, 200, clock.now(), "done")
    held: list[object] = [part for record in log._records for part in record]
    assert not any(part is one or part is one.request for part in held)


def test_a_long_target_is_cut(lines: Lines) -> None:
    """A line is bounded, and the cut brings out no secret."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    log.append(exchange(clock, b"/" + b"a" * 10_000 + b"?key=S3CR3T"), 200, clock.now(), "done")
    log.append(
        exchange(clock, b"/" + b"a" * (LONGEST_TARGET - 10) + b"?key=S3CR3T"), 200, clock.now(), "done"
    )
    log.close()
    written = lines.all()
    assert all(len(orjson.loads(line)["path"]) <= LONGEST_TARGET for line in written)
    assert b"S3C" not in b"".join(written)


@pytest.mark.parametrize("target", [b"/caf\xc3\xa9", b"/\xff\xfe", b'/"\\', b"/\x00\x1b[31m\n"])
@pytest.mark.parametrize("format_", ["json", "console"])
def test_odd_bytes_break_no_line(lines: Lines, target: bytes, format_: str) -> None:
    """Whatever a client asks for is one line, and none that steers a terminal."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock, format="console" if format_ == "console" else "json")
    odd = exchange(clock, target)
    odd.client = "\ud800"
    log.append(odd, 200, clock.now(), "done")
    log.close()
    [line] = lines.all()
    assert b"\x1b" not in line
    if format_ == "json":
        assert json.loads(line)["path"] == target.decode("latin-1")


def test_the_console_format_is_for_people(lines: Lines) -> None:
    """One plain line; no colours where nobody looks."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock, format="console")
    log.append(exchange(clock), 502, clock.now() + 0.5, "done")
    log.close()
    assert lines.all() == [
        b"22:13:20.500 ERROR   GET /api/v1/things/42?key=***&q=x 502 500.0ms 1024B route=things "
        b"upstream=app attempts=2 verdict=ok cache=miss retry;connect id=" + b"a" * 32
    ]


def test_the_console_format_is_coloured_on_a_terminal() -> None:
    """A terminal gets the level as a colour."""
    leader, follower = os.openpty()
    clock = ManualClock()
    sink = Sink(follower)
    log = AccessLog(sink, clock, format="console")
    log.append(exchange(clock), 200, clock.now(), "done")
    log.close()
    sink.close()
    shown = os.read(leader, 65536)
    os.close(leader)
    os.close(follower)
    assert shown.startswith(b"\x1b[32m")
    assert shown.rstrip().endswith(b"\x1b[0m")


def test_switched_off_it_costs_nothing() -> None:
    """`access: false`: not enabled, nothing dropped, and closing is fine."""
    log = AccessLog(None, ManualClock())
    assert not log.enabled
    assert log.dropped == 0
    log.close()


def test_the_wall_clock_may_be_set(lines: Lines) -> None:
    """Time stamps follow the wall clock, durations the monotonic one."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    log.append(exchange(clock), 200, clock.now() + 0.001, "done")
    clock._ahead += 3600
    log.close()
    line = orjson.loads(lines.all()[0])
    assert line["timestamp"] == "2023-11-14T23:13:20.001Z"
    assert line["duration_ms"] == 1.0


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.123, "2023-11-14T22:13:20.123Z"),
        (1_700_000_000.9999998, "2023-11-14T22:13:20.999Z"),
        (951_782_400.5, "2000-02-29T00:00:00.500Z"),
    ],
)
def test_a_stamp_is_rfc_3339(wall: float, text: str) -> None:
    """UTC, milliseconds, and no fraction of a second that has not come."""
    stamp = Stamp()
    assert stamp(wall) == text
    assert stamp(wall) == text


def headed(clock: ManualClock, **headers: bytes) -> Exchange:
    """An exchange whose request has `headers`."""
    made = exchange(clock)
    made.request.headers = [
        Line(name.replace("_", "-").encode(), value, REQUEST_KINDS) for name, value in headers.items()
    ]
    made.request.plain = b"".join(line.wire for line in made.request.headers)
    return made


@pytest.mark.parametrize(
    "name", ["X_Correlation_ID", "x_correlation_id", "X_CORRELATION_ID", "X_Correlation_Id"]
)
def test_a_correlation_id_is_taken_over(lines: Lines, name: str) -> None:
    """`X-Correlation-ID`, however it is spelt; a line without one is its own correlation."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    log.append(headed(clock, **{name: b'order-"77"'}), 200, clock.now(), "done")
    log.append(headed(clock, Accept=b"*/*"), 200, clock.now(), "done")
    log.close()
    one, other = (orjson.loads(line) for line in lines.all())
    assert (one["correlation_id"], one["request_id"]) == ('order-"77"', "a" * 32)
    assert other["correlation_id"] == other["request_id"]


def test_further_members_come_from_headers(lines: Lines) -> None:
    """`logging.fields`: a user's id as it is, a session's as a digest, what is missing as null."""
    clock = ManualClock()
    named = Fields((("user_id", "X-User-ID"), ("session_id", "X-Session-ID"), ("tenant", "X-Tenant")))
    log = AccessLog(lines.sink, clock, fields=named)
    log.append(headed(clock, x_user_id=b"u7", X_Session_ID=b"S3CR3T"), 200, clock.now(), "done")
    log.close()
    [line] = lines.all()
    members = orjson.loads(line)
    assert (members["user_id"], members["tenant"]) == ("u7", None)
    assert re.fullmatch("[0-9a-f]{16}", members["session_id"])
    assert b"S3CR3T" not in line


def test_a_line_tells_what_the_cache_knew(lines: Lines) -> None:
    """The key's digest, the same for the same key, and the freshness left; neither without a cache."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    for cached in ((b"key", 60), (b"key", None), (b"other", -3), None):
        one = exchange(clock)
        one.cached = cached
        log.append(one, 200, clock.now(), "done")
    log.close()
    members = [orjson.loads(line) for line in lines.all()]
    keys = [line["cache_key"] for line in members[:3]]
    assert keys[0] == keys[1] != keys[2]
    assert [line["ttl"] for line in members[:3]] == [60, None, -3]
    assert "cache_key" not in members[3]
    assert "ttl" not in members[3]


class Chance:
    """Draws what it is told to."""

    def __init__(self, drawn: float) -> None:
        self.drawn = drawn

    def random(self) -> float:
        return self.drawn


def ordinary(clock: ManualClock) -> Exchange:
    """A request that nothing is to be said of."""
    made = exchange(clock)
    made.attempts, made.note_list = 1, None
    return made


def test_a_share_of_the_successes_is_logged(lines: Lines) -> None:
    """`sample: 10%` logs what chance draws below a tenth, and counts what it leaves out."""
    clock = ManualClock()
    chance = Chance(0.0)
    log = AccessLog(lines.sink, clock, sampling=Sampling(0.1, 1.0), random=chance)
    for drawn in (0.05, 0.099, 0.1, 0.5, 0.999):
        chance.drawn = drawn
        log.append(ordinary(clock), 200, clock.now(), "done")
    log.close()
    assert len(lines.all()) == 2
    assert log.left_out == 3


@pytest.mark.parametrize(
    ("what", "status", "seconds", "how"),
    [
        ({}, 404, 0.0, "done"),
        ({}, 503, 0.0, "done"),
        ({}, 200, 1.0, "done"),
        ({}, 200, 0.0, "client_gone"),
        ({}, 200, 0.0, "aborted"),
        ({"rung": "respond"}, 200, 0.0, "done"),
        ({"attempts": 2}, 200, 0.0, "done"),
        ({"note_list": [("overlap", "degraded=google-maps")]}, 200, 0.0, "done"),
    ],
)
def test_what_went_wrong_is_always_logged(
    lines: Lines, what: dict[str, Any], status: int, seconds: float, how: str
) -> None:
    """Errors, slow, cut, repeated and degraded requests are beyond sampling."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock, sampling=Sampling(0.001, 1.0), random=Chance(0.9))
    one = ordinary(clock)
    for name, value in what.items():
        setattr(one, name, value)
    log.append(one, status, clock.now() + seconds, how)
    log.close()
    assert len(lines.all()) == 1
    assert log.left_out == 0


def test_a_line_costs_the_loop_a_fraction_of_logging(lines: Lines) -> None:
    """What the event loop pays for a line is less than a third of `logging` into nothing."""
    clock = ManualClock()
    log = AccessLog(lines.sink, clock)
    plain = logging.getLogger("sidecar.tests.plain")
    plain.propagate = False
    plain.setLevel(logging.INFO)
    plain.addHandler(logging.NullHandler())
    one = exchange(clock)
    ours, theirs = [], []
    for _ in range(30):
        begin = time.thread_time()
        for _ in range(BATCH):
            log.append(one, 200, 1000.5, "done", STACK)
        ours.append(time.thread_time() - begin)
        begin = time.thread_time()
        for _ in range(BATCH):
            plain.info("%s %s %s", "GET", "/", 200)
        theirs.append(time.thread_time() - begin)
    log.close()
    assert min(ours) < min(theirs) / 3

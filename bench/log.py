"""`python -m bench log`: what a line of the access log costs the event loop.

Lines come at a rate, as requests end in a busy sidecar, and go through the real sink into a file. Measured is
the CPU time of the loop's thread (`thread_time`) around all that the loop does for them, which is to take the
facts of an exchange and to hand over a batch; and that of the sink's thread, which makes the lines.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.clock import Ids, SystemClock
from sidecar.decisions.verdict import Verdict
from sidecar.exchange import Exchange, Request
from sidecar.telemetry.access_lines import Stack
from sidecar.telemetry.access_log import BATCH, AccessLog
from sidecar.telemetry.sink import Sink

RATE: Final = 10_000
"""Lines a second."""
BURST: Final = 50
"""Lines that come together, every 5 ms at `RATE`."""
STACK: Final = Stack(("cache", "deadline", "retry", "circuit_breaker", "attempt_timeout", "classify"))

_IDS: Final = Ids()


def usual(_: int) -> Exchange:
    """A request that went well at the first attempt."""
    return _exchange(b"/api/v1/things")


def _exchange(target: bytes) -> Exchange:
    made = Exchange(Request("GET", target, []), "192.0.2.7", time.monotonic() - 0.012)
    made.request_id = _IDS.request_id()
    made.traceparent = (b"4bf92f3577b34da6a3ce929d0e0e4736", b"01")
    made.route, made.upstream, made.breaker = "things", "app", "closed"
    made.attempts, made.verdict, made.upstream_seconds = 1, Verdict.OK, 0.0109
    made.first_byte = made.started + 0.0115
    made.sent = 1024
    return made


def cached(number: int) -> Exchange:
    """A hit."""
    made = usual(number)
    made.cache, made.cached = "hit", (b"7f1d2a" * 4, 299)
    made.attempts, made.verdict, made.upstream = 0, None, ""
    return made


def apart(number: int) -> Exchange:
    """A URL that none had before."""
    return _exchange(b"/api/v1/things/%d" % number)


def repeated(number: int) -> Exchange:
    """A request with a retry, which the trail tells of."""
    made = usual(number)
    made.attempts = 2
    made.note("upstream", "status=503")
    made.note("classify", "transient")
    made.note("retry", "transient")
    return made


CASES: Final[tuple[Callable[[int], Exchange], ...]] = (usual, cached, apart, repeated)


class Cost(NamedTuple):
    """CPU seconds for one line."""

    loop: list[float]
    """Of this thread, in each second's worth of lines."""
    thread: float
    """Of the sink's, over all."""


def per_line(make: Callable[[int], Exchange], seconds: float, rate: int = RATE) -> Cost:
    """What lines cost that come at `rate` a second."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as directory:
        fd = os.open(Path(directory) / "access.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sink = Sink(fd)
        log = AccessLog(sink, clock)
        log._timer = _Never()  # type: ignore[assignment] # noqa: SLF001 - flushed here, as the timer would
        found, spent, lines = [], 0.0, 0
        others = time.process_time() - time.thread_time()
        due = time.monotonic()
        for burst in range(int(seconds * rate / BURST)):
            exchanges = [make(burst * BURST + number) for number in range(BURST)]
            now = time.monotonic()
            begin = time.thread_time()
            for exchange in exchanges:
                log.append(exchange, 200, now, "done", STACK)
            spent += time.thread_time() - begin
            lines += BURST
            if lines % rate == 0:
                begin = time.thread_time()
                log.flush()
                spent += time.thread_time() - begin
                found.append(spent / rate)
                spent = 0.0
            due += BURST / rate
            time.sleep(max(due - time.monotonic(), 0.0))
        log.flush()
        sink.close()
        others = time.process_time() - time.thread_time() - others
        os.close(fd)
        assert sink.dropped == 0
    return Cost(found, others / (seconds * rate))


class _Never:
    """A timer that is armed already."""

    def cancel(self) -> None:
        """Is not there to be cancelled."""


def run(seconds: int) -> str:
    """The table."""
    rows = [
        "## Access log",
        "",
        f"{RATE:,} lines a second for {seconds} s, in batches of {BATCH}, into a file; CPU time of each, µs.",
        "",
        "| lines | event loop, median second | worst second | the sink's thread |",
        "|---|--:|--:|--:|",
    ]
    for make in CASES:
        loop, thread = per_line(make, seconds)
        title = (make.__doc__ or "").rstrip(".")
        rows.append(
            f"| {title} | {statistics.median(loop) * 1e6:.2f} | {max(loop) * 1e6:.2f} | {thread * 1e6:.2f} |"
        )
    return "\n".join(rows) + "\n"

"""The access log: one line a request, written when its answer is over.

`logging.info` costs 12 microseconds a line. Here a request appends a tuple; batches of them go to the sink's
thread, every `FLUSH_SECONDS` or `BATCH` requests, which makes the lines: the event loop takes their facts and
no more. The buffer is bounded by count, the sink by bytes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sidecar.telemetry.access_lines import NO_LAYERS, Lines, Record, Stack, degraded
from sidecar.telemetry.correlation import Fields, correlation_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.clock import Clock, Random, Timer
    from sidecar.exchange import Exchange
    from sidecar.telemetry.sink import Sink

FLUSH_SECONDS = 0.1
BATCH = 256
"""Records after which a flush does not wait. Making their lines takes about a millisecond: that is how long
the thread may keep the interpreter from the event loop."""


class Sampling(NamedTuple):
    """Which requests that went well are logged."""

    share: float = 1.0
    slow: float = 1.0
    """Seconds after which a request is logged in any case."""


ALL: Final = Sampling()


class AccessLog:
    """Appends without waiting; flushes by itself while an event loop runs.

    `sink` is None where the access log is off: then `enabled` is False, and nothing need be appended.
    """

    def __init__(
        self,
        sink: Sink | None,
        clock: Clock,
        *,
        format: Literal["json", "console"] = "json",  # noqa: A002 # the key's name in YAML
        sampling: Sampling = ALL,
        random: Random | None = None,
        fields: Fields | None = None,
    ) -> None:
        """`random` decides about a `sampling` of less than all; `fields` are further members."""
        assert sampling.share >= 1 or random is not None
        self._sink = sink
        self._clock = clock
        self._records: list[Record] = []
        self._timer: Timer | None = None
        self.left_out = 0
        """Requests that went well and are not logged, as `sampling` wants it."""
        self._share = sampling.share
        self._slow = sampling.slow
        self._random = random
        self._fields = fields
        self.tap: Callable[[Sequence[Record], float], None] | None = None
        """Hears of each batch once the sink has it, with what makes Unix time of its times."""
        self._lines = Lines(format, colour=sink is not None and sink.is_terminal)
        """The sink's thread's own."""
        self._entries = Lines()

    def write(self, sink: Sink | None, format: Literal["json", "console"]) -> None:  # noqa: A002
        """From now on to `sink`, nowhere for None, in `format`."""
        self.flush()
        self._sink = sink
        self._lines = Lines(format, colour=sink is not None and sink.is_terminal)

    @property
    def headers(self) -> frozenset[bytes]:
        """The request headers that lines show, in lower case, besides ids."""
        return frozenset() if self._fields is None else self._fields.headers

    @property
    def enabled(self) -> bool:
        return self._sink is not None

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return 0 if self._sink is None else self._sink.dropped

    def append(
        self, exchange: Exchange, status: int, ended: float, how: str, stack: Stack = NO_LAYERS
    ) -> None:
        """Takes what the line needs from an exchange that was over at `ended` (`Clock.now()`).

        The exchange itself is not kept: it holds bodies.
        """
        if self._share < 1 and self._leaves_out(exchange, status, ended, how):
            self.left_out += 1
            return
        request = exchange.request
        error = exchange.error
        verdict = exchange.verdict
        records = self._records
        records.append(
            (
                ended,
                (
                    status,
                    how,
                    request.method,
                    exchange.client,
                    exchange.route,
                    exchange.upstream,
                    exchange.attempts,
                    # `_value_`: the property costs as much as half of the line in Python 3.11.
                    "" if verdict is None else verdict._value_,
                    exchange.breaker,
                    exchange.cache,
                    None if error is None else error.code,
                    exchange.rung,
                    stack,
                ),
                request.target,
                exchange.request_id,
                "" if request.correlation == b"" else correlation_id(request),
                "" if self._fields is None else self._fields.of(request),
                exchange.traceparent,
                exchange.started,
                exchange.first_byte,
                exchange.upstream_seconds,
                exchange.note_list,
                exchange.cached,
                exchange.received,
                exchange.sent,
            )
        )
        count = len(records)
        if count >= BATCH:
            self.flush()
        elif count == 1 and self._timer is None:
            self._timer = self._clock.arm(ended + FLUSH_SECONDS, self._due)

    def _leaves_out(self, exchange: Exchange, status: int, ended: float, how: str) -> bool:
        """Chance wants it so, and nothing about the request was out of the ordinary."""
        assert self._random is not None
        return (
            self._random.random() >= self._share
            and status < 400
            and how == "done"
            and ended - exchange.started < self._slow
            and exchange.attempts < 2
            and not exchange.rung
            and exchange.error is None
            and not degraded(exchange.note_list)
        )

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Hands all records to the sink."""
        records = self._records
        if not records:
            return
        self._records = []
        clock = self._clock
        # Read anew each time: the wall clock may have been set.
        epoch = clock.wall() - clock.now()
        if self._sink is not None:
            self._sink.write_made(partial(self._lines.all, records, epoch), len(records))
            if self.tap is not None:
                self.tap(records, epoch)

    def entry(self, record: Record, epoch: float) -> bytes:
        """A record as JSON, in whatever format the log is written."""
        return self._entries.json(record, epoch).rstrip("\n").encode()

    def close(self) -> None:
        """Flushes. The sink is closed by whoever made it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()

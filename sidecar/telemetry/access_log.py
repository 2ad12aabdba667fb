"""The access log: one line a request, written when its answer is over.

`logging.info` costs 12 microseconds a line. Here a request appends a tuple; lines are made and handed to
the sink's thread in batches, every `FLUSH_SECONDS` or `BATCH` requests, so the buffer is bounded by count
and the sink by bytes.
"""

from __future__ import annotations

# ASCII only, so that nothing that a client sends makes a line that is not UTF-8.
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Final, Literal

from sidecar.decisions import trail
from sidecar.telemetry.redact import redact_target
from sidecar.telemetry.stamp import Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.clock import Clock, Timer
    from sidecar.exchange import Exchange
    from sidecar.telemetry.sink import Sink

FLUSH_SECONDS = 0.1
BATCH = 256
"""Records after which a flush does not wait: making their lines takes about a millisecond."""
LONGEST_TARGET = 4096
"""Bytes of path and query that are logged."""

MOST_KNOWN = 1024
"""Sets of facts whose part of a line is remembered; all are forgotten when there are more."""
LONGEST_KNOWN = 512
"""Bytes of a target in a set that is remembered."""

LOGGER = "sidecar.access"


class Stack:
    """The layers of a route, outermost first, `observe` left out. Compared by identity: that is quick."""

    __slots__ = ("layers",)

    def __init__(self, layers: tuple[str, ...] = ()) -> None:
        self.layers = layers


NO_LAYERS: Final = Stack()

Facts = tuple[int, str, str, bytes, str, str, str, int, str, str, str, str | None, str, Stack]
"""What many lines have in common: status, end, method, target, client, route, upstream, attempts, verdict,
breaker, cache, error, rung, layers."""
_ATTEMPTS = 7

Record = tuple[
    float,  # Clock.now() at the end
    Facts,
    str,  # request id
    tuple[bytes, bytes] | None,  # trace id and flags
    float,  # Clock.now() at the start
    float,  # Clock.now() at the first byte, or 0
    float,  # upstream seconds
    list[tuple[str, str]] | None,  # notes
    int,  # bytes in
    int,  # bytes out
]

_TRACE = '"%s"'
_MILLISECONDS = "%.3f"

_COLOURS = {"INFO": "\x1b[32m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m"}
_PLAIN = "\x1b[0m"


def _or_null(text: str | None) -> str:
    return quote(text) if text else "null"


def level_of(status: int, how: str = "done") -> str:
    """The level of a line: by the answer's status, and an answer cut short is an error whatever it was."""
    if how in ("aborted", "broken"):
        return "ERROR"
    if status < 400:
        return "INFO"
    return "WARNING" if status < 500 else "ERROR"


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
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._records: list[Record] = []
        self._timer: Timer | None = None
        self._stamp = Stamp()
        self._known: dict[Facts, tuple[str, str]] = {}
        self._trails: dict[tuple[object, ...], str] = {}
        self.tap: Callable[[Sequence[Record], float], None] | None = None
        """Hears of each batch once the sink has it, with what makes Unix time of its times."""
        self._colour = format == "console" and sink is not None and sink.is_terminal
        self._line = self._console if format == "console" else self._json

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
                    request.target,
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
                exchange.request_id,
                exchange.traceparent,
                exchange.started,
                exchange.first_byte,
                exchange.upstream_seconds,
                exchange.note_list,
                exchange.received,
                exchange.sent,
            )
        )
        count = len(records)
        if count >= BATCH:
            self.flush()
        elif count == 1 and self._timer is None:
            self._timer = self._clock.arm(ended + FLUSH_SECONDS, self._due)

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Hands all lines to the sink."""
        records = self._records
        if not records:
            return
        self._records = []
        clock = self._clock
        # Read anew each time: the wall clock may have been set.
        epoch = clock.wall() - clock.now()
        line = self._line
        if self._sink is not None:
            self._sink.write(b"".join([line(record, epoch) for record in records]), len(records))
            if self.tap is not None:
                self.tap(records, epoch)

    def entry(self, record: Record, epoch: float) -> bytes:
        """A record as JSON, in whatever format the log is written."""
        return self._json(record, epoch).rstrip(b"\n")

    def close(self) -> None:
        """Flushes. The sink is closed by whoever made it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()

    def _json(self, record: Record, epoch: float) -> bytes:
        ended, facts, request_id, trace, started, first_byte, upstream_seconds, notes, received, sent = record
        known, usual = self._known.get(facts) or self._learn(facts)
        return (
            f'{{"ts":"{self._stamp(epoch + ended)}",{known},"request_id":{quote(request_id)},'
            f'"trace_id":{_TRACE % trace[0].decode() if trace else "null"},'
            f'"duration_ms":{(ended - started) * 1000:.3f},'
            f'"first_byte_ms":{_MILLISECONDS % ((first_byte - started) * 1000) if first_byte else "null"},'
            f'"upstream_ms":{_MILLISECONDS % (upstream_seconds * 1000) if facts[_ATTEMPTS] else "null"},'
            f'"trail":{self._trail(facts, notes) if notes else usual},'
            f'"bytes_in":{received},"bytes_out":{sent}}}\n'
        ).encode()

    def _learn(self, facts: Facts) -> tuple[str, str]:
        """The members that many lines have in common, and the trail of those without notes."""
        status, how, method, target, client, route, upstream, attempts, verdict, *_ = facts
        breaker, cache, error, rung, stack = facts[9:]
        path = quote(_shown(target))[1:-1]
        known = (
            f'"level":"{level_of(status, how)}","logger":"{LOGGER}","message":"{method} {path} {status}",'
            f'"client":{quote(client)},"method":"{method}","path":"{path}","route":"{route}",'
            f'"status":{status},"upstream":{_or_null(upstream)},"attempts":{attempts},'
            f'"verdict":{_or_null(verdict)},"breaker":{_or_null(breaker)},"cache":{_or_null(cache)},'
            f'"error":{_or_null(error)},"rung":{_or_null(rung)},"end":"{how}"'
        )
        came_to = trail.Facts(status, how, attempts, verdict, cache, error or "", rung)
        both = (known, quote(trail.compose(stack.layers, came_to)))
        if len(target) <= LONGEST_KNOWN:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[facts] = both
        return both

    def _trail(self, facts: Facts, notes: list[tuple[str, str]]) -> str:
        """The trail of a request that something was noted of: of the same, most of the time."""
        status, how, _, _, _, _, _, attempts, verdict, _, cache, error, rung, stack = facts
        key = (stack, status, how, attempts, verdict, cache, error, rung, *notes)
        known = self._trails.get(key)
        if known is None:
            came_to = trail.Facts(status, how, attempts, verdict, cache, error or "", rung)
            known = quote(trail.compose(stack.layers, came_to, notes))
            if len(self._trails) >= MOST_KNOWN:
                self._trails.clear()
            self._trails[key] = known
        return known

    def _console(self, record: Record, epoch: float) -> bytes:
        ended, facts, request_id, _, started, _, _, notes, _, sent = record
        status, how, method, target, _, route, upstream, attempts, verdict, *_ = facts
        breaker, cache, error, rung, _ = facts[9:]
        level = level_of(status, how)
        time = self._stamp(epoch + ended)[11:-1]
        rest = [
            f"{time} {level:7} {method} {_shown(target)} {status} {_milliseconds(ended - started)}ms",
            f"{sent}B route={route}",
        ]
        if upstream:
            rest.append(f"upstream={upstream} attempts={attempts}")
        if verdict:
            rest.append(f"verdict={verdict}")
        if cache:
            rest.append(f"cache={cache}")
        if breaker and breaker != "closed":
            rest.append(f"breaker={breaker}")
        if error is not None:
            rest.append(f"error={error}")
        if rung:
            rest.append(f"rung={rung}")
        if how != "done":
            rest.append(f"end={how}")
        rest.extend(f"{layer};{decision}" for layer, decision in notes or ())
        rest.append(f"id={request_id}")
        text = " ".join(rest)
        if not text.isprintable():  # what a client sends must not steer a terminal
            text = text.encode("unicode_escape").decode("ascii")
        if self._colour:
            text = f"{_COLOURS[level]}{text}{_PLAIN}"
        return text.encode("utf-8", "backslashreplace") + b"\n"


def _shown(target: bytes) -> str:
    # Cut after the secrets are hidden: a cut name would not be known for one.
    if b"?" in target:
        target = redact_target(target)
    if len(target) > LONGEST_TARGET:
        target = target[:LONGEST_TARGET]
    return target.decode("latin-1")


def _milliseconds(seconds: float) -> float:
    return int(seconds * 1_000_000 + 0.5) / 1000  # a third of what `round` costs

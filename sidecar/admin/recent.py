"""The requests that were of late not plain successes, and some that were, with their trails.

They are taken from the records that the access log writes anyway, whole batches after the sink has them: the
request path does nothing for it. A line is made of a record when somebody looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sidecar.telemetry.access_lines import ATTEMPTS, CACHE, END, NOTES, RUNG, STATUS, degraded

if TYPE_CHECKING:
    from sidecar.telemetry.access_lines import Record
    from sidecar.telemetry.access_log import AccessLog

MOST: Final = 200
"""Of those that were no plain successes."""
MOST_PLAIN: Final = 40
LOOKED_AT: Final = 64
"""Records of a batch that are looked at while nobody watches."""
PLAIN_EVERY: Final = 1.0
"""Seconds between two plain successes that are kept."""


class _Kept:
    """A record with its number."""

    __slots__ = ("epoch", "line", "number", "record")

    def __init__(self, number: int, record: Record, epoch: float) -> None:
        self.number = number
        self.record = record
        self.epoch = epoch
        self.line: bytes | None = None


class Recent:
    """Of one process; hears of the records by itself."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log
        self._odd: deque[_Kept] = deque(maxlen=MOST)
        self._plain: deque[_Kept] = deque(maxlen=MOST_PLAIN)
        self._next_plain = float("-inf")
        self.count = 0
        """The number of the last one kept."""
        self.watched = False
        """Then all records are looked at."""
        log.tap = self.take

    @property
    def enabled(self) -> bool:
        """Whether there is an access log to take them from."""
        return self._log.enabled

    def take(self, records: Sequence[Record], epoch: float) -> None:
        """A batch that was written. `epoch` is what makes Unix time of its times."""
        for record in records if self.watched else records[:LOOKED_AT]:
            facts = record[1]
            if (
                facts[STATUS] >= 400
                or facts[RUNG]
                or facts[ATTEMPTS] > 1
                or facts[END] != "done"
                or facts[CACHE] == "stale"
                or degraded(record[NOTES])
            ):
                self.count += 1
                self._odd.append(_Kept(self.count, record, epoch))
            elif record[0] >= self._next_plain:
                self._next_plain = record[0] + PLAIN_EVERY
                self.count += 1
                self._plain.append(_Kept(self.count, record, epoch))

    def records_since(self, number: int) -> list[tuple[Record, float]]:
        """Those kept after `number`, with what makes Unix time of their times: for another process."""
        return [(kept.record, kept.epoch) for kept in (*self._odd, *self._plain) if kept.number > number]

    def since(self, number: int) -> bytes:
        """Those kept after `number`, as a JSON array of access log lines, the oldest first."""
        new = [kept for kept in (*self._odd, *self._plain) if kept.number > number]
        new.sort(key=lambda kept: kept.number)
        return b"[" + b",".join([self._line(kept) for kept in new]) + b"]"

    def _line(self, kept: _Kept) -> bytes:
        if kept.line is None:
            kept.line = self._log.entry(kept.record, kept.epoch)
        return kept.line

"""Time stamps for log lines."""

from __future__ import annotations

from datetime import UTC, datetime

# The last place is for a fraction that rounds up: a double holds today's Unix time to 0.2 µs.
_FRACTIONS = (*(f".{millisecond:03d}Z" for millisecond in range(1000)), ".999Z")


class Stamp:
    """Formats Unix seconds as RFC 3339 with milliseconds, in UTC: `2024-05-01T12:00:00.123Z`.

    The text of a second is kept: formatting a date costs more than all the rest of a line. So is that of a
    millisecond: lines of one batch often have the same.
    """

    __slots__ = ("_known", "_millisecond", "_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""
        self._millisecond = -1
        self._known = ""

    def __call__(self, wall: float) -> str:
        millisecond = int(wall * 1000)
        if millisecond == self._millisecond:
            return self._known
        self._millisecond = millisecond
        second = int(wall)
        if second != self._second:
            self._second = second
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        self._known = self._text + _FRACTIONS[int((wall - second) * 1000 + 0.001)]
        return self._known

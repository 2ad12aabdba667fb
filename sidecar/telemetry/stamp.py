"""Time stamps for log lines."""

from __future__ import annotations

from datetime import UTC, datetime

# The last place is for a fraction that rounds up: a double holds today's Unix time to 0.2 µs.
_FRACTIONS = (*(f".{millisecond:03d}Z" for millisecond in range(1000)), ".999Z")


class Stamp:
    """Formats Unix seconds as RFC 3339 with milliseconds, in UTC: `2024-05-01T12:00:00.123Z`.

    The text of a second is kept: formatting a date costs more than all the rest of a line.
    """

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, wall: float) -> str:
        second = int(wall)
        if second != self._second:
            self._second = second
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return self._text + _FRACTIONS[int((wall - second) * 1000 + 0.001)]

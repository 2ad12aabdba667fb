"""A concurrency limit that learns what its upstream bears, from the time to the first byte of the answer.

The rule is Gradient2 of Netflix's concurrency-limits (`Gradient2Limit`), with its constants. After each
window of samples, `short` being its average and `long` the average of the last 600 windows:

    gradient = max(0.5, min(1, 1.5 × long / short))
    limit    = 0.8 × limit + 0.2 × (limit × gradient + queue)

and no change while less than half of the limit is in use. `queue` is 4, how many requests may queue at the
upstream; below a limit of 16 it is a quarter of it, or one: 4 would let no limit settle below 8.

Gradient2 by itself leaves two things open:

* Under lasting overload `long` comes to take the queue for normal, and the limit drifts up to its maximum.
  And an upstream that became slower for reasons of its own looks overloaded until 600 windows are over. So
  after `PROBE_AFTER` windows with a gradient below 1 the limit probes: it goes down to a third until what was
  in flight is through, and the average of the next window is the new `long`. What does not get faster with a
  third in flight is not slow because of the limit; what does has shown its time without a queue. (Gradient,
  the older rule, and Envoy's gradient controller probe too. A third, as the rule settles at up to two times
  of what the upstream does at once: the probe costs little of it.)
* Failures that overload causes (timeouts, resets, 503) have no time to the first byte. One takes a tenth off,
  and another not before attempts fail that began after it: as in TCP, one step for what was in flight
  together (RFC 6582).

All times are seconds.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from sidecar.decisions.concurrency import Permits

TOLERANCE: Final = 1.5
"""How much longer than usual answers may take before the limit falls."""
STEEPEST: Final = 0.5
SMOOTHING: Final = 0.2
QUEUE: Final = 4
LEAST_WINDOW: Final = 10
"""Samples in a window, or as many as the limit where that is more: what one round trip brings."""
LONG_WINDOW: Final = 600
WARM_UP: Final = 10
"""Windows whose plain average the long-term one is at first."""
RECOVERED: Final = 2.0
"""A long-term average this many times of the short one, for `RUN` windows, is left over from worse times."""
RECOVERY: Final = 0.95
RUN: Final = 10
BACKOFF: Final = 0.9
"""What a failure leaves of the limit: as the AIMD limit of the same library."""
PROBE_AFTER: Final = 20
PROBE_SHARE: Final = 3


class _Phase(Enum):
    LEARNING = "learning"
    DRAINING = "draining"
    """Probing, and what was in flight before is not yet through."""
    MEASURING = "measuring"


_LEARNING: Final = _Phase.LEARNING


class AdaptiveLimit(Permits):
    """The limit of one upstream."""

    __slots__ = (
        "_averaged",
        "_backed_off",
        "_congested",
        "_estimate",
        "_left",
        "_max",
        "_min",
        "_peak",
        "_phase",
        "_recovered",
        "_size",
        "_sum",
        "baseline",
    )

    def __init__(self, initial: int, min: int, max: int) -> None:  # noqa: A002 - named as the keys
        """Raises ValueError unless 1 ≤ min ≤ initial ≤ max."""
        if not 1 <= min <= initial <= max:
            raise ValueError("1 ≤ min ≤ initial ≤ max does not hold")
        super().__init__(initial)
        self.baseline = 0.0
        """The long-term average; 0 before the first window."""
        self._min = min
        self._max = max
        self._estimate = float(initial)
        self._phase = _LEARNING
        self._averaged = 0
        self._recovered = 0
        """Windows in a row that were much faster than the baseline."""
        self._congested = 0
        """Windows with a gradient below 1 since the last probe."""
        self._backed_off = 0.0
        """`now` at the last failure that lowered the limit."""
        self._sum = 0.0
        self._peak = 0
        """The most that were in flight in this window."""
        self._size = self._left = initial if initial > LEAST_WINDOW else LEAST_WINDOW

    def sample(self, seconds: float) -> None:
        """An attempt was answered, the first byte after `seconds`; its permit is still out."""
        self._sum += seconds
        if self.in_flight > self._peak:  # noqa: PLR1730 - max costs a call, and this is the request path
            self._peak = self.in_flight
        self._left -= 1
        if not self._left:
            self._close_window()

    def drop(self, started: float, now: float) -> None:
        """An attempt that began at `started` failed as attempts do that are too many."""
        if started >= self._backed_off:
            self._backed_off = now
            self._settle(self._estimate * BACKOFF)

    def _open_window(self, samples: int) -> None:
        self._sum = 0.0
        self._peak = 0
        self._size = self._left = samples if samples > LEAST_WINDOW else LEAST_WINDOW

    def _close_window(self) -> None:
        short = self._sum / self._size
        if self._phase is _LEARNING:
            self._learn(short)
            if self._congested >= PROBE_AFTER:
                self._congested = 0
                self._phase = _Phase.DRAINING
                self.resize(max(self._min, self.limit // PROBE_SHARE))
                self._open_window(self.in_flight)
                return
        elif self._phase is _Phase.DRAINING:
            self._phase = _Phase.MEASURING
        else:
            self.baseline = short
            self._phase = _LEARNING
            self._settle(self._estimate)
        self._open_window(self.limit)

    def _learn(self, short: float) -> None:
        if self._averaged < WARM_UP:
            self._averaged += 1
            self.baseline += (short - self.baseline) / self._averaged
        else:
            self.baseline += (short - self.baseline) * 2 / (LONG_WINDOW + 1)
        self._recovered = self._recovered + 1 if self.baseline > RECOVERED * short else 0
        if self._recovered >= RUN:
            self.baseline *= RECOVERY
        estimate = self._estimate
        if self._peak < estimate / 2:
            return
        gradient = TOLERANCE * self.baseline / short if short > 0 else 1.0
        if gradient < 1.0:
            self._congested += 1
        queue = max(1.0, min(QUEUE, estimate / 4))
        aim = estimate * max(STEEPEST, min(1.0, gradient)) + queue
        self._settle(estimate + (aim - estimate) * SMOOTHING)

    def _settle(self, estimate: float) -> None:
        self._estimate = max(float(self._min), min(float(self._max), estimate))
        if self._phase is _LEARNING and int(self._estimate) != self.limit:
            self.resize(int(self._estimate))

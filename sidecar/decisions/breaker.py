"""Whether to let attempts through to an upstream that may be failing.

Every transition happens in `_enter`:

    closed ──▶ open        a streak of failures, or too large a share of failures or of slow calls
    open ──▶ half-open     the open time is over, and somebody asks
    half-open ──▶ open     a probe fails, or too many probes are slow; open for twice as long
    half-open ──▶ closed   enough probes succeed
    any ──▶ any            `force`
    any ──▶ open, closed   `told`: another process has found it out

A permit belongs to the generation (the stay in one state) that gave it: what ends after a transition
says nothing of the state that is now, and is ignored. `now` and durations are monotonic seconds.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final, NamedTuple

from sidecar.decisions.sliding import SlidingCount
from sidecar.decisions.verdict import Outcome

BUCKETS: Final = 10
"""Buckets in the window: what is forgotten at a time is a tenth of it."""
PROBING_RETRY: Final = 1.0
"""Seconds to come back after, when all probes are out: they take as long as an attempt does."""
_ROUNDING: Final = 1e-9
"""0.07 × 100 is a little over 7 in floats."""


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Reason(Enum):
    """Why a breaker changed its state."""

    CONSECUTIVE = "consecutive"
    FAILURE_RATIO = "failure_ratio"
    SLOW_RATIO = "slow_ratio"
    OPEN_TIME_OVER = "open_time_over"
    PROBE_FAILED = "probe_failed"
    PROBES_SLOW = "probes_slow"
    PROBES_SUCCEEDED = "probes_succeeded"
    FORCED = "forced"
    TOLD = "told"
    """By another process of the same sidecar."""


class Transition(NamedTuple):
    source: State
    target: State
    at: float
    """Monotonic seconds."""
    reason: Reason


# Globals are found faster than members of an Enum.
_CLOSED: Final = State.CLOSED
_OPEN: Final = State.OPEN
_HALF_OPEN: Final = State.HALF_OPEN
_SUCCESS: Final = Outcome.SUCCESS
_IGNORE: Final = Outcome.IGNORE


class Permit:
    """Leave to make one attempt; shared by all attempts of a generation, told apart by identity.

    Every `acquire` that returns one is owed exactly one `end`.
    """

    __slots__ = ("label", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        """In which the breaker gave it."""
        self.label: str = state.value


class Breaker:
    """The circuit breaker of one upstream. A trigger whose setting is None is off."""

    __slots__ = (
        "_calls",
        "_consecutive",
        "_exempt",
        "_failure_ratio",
        "_failures",
        "_free",
        "_minimum_calls",
        "_open_for",
        "_open_max",
        "_open_time",
        "_permit",
        "_probed",
        "_probed_slowly",
        "_slow",
        "_slow_over",
        "_slow_ratio",
        "_state",
        "_streak",
        "_until",
        "half_open_probes",
        "last",
        "opened_at",
        "probing",
        "transitions",
    )

    def __init__(
        self,
        failure_ratio: float | None = 0.5,
        minimum_calls: int = 5,
        window: float = 20.0,
        consecutive: int | None = 5,
        slow_ratio: float | None = None,
        slow_over: float | None = None,
        open_for: float = 5.0,
        open_max: float = 60.0,
        half_open_probes: int = 3,
    ) -> None:
        """Ratios are fractions, reached when equal; `minimum_calls` in the window go before either.

        Raises ValueError where nothing could ever be judged: no window, no probes.
        """
        if window <= 0 or half_open_probes < 1:
            raise ValueError("a breaker needs a window above zero and at least one probe")
        slow = slow_ratio is not None and slow_over is not None
        self._failure_ratio = failure_ratio if failure_ratio is not None else math.inf
        self._slow_ratio = slow_ratio if slow_ratio is not None else math.inf
        self._slow_over = slow_over if slow and slow_over is not None else math.inf
        self._consecutive = consecutive if consecutive is not None else math.inf
        self._minimum_calls = minimum_calls
        self._open_for = open_for
        self._open_max = max(open_max, open_for)
        self.half_open_probes = half_open_probes

        width = window / BUCKETS
        self._calls = SlidingCount(width, BUCKETS)
        self._failures = SlidingCount(width, BUCKETS)
        self._slow = SlidingCount(width, BUCKETS)
        self._streak = 0

        self._state = _CLOSED
        self._permit = Permit(_CLOSED)
        """Results of this one count."""
        self._free: Permit | None = self._permit
        """Set while everybody may pass without a look at the clock."""
        self._exempt = Permit(_CLOSED)
        """Given while forced closed: its results never count."""
        self._until = 0.0
        """End of the open time, or of having been forced closed."""
        self._open_time = 0.0
        """How long it was last open; 0 after it closed."""
        self._probed = 0
        self._probed_slowly = 0

        self.probing = 0
        """Probes in flight."""
        self.opened_at: float | None = None
        """When it last opened; None while closed."""
        self.transitions = 0
        """Since the start; a reader that sees another number reads `last`."""
        self.last: Transition | None = None

    def acquire(self, now: float) -> Permit | None:
        """A permit for one attempt, or None when the attempt must not be made."""
        free = self._free
        if free is not None:
            return free
        return self._consider(now)

    def end(self, permit: Permit, outcome: Outcome, now: float, elapsed: float) -> None:
        """Gives `permit` back, with how its attempt ended and the seconds it took.

        IGNORE (the sidecar's own rejections, a client that left, a provider that asks for patience)
        says nothing of the upstream's health: it only gives the probe's place back.
        """
        if permit is not self._permit:
            return
        if self._free is None:
            self._end_probe(outcome, now, elapsed)
            return
        if outcome is _IGNORE:
            return
        self._calls.add(now)
        if outcome is _SUCCESS:
            self._streak = 0
            if elapsed > self._slow_over:
                self._slow.add(now)
                self._judge_slow(now)
            return
        self._streak += 1
        self._failures.add(now)
        if elapsed > self._slow_over:
            self._slow.add(now)
        self._judge_failures(now)

    def state(self, now: float) -> State:
        """An open time that is over reads as half-open, though the transition waits for a probe."""
        if self._state is _OPEN and now >= self._until:
            return _HALF_OPEN
        return self._state

    def retry_after(self, now: float) -> float:
        """Seconds after which an attempt may pass; 0 when one may now.

        The longest open time where no end was set (`force` without `until`).
        """
        if self._state is _OPEN:
            return self._open_max if self._until == math.inf else max(0.0, self._until - now)
        if self._state is _HALF_OPEN and self.probing >= self.half_open_probes:
            return PROBING_RETRY
        return 0.0

    def force(self, state: State | None, until: float | None, now: float) -> None:
        """Overrules what was measured, until `until` (monotonic seconds; None: until told otherwise).

        OPEN isolates the upstream and then probes it; CLOSED lets all through and counts nothing,
        then starts afresh; HALF_OPEN probes at once. None ends an override as if its time were over,
        and changes nothing where there is none.
        """
        if state is None:
            if self.last is not None and self.last.reason is Reason.FORCED:
                self._until = now
            return
        self._enter(state, now, Reason.FORCED)
        self._until = math.inf if until is None else until
        if state is _CLOSED:
            self._free = None

    @property
    def open_for(self) -> float:
        """Seconds that it is, or was last, open; 0 after it closed."""
        return self._open_time

    def told(self, state: State, until: float, open_for: float, now: float) -> bool:
        """Takes in what another process found of the same upstream; whether it changed anything.

        OPEN: until `until` (monotonic seconds), for `open_for` in all, so that the next open time follows
        on it. CLOSED: its probes succeeded. What an operator has forced is not touched.
        """
        last = self.last
        forced = last is not None and last.reason is Reason.FORCED and now < self._until
        if forced or state is _HALF_OPEN or state is self._state:
            return False
        if state is _OPEN and until <= now:
            return False
        self._enter(state, now, Reason.TOLD)
        if state is _OPEN:
            self._open_time = open_for
            self._until = until
        return True

    def _consider(self, now: float) -> Permit | None:
        if self._state is _CLOSED:
            if now < self._until:
                return self._exempt
            self._free = self._permit
            return self._permit
        if self._state is _OPEN:
            if now < self._until:
                return None
            self._enter(_HALF_OPEN, now, Reason.OPEN_TIME_OVER)
        if self.probing >= self.half_open_probes:
            return None
        self.probing += 1
        return self._permit

    def _end_probe(self, outcome: Outcome, now: float, elapsed: float) -> None:
        self.probing -= 1
        if outcome is _IGNORE:
            return
        if outcome is not _SUCCESS:
            self._open(now, Reason.PROBE_FAILED)
            return
        self._probed += 1
        if elapsed > self._slow_over:
            self._probed_slowly += 1
        if self._probed < self.half_open_probes:
            return
        # Closing on slow probes would only measure the same slowness again.
        if _reaches(self._probed_slowly, self._slow_ratio, self._probed):
            self._open(now, Reason.PROBES_SLOW)
        else:
            self._enter(_CLOSED, now, Reason.PROBES_SUCCEEDED)

    def _judge_failures(self, now: float) -> None:
        if self._streak >= self._consecutive:
            self._open(now, Reason.CONSECUTIVE)
        elif self._share_reached(self._failures, self._failure_ratio, now):
            self._open(now, Reason.FAILURE_RATIO)
        else:
            self._judge_slow(now)

    def _judge_slow(self, now: float) -> None:
        if self._share_reached(self._slow, self._slow_ratio, now):
            self._open(now, Reason.SLOW_RATIO)

    def _share_reached(self, part: SlidingCount, ratio: float, now: float) -> bool:
        calls = self._calls.total(now)
        return calls >= self._minimum_calls and _reaches(part.total(now), ratio, calls)

    def _open(self, now: float, reason: Reason) -> None:
        self._open_time = min(self._open_time * 2, self._open_max) if self._open_time else self._open_for
        self._enter(_OPEN, now, reason)
        self._until = now + self._open_time

    def _enter(self, state: State, now: float, reason: Reason) -> None:
        self.transitions += 1
        self.last = Transition(self._state, state, now, reason)
        self._state = state
        self._permit = Permit(state)
        self._free = None
        self.probing = 0
        self._probed = 0
        self._probed_slowly = 0
        if state is _OPEN:
            self.opened_at = now
        elif state is _CLOSED:
            self._free = self._permit
            self._open_time = 0.0
            self.opened_at = None
            self._streak = 0
            self._calls.clear()
            self._failures.clear()
            self._slow.clear()


def _reaches(part: int, ratio: float, whole: int) -> bool:
    return part > 0 and part >= ratio * whole - _ROUNDING

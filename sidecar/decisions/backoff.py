"""How long to wait before the next attempt.

With n failed attempts, `base` b and `max` m (seconds), r uniform in [0, 1) and
e = min(m, b · 2^(n-1)):

| strategy            | delay                                                                  |
|---------------------|------------------------------------------------------------------------|
| fixed               | b                                                                      |
| linear              | b · n                                                                  |
| exponential         | e                                                                      |
| fibonacci           | b · F(n): b · 1, 1, 2, 3, 5, 8, …                                      |
| full_jitter         | r · e                                                                  |
| equal_jitter        | e/2 + r · e/2                                                          |
| decorrelated_jitter | uniform in [b, 3 · previous delay], which starts at b                  |
| adaptive            | e · 2^(1 - 2s), s the recent share of successes: e/2 … 2e              |
| smart               | t/2 + r · t/2, t = min(m, e · the multiplier of the category)          |

None exceeds m. The jitters are those of "Exponential Backoff and Jitter" (AWS Architecture Blog,
2015); full jitter finished the same work with the fewest calls there, so it is the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from sidecar.decisions.verdict import Verdict

MULTIPLIERS: Final[dict[str, float]] = {
    "timeout": 1.5,
    "rate_limit": 3.0,
    "server_error": 2.0,
    "client_error": 0.5,
    "auth": 0.2,
    "resource_exhausted": 4.0,
    "unavailable": 2.5,
}
"""What `smart` multiplies the delay with, by category of the failure; 1 for any other."""

_BY_VERDICT: Final[tuple[tuple[Verdict, str], ...]] = (
    (Verdict.RATE_LIMITED, "rate_limit"),
    (Verdict.QUOTA, "resource_exhausted"),
    (Verdict.AUTH, "auth"),
    (Verdict.CLIENT, "client_error"),
)


def category_of(reason: str | None, verdict: Verdict | None, status: int) -> str:
    """The category of a failed attempt, one of `MULTIPLIERS`.

    `reason` is `UpstreamError.reason` where no answer came; else `verdict` and `status` are the
    answer's.
    """
    if reason is not None:
        return "timeout" if reason == "timeout" else "unavailable"
    for known, category in _BY_VERDICT:
        if verdict is known:
            return category
    if status in (408, 504):
        return "timeout"
    if status in (502, 503):
        return "unavailable"
    return "server_error"


class RecentSuccess:
    """The share of attempts that lately succeeded: a moving average over some twenty attempts."""

    __slots__ = ("share",)

    WEIGHT: Final = 0.1

    def __init__(self) -> None:
        self.share = 1.0
        """In [0, 1]; starts at all well."""

    def record(self, success: bool) -> None:
        self.share += self.WEIGHT * ((1.0 if success else 0.0) - self.share)


class Backoff:
    """The delays of one strategy. Holds nothing of any one request: requests share it."""

    __slots__ = ("_delay", "adapts", "base", "max", "recent")

    def __init__(
        self,
        strategy: str = "full_jitter",
        base: float = 0.2,
        max: float = 2.0,  # noqa: A002 - named as its configuration key
        recent: RecentSuccess | None = None,
    ) -> None:
        """`base` and `max` in seconds; `recent` is what `adaptive` looks at, its own by default.

        Raises ValueError for a strategy that is not in `STRATEGIES`, or a time below zero.
        """
        delay = _STRATEGIES.get(strategy)
        if delay is None:
            raise ValueError(f"unknown back-off strategy: {strategy}")
        if not (base >= 0 and max >= 0):
            raise ValueError("back-off times are zero or more")
        self._delay = delay
        self.base = base
        self.max = max
        self.recent = recent or RecentSuccess()
        self.adapts = strategy == "adaptive"
        """Whether `recent` wants to be told how each attempt ended."""

    def next_delay(self, failures: int, previous: float, random: float, category: str = "") -> float:
        """Seconds to wait, in [0, `max`], after `failures` >= 1 attempts failed.

        `previous` is the delay before the last attempt (0 if there was none), `random` a number in
        [0, 1), `category` one of `MULTIPLIERS`; each matters to some strategies only.
        """
        delay = self._delay(self, failures, previous, random, category)
        return delay if delay < self.max else self.max

    def doubled(self, failures: int) -> float:
        """min(`max`, `base` · 2^(`failures` - 1)), in seconds."""
        # A product of floats overflows to infinity, a power of floats raises: only the power is capped.
        delay = self.base * 2.0 ** min(failures - 1, 1000)
        return delay if delay < self.max else self.max


def _fixed(plan: Backoff, _failures: int, _previous: float, _random: float, _category: str) -> float:
    return plan.base


def _linear(plan: Backoff, failures: int, _previous: float, _random: float, _category: str) -> float:
    return plan.base * min(failures, 1 << 53)


def _exponential(plan: Backoff, failures: int, _previous: float, _random: float, _category: str) -> float:
    return plan.doubled(failures)


def _fibonacci(plan: Backoff, failures: int, _previous: float, _random: float, _category: str) -> float:
    return plan.base * _FIBONACCI[min(failures, len(_FIBONACCI)) - 1]


def _full_jitter(plan: Backoff, failures: int, _previous: float, random: float, _category: str) -> float:
    return random * plan.doubled(failures)


def _equal_jitter(plan: Backoff, failures: int, _previous: float, random: float, _category: str) -> float:
    half = plan.doubled(failures) / 2
    return half + random * half


def _decorrelated_jitter(
    plan: Backoff, _failures: int, previous: float, random: float, _category: str
) -> float:
    base = plan.base
    return base + random * (3 * max(previous, base) - base)


def _adaptive(plan: Backoff, failures: int, _previous: float, _random: float, _category: str) -> float:
    return plan.doubled(failures) * math.exp2(1.0 - 2.0 * plan.recent.share)


def _smart(plan: Backoff, failures: int, _previous: float, random: float, category: str) -> float:
    half = min(plan.max, plan.doubled(failures) * MULTIPLIERS.get(category, 1.0)) / 2
    return half + random * half


def _fibonacci_numbers() -> tuple[int, ...]:
    """1, 1, 2, 3, 5, … as far as a float tells them apart."""
    numbers = [1, 1]
    while numbers[-1] < 1 << 53:
        numbers.append(numbers[-1] + numbers[-2])
    return tuple(numbers)


_FIBONACCI: Final = _fibonacci_numbers()

_STRATEGIES: Final[dict[str, Callable[[Backoff, int, float, float, str], float]]] = {
    "fixed": _fixed,
    "exponential": _exponential,
    "linear": _linear,
    "fibonacci": _fibonacci,
    "full_jitter": _full_jitter,
    "equal_jitter": _equal_jitter,
    "decorrelated_jitter": _decorrelated_jitter,
    "adaptive": _adaptive,
    "smart": _smart,
}

STRATEGIES: Final = tuple(_STRATEGIES)
"""The names that `Backoff` takes."""

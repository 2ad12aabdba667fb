"""How many retries are affordable: a share of the traffic, so that retries cannot multiply an outage.

After Finagle's RetryBudget: each first attempt pays in `ratio` of a retry, each retry takes out one,
and `min_per_second` × `window` retries are always in stock, for routes with little traffic. Payments
and withdrawals are forgotten after the window.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from sidecar.decisions.sliding import SlidingCount

BUCKET: Final = 1.0
"""Seconds that one bucket of the window counts."""


class Budget(Protocol):
    """What retry and hedging ask before they add load. `now` is monotonic seconds."""

    def deposit(self, now: float) -> None:
        """A first attempt starts."""
        ...

    def try_withdraw(self, now: float) -> bool:
        """Pays for one retry; False, and nothing is paid, when there is not enough."""
        ...

    def available(self, now: float) -> float:
        """Retries that could be paid for now."""
        ...


class RetryBudget:
    """At each retry, retries in the last `window` ≤ `ratio` × first attempts + `min_per_second` × `window`.

    `ratio` is a fraction (0.2: one retry for five requests), `window` whole seconds. Withdrawals are
    remembered one bucket longer than deposits, so the bound holds for the exact window and not only
    to the nearest bucket.
    """

    __slots__ = ("_deposits", "_ratio", "_reserve", "_withdrawals")

    def __init__(self, ratio: float, min_per_second: float, window: float = 10.0) -> None:
        """Raises ValueError for a negative rate or a window under a second."""
        if ratio < 0 or min_per_second < 0 or window < BUCKET:
            raise ValueError("a retry budget needs rates of zero or more and a window of at least 1 s")
        buckets = int(window / BUCKET)
        self._ratio = ratio
        self._reserve = min_per_second * window
        self._deposits = SlidingCount(BUCKET, buckets)
        self._withdrawals = SlidingCount(BUCKET, buckets + 1)

    def deposit(self, now: float) -> None:
        self._deposits.add(now)

    def try_withdraw(self, now: float) -> bool:
        # 0.29 × 100 is a little under 29 in floats.
        if self.available(now) < 1.0 - 1e-9:
            return False
        self._withdrawals.add(now)
        return True

    def available(self, now: float) -> float:
        balance = self._reserve + self._ratio * self._deposits.total(now) - self._withdrawals.total(now)
        return max(balance, 0.0)


class Unlimited:
    """Pays for everything: for routes whose budget is off."""

    __slots__ = ()

    def deposit(self, now: float) -> None:
        pass

    def try_withdraw(self, now: float) -> bool:
        return True

    def available(self, now: float) -> float:
        return math.inf


class Empty:
    """Pays for nothing."""

    __slots__ = ()

    def deposit(self, now: float) -> None:
        pass

    def try_withdraw(self, now: float) -> bool:
        return False

    def available(self, now: float) -> float:
        return 0.0


UNLIMITED: Final = Unlimited()
EMPTY: Final = Empty()

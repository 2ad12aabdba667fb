"""Providers with a quota, in virtual time: how they count, and what they say of it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.decisions.verdict import Verdict
from sidecar.exchange import Exchange, Response
from sidecar.headers import Line
from tests.support.clock import ManualClock


@dataclass
class Count:
    """What a quota says to one request."""

    admitted: bool
    remaining: int
    reset: float
    """Seconds until it is whole again."""
    retry_after: float
    """Seconds until the next request is admitted."""


class Quota(Protocol):
    limit: int
    window: float

    def count(self, now: float) -> Count: ...


@dataclass
class FixedWindow:
    """All comes back when a window ends; windows follow one another from `offset` on."""

    limit: int
    window: float
    offset: float = 0.0
    _began: float = -math.inf
    _used: int = 0

    def count(self, now: float) -> Count:
        began = now - (now - self.offset) % self.window
        if began != self._began:
            self._began, self._used = began, 0
        admitted = self._used < self.limit
        self._used += admitted
        left = began + self.window - now
        return Count(admitted, self.limit - self._used, left, left)


@dataclass
class TokenBucket:
    """`limit` at once, and `limit` / `window` a second come back."""

    limit: int
    window: float
    _tokens: float = math.nan
    _at: float = 0.0

    def count(self, now: float) -> Count:
        rate = self.limit / self.window
        if math.isnan(self._tokens):
            self._tokens = float(self.limit)
        else:
            self._tokens = min(self.limit, self._tokens + rate * (now - self._at))
        self._at = now
        admitted = self._tokens >= 1 - 1e-9
        self._tokens -= admitted
        return Count(
            admitted,
            int(self._tokens + 1e-9),
            (self.limit - self._tokens) / rate,
            max(1 - self._tokens, 0.0) / rate,
        )


@dataclass
class SlidingLog:
    """Not more than `limit` in any `window`; `reset` is when the next one comes back."""

    limit: int
    window: float
    _log: deque[float] = field(default_factory=deque)

    def count(self, now: float) -> Count:
        while self._log and self._log[0] <= now - self.window:
            self._log.popleft()
        admitted = len(self._log) < self.limit
        if admitted:
            self._log.append(now)
        left = self._log[0] + self.window - now
        return Count(admitted, self.limit - len(self._log), left, left)


def stated(style: str, quota: Quota, count: Count, wall: float) -> list[Line]:
    """The header lines of an answer. `style`: openai, draft10, draft7, github, retry_after, none."""
    whole = math.ceil(count.reset)
    match style:
        case "openai":
            found = {
                "x-ratelimit-limit-requests": str(quota.limit),
                "x-ratelimit-remaining-requests": str(count.remaining),
                "x-ratelimit-reset-requests": f"{count.reset * 1000:.0f}ms",
            }
        case "draft10":
            found = {
                "RateLimit-Policy": f'"default";q={quota.limit};w={math.ceil(quota.window)}',
                "RateLimit": f'"default";r={count.remaining};t={whole}',
            }
        case "draft7":
            found = {"RateLimit": f"limit={quota.limit}, remaining={count.remaining}, reset={whole}"}
        case "github":
            found = {
                "X-RateLimit-Limit": str(quota.limit),
                "X-RateLimit-Remaining": str(count.remaining),
                "X-RateLimit-Reset": f"{wall + count.reset:.0f}",
            }
        case _:
            found = {}
    if not count.admitted and style not in {"none", "github"}:
        found["Retry-After"] = str(max(1, math.ceil(count.retry_after)))
    return [Line(name.encode(), value.encode()) for name, value in found.items()]


class Provider:
    """Answers 200 within the quota and 429 beyond it; each way takes half of `latency`."""

    def __init__(self, clock: ManualClock, quota: Quota, style: str, latency: float = 0.05) -> None:
        self.clock = clock
        self.quota = quota
        self.style = style
        self.latency = latency
        self.admitted: list[float] = []
        self.refused: list[float] = []

    async def __call__(self, exchange: Exchange) -> Response:
        await self.clock.sleep(self.latency / 2)
        now = self.clock.now()
        count = self.quota.count(now)
        (self.admitted if count.admitted else self.refused).append(now)
        lines = stated(self.style, self.quota, count, self.clock.wall())
        await self.clock.sleep(self.latency / 2)
        return Response(200 if count.admitted else 429, lines, b"ok" if count.admitted else b"too fast")


VERDICTS = {200: Verdict.OK, 429: Verdict.RATE_LIMITED}

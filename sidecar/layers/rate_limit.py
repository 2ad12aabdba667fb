"""Bounds how often one client may come.

Must be above `cache`: it protects the sidecar itself, and a request that is refused costs no look-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.decisions import rate_limit_fields
from sidecar.decisions.client_key import Key, key_of
from sidecar.errors import RateLimited, RateUnknown
from sidecar.headers import Line

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sidecar.exchange import Exchange, Response
    from sidecar.pipeline import Handler, Layer, Place

NAME: Final = "rate_limit"
UNKNOWN_RETRY: Final = 1.0
"""Seconds to come back after when nobody can tell."""
MOST_FIELDS: Final = 4096
ROUNDING: Final = 1e-3
"""A burst of which 19.9999 is left is one of 20."""


class _Fields(dict[int, bytes]):
    """The lines that tell a client of its limit, by what is left of its burst: made once each."""

    __slots__ = ("_burst", "_policy", "_rate")

    def __init__(self, rate: float, burst: int) -> None:
        super().__init__()
        self._rate = rate
        self._burst = burst
        self._policy = Line(b"RateLimit-Policy", rate_limit_fields.policy(rate)).wire

    def __missing__(self, left: int) -> bytes:
        if len(self) >= MOST_FIELDS:
            self.clear()
        state = rate_limit_fields.state(left, self._burst, self._rate)
        made = self[left] = self._policy + Line(b"RateLimit", state).wire
        return made


def layer(place: Place) -> Layer | None:
    settings = place.route.rate_limit
    if settings is None:
        return None
    buckets, shared = place.services.state.buckets(place.route.name, settings)
    cells = place.services.metrics.route(place.route.name, place.upstream)
    now = place.services.clock.now
    take = buckets.take
    key = key_of(settings.key)
    rate = settings.rate
    fields = _Fields(rate, settings.burst)
    burst = settings.burst + ROUNDING
    local = not settings.shared
    failure = settings.failure
    shadow = settings.mode == "shadow"

    async def ask(exchange: Exchange, client: Key) -> float | None:
        """As `Buckets.take`, of all replicas; None where `failure` says that anybody may pass."""
        ahead = await shared.take(client) if shared is not None else None
        if ahead is not None:
            return ahead
        cells.rate_unshared += 1
        if failure == "local":
            exchange.note(NAME, "local")
            return take(client, now())
        if failure == "open":
            exchange.note(NAME, "open")
            return None
        if shadow:
            would_reject(exchange)
            return None
        exchange.note(NAME, f"error={RateUnknown.code}")
        cells.rate_rejected()
        raise RateUnknown(retry_after=UNKNOWN_RETRY)

    def would_reject(exchange: Exchange) -> None:
        if exchange.would_reject(NAME):
            cells.would_reject(NAME)

    def refuse(exchange: Exchange, ahead: float) -> None:
        exchange.note(NAME, "rejected")
        cells.rate_rejected()
        exchange.told = fields[0]
        raise RateLimited(retry_after=-ahead)

    def judge(exchange: Exchange, ahead: float | None) -> None:
        if shadow or ahead is None:
            if ahead is not None and ahead < 0:
                would_reject(exchange)
        elif ahead < 0:
            refuse(exchange, ahead)
        else:
            exchange.told = fields[int(burst - ahead * rate)]

    def around(inner: Handler) -> Handler:
        async def asking(exchange: Exchange) -> Response:
            if exchange.client:
                judge(exchange, await ask(exchange, key(exchange)))
            return await inner(exchange)

        def rate_limit(exchange: Exchange) -> Awaitable[Response]:
            if exchange.client:  # else the sidecar's own: it warms its cache
                ahead = take(key(exchange), exchange.started)
                if ahead > 0 and not shadow:
                    exchange.told = fields[int(burst - ahead * rate)]
                else:
                    judge(exchange, ahead)
            return inner(exchange)

        return rate_limit if local else asking

    return around

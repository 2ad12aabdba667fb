"""A generation under trial: it serves a share of the clients, beside the one in force.

Stands in the place of the generation only while it lasts: without a rollout nothing of this is called.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.decisions.rollout import Trial, shares

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.schema import Rollout
    from sidecar.egress import EgressRoutes
    from sidecar.exchange import Exchange, Response
    from sidecar.generation import Compiled
    from sidecar.pipeline import Handler

FAILED = 500
"""The least status that counts against a generation."""


class _Pair:
    """Two generations, and who sees which.

    What requests are routed by holds this and not the `Split` itself: two that know each other would stay in
    memory, with both generations, until the collector finds them.
    """

    def __init__(self, old: Compiled, new: Compiled, percent: float, trial: Trial, clock: Clock) -> None:
        self.old = old
        self.new = new
        self.trial = trial
        self._percent = percent
        self._clock = clock

    def is_new(self, key: str) -> bool:
        return shares(key, self._percent, self.new.number)

    def watched(self, handler: Handler, *, new: bool) -> Handler:
        now = self._clock.now
        tally = self.trial.new if new else self.trial.old

        async def watch(exchange: Exchange) -> Response:
            began = now()
            try:
                response = await handler(exchange)
            except asyncio.CancelledError:
                tally.record_left(now() - began)
                raise
            tally.record(failed=response.status >= FAILED, seconds=now() - began)
            return response

        return watch


class Split:
    """Two generations; the same shape as `Compiled`, as far as requests see it."""

    def __init__(
        self, old: Compiled, new: Compiled, rule: Rollout, clock: Clock, trial: Trial | None = None
    ) -> None:
        """`trial` is one that goes on, with generations that were compiled anew."""
        self.old = old
        self.new = new
        self.rule = rule
        self.trial = trial or Trial(
            clock.now(),
            error_rate=rule.guard.error_rate,
            p95=rule.guard.p95,
            window=rule.window,
            minimum=rule.minimum_requests,
        )
        pair = _Pair(old, new, rule.percent, self.trial, clock)
        self.ingress = _Ingress(pair)
        self.egress: EgressRoutes = _Egress(pair)  # type: ignore[assignment]  # what listeners ask of one

    @property
    def parts(self) -> tuple[Compiled, ...]:
        return self.old, self.new


class _Ingress:
    """A client sees one generation, as long as its address is the same."""

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self.memo = None
        """Each request is of a trial: none is answered from memory of others."""

    def route(self, exchange: Exchange) -> Handler:
        pair = self._pair
        if pair.is_new(exchange.client):
            return pair.watched(pair.new.ingress.route(exchange), new=True)
        return pair.watched(pair.old.ingress.route(exchange), new=False)


class _Egress:
    """The app is one client: of its calls, those for the same URL see one generation.

    What is asked before a request is read (which hosts are ours) is told by the generation in force.
    """

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self.owns = pair.old.egress.owns
        self.share = pair.old.egress.share
        self.names = pair.old.egress.names
        self.based_for = pair.old.egress.based_for
        self.refused = pair.old.egress.refused
        self.tunnelled = pair.old.egress.tunnelled

    @property
    def denies(self) -> bool:
        return self._pair.old.egress.denies

    def _new(self, exchange: Exchange) -> bool:
        request = exchange.request
        return self._pair.is_new(f"{request.host!r}{request.target!r}")

    def of_url(self, exchange: Exchange) -> Handler | None:
        pair = self._pair
        new = self._new(exchange)
        handler = (pair.new if new else pair.old).egress.of_url(exchange)
        return None if handler is None else pair.watched(handler, new=new)

    def proxied(self, exchange: Exchange) -> Handler:
        pair = self._pair
        if self._new(exchange):
            return pair.watched(pair.new.egress.proxied(exchange), new=True)
        return pair.watched(pair.old.egress.proxied(exchange), new=False)

    def based(self, exchange: Exchange) -> Handler:
        pair = self._pair
        if pair.new.egress.names(exchange.request.path) and self._new(exchange):
            return pair.watched(pair.new.egress.based(exchange), new=True)
        return pair.watched(pair.old.egress.based(exchange), new=False)

    def intercepted(self, authority: str, exchange: Exchange) -> Handler:
        pair = self._pair
        if pair.new.egress.owns(authority) and self._new(exchange):
            return pair.watched(pair.new.egress.intercepted(authority, exchange), new=True)
        return pair.watched(pair.old.egress.intercepted(authority, exchange), new=False)

    def taken_over(self, policy: str, exchange: Exchange) -> Handler:
        pair = self._pair
        if pair.new.egress.names(f"/{policy}") and self._new(exchange):
            return pair.watched(pair.new.egress.taken_over(policy, exchange), new=True)
        return pair.watched(pair.old.egress.taken_over(policy, exchange), new=False)

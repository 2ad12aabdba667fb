"""A generation under trial: it serves a share of the clients, beside the one in force.

Stands in the place of the generation only while it lasts: without a rollout nothing of this is called.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.decisions.rollout import Tally, Trial, shares

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.schema import Rollout
    from sidecar.egress import EgressRoutes
    from sidecar.exchange import Exchange, Response
    from sidecar.generation import Compiled
    from sidecar.pipeline import Handler

FAILED = 500
"""The least status that counts against a generation."""


class Split:
    """Two generations; the same shape as `Compiled`, as far as requests see it."""

    def __init__(self, old: Compiled, new: Compiled, rule: Rollout, clock: Clock) -> None:
        self.old = old
        self.new = new
        self.rule = rule
        guard = rule.guard
        self.trial = Trial(
            clock.now(),
            error_rate=guard.error_rate,
            p95=guard.p95,
            window=rule.window,
            minimum=rule.minimum_requests,
        )
        self._clock = clock
        self.ingress = _Ingress(self)
        self.egress: EgressRoutes = _Egress(self)  # type: ignore[assignment]  # what listeners ask of one

    @property
    def parts(self) -> tuple[Compiled, ...]:
        return self.old, self.new

    def is_new(self, key: str) -> bool:
        return shares(key, self.rule.percent, self.new.number)

    def watched(self, handler: Handler, tally: Tally) -> Handler:
        now = self._clock.now

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


class _Ingress:
    """A client sees one generation, as long as its address is the same."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self.memo = None
        """Each request is of a trial: none is answered from memory of others."""

    def route(self, exchange: Exchange) -> Handler:
        split = self._split
        if split.is_new(exchange.client):
            return split.watched(split.new.ingress.route(exchange), split.trial.new)
        return split.watched(split.old.ingress.route(exchange), split.trial.old)


class _Egress:
    """The app is one client: of its calls, those for the same URL see one generation.

    What is asked before a request is read (which hosts are ours) is told by the generation in force.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self.owns = split.old.egress.owns
        self.share = split.old.egress.share
        self.names = split.old.egress.names
        self.based_for = split.old.egress.based_for
        self.refused = split.old.egress.refused
        self.tunnelled = split.old.egress.tunnelled

    @property
    def denies(self) -> bool:
        return self._split.old.egress.denies

    def _new(self, exchange: Exchange) -> bool:
        request = exchange.request
        return self._split.is_new(f"{request.host!r}{request.target!r}")

    def of_url(self, exchange: Exchange) -> Handler | None:
        split = self._split
        new = self._new(exchange)
        handler = (split.new if new else split.old).egress.of_url(exchange)
        return (
            None if handler is None else split.watched(handler, split.trial.new if new else split.trial.old)
        )

    def proxied(self, exchange: Exchange) -> Handler:
        split = self._split
        if self._new(exchange):
            return split.watched(split.new.egress.proxied(exchange), split.trial.new)
        return split.watched(split.old.egress.proxied(exchange), split.trial.old)

    def based(self, exchange: Exchange) -> Handler:
        split = self._split
        if split.new.egress.names(exchange.request.path) and self._new(exchange):
            return split.watched(split.new.egress.based(exchange), split.trial.new)
        return split.watched(split.old.egress.based(exchange), split.trial.old)

    def intercepted(self, authority: str, exchange: Exchange) -> Handler:
        split = self._split
        if split.new.egress.owns(authority) and self._new(exchange):
            return split.watched(split.new.egress.intercepted(authority, exchange), split.trial.new)
        return split.watched(split.old.egress.intercepted(authority, exchange), split.trial.old)

    def taken_over(self, policy: str, exchange: Exchange) -> Handler:
        split = self._split
        if split.new.egress.names(f"/{policy}") and self._new(exchange):
            return split.watched(split.new.egress.taken_over(policy, exchange), split.trial.new)
        return split.watched(split.old.egress.taken_over(policy, exchange), split.trial.old)

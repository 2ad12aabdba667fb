"""What is wrong with an upstream's TLS, said in the log: once, and not with every request it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.errors import TlsFailed

EVERY: Final = 300.0
"""Seconds after which the same is said again."""


class TlsComplaints:
    """A `TlsComplaint` (`upstreams.pool`). Holds as much as there are upstreams and kinds of faults."""

    def __init__(self, clock: Clock, log: Any) -> None:
        self._clock = clock
        self._log = log
        self._said: dict[tuple[str, str], float] = {}

    def __call__(self, upstream: str, address: str, error: TlsFailed) -> None:
        now = self._clock.now()
        key = (upstream, error.fault)
        if now - self._said.get(key, -EVERY) < EVERY:
            return
        self._said[key] = now
        self._log.warning(
            "tls with an upstream failed",
            upstream=upstream,
            address=address,
            fault=error.fault,
            reason=error.detail,
        )

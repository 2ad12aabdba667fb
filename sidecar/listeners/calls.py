"""What the listeners for the app's own calls have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sidecar.config.addresses import within
from sidecar.headers import EGRESS_REQUEST_KINDS, Kind
from sidecar.listeners.ingress import Listener, asks, parse_traceparent, valid_request_id

if TYPE_CHECKING:
    from sidecar.egress import EgressRoutes
    from sidecar.exchange import Exchange
    from sidecar.listeners.protocol import ServerProtocol

Routes = Callable[[], "EgressRoutes"]
"""The routes of the configuration that is in force."""


class CallListener(Listener):
    """A listener whose requests are calls of the app.

    The provider hears nothing of the sidecar, nor where the app is: no `X-Forwarded-*`, no `Via`, and no
    `X-Request-ID` but one that the app itself sent.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """As `Listener`."""
        super().__init__(*arguments, kinds=EGRESS_REQUEST_KINDS, **settings)

    def identify(self, exchange: Exchange, connection: ServerProtocol) -> None:
        request = exchange.request
        exchange.client = connection.peer
        request_id = ""
        for line in request.headers if request.ours is None else request.ours:
            if line.kind is not Kind.OURS:
                continue
            if line.name == b"traceparent":
                exchange.traceparent = parse_traceparent(line.value)
            elif line.name == b"x-sidecar-debug":
                exchange.debug = asks(line.value) and within(exchange.client, self._debug)
            else:
                request_id = valid_request_id(line.value)
                exchange.forwarded += line.wire
        exchange.request_id = request_id = request_id or self.request_id()
        exchange.id_line = b"X-Request-ID: %b\r\n" % request_id.encode()
        if not request.http10:
            exchange.informational = connection.informational

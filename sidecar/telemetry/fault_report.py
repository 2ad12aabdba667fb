"""Faults of the sidecar itself, sent to Sentry: exceptions that were logged as errors, and none of upstreams.

What leaves the machine is the type, the stack with the sidecar's own source, the route and the request's id.
An exception's text may quote what a client sent, and so may the values of variables: neither is sent. The log
has the text, under the same request id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import sentry_sdk
from sentry_sdk.utils import event_from_exception

from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

    from sidecar.clock import Clock

EVERY: Final = 60.0
"""Seconds for which the same fault is not sent again: to make an event takes the event loop milliseconds."""
MOST: Final = 200
"""Faults that are told apart."""
CLOSE_SECONDS: Final = 2.0

_TOLD: Final = ("route", "request_id", "source")
"""Members of a line that are sent as tags."""


class FaultReport:
    """A `log.Fault`. Its client is its own: what an app beside us does with Sentry is not touched."""

    def __init__(self, dsn: str, clock: Clock, *, version: str, environment: str) -> None:
        self._clock = clock
        self._sent: dict[tuple[str, str, int], float] = {}
        self._client = sentry_sdk.Client(
            dsn=dsn,
            release=f"nextvision-sidecar@{version}",
            environment=environment,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            send_client_reports=False,
            include_local_variables=False,
            max_breadcrumbs=0,
            before_send=_bare,
        )

    def __call__(self, error: BaseException, members: Mapping[str, object]) -> None:
        """Sends it, unless it is an upstream's, or the same was sent just before. Does not wait."""
        if isinstance(error, SidecarError) or not isinstance(error, Exception) or not self._is_news(error):
            return
        scope = sentry_sdk.Scope()
        for name in _TOLD:
            if (value := members.get(name)) is not None:
                scope.set_tag(name, str(value))
        event, hint = event_from_exception(error, client_options=self._client.options)
        self._client.capture_event(event, hint=hint, scope=scope)

    def close(self) -> None:
        """Sends what is pending, for at most `CLOSE_SECONDS`. Blocks."""
        self._client.close(timeout=CLOSE_SECONDS)

    def _is_news(self, error: BaseException) -> bool:
        now = self._clock.now()
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        place = ("", 0) if at is None else (at.tb_frame.f_code.co_filename, at.tb_lineno)
        key = (type(error).__name__, *place)
        if now - self._sent.get(key, -EVERY) < EVERY:
            return False
        if len(self._sent) >= MOST:
            self._sent.clear()
        self._sent[key] = now
        return True


def _bare(event: Event, _: Hint) -> Event:
    """Without the texts of exceptions."""
    exceptions: Any = event.get("exception") or {}
    for one in exceptions.get("values", ()):
        one["value"] = ""
    return event

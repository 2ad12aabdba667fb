"""Spans as OpenTelemetry has them, made of what the tracer recorded.

Names of attributes are the stable ones of the semantic conventions for HTTP spans (1.23 and later); what the
sidecar decided is under `sidecar.`. The decision trail knows an order, and no times: its members are events
at the end of the request's span, in that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from sidecar.decisions import trail
from sidecar.telemetry.redact import redact_target
from sidecar.telemetry.trace import Attempt, Ended, Served

Attributes = dict[str, str | int | float | bool]

METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
"""Known ones; others are `_OTHER`, so that names of spans are few."""
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_LONGEST: Final = 2048
"""Bytes of a target that are told."""


class Spans:
    """Makes spans of one resource."""

    def __init__(self, resource: Resource, version: str) -> None:
        self._resource = resource
        self._scope = InstrumentationScope("sidecar", version)

    def of(self, ended: Ended, epoch: float) -> ReadableSpan:
        """`epoch` is what makes Unix time of `Clock.now()`."""
        return self._served(ended, epoch) if isinstance(ended, Served) else self._attempt(ended, epoch)

    def _made(
        self,
        ended: Ended,
        span_id: bytes,
        parent: bytes,
        kind: SpanKind,
        attributes: Attributes,
        epoch: float,
        *,
        failed: bool,
        events: tuple[Event, ...] = (),
        local: bool = False,
    ) -> ReadableSpan:
        trace_id = ended.span.trace_id
        method = ended.method if ended.method in METHODS else "HTTP"
        return ReadableSpan(
            f"{method} {ended.where.path or ended.where.route}",
            context=_context(trace_id, span_id, remote=False),
            parent=_context(trace_id, parent, remote=not local) if parent else None,
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=kind,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=_nanoseconds(ended.started + epoch),
            end_time=_nanoseconds(ended.ended + epoch),
            instrumentation_scope=self._scope,
        )

    def _served(self, ended: Served, epoch: float) -> ReadableSpan:
        attributes = _request(ended)
        path, mark, query = _target(ended.target).partition("?")
        attributes |= {"url.scheme": ended.scheme, "url.path": path}
        if mark:
            attributes["url.query"] = query
        if ended.where.path:
            attributes["http.route"] = ended.where.path
        if ended.client:
            attributes["client.address"] = ended.client
        if ended.status:
            attributes["http.response.status_code"] = ended.status
        attributes["sidecar.route"] = ended.where.route
        attributes["sidecar.plane"] = ended.where.plane
        if ended.where.policy:
            attributes["sidecar.policy"] = ended.where.policy
        attributes["sidecar.request_id"] = ended.request_id
        attributes["sidecar.attempts"] = ended.attempts
        for name in ("upstream", "verdict", "breaker", "cache", "rung"):
            if value := getattr(ended, name):
                attributes[f"sidecar.{name}"] = value
        failed = ended.status >= 500 or ended.how in ("aborted", "broken")
        if failed:
            attributes["error.type"] = ended.error or (
                ended.how if ended.how != "done" else str(ended.status)
            )
        if ended.how != "done":
            attributes["sidecar.end"] = ended.how
        at = _nanoseconds(ended.ended + epoch)
        return self._made(
            ended,
            ended.span.span_id,
            ended.span.parent,
            SpanKind.SERVER,
            attributes,
            epoch,
            failed=failed,
            events=tuple(_events(ended, at)),
        )

    def _attempt(self, ended: Attempt, epoch: float) -> ReadableSpan:
        attributes = _request(ended)
        host = ended.host.decode("latin-1")
        attributes["url.full"] = f"{ended.scheme}://{host}{_target(ended.target)}"
        if ended.address:
            attributes["network.peer.address"] = ended.address
        if ended.number > 1:
            attributes["http.request.resend_count"] = ended.number - 1
        if ended.status:
            attributes["http.response.status_code"] = ended.status
        attributes["sidecar.upstream"] = ended.where.upstream
        failed = bool(ended.error) or ended.status >= 400
        if failed:
            attributes["error.type"] = ended.error or str(ended.status)
        return self._made(
            ended,
            ended.span_id,
            ended.span.span_id,
            SpanKind.CLIENT,
            attributes,
            epoch,
            failed=failed,
            local=True,
        )


def _request(ended: Ended) -> Attributes:
    known = ended.method in METHODS
    attributes: Attributes = {"http.request.method": ended.method if known else "_OTHER"}
    if not known:
        attributes["http.request.method_original"] = ended.method[:32]
    host, port = _authority(ended.host.decode("latin-1"))
    if host:
        attributes["server.address"] = host
        attributes["server.port"] = port or (443 if ended.scheme == "https" else 80)
    return attributes


def _authority(host: str) -> tuple[str, int]:
    name, colon, port = host.rpartition(":")
    if colon and port.isascii() and port.isdecimal() and len(port) < 6:
        return name.strip("[]"), int(port)
    return host.strip("[]"), 0


def _target(target: bytes) -> str:
    # Cut after the secrets are hidden: a cut name would not be known for one.
    return redact_target(target)[:_LONGEST].decode("latin-1")


def _events(ended: Served, at: int) -> Iterator[Event]:
    facts = trail.Facts(
        ended.status, ended.how, ended.attempts, ended.verdict, ended.cache, ended.error, ended.rung
    )
    told = ended.stack.trail(facts, ended.notes or ())
    for layer, parameters in trail.parse(told.encode("ascii")) or ():
        attributes = {
            f"sidecar.{name}": value if isinstance(value, bool | int | float) else str(value)
            for name, value in parameters.items()
        }
        yield Event(f"sidecar.{layer}", attributes, at)


def _context(trace_id: bytes, span_id: bytes, *, remote: bool) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), remote, _SAMPLED)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)

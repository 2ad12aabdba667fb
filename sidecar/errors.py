"""Everything that can go wrong with a request, in one place.

An error says what the client gets (status, `Sidecar-Error` code), and its class says what the
layers may do about it:

* `UpstreamError`: an attempt failed. The breaker counts it; retry may repeat it.
* `Rejection`: the sidecar itself refused. Neutral to breaker and limiter, never retried.
* `ClientError`: the request or the client is at fault. Never retried.
"""

from __future__ import annotations

import math
from typing import ClassVar

import orjson

from sidecar.decisions.verdict import Verdict
from sidecar.exchange import Response
from sidecar.headers import Line


class SidecarError(Exception):
    """Base of all errors that end a request. `detail` is for the client: no secrets in it."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    verdict: ClassVar[Verdict] = Verdict.TRANSIENT
    """What a fallback takes it for."""

    def __init__(self, detail: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after = retry_after
        """Seconds after which a new try may succeed; None where nothing is known."""


class UpstreamError(SidecarError):
    """An attempt at the upstream failed; `reason` is what `retry.on.errors` names it."""

    status = 502
    reason: ClassVar[str] = "reset"


class ConnectFailed(UpstreamError):
    """No connection was made, so nothing was sent: safe to repeat with any method."""

    code = "connect_failed"
    title = "The upstream could not be reached"
    reason = "connect"


class NameNotResolved(ConnectFailed):
    """The DNS gave no answer."""

    code = "name_not_resolved"
    title = "The upstream's name could not be resolved"


class NameNotFound(NameNotResolved):
    """The DNS answered that the name has no addresses."""


class TlsFailed(ConnectFailed):
    """The upstream and the sidecar could not agree on TLS: nothing was sent."""

    code = "upstream_tls"
    title = "TLS with the upstream failed"

    def __init__(self, detail: str = "", *, fault: str = "other") -> None:
        super().__init__(detail)
        self.fault = fault
        """What metrics count it as: one of a small set."""


class BadCertificate(TlsFailed):
    """The upstream is not who it should be, as far as its certificate tells."""

    code = "upstream_certificate"
    title = "The upstream's certificate is not accepted"


class ConnectionReset(UpstreamError):
    """The connection ended before the response headers were complete."""

    code = "upstream_reset"
    title = "The upstream closed the connection before it answered"


class BadUpstreamResponse(UpstreamError):
    """What came back is not HTTP/1.x, or its framing is ambiguous."""

    code = "bad_upstream_response"
    title = "The upstream sent an invalid response"


class BodyBroken(UpstreamError):
    """The response body ended early or stalled, after its headers were complete."""

    code = "upstream_body_broken"
    title = "The upstream's response was cut short"


class AttemptTimeout(UpstreamError):
    """The attempt's time ran out before the response headers came."""

    status = 504
    code = "attempt_timeout"
    title = "The upstream did not answer in time"
    reason = "timeout"


class Rejection(SidecarError):
    """The sidecar refused to do the work."""

    status = 503


class CircuitOpen(Rejection):
    code = "circuit_open"
    title = "The circuit breaker is open"


class LimitExceeded(Rejection):
    code = "limit_exceeded"
    title = "Too many requests are in flight"


class RateLimited(Rejection):
    """The client sends more than its share."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"
    verdict = Verdict.RATE_LIMITED


class RateUnknown(Rejection):
    """The shared rate limit does not answer, and its policy is to let nobody pass then."""

    code = "rate_limit_unavailable"
    title = "The rate limit cannot be asked"


class PaceExceeded(Rejection):
    """The provider's rate leaves this attempt no turn within the patience."""

    code = "pace_exceeded"
    title = "The upstream's rate is used up"
    verdict = Verdict.RATE_LIMITED


class QuotaHeld(Rejection):
    """The provider's quota is used up: nothing is sent until it is renewed."""

    code = "quota_held"
    title = "The upstream's quota is used up"
    verdict = Verdict.QUOTA


class EgressDenied(Rejection):
    """The app called a host, or an address, that it may not call."""

    status = 403
    code = "egress_denied"
    title = "This may not be called through the sidecar"
    verdict = Verdict.CLIENT


class LoopDetected(Rejection):
    """The request would come back to the sidecar that sends it (RFC 5842, 7.2)."""

    status = 508
    code = "loop_detected"
    title = "The request would come back to this sidecar"


class Draining(Rejection):
    code = "draining"
    title = "The sidecar is shutting down"


class DeadlineExceeded(Rejection):
    """The deadline had passed before the work started."""

    status = 504
    code = "deadline_exceeded"
    title = "The deadline has passed"


class CacheMissed(Rejection):
    """The client wants nothing but a stored response, and there is none (RFC 9111, 5.2.1.7)."""

    status = 504
    code = "only_if_cached"
    title = "Nothing is stored that could answer"
    verdict = Verdict.CLIENT  # it is the answer that was asked for


class ClientError(SidecarError):
    status = 400
    verdict = Verdict.CLIENT


class BadRequest(ClientError):
    code = "bad_request"
    title = "The request is not valid HTTP/1.1"


class NotServed(ClientError):
    """The listener has no such thing."""

    status = 404
    code = "not_served"
    title = "This listener does not serve that"


class Misdirected(ClientError):
    """The request names another host than the one its connection was made for (RFC 9110, 15.5.20)."""

    status = 421
    code = "misdirected"
    title = "The connection was made for another host"


class MethodRefused(ClientError):
    status = 405
    code = "method_refused"
    title = "This listener does not serve that method"


class RequestTimeout(ClientError):
    """The client took too long to send its request (RFC 9110, 15.5.9)."""

    status = 408
    code = "request_timeout"
    title = "The request did not arrive in time"


class BodyTooLarge(ClientError):
    status = 413
    code = "body_too_large"
    title = "The request body is larger than allowed"


class HeadersTooLarge(ClientError):
    status = 431
    code = "headers_too_large"
    title = "The request head is larger than allowed"


class ExpectationFailed(ClientError):
    status = 417
    code = "expectation_failed"
    title = "Only `Expect: 100-continue` is understood"


class ClientGone(ClientError):
    """The client left. 499 is written to the log only."""

    status = 499
    code = "client_gone"
    title = "The client closed the connection"


def problem(error: SidecarError, request_id: str, route: str) -> bytes:
    """The body of an error answer: `application/problem+json` (RFC 9457, 3)."""
    members: dict[str, object] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "request_id": request_id,
        "route": route,
    }
    if error.detail:
        members["detail"] = error.detail
    if error.retry_after is not None:
        members["retry_after"] = round(error.retry_after, 3)
    return orjson.dumps(members)


def rescue(error: SidecarError, request_id: str, route: str) -> Response:
    """The answer a client gets for `error`."""
    headers = [
        Line(b"Content-Type", b"application/problem+json"),
        Line(b"Sidecar-Error", error.code.encode()),
    ]
    if error.retry_after is not None:
        headers.append(Line(b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after))))
    return Response(error.status, headers, problem(error, request_id, route))

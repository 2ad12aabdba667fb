"""One line of a batch through the pipeline of its own route, in process: no hop over a socket."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import orjson

from sidecar.batch.jobs import Item, Outcome, Result
from sidecar.batch.lines import Asked, BadLine, asked_of, content_type
from sidecar.decisions.asked_wait import retry_after_of
from sidecar.decisions.verdict import OUTCOMES
from sidecar.decisions.verdict import Outcome as Judged
from sidecar.errors import (
    BadCertificate,
    CircuitOpen,
    ConnectFailed,
    Draining,
    LimitExceeded,
    NameNotFound,
    PaceExceeded,
    QuotaHeld,
    RateLimited,
    RateUnknown,
    SidecarError,
    problem,
)
from sidecar.exchange import Exchange, Request, Response, Stream
from sidecar.headers import REQUEST_KINDS, Line
from sidecar.telemetry.redact import redact_url

if TYPE_CHECKING:
    from sidecar.clock import Clock, Ids
    from sidecar.config.schema import Route
    from sidecar.pipeline import Handler

CLIENT: Final = "batch"
"""Whom access log and rate limits take all lines to come from."""
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "QUERY"})
"""RFC 9110, 9.2.2, and the QUERY method."""
KEYED: Final = frozenset({"POST", "PATCH"})
LARGEST: Final = 4 << 20
"""Bytes of an answer's body; what is larger makes the line fail."""
BACKGROUND: Final = Line(b"Priority", b"u=6", REQUEST_KINDS)
"""RFC 9218, 4.1: after everything that somebody waits for."""
REFUSALS: Final = (
    CircuitOpen,
    LimitExceeded,
    RateLimited,
    RateUnknown,
    PaceExceeded,
    QuotaHeld,
    Draining,
    ConnectFailed,
)
"""Nothing was sent, and it may be later."""
LASTING: Final = (BadCertificate, NameNotFound)
"""Nothing was sent, but waiting will hardly mend it."""
UNMATCHED: Final = "unmatched"


@dataclass(slots=True)
class Answered:
    """What came of one call of a line. Times in seconds."""

    route: str
    result: Result
    seconds: float
    upstream_seconds: float
    """To the head of the answer; 0 where no upstream was asked."""
    refused: bool
    """Nothing was done: the line may go again, whatever its method, once `wait` is over."""
    congested: bool
    """As attempts fail that are too many."""
    passing: bool
    """A failure that a repetition may mend."""
    wait: float | None
    """How long to wait before, where that was said."""
    cached: bool
    why: str = ""
    """Of what failed: the status, or the error's code."""


class Calls:
    """Sends lines; knows which may be repeated."""

    def __init__(
        self,
        route: Callable[[Exchange], Handler],
        routes: Mapping[str, Route],
        clock: Clock,
        ids: Ids,
        authority: str,
    ) -> None:
        """`route` as `App` has it; `routes` by name; `authority` is the host of paths."""
        self._route = route
        self._routes = routes
        self._clock = clock
        self._ids = ids
        self._authority = authority.encode()

    def follow(self, routes: Mapping[str, Route]) -> None:
        """The configuration has changed: these are its routes, by name."""
        self._routes = routes

    def repeatable(self, asked: Asked) -> bool:
        """Whether asking twice does no more than asking once, by method or as the route says.

        Raises BadLine where no route is for the request.
        """
        name = self.route_of(asked)
        if name == UNMATCHED:
            where = f"{asked.method} {redact_url(asked.url).partition('?')[0]}"
            raise BadLine(f"no route of the policies is for {where} (`sidecar routes` lists them)")
        if asked.method in IDEMPOTENT:
            return True
        route = self._routes[name]
        return (route.retry is not None and asked.method in route.retry.methods) or (
            route.cache is not None and asked.method in route.cache.methods
        )

    def route_of(self, asked: Asked) -> str:
        """The name of the route that a request would take."""
        exchange = self._exchange(asked, ())
        self._route(exchange)
        return exchange.route

    def _exchange(self, asked: Asked, extra: tuple[Line, ...]) -> Exchange:
        parts = urlsplit(asked.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [
            Line(name.encode(), value.encode("latin-1"), REQUEST_KINDS)
            for name, value in asked.headers.items()
        ]
        headers = [line for line in headers if line.name != b"priority"]
        headers += extra
        if asked.body and content_type(asked.headers) is None:
            headers.append(Line(b"Content-Type", b"application/json", REQUEST_KINDS))
        request = Request(
            asked.method,
            target.encode(),
            headers,
            asked.body,
            host=parts.netloc.lower().encode() or self._authority,
            scheme=parts.scheme or "http",
        )
        return Exchange(request, CLIENT, self._clock.now())

    async def call(self, batch: str, item: Item) -> Answered:
        """Never raises but CancelledError: whatever is wrong is the line's result."""
        asked = asked_of(item)
        extra: tuple[Line, ...] = (BACKGROUND,)
        if asked.method in KEYED and not any(name.lower() == "idempotency-key" for name in asked.headers):
            # The same at each repetition, in another process too.
            key = f'"{batch}-{item.number}"'.encode()
            extra += (Line(b"Idempotency-Key", key, REQUEST_KINDS),)
        exchange = self._exchange(asked, extra)
        exchange.request_id = self._ids.request_id()
        exchange.id_line = b"X-Request-ID: %b\r\n" % exchange.request_id.encode()
        response = await self._route(exchange)(exchange)
        how = "done"
        error = exchange.error
        body = b""
        try:
            body = await _whole(response)
            exchange.sent = len(body)
        except SidecarError as broken:
            error, how = broken, "aborted"
        except BaseException:
            response.close()
            _over(exchange, response, "client_gone")
            raise
        _over(exchange, response, how)
        seconds = self._clock.now() - exchange.started
        return self._answered(item, exchange, response, body, error, seconds)

    def _answered(
        self,
        item: Item,
        exchange: Exchange,
        response: Response,
        body: bytes,
        error: SidecarError | None,
        seconds: float,
    ) -> Answered:
        wait = error.retry_after if error is not None else None
        refused = isinstance(error, REFUSALS) and not isinstance(error, LASTING)
        if error is None and response.status in (429, 503):
            wait = retry_after_of(response.headers, self._clock.wall())
            refused = response.status == 429 or wait is not None
        verdict = response.verdict
        failed = error is not None or response.status >= 400
        if error is not None:
            passing = refused or (error.status >= 500 and not isinstance(error, TooLarge))
        else:
            judged = verdict is not None and OUTCOMES[verdict] is Judged.FAILURE
            passing = refused or response.status >= 500 or (failed and judged)
        if error is not None:
            members = orjson.loads(problem(error, exchange.request_id, exchange.route))
            text = error_line(item, members)
        else:
            text = answer_line(item, response, body)
        return Answered(
            route=exchange.route,
            result=Result(item.number, Outcome.FAILED if failed else Outcome.OK, text),
            seconds=seconds,
            upstream_seconds=exchange.upstream_seconds,
            refused=refused,
            congested=failed and (response.status in (429, 503, 504) or isinstance(error, LimitExceeded)),
            passing=passing,
            wait=wait,
            cached=exchange.cache in ("hit", "stale", "updating", "revalidated", "collapsed"),
            why="" if not failed else f"status {response.status}" if error is None else error.code,
        )


def error_line(item: Item, members: Mapping[str, object]) -> bytes:
    """The result of a line that has no answer."""
    return orjson.dumps({"custom_id": item.custom_id, "error": members})


def answer_line(item: Item, response: Response, body: bytes) -> bytes:
    """The result of a line that was answered."""
    headers: dict[str, str] = {}
    for line in response.headers:
        name, value = line.name.decode("latin-1"), line.value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    members: dict[str, object] = {
        "custom_id": item.custom_id,
        "status": response.status,
        "headers": headers,
    }
    where, shown = _shown(headers, body)
    members[where] = shown
    return orjson.dumps(members)


def _shown(headers: Mapping[str, str], body: bytes) -> tuple[str, object]:
    """Name and value of the member that holds a body: JSON as it came, text, or any bytes."""
    if "content-encoding" not in headers:
        if "json" in headers.get("content-type", ""):
            try:
                orjson.loads(body)
            except orjson.JSONDecodeError:  # such as NaN: text, then
                pass
            else:
                # Numbers keep all their digits. Line breaks stand between tokens only (RFC 8259, 2 and 7).
                return "body", orjson.Fragment(body.replace(b"\n", b" ").replace(b"\r", b" "))
        try:
            return "body", body.decode()
        except UnicodeDecodeError:
            pass
    return "body_base64", b64encode(body).decode()


def ended(item: Item, outcome: Outcome, code: str, title: str, detail: str) -> Result:
    """The result of a line that the batch itself ended."""
    members = {"type": "about:blank", "title": title, "code": code, "detail": detail}
    return Result(item.number, outcome, error_line(item, members))


async def _whole(response: Response) -> bytes:
    body = response.body
    if response.tunnel is not None:
        response.close()
        return b""
    if isinstance(body, bytes):
        if len(body) > LARGEST:
            raise _too_large()
        return body
    return await _read(body)


async def _read(body: Stream) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await body.read():
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST:
            body.close()
            raise _too_large()
    return b"".join(pieces)


class TooLarge(SidecarError):
    status = 502
    code = "result_too_large"
    title = "The answer is too large for the result of a batch"


def _too_large() -> TooLarge:
    return TooLarge(f"it has more than {LARGEST >> 20} MiB")


def _over(exchange: Exchange, response: Response, how: str) -> None:
    if exchange.on_sent is not None:
        exchange.on_sent(exchange, response, how)

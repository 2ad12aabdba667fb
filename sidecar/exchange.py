"""The types that every layer shares: what came in, what goes out, what was decided on the way.

A body is `bytes` when it is all here, else a `Stream`. The flow of a `Stream`:

    producer ── feed, finish, fail ──▶ Stream ── read, close ──▶ consumer
    producer ◀── pause, resume, abandon ── Stream

`on_end` tells when the producer is through: that is when permits are given back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from sidecar.headers import Line, first

if TYPE_CHECKING:
    from sidecar.decisions.verdict import Verdict
    from sidecar.errors import SidecarError
    from sidecar.heads import Block, StartLine
    from sidecar.telemetry.trace import Span

HIGH_WATER = 128 * 1024
"""Bytes held in a stream before its producer is paused."""
LOW_WATER = 32 * 1024
"""Bytes held below which a paused producer goes on."""


class End(Enum):
    """How a body ended."""

    DONE = "done"
    BROKEN = "broken"
    """The producer failed: reset, stalled, malformed."""
    DROPPED = "dropped"
    """The consumer gave up: the client left, or a retry discarded the response."""


class Source(Protocol):
    """The producer's side of a stream, as the stream sees it."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abandon(self) -> None:
        """The consumer wants no more: stop sending, release what is held."""
        ...


class Stream:
    """A body in flight, with back-pressure. One producer, one consumer, no copies."""

    __slots__ = (
        "_callbacks",
        "_chunks",
        "_paused",
        "_size",
        "_source",
        "_waiter",
        "end",
        "error",
        "length",
        "taken",
    )

    def __init__(self, source: Source | None, length: int | None = None) -> None:
        self.length = length
        """Bytes in all, where the framing tells; None when chunked or until close."""
        self.taken = 0
        """Bytes the consumer has read."""
        self.end: End | None = None
        """None while the producer is at work."""
        self.error: BaseException | None = None
        self._source = source
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[End], None]] | None = None

    # -- producer ------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        if self.end is not None:
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._paused and self._source is not None:
            self._paused = True
            self._source.pause()
        self._wake()

    def finish(self) -> None:
        self._settle(End.DONE)

    def fail(self, error: BaseException) -> None:
        """What was fed before still reaches the consumer; then `read` raises `error`."""
        if self.end is None:
            self.error = error
            self._settle(End.BROKEN)

    def _settle(self, how: End) -> None:
        if self.end is not None:
            return
        self.end = how
        self._source = None
        self._wake()
        callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            for callback in callbacks:
                callback(how)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # -- consumer ------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """True while the consumer waits for the producer."""
        return self._waiter is not None

    @property
    def buffered(self) -> int:
        return self._size

    async def read(self) -> bytes:
        """The next chunk; `b""` at the end. Raises what the producer failed with."""
        while not self._chunks:
            if self.end is not None:
                if self.error is not None:
                    raise self.error
                return b""
            if self._paused:
                self._go_on()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks.popleft()
        self._size -= len(data)
        self.taken += len(data)
        if self._paused and self._size < LOW_WATER:
            self._go_on()
        return data

    def hold(self) -> None:
        """The consumer can pass nothing on for now: the producer is paused until `read` finds little left.

        Without it a chunk would wait here besides the one that waits to be sent.
        """
        if not self._paused and self._source is not None:
            self._paused = True
            self._source.pause()

    def _go_on(self) -> None:
        self._paused = False
        if self._source is not None:
            self._source.resume()

    async def peek(self, number: int) -> bytes:
        """The chunk after `number` others, left where it is: `read` gives it too. `b""`: there is none.

        Raises what the producer failed with, if that chunk never came. A producer that was paused is
        not resumed by a look: only so much may be waited for as stays below `HIGH_WATER`.
        """
        while len(self._chunks) <= number:
            if self.end is not None:
                if self.error is not None:
                    raise self.error
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._chunks[number]

    def whole(self) -> bytes:
        """All that was not read, of a body that has ended well."""
        chunks = self._chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def close(self) -> None:
        """The consumer wants no more. Safe to call at any time, any number of times."""
        source = self._source
        self._settle(End.DROPPED)
        self._chunks.clear()
        self._size = 0
        if source is not None:
            source.abandon()

    def on_end(self, callback: Callable[[End], None]) -> None:
        """Calls `callback` once, when the producer is through (at once if it already is)."""
        if self.end is not None:
            callback(self.end)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)


class Body(Protocol):
    """What an upstream needs of a request body that is not all here yet."""

    length: int | None

    async def read(self) -> bytes: ...
    def close(self) -> None: ...


class Request:
    """A request as it came in. Layers do not change it."""

    __slots__ = (
        "body",
        "correlation",
        "headers",
        "host",
        "http10",
        "method",
        "ours",
        "passed_on",
        "path",
        "plain",
        "query",
        "scheme",
        "target",
        "upgrade",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Sequence[Line],
        body: bytes | Stream = b"",
        *,
        host: bytes = b"",
        scheme: str = "http",
        http10: bool = False,
        upgrade: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        """Origin form, exactly as received (RFC 9112, 3.2.1)."""
        self.headers = headers
        self.body = body
        self.host = host
        self.scheme = scheme
        self.http10 = http10
        self.upgrade = upgrade
        """The client asks to change the protocol, WebSocket for example."""
        path, _, query = target.partition(b"?")
        self.path = path.decode("latin-1")
        self.query = query
        self.ours: Sequence[Line] | None = None
        """Lines that the sidecar judges and replaces, where they were picked out already."""
        self.plain: bytes | None = None
        """All lines that are forwarded as they are, where they were joined already; None: see `headers`."""
        self.passed_on: tuple[bytes, bytes] | None = None
        """The request line, and `Host` with the lines of `plain`, where they were made already."""
        self.correlation: bytes | None = None
        """`X-Correlation-ID`, empty where there is none; None: nobody has looked yet."""

    @classmethod
    def read(cls, start: StartLine, block: Block, body: bytes, scheme: str) -> Request:
        """A request whose head was read as a whole."""
        request = cls.__new__(cls)
        request.method = start.method
        request.target = start.target
        request.path = start.path
        request.query = start.query
        request.headers = block.headers
        request.body = body
        request.host = block.host or b""
        request.scheme = scheme
        request.http10 = request.upgrade = False
        request.ours = block.ours
        request.plain = block.plain
        request.passed_on = start.line, block.passed_on
        request.correlation = block.correlation
        return request

    def header(self, name: bytes) -> bytes | None:
        """The first field of that name (in lower case); None where there is none."""
        return first(self.headers, name)


class AbsoluteRequest(Request):
    """A request that named its target by URL, as clients of a forward proxy do (RFC 9112, 3.2.2)."""

    __slots__ = ()


class Response:
    """A response on its way to the client."""

    __slots__ = ("body", "degraded", "headers", "plain", "reason", "status", "tunnel", "verdict")

    def __init__(
        self,
        status: int,
        headers: Sequence[Line],
        body: bytes | Stream = b"",
        *,
        reason: bytes = b"",
        plain: bytes | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.plain = plain
        """As in `Request`; a layer that sets `headers` sets this to None."""
        self.body = body
        self.verdict: Verdict | None = None
        self.degraded = False
        """Made without something that it needs: true perhaps, but not to be stored."""
        self.tunnel: Tunnel | None = None
        """Set with a 101, and with a 200 to CONNECT: the raw connection that the client is joined to."""

    def header(self, name: bytes) -> bytes | None:
        return first(self.headers, name)

    @property
    def lasting(self) -> bool:
        """A tunnel or an event stream: may last for hours, and is idle for most of them."""
        if self.tunnel is not None:
            return True
        if not isinstance(self.body, Stream):
            return False
        kind = first(self.headers, b"content-type")
        return kind is not None and kind.startswith(b"text/event-stream")

    def add(self, line: Line) -> None:
        """Adds a header line. The list of lines may be shared with others, so it is not changed."""
        self.headers = [*self.headers, line]
        if self.plain is not None:
            self.plain += line.wire

    def on_end(self, callback: Callable[[End], None]) -> None:
        """Calls `callback` when the body is through; at once when it is all here."""
        if self.tunnel is not None:
            self.tunnel.on_end(callback)
        elif isinstance(self.body, Stream):
            self.body.on_end(callback)
        else:
            callback(End.DONE)

    def close(self) -> None:
        """Gives up on the body, if any of it is still to come."""
        if self.tunnel is not None:
            self.tunnel.close()
        elif isinstance(self.body, Stream):
            self.body.close()


class Tunnel(Protocol):
    """An upgraded upstream connection: bytes both ways, no HTTP any more."""

    @property
    def inbound(self) -> Stream | None:
        """Bytes from the upstream."""
        ...

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...
    def on_end(self, callback: Callable[[End], None]) -> None: ...


class Exchange:
    """One request on its way through the pipeline, and all that was decided about it.

    Made by the listener, owned by one task. Layers write to the slots that carry their name.
    """

    __slots__ = (
        "address",
        "attempt_started",
        "attempts",
        "avoid",
        "breaker",
        "cache",
        "cache_status",
        "cached",
        "client",
        "deadline",
        "debug",
        "error",
        "first_byte",
        "forwarded",
        "id_line",
        "informational",
        "note_list",
        "on_sent",
        "plane",
        "policy",
        "received",
        "request",
        "request_id",
        "retry_after",
        "route",
        "rung",
        "sent",
        "span",
        "started",
        "told",
        "traceparent",
        "upstream",
        "upstream_seconds",
        "verdict",
    )

    def __init__(self, request: Request, client: str, started: float) -> None:
        self.request = request
        self.client = client
        """Address of the client, as far as trusted proxies vouch for it; `unix` over a Unix socket; empty
        where the sidecar asks for itself.
        """
        self.started = started
        """`Clock.now()` when its turn came: pipelined requests wait for those before them."""
        self.request_id = ""
        self.id_line = b""
        """The id as a header line."""
        self.traceparent: tuple[bytes, bytes] | None = None
        """Trace id and flags of a valid incoming `traceparent`."""
        self.span: Span | None = None
        """Where the trace is sampled, and spans are exported."""
        self.forwarded = b""
        """Lines for the upstream: `X-Forwarded-*` and `Forwarded` as the listener vouches for them, and what
        policies add."""
        self.route = "unmatched"
        self.plane = "ingress"
        """`ingress`: a client's request to the app; `egress`: a call of the app."""
        self.policy = ""
        """Of a call of the app: the policy file that owns its host, where one does."""
        self.upstream = ""
        self.deadline: float | None = None
        """`Clock.now()` past which nobody waits for the answer."""
        self.attempt_started = 0.0
        """`Clock.now()` at the start of the last attempt."""
        self.attempts = 0
        """Attempts that reached the upstream pool."""
        self.address = ""
        """Where the last attempt went, or tried to."""
        self.avoid: tuple[str, ...] = ()
        """Addresses that failed this request: others are tried first."""
        self.verdict: Verdict | None = None
        self.breaker = ""
        """State of the breaker when it last let this exchange through or refused it."""
        self.cache = ""
        """What the cache did: hit, stale, updating, revalidated, collapsed, miss or bypass."""
        self.cached: tuple[bytes, int | None] | None = None
        """On a route that caches: the key of the answer, and the seconds of freshness it had left when it
        was given; None where it was not for the cache."""
        self.rung = ""
        """Which step of the ladder answered: stale, upstream, respond or problem; empty: none was needed."""
        self.cache_status = b""
        """Our member of Cache-Status for an error, where the cache was asked before (RFC 9211)."""
        self.error: SidecarError | None = None
        self.told = b""
        """Header lines that the listener puts on the answer, whatever it is."""
        self.upstream_seconds = 0.0
        """Seconds from the start of the last attempt to its response headers."""
        self.retry_after: float | None = None
        self.first_byte = 0.0
        """`Clock.now()` when the response head was handed to the client's transport; 0: never."""
        self.received = 0
        """Bytes of the request body that came in, as far as they were streamed."""
        self.sent = 0
        """Bytes of the response body that went out."""
        self.note_list: list[tuple[str, str]] | None = None
        self.debug = False
        """The client asks for the decision trail, and may."""
        self.on_sent: Callable[[Exchange, Response | None, str], None] | None = None
        """Set by `observe`; the listener calls it once, when the answer is over, with how it ended."""
        self.informational: Callable[[int, list[Line]], None] | None = None
        """Passes a 1xx on to the client, while that is still possible."""

    def child(self, request: Request, now: float) -> Exchange:
        """An exchange for another request on behalf of this one, with a start and an outcome of its own."""
        child = Exchange(request, self.client, now)
        child.request_id = self.request_id
        child.id_line = self.id_line
        child.traceparent = self.traceparent
        child.span = self.span
        child.forwarded = self.forwarded
        child.route = self.route
        child.plane = self.plane
        child.policy = self.policy
        return child

    def would_reject(self, layer: str) -> bool:
        """Notes that a layer in shadow mode would have refused; whether that is news.

        What is refused is not repeated: further attempts at the same request would not have been made.
        """
        known = self.note_list is not None and (layer, "would-reject") in self.note_list
        self.note(layer, "would-reject")
        return not known

    def note(self, layer: str, decision: str) -> None:
        """Adds to the decision trail: which layer, and what out of the ordinary it decided.

        `decision` is parameters as RFC 9651 writes them, a closed set of words: `rejected`,
        `skipped=budget`, `rung=respond`. The vocabulary is in docs/trail.md.
        """
        if self.note_list is None:
            self.note_list = [(layer, decision)]
        else:
            self.note_list.append((layer, decision))

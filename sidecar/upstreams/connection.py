"""One connection to an upstream: a request out in one write, its response back in one Future."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import httptools

from sidecar.errors import BadUpstreamResponse, BodyBroken, ConnectionReset, UpstreamError
from sidecar.exchange import End, Exchange, Response, Stream
from sidecar.headers import Kind, Line, tokens
from sidecar.upstreams.dial import Abortable
from sidecar.upstreams.tls import explained

if TYPE_CHECKING:
    from sidecar.upstreams.pool import Upstream

MAX_HEAD: Final = 256 * 1024
"""Bytes of a response head that are taken. An app beside us is trusted, but not without end."""

CODINGS: Final = frozenset(
    {b"chunked", b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"br", b"zstd", b"identity"}
)
"""Transfer codings that mean something: a body in one of them could not be passed on (we ask for none). A
name that means nothing codes nothing, and the body ends with the connection (RFC 9112, 6.3)."""
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""What a reason phrase may not hold (RFC 9112, 4), and llhttp lets pass."""


class Stale(ConnectionReset):
    """A kept connection ended without a byte of response: the server had closed it meanwhile."""


class UpstreamConnection(Abortable):
    """Serves one exchange at a time. It is the `Source` of the response bodies it receives."""

    __slots__ = (
        "_body_started",
        "_chunks",
        "_close_callbacks",
        "_drain_waiter",
        "_exchange",
        "_failure",
        "_framed",
        "_head_complete",
        "_head_size",
        "_headers",
        "_keep_alive",
        "_length",
        "_message_complete",
        "_parser",
        "_pump",
        "_raw_left",
        "_read_paused",
        "_reason",
        "_status",
        "_stream",
        "_unframed",
        "_until_close",
        "_upstream",
        "_waiter",
        "_write_paused",
        "address",
        "idle_limit",
        "inbound",
        "last_activity",
        "received_any",
        "reused",
        "tls",
        "transport",
    )

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.transport: asyncio.Transport | None = None
        self.address = ""
        """Where it leads; empty for a Unix socket."""
        self.tls: ssl.SSLObject | None = None
        self.last_activity = 0.0
        """`Clock.now()` of the last byte, while a body or a tunnel is open."""
        self.idle_limit: float | None = None
        self.reused = False
        self.inbound: Stream | None = None
        """Bytes of a protocol other than HTTP, after a 101."""
        self._write_paused = False
        self._read_paused = False
        self._drain_waiter: asyncio.Future[None] | None = None
        self._failure: UpstreamError | None = None
        self._close_callbacks: list[Callable[[End], None]] = []
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._exchange: Exchange | None = None
        self._stream: Stream | None = None
        self._headers: list[Line] = []
        self._chunks: list[bytes] = []
        self._status = 0
        self._reason = b""
        self._head_size = 0
        self._head_complete = False
        self._message_complete = False
        self._keep_alive = True
        self._framed = False
        self._unframed = False
        self._length: int | None = None
        self._until_close = False
        self._raw_left = 0
        self.received_any = False

    # -- one exchange --------------------------------------------------------------------------

    def send(self, exchange: Exchange, head: bytes, idle: float | None) -> asyncio.Future[Response]:
        """Sends the request; what it returns is done when the head of the response is here.

        Or it raises `Stale`, `ConnectionReset` or `BadUpstreamResponse`. Who is cancelled while waiting
        calls `give_up`.
        """
        self._exchange = exchange
        self.idle_limit = idle
        loop = self._upstream.loop
        waiter: asyncio.Future[Response] = asyncio.Future(loop=loop)
        self._waiter = waiter
        transport = self.transport
        if transport is None:
            waiter.set_exception(Stale("the connection is closed"))
            return waiter
        body = exchange.request.body
        if isinstance(body, Stream):
            transport.write(head)
            self._pump = loop.create_task(self._send_body(body))
        elif body:
            transport.write(head + body)
        else:
            transport.write(head)
        return waiter

    def give_up(self, waiter: asyncio.Future[Response]) -> None:
        """Nobody waits any more for what `send` returned: its response may still come, so that the
        connection is dropped.
        """
        if waiter.cancelled():
            self.abort()
        elif waiter.exception() is None:
            # The response came in the same moment. Only by it may the connection still be ours.
            waiter.result().close()

    async def _send_body(self, body: Stream) -> None:
        """Runs beside the wait for the response: a server may answer before it has read it all."""
        chunked = body.length is None
        try:
            while data := await body.read():
                transport = self.transport
                if transport is None:
                    return
                self.last_activity = self._upstream.clock.now()
                if chunked:
                    transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
                else:
                    transport.write(data)
                if self._write_paused:
                    body.hold()
                    await self.drain()
            if chunked and self.transport is not None:
                self.transport.write(b"0\r\n\r\n")
        except Exception as error:  # noqa: BLE001 - whatever broke the body ends the exchange with it
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
            self.abort()
            return
        self._pump = None

    async def drain(self) -> None:
        if self._write_paused and self.transport is not None:
            self._drain_waiter = asyncio.get_running_loop().create_future()
            await self._drain_waiter

    # -- transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._upstream.forget(self)
        self.resume_writing()
        waiter, self._waiter = self._waiter, None
        stream, self._stream = self._stream, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(self._lost_before_head(exc))
        elif stream is not None:
            if self._until_close and exc is None and self._failure is None:
                stream.finish()
            else:
                stream.fail(self._failure or BodyBroken("the connection ended within the body"))
        if self.inbound is not None:
            if exc is None and self._failure is None:
                self.inbound.finish()
            else:
                self.inbound.fail(self._failure or BodyBroken("the tunnel broke"))
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            callback(End.DONE if exc is None and self._failure is None else End.BROKEN)

    def _lost_before_head(self, exc: Exception | None) -> UpstreamError:
        if self._failure is not None:
            return self._failure
        if isinstance(exc, ssl.SSLError) and not self.received_any and not self.reused:
            # With TLS 1.3 a server looks at our certificate only when the handshake is over for us: it has
            # not looked at the request then. After other errors it may have.
            error = explained(exc)
            if error.fault == "client_certificate":
                self._upstream.tls_failed(self.address, error)
                return error
        detail = f"{exc}" if exc is not None else "it closed the connection"
        if self.reused and not self.received_any:
            return Stale(detail)
        return ConnectionReset(detail)

    def eof_received(self) -> bool:
        if self.inbound is not None:
            self.inbound.finish()
            return True
        return False

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        stream = self._stream
        if stream is not None:
            self.last_activity = self._upstream.clock.now()
            if self._raw_left:
                self._receive_counted(stream, data)
                return
            if self._until_close:
                stream.feed(data)
                return
        elif self.inbound is not None:
            self.last_activity = self._upstream.clock.now()
            self.inbound.feed(data)
            return
        elif self._exchange is None:  # bytes on an idle connection: whose they are cannot be known
            self.abort()
            return
        if self.received_any or not self._read_plainly(data):
            self._parse(data)

    def _receive_counted(self, stream: Stream, data: bytes) -> None:
        """The rest of a body of known length: llhttp has nothing to add, so it is not copied through it."""
        left = self._raw_left - len(data)
        if left > 0:
            self._raw_left = left
            stream.feed(data)
            return
        if left < 0:
            data = data[:left]
            self._keep_alive = False
        self._raw_left = 0
        self._parser = None
        stream.feed(data)
        self._complete()

    def _read_plainly(self, data: bytes) -> bool:
        """Takes `data` if it begins a counted response whose head `heads` can read; else llhttp must."""
        waiter = self._waiter
        exchange = self._exchange
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD or waiter is None or exchange is None or waiter.done():
            return False
        head = self._upstream.response_heads.head(data[:end])
        if head is None:
            return False
        status, reason, block = head
        if block.length is None or status in (204, 304) or exchange.request.method == "HEAD":
            return False
        end += 4
        left = block.length - (len(data) - end)
        if left < 0:
            return False
        self._keep_alive = block.keep_alive
        self._waiter = None
        response = Response(status, block.headers, data[end:], reason=reason, plain=block.plain)
        if left:
            self.received_any = self._head_complete = True
            self._length = block.length
            self._stream_body(response, (data[end:],))
        else:
            self._release()
        waiter.set_result(response)
        return True

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpResponseParser(self)
        self.received_any = True
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as switch:
            self._switch(data[switch.args[0] :])
            return
        except httptools.HttpParserError as error:
            if self._message_complete:  # the response was whole; what followed it was not asked for
                self._keep_alive = False
            else:
                cause = error.__context__
                self._fail(cause if isinstance(cause, UpstreamError) else BadUpstreamResponse(str(error)))
                return
        if self._stream is None:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD and self._head_size - sum(map(len, self._chunks)) > MAX_HEAD:
                self._fail(BadUpstreamResponse(f"its head is larger than {MAX_HEAD} bytes"))
            elif self._head_complete:
                self._answer()
        elif self._message_complete:
            self._complete()

    def _answer(self) -> None:
        """The head is here: hands the response over, whole if its body came along."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.abort()
            return
        self._waiter = None
        response = Response(self._status, self._headers, reason=self._reason)
        chunks = self._chunks
        if self._message_complete:
            if chunks:
                response.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._release()
            waiter.set_result(response)
            return
        self._chunks = []
        self._stream_body(response, chunks)
        waiter.set_result(response)

    def _stream_body(self, response: Response, chunks: Sequence[bytes]) -> None:
        """Makes the body a stream that begins with `chunks`."""
        self._stream = response.body = stream = Stream(self, self._length)
        self.last_activity = self._upstream.clock.now()
        received = 0
        for chunk in chunks:
            if chunk:
                received += len(chunk)
                stream.feed(chunk)
        if self._length is not None:
            self._raw_left = self._length - received

    def _complete(self) -> None:
        stream, self._stream = self._stream, None
        self._message_complete = True
        self._release()
        if stream is not None:
            stream.finish()

    def _switch(self, rest: bytes) -> None:
        """The upstream answered 101: the connection is a tunnel from here on."""
        waiter = self._waiter
        request = self._exchange.request if self._exchange is not None else None
        if waiter is None or waiter.done() or request is None or not request.upgrade:
            self._fail(BadUpstreamResponse("101 without an upgrade that was asked for"))
            return
        self._waiter = None
        self.inbound = Stream(self)
        self.last_activity = self._upstream.clock.now()
        if rest:
            self.inbound.feed(rest)
        response = Response(101, self._headers, reason=self._reason)
        response.tunnel = self
        waiter.set_result(response)

    # -- callbacks of llhttp ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._message_complete:
            raise BadUpstreamResponse("a response that was not asked for")
        self._reason = b""

    def on_status(self, reason: bytes) -> None:
        self._reason += reason
        if reason != b"OK" and _CONTROL.search(reason) is not None:
            raise BadUpstreamResponse("a control character in its reason phrase")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_complete:
            return  # a trailer field: dropped (RFC 9110, 6.5.1)
        line = self._upstream.response_lines[name, value]
        self._headers.append(line)
        kind = line.kind
        if kind is Kind.FRAMING:
            if self._framed:
                raise BadUpstreamResponse("more than one Content-Length or Transfer-Encoding")
            self._framed = True
            if line.name == b"content-length":
                self._length = int(line.value)
            elif line.value.lower() != b"chunked":
                if not CODINGS.isdisjoint(tokens(line.value)):
                    raise BadUpstreamResponse("the only transfer coding understood is chunked")
                self._unframed = True
        elif kind is Kind.CONNECTION and b"close" in line.tokens:
            self._keep_alive = False

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        exchange = self._exchange
        self._status = status = parser.get_status_code()
        if status < 200:
            self._interim(status)
            return
        self._head_complete = True
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise BadUpstreamResponse(f"HTTP/{version} is not what was asked in")
            if self._framed and self._length is None:
                raise BadUpstreamResponse("HTTP/1.0 knows no Transfer-Encoding")
            if not any(b"keep-alive" in line.tokens for line in self._headers):
                self._keep_alive = False
        if exchange is not None and exchange.request.method == "HEAD":
            # llhttp cannot be told that no body follows; a new parser begins with the next response.
            self._parser = None
            self._message_complete = True
            self._length = None
        elif (self._unframed or not self._framed) and status not in (204, 304):
            self._until_close = True
            self._keep_alive = False

    def _interim(self, status: int) -> None:
        exchange = self._exchange
        if status == 101 and exchange is not None and exchange.request.upgrade:
            return
        if status <= 101 and status != 100:
            raise BadUpstreamResponse(f"the status {status} means nothing here")
        if status != 100 and exchange is not None and exchange.informational is not None:
            exchange.informational(status, self._headers)
        self._headers = []
        self._framed = False
        self._length = None
        self._keep_alive = True

    def on_body(self, data: bytes) -> None:
        if self._message_complete:  # a body after a HEAD
            self._keep_alive = False
        elif self._stream is not None:
            self._stream.feed(data)
        else:
            self._chunks.append(data)

    def on_message_complete(self) -> None:
        if self._head_complete:
            self._message_complete = True

    # -- ends ----------------------------------------------------------------------------------

    def _release(self) -> None:
        """Gives the connection back to the pool, or closes it where it cannot be used again."""
        if self._pump is not None:
            # The response was over before the request: what is left of the body nobody wants, and another
            # attempt may be about to read it (as Envoy does; RFC 9112, 9.3 lets a client stop here).
            self.abort()
        elif self._keep_alive and not self._write_paused and self.transport is not None:
            if self.received_any:
                self._reset()
            else:  # the response was read plainly and at once, which touched nothing else
                self._exchange = None
            self.reused = True
            if self._read_paused:
                self.resume()
            self._upstream.release(self)
        else:
            self._exchange = None
            if self.transport is not None:
                self.transport.close()

    def _fail(self, error: UpstreamError) -> None:
        self._failure = error
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.fail(error)
        self.abort()

    def abort(self) -> None:
        """Drops the connection with whatever it was doing."""
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()
            self._pump = None
        if self.transport is not None:
            self.transport.abort()

    def check(self, now: float) -> None:
        """Called about once a second: ends a body or a tunnel on which nothing moves."""
        limit = self.idle_limit
        if limit is None or now - self.last_activity <= limit:
            return
        if self._stream is not None and self._stream.waiting:
            self._fail(BodyBroken(f"nothing came for {limit:g} s"))
        elif self.inbound is not None:
            self._failure = BodyBroken(f"nothing moved in the tunnel for {limit:g} s")
            self.abort()

    # -- source of the response body, and tunnel ---------------------------------------------------

    def pause(self) -> None:
        self._read_paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        self._read_paused = False
        if self.transport is not None:
            self.last_activity = self._upstream.clock.now()
            self.transport.resume_reading()

    def abandon(self) -> None:
        self._stream = None
        self.abort()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.last_activity = self._upstream.clock.now()
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def on_end(self, callback: Callable[[End], None]) -> None:
        if self.transport is None:
            callback(End.DONE)
        else:
            self._close_callbacks.append(callback)

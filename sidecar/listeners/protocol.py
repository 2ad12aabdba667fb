"""One client connection: HTTP/1.1 in, exchanges through the pipeline, answers out.

The life of a request: `data_received` feeds the parser; a request whose head is complete waits in
`_queue` until the ones before it are answered; `_advance` hands it to the connection's one task, which
runs the pipeline and writes the answer; when that is over, the next one starts. A client that leaves
cancels the task.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from sidecar.caching.answers import Repeatable
from sidecar.errors import ClientError, ClientGone, Draining, RequestTimeout, SidecarError, rescue
from sidecar.exchange import HIGH_WATER, Exchange, Response, Stream
from sidecar.headers import Line
from sidecar.listeners import reply
from sidecar.listeners.parser import SMALL_BODY, Incoming, RequestParser
from sidecar.listeners.splice import splice

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.listeners.ingress import Limits
    from sidecar.listeners.memo import Memo
    from sidecar.pipeline import Handler

MOST_QUEUED: Final = 16
"""Pipelined requests that wait behind one in flight before reading pauses."""
LINGER: Final = 2.0
"""Seconds that a connection is still read after its last answer, so that the client gets to read that
answer before a reset of unread bytes destroys it (RFC 9112, 9.6)."""


class Serving(Protocol):
    """What a connection asks of whoever it belongs to: a listener, or a part of one."""

    clock: Clock
    loop: asyncio.AbstractEventLoop
    memo: Memo | None
    """What is known of requests that were answered before."""

    @property
    def limits(self) -> Limits: ...
    @property
    def draining(self) -> bool: ...
    @property
    def always(self) -> bytes:
        """Header lines of answers to what never became a request."""
        ...

    @property
    def route(self) -> Callable[[Exchange], Handler]:
        """Finds the handler of an exchange, and names its route."""
        ...

    def parser(self, on_body_end: Callable[[Incoming], None]) -> RequestParser: ...
    def admit(self, connection: ServerProtocol) -> bool: ...
    def forget(self, connection: ServerProtocol) -> None: ...
    def refused(self, error: ClientError, peer: str) -> None: ...
    def request_id(self) -> str: ...
    def identify(self, exchange: Exchange, connection: ServerProtocol) -> None: ...
    def forwarded(self, peer: str, host: bytes) -> bytes: ...


class ExpectedBody(Stream):
    """A body whose sender waits for a 100: the first read asks for it (RFC 9110, 10.1.1)."""

    __slots__ = ("_protocol", "asked")

    def __init__(self, protocol: ServerProtocol, length: int | None) -> None:
        super().__init__(protocol, length)
        self._protocol = protocol
        self.asked = False

    async def read(self) -> bytes:
        if not self.asked:
            self.asked = True
            if not self.buffered and self.end is None:  # else the client did not wait
                self._protocol.send_continue()
        return await super().read()


class ServerProtocol(asyncio.Protocol):
    """One connection of a listener. It is the `Source` of the request bodies it receives."""

    __slots__ = (
        "_answering",
        "_busy",
        "_client_stream",
        "_closing",
        "_drain_waiter",
        "_error",
        "_following",
        "_forwarded",
        "_forwarded_host",
        "_head_started",
        "_last_progress",
        "_last_unsent",
        "_listener",
        "_parser",
        "_queue",
        "_reading_paused",
        "_receiving",
        "_task",
        "_turn",
        "_write_paused",
        "peer",
        "transport",
        "trusted",
    )

    def __init__(self, listener: Serving) -> None:
        self._listener = listener
        self._parser: RequestParser = listener.parser(self._body_complete)
        self._queue: deque[Incoming] = deque()
        self._task: asyncio.Task[None] | None = None
        self._turn: asyncio.Future[Incoming] | None = None
        """What the task waits for between two requests."""
        self._following: Incoming | None = None
        """The next request, where it was there before the last was over."""
        self._busy = False
        """A request is being served."""
        self._receiving: Incoming | None = None
        self._error: ClientError | None = None
        self._closing = False
        self._answering = False
        self._client_stream: Stream | None = None
        self._write_paused = False
        self._reading_paused = False
        self._drain_waiter: asyncio.Future[None] | None = None
        self._last_progress = 0.0
        self._last_unsent = 0
        self._head_started = 0.0
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.trusted = False
        self._forwarded = b""
        self._forwarded_host: bytes | None = None

    # -- transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._last_progress = self._head_started = self._listener.clock.now()
        if not self._listener.admit(self):
            self._closing = True
            self._write_error(Draining("too many connections"))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._listener.forget(self)
        self._closing = True
        self._queue.clear()
        gone = ClientGone()
        if self._receiving is not None and self._receiving.stream is not None:
            self._receiving.stream.fail(gone)
        if self._client_stream is not None:
            self._client_stream.fail(gone)
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        # A client that is done sending and one that left look the same; as nginx and Envoy do, it is
        # taken to have left. Only a tunnel may be half closed.
        if self._client_stream is not None:
            self._client_stream.finish()
            return True
        return False

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def drain(self) -> None:
        """Waits until the client has taken enough of what was written. Raises `ClientGone`."""
        if self._write_paused and self.transport is not None:
            self._drain_waiter = asyncio.get_running_loop().create_future()
            await self._drain_waiter
        if self.transport is None:
            raise ClientGone

    def data_received(self, data: bytes) -> None:
        if self._client_stream is not None:
            self._client_stream.feed(data)
            return
        if self._closing or self._error is not None:
            return
        parser = self._parser
        listener = self._listener
        now = listener.clock.now()
        if not parser.in_message:
            self._head_started = now
            memo = listener.memo
            if memo is not None and memo.answer(self, listener, data, now):
                self._last_progress = now
                return
        try:
            parser.feed(data)
        except ClientError as error:
            self._refuse(error)
        if parser.progress:
            self._last_progress = now
        ready = parser.ready
        if ready:
            self._queue.extend(ready)
            ready.clear()
        if not self._busy:
            self._advance(now)
        elif (self._queue or parser.leftover) and self._crowded():
            self.pause()

    @property
    def idle(self) -> bool:
        """Nothing is under way or waits, on either side: a whole request may be answered at once."""
        return not (
            self._busy
            or self._queue
            or self._write_paused
            or self._parser.quiet
            or self._parser.leftover is not None
            or self._listener.draining
        )

    def _crowded(self) -> bool:
        """Enough waits behind the request in flight."""
        queue = self._queue
        waiting = sum(incoming.size for incoming in queue) + len(self._parser.leftover or b"")
        return len(queue) > MOST_QUEUED or waiting > SMALL_BODY

    # -- the request body's source ---------------------------------------------------------------

    def pause(self) -> None:
        if not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._reading_paused and self.transport is not None:
            self._reading_paused = False
            self._last_progress = self._listener.clock.now()
            self.transport.resume_reading()

    def abandon(self) -> None:
        """Nobody wants the rest of the body: what still arrives is parsed and thrown away."""
        self.resume()

    def send_continue(self) -> None:
        if self.transport is not None and not self._answering:
            self._last_progress = self._listener.clock.now()
            self.transport.write(reply.CONTINUE)

    def _body_complete(self, incoming: Incoming) -> None:
        assert incoming.stream is not None
        incoming.stream.finish()
        self._receiving = None
        self.resume()  # a stream that has ended no longer asks for it, and a client that leaves must be seen

    def _refuse(self, error: ClientError) -> None:
        """Ends the connection once what came before is answered."""
        self._error = error
        self._listener.refused(error, self.peer)
        if self._receiving is not None and self._receiving.stream is not None:
            self._receiving.stream.fail(error)
            self._receiving = None
        elif self._parser.ready and not self._parser.ready[-1].complete:
            self._parser.ready.pop()
        elif self._queue and not self._queue[-1].complete:
            self._queue.pop()

    def forwarded_for(self, host: bytes) -> bytes:
        """What the upstream is told of an untrusted client; the same for all its requests to one host."""
        if host != self._forwarded_host:
            self._forwarded_host = host
            self._forwarded = self._listener.forwarded(self.peer, host)
        return self._forwarded

    # -- exchanges -----------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Starts the next request, or ends the connection when there is nothing more to do."""
        queue = self._queue
        if queue and queue[0].may_start:
            incoming = queue.popleft()
            incoming.at = now
            if not incoming.complete:
                self._open_body(incoming)
            elif incoming.chunks:
                chunks = incoming.chunks
                incoming.request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._busy = True
            turn = self._turn
            if turn is not None:
                self._turn = None
                turn.set_result(incoming)
            elif self._task is None:
                self._task = self._listener.loop.create_task(self._work(incoming))
            else:
                self._following = incoming
        elif not queue and self._error is not None and not self._closing:
            self._write_error(self._error)
            self._end_connection()

    def _open_body(self, incoming: Incoming) -> None:
        stream = ExpectedBody(self, incoming.length) if incoming.expect else Stream(self, incoming.length)
        for chunk in incoming.chunks:
            stream.feed(chunk)
        incoming.chunks.clear()
        incoming.stream = incoming.request.body = stream
        self._receiving = incoming

    async def _work(self, incoming: Incoming) -> None:
        """The connection's one task: its requests, one after the other.

        A task for each request would cost 2 microseconds more: asyncio keeps a weak set of all tasks. A
        coroutine for each would cost a third of one.
        """
        listener = self._listener
        while True:
            request = incoming.request
            exchange = Exchange(request, self.peer, incoming.at)
            response: Response | None = None
            whole = False
            how = "done"
            self._answering = False
            try:
                if self._takes(incoming):
                    return
                listener.identify(exchange, self)
                response = await listener.route(exchange)(exchange)
                body = response.body
                if type(body) is bytes and response.tunnel is None and incoming.complete:
                    whole = True
                    self._answer_whole(exchange, response, body, incoming)
                    if type(response) is Repeatable:
                        response.source.memo.learn(exchange, response, self._parser.last)
                    if self._write_paused:
                        await self.drain()
                else:
                    await self._answer(exchange, response, incoming)
            except (asyncio.CancelledError, ClientGone):
                how = "client_gone"
            except SidecarError:
                how = "broken"  # the body ended early: all that can be told to the client is an abort
                if response is not None and reply.ends_with_connection(response, http10=request.http10):
                    self._reset_on_close()
                self.abort()
            except BaseException:
                how = "broken"
                self.abort()  # nobody must wait for an answer that a bug swallowed
                raise
            finally:
                if response is not None and not whole:
                    response.close()
                if exchange.on_sent is not None:
                    exchange.on_sent(exchange, response, how)
                self._busy = False
            self._next(incoming, how)
            following = self._following
            if following is None:
                if self._closing or self.transport is None:
                    return
                # Nothing of what is over is kept while the connection is idle.
                response, body = None, b""
                del exchange, request, incoming
                turn: asyncio.Future[Incoming] = asyncio.Future(loop=listener.loop)
                self._turn = turn
                following = await turn
            self._following = None
            incoming = following

    def _takes(self, incoming: Incoming) -> bool:
        """Whether the connection stops to be HTTP with this request, which then has been answered."""
        return False

    def _answer_whole(self, exchange: Exchange, response: Response, body: bytes, incoming: Incoming) -> None:
        """Writes an answer that is all here, at once."""
        transport = self.transport
        if transport is None:
            raise ClientGone
        request = incoming.request
        if self._listener.draining:
            incoming.keep_alive = False
        self._answering = True
        exchange.first_byte = self._listener.clock.now()
        if incoming.keep_alive and not request.http10 and request.method != "HEAD":
            transport.write(reply.whole(response, body, exchange.id_line + exchange.told))
        else:
            head = reply.head(
                response,
                method=request.method,
                http10=request.http10,
                keep_alive=incoming.keep_alive,
                ours=exchange.id_line + exchange.told,
            )
            transport.write(head if request.method == "HEAD" else head + body)
        exchange.sent = 0 if request.method == "HEAD" else len(body)

    async def _answer(self, exchange: Exchange, response: Response, incoming: Incoming) -> None:
        transport = self.transport
        if transport is None:
            raise ClientGone
        request = incoming.request
        body = response.body
        if not incoming.complete and not isinstance(body, Stream):
            # The answer is final before the request is all here: what follows cannot be told apart
            # from the next request in time.
            incoming.keep_alive = False
        if self._listener.draining or (self._error is not None and not incoming.complete):
            incoming.keep_alive = False
        chunked = reply.is_chunked(response, method=request.method, http10=request.http10)
        if isinstance(body, Stream) and body.length is None and not chunked:
            incoming.keep_alive = False
        head = reply.head(
            response,
            method=request.method,
            http10=request.http10,
            keep_alive=incoming.keep_alive,
            ours=exchange.id_line + exchange.told,
        )
        self._answering = True
        exchange.first_byte = self._listener.clock.now()
        if response.tunnel is not None:
            transport.write(head)
            await self._join(exchange, response)
        elif not isinstance(body, Stream):
            if request.method == "HEAD" or not body:
                transport.write(head)
            else:
                transport.write(head + body)
                exchange.sent = len(body)
            if self._write_paused:
                await self.drain()
        elif reply.has_no_body(request.method, response.status):
            transport.write(head)
        else:
            transport.write(head)
            await self._send(exchange, body, transport, chunked=chunked)

    async def _send(
        self, exchange: Exchange, body: Stream, transport: asyncio.Transport, *, chunked: bool
    ) -> None:
        while data := await body.read():
            if chunked:
                transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
            else:
                transport.write(data)
            exchange.sent += len(data)
            if self._write_paused:
                body.hold()
                await self.drain()
        if chunked:
            transport.write(reply.LAST_CHUNK)

    async def _join(self, exchange: Exchange, response: Response) -> None:
        """The protocol has changed: from here on it is bytes both ways."""
        assert response.tunnel is not None
        self._closing = True
        stream = Stream(self)
        if self._parser.leftover:
            stream.feed(self._parser.leftover)
        self._client_stream = stream
        self.resume()
        await splice(exchange, self, stream, response.tunnel)

    def informational(self, status: int, headers: list[Line]) -> None:
        """Passes on a 1xx, as long as the final answer has not begun (RFC 9110, 15.2)."""
        if self.transport is not None and not self._answering:
            self.transport.write(reply.informational(status, Response(status, headers)))

    def _next(self, incoming: Incoming, how: str) -> None:
        transport = self.transport
        if transport is None or how != "done":
            return
        parser = self._parser
        if self._client_stream is not None:
            self._client_stream = None
            transport.close()
            return
        if not incoming.complete:  # the rest of the request has no meaning any more
            self._receiving = None
            if incoming.stream is not None:
                incoming.stream.fail(ClientGone())
            self._end_connection()
            return
        if not incoming.keep_alive or self._listener.draining:
            self._end_connection(linger=False)
            return
        if incoming.upgrade and parser.leftover is not None:
            try:
                parser.resume()
            except ClientError as error:
                self._refuse(error)
            self._queue.extend(parser.ready)
            parser.ready.clear()
        self._head_started = self._last_progress = now = self._listener.clock.now()
        if self._queue or self._error is not None:
            self._advance(now)
        if self._reading_paused and not self._crowded() and not self._flooded():
            self.resume()

    def _flooded(self) -> bool:
        """The body being received was paused by its stream, which will ask for more by itself."""
        receiving = self._receiving
        return (
            receiving is not None and receiving.stream is not None and receiving.stream.buffered > HIGH_WATER
        )

    def _write_error(self, error: SidecarError) -> None:
        """An answer to what never became a request; it passed no layer."""
        if self.transport is None:
            return
        request_id = self._listener.request_id()
        response = rescue(error, request_id, "")
        self.transport.write(
            reply.head(
                response,
                method="GET",
                http10=False,
                keep_alive=False,
                ours=b"X-Request-ID: %b\r\n%b" % (request_id.encode(), self._listener.always),
            )
            + (response.body if isinstance(response.body, bytes) else b"")
        )

    def _end_connection(self, *, linger: bool = True) -> None:
        transport = self.transport
        self._closing = True
        if transport is None:
            return
        self._last_progress = self._listener.clock.now()
        if linger and transport.can_write_eof():
            self.resume()
            transport.write_eof()
        else:
            transport.close()

    # -- time ----------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Draining: idle connections end now, busy ones after the answer in flight."""
        if not self._busy and not self._queue and not self._parser.in_message and self.transport:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _reset_on_close(self) -> None:
        """Makes the end of the connection a RST (socket(7), SO_LINGER): to a client of HTTP/1.0 a FIN would
        say that the body is complete.
        """
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def check(self, now: float) -> None:
        """Called about once a second: ends what waits for the client for too long."""
        transport = self.transport
        if transport is None:
            return
        limits = self._listener.limits
        quiet = now - self._last_progress
        unsent = transport.get_write_buffer_size()
        if unsent:
            if unsent != self._last_unsent:
                self._last_unsent = unsent
                self._last_progress = now
            elif quiet > limits.idle:
                transport.abort()
        elif self._client_stream is not None:
            return  # the tunnel's own idle limit rules
        elif self._closing:
            if quiet > LINGER:
                transport.abort()
        elif self._reading_paused or self._error is not None:
            return  # whatever is late, the client is not to blame
        elif self._parser.in_head:
            if now - self._head_started > limits.header_timeout:
                self._time_out("the head did not arrive in time")
        elif self._parser.in_message:
            if quiet > limits.idle and not self._unasked():
                self._time_out("the body did not arrive in time")
        elif not self._busy and quiet > limits.idle:
            transport.close()

    def _unasked(self) -> bool:
        """The client still waits for a 100."""
        stream = self._receiving.stream if self._receiving is not None else None
        return isinstance(stream, ExpectedBody) and not stream.asked

    def _time_out(self, detail: str) -> None:
        self._refuse(RequestTimeout(detail))
        if not self._busy:
            self._advance(self._listener.clock.now())
            if not self._closing:
                self._end_connection()

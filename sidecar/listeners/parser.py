"""Bytes from a client, as requests: httptools (llhttp) in front, the rules it leaves to us behind.

llhttp refuses, in its strict mode: Content-Length with Transfer-Encoding, repeated or malformed
lengths, codings that end in something else than one `chunked`, bare CR or LF, obs-fold, white space
before a colon, control characters, bad chunk sizes (RFC 9112, 2.2, 5, 6, 7). Left to us:

* versions other than 1.0 and 1.1 (RFC 9112, 2.3);
* exactly one `Host`, of the characters a host has (RFC 9112, 3.2), which in HTTP/1.0 may be absent;
* transfer codings besides plain `chunked`, and any in HTTP/1.0 (RFC 9112, 6.1);
* the size of the head, of trailers and of chunk extensions;
* `Upgrade` with a body: llhttp takes what follows the head for the new protocol, so that the body
  would be read as the next request. Its framing is handed to a fresh parser instead;
* `Upgrade` to h2c, which would take the connection out of our sight, and in HTTP/1.0 (RFC 9110, 7.8):
  not heard.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import httptools

from sidecar.errors import (
    BadRequest,
    BodyTooLarge,
    ClientError,
    ExpectationFailed,
    HeadersTooLarge,
    MethodRefused,
)
from sidecar.exchange import AbsoluteRequest, Request, Stream
from sidecar.headers import Kind, Line, Lines, tokens
from sidecar.heads import LONGEST, Block, RequestHeads, StartLine

METHODS: Final = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY", "PURGE")
}
"""Ready-made strings for the usual methods: what is interned compares by identity."""

_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""uri-host and port (RFC 9110, 7.2; RFC 3986, 3.2.2)."""

SMALL_BODY: Final = 64 * 1024
"""Counted bodies up to this many bytes are waited for before the request starts: a client that sends
slowly then holds no permit of an upstream, and the request can be repeated."""


Head = tuple[bytes, StartLine, Block]
"""A request that is a head alone: its bytes, and what `heads` read of them."""


class Incoming:
    """A request being received."""

    __slots__ = (
        "at",
        "chunks",
        "complete",
        "expect",
        "keep_alive",
        "length",
        "request",
        "size",
        "stream",
        "upgrade",
    )

    def __init__(
        self,
        request: Request,
        keep_alive: bool,
        expect: bool,
        upgrade: bool,
        length: int | None,
    ) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.expect = expect
        """The client waits for a 100 before it sends the body."""
        self.upgrade = upgrade
        self.length = length
        """Content-Length; None for a chunked body."""
        self.at = 0.0
        """`Clock.now()` when its turn came."""
        self.complete = False
        self.chunks: list[bytes] = []
        self.size = 0
        """Bytes of the body so far."""
        self.stream: Stream | None = None
        """Where further bytes of the body go, once the request has started without them."""

    @property
    def may_start(self) -> bool:
        return self.complete or self.expect or self.length is None or self.length > SMALL_BODY


class _BodyOnly:
    """Callbacks for the body of a message whose head is known: the head that is fed again is not heard."""

    def __init__(self, parser: RequestParser) -> None:
        self._parser = parser
        self._complete = False
        self.on_body = parser.on_body

    def on_message_begin(self) -> None:
        if self._complete:  # the next request, on the same connection
            self._parser.on_message_begin()

    def on_url(self, part: bytes) -> None:
        if self._complete:
            self._parser.on_url(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            self._parser.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._complete:
            self._parser.on_headers_complete()

    def on_message_complete(self) -> None:
        self._complete = True
        self._parser.on_message_complete()


class RequestParser:
    """One connection's parser. `feed` appends to `ready`; what it raises ends the connection."""

    __slots__ = (
        "_absolute",
        "_chunked",
        "_current",
        "_expect",
        "_good_host",
        "_head_size",
        "_headers",
        "_heads",
        "_host",
        "_keep_alive",
        "_length",
        "_lines",
        "_max_body",
        "_max_head",
        "_proxy",
        "_refused",
        "_scheme",
        "_switching",
        "_target",
        "_upgrade",
        "finished",
        "in_head",
        "in_message",
        "last",
        "leftover",
        "llhttp",
        "on_body_end",
        "progress",
        "quiet",
        "ready",
    )

    def __init__(
        self,
        lines: Lines,
        heads: RequestHeads,
        *,
        scheme: str,
        max_head: int,
        max_body: int | None,
        on_body_end: Callable[[Incoming], None],
        proxy: bool = False,
    ) -> None:
        """`proxy`: the listener is a forward proxy: CONNECT is served, and URLs keep their scheme."""
        self._proxy = proxy
        self._lines = lines
        self._heads = heads
        self._scheme = scheme
        self._max_head = max_head
        self._max_body = max_body
        self.on_body_end = on_body_end
        self.ready: list[Incoming] = []
        self.leftover: bytes | None = None
        """Set once a request asked for an upgrade: what came after its head, in whatever protocol."""
        self.in_head = False
        self.in_message = False
        self.finished = False
        """The client said that this was its last request."""
        self.progress = False
        """The last bytes brought the request on: a header line or a part of the body was complete."""
        self._current: Incoming | None = None
        self._switching: Incoming | None = None
        """The request after whose head llhttp stops, as another protocol might follow."""
        self.last: Head | None = None
        """The last request that was a head alone: the next one may be just like it."""
        self._good_host: bytes | None = None
        """The last value of `Host` that was looked at: a connection's requests mostly name one."""
        self.quiet = 0
        """Bytes that came since anything was complete."""
        self._refused: ClientError | None = None
        self._reset_head()
        self.llhttp = httptools.HttpRequestParser(self)

    # -- in ------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Raises a `ClientError` when the bytes are not a request that may be served."""
        if self.finished:
            return
        if self.leftover is not None:
            self.leftover += data
            return
        if not self.in_message and not self.quiet and self._read_plainly(data):
            return
        self.progress = False
        try:
            self.llhttp.feed_data(data)
        except httptools.HttpParserUpgrade as switch:
            self._switch(data[switch.args[0] :])
        except httptools.HttpParserError as error:
            if self._refused is not None:
                raise self._refused from None
            if self.finished:  # bytes after a request that closes the connection mean nothing
                return
            if isinstance(error, httptools.HttpParserInvalidMethodError):
                raise BadRequest(f"unknown method: {error}") from None
            cause = error.__context__
            raise BadRequest(str(cause if isinstance(cause, httptools.HttpParserError) else error)) from None
        if self.progress:
            self.quiet = 0
        else:  # a line that does not end: of the head, of a chunk's extension, of the trailers
            self.quiet += len(data)
            if self.quiet > self._max_head:
                raise HeadersTooLarge(f"a line is longer than {self._max_head} bytes")

    def _read_plainly(self, data: bytes) -> bool:
        """Takes `data` if it is one whole request whose head `heads` can read; else llhttp must."""
        last = self.last
        if last is not None and last[0] == data:
            self._take(Request.read(last[1], last[2], b"", self._scheme), 0)
            return True
        end = data.find(b"\r\n\r\n")
        eol = data.find(b"\r\n")
        if eol == end or end > self._max_head:  # no end of a head, no header line, or too large a head
            return False
        start = self._heads.start(data[:eol])
        if start is None:
            return False
        block = self._heads.block(data[eol + 2 : end])
        if block is None or block.host is None:
            return False
        length = block.length or 0
        end += 4
        if len(data) != end + length or (self._max_body is not None and length > self._max_body):
            return False
        if not length and block.keep_alive and end <= LONGEST:
            self.last = data, start, block
        self.finished = not block.keep_alive
        self._take(Request.read(start, block, data[end:] if length else b"", self._scheme), length)
        return True

    def _take(self, request: Request, length: int) -> None:
        """A request that came whole, by one read."""
        # By name the arguments would cost half as much again.
        incoming = Incoming(request, not self.finished, False, False, length)
        incoming.size = length
        incoming.complete = self.progress = True
        self.ready.append(incoming)

    def resume(self) -> None:
        """Goes on with HTTP after an upgrade that the upstream did not take."""
        rest = self.leftover or b""
        self.leftover = None
        self.llhttp = httptools.HttpRequestParser(self)
        if rest:
            self.feed(rest)

    def _switch(self, rest: bytes) -> None:
        """After a head llhttp stops: `rest` is that request's body, the new protocol, or the next request."""
        current, self._switching = self._switching, None
        assert current is not None
        if current.length == 0:
            self.leftover = rest
            if not current.upgrade:
                self.resume()
            return
        framing = (
            b"Transfer-Encoding: chunked"
            if current.length is None
            else b"Content-Length: %d" % current.length
        )
        self._current = current
        current.complete = current.upgrade = current.request.upgrade = False
        self.finished = False
        self.in_message = True
        self.llhttp = httptools.HttpRequestParser(_BodyOnly(self))
        self.llhttp.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        self.progress = True
        if rest:
            self.feed(rest)

    # -- callbacks of llhttp ---------------------------------------------------------------------

    def _reset_head(self) -> None:
        self._target = b""
        self._absolute: str | None = None
        """The scheme of a target that is a URL."""
        self._headers: list[Line] = []
        self._head_size = 0
        self._host: bytes | None = None
        self._keep_alive: bool | None = None
        self._expect = False
        self._upgrade: bool | None = None
        """None: no such field; False: for nothing that is done here."""
        self._chunked = False
        self._length: int | None = None

    def on_message_begin(self) -> None:
        self.progress = True
        self.in_head = self.in_message = True
        self._reset_head()

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > self._max_head:
            self._refuse(HeadersTooLarge(f"the request target is longer than {self._max_head} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.progress = True
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._max_head:
            self._refuse(HeadersTooLarge(f"the head is larger than {self._max_head} bytes"))
        if not self.in_head:
            return  # a trailer field: not merged into the header (RFC 9110, 6.5.1), and not forwarded
        line = self._lines[name, value]
        self._headers.append(line)
        if line.kind is not Kind.PLAIN:
            self._special(line)

    def _special(self, line: Line) -> None:
        kind = line.kind
        if kind is Kind.HOST:
            if self._host is not None:
                self._refuse(BadRequest("more than one Host"))
            self._host = self._checked_host(line.value)
        elif kind is Kind.FRAMING:
            if line.name == b"content-length":
                self._length = int(line.value)
            elif line.value.lower() != b"chunked":
                self._refuse(BadRequest("the only transfer coding understood is chunked"))
            else:
                self._chunked = True
        elif kind is Kind.CONNECTION:
            if b"close" in line.tokens:
                self._keep_alive = False
            elif b"keep-alive" in line.tokens and self._keep_alive is None:
                self._keep_alive = True
        elif kind is Kind.EXPECT:
            if line.value.lower() != b"100-continue":
                self._refuse(ExpectationFailed())
            self._expect = True
        elif kind is Kind.UPGRADE:
            self._upgrade = self._upgrade is not False and b"h2c" not in tokens(line.value)

    def on_headers_complete(self) -> None:
        self.progress = True
        llhttp = self.llhttp
        version = llhttp.get_http_version()
        http10 = version == "1.0"
        if version != "1.1" and not http10:
            self._refuse(BadRequest(f"HTTP/{version} is not spoken here"))
        if self._head_size + len(self._target) > self._max_head:
            self._refuse(HeadersTooLarge(f"the head is larger than {self._max_head} bytes"))
        if http10 and self._chunked:
            self._refuse(BadRequest("HTTP/1.0 knows no Transfer-Encoding"))
        raw_method = llhttp.get_method()
        method = METHODS.get(raw_method)
        if method is None:
            method = raw_method.decode("ascii")
            if method == "CONNECT":
                self._connect()
        if self._host is None:
            if not http10:
                self._refuse(BadRequest("Host is missing"))
            self._host = b""
        length = None if self._chunked else self._length or 0
        limit = self._max_body
        if limit is not None and length is not None and length > limit:
            self._refuse(BodyTooLarge(f"at most {limit} bytes are taken"))
        switching = self._upgrade is not None and llhttp.should_upgrade()
        upgrade = switching and self._upgrade is True and (not http10 or method == "CONNECT")
        target = self._checked_target(method)
        kind = Request if self._absolute is None else AbsoluteRequest
        request = kind(
            method,
            target,
            self._headers,
            host=self._host,
            scheme=self._absolute or self._scheme,
            http10=http10,
            upgrade=upgrade,
        )
        keep_alive = self._keep_alive if self._keep_alive is not None else not http10
        self.in_head = False
        self._current = Incoming(
            request,
            keep_alive=keep_alive,
            expect=self._expect and not http10 and length != 0,
            upgrade=upgrade,
            length=length,
        )
        if switching:
            self._switching = self._current
        self.ready.append(self._current)

    def _connect(self) -> None:
        """CONNECT: its target is the host, whatever Host says, and many clients leave that out."""
        if not self._proxy:
            self._refuse(MethodRefused("CONNECT is for a forward proxy; this is a reverse proxy"))
        if self._chunked or self._length:
            self._refuse(BadRequest("CONNECT has no body"))  # what follows is the tunnel (RFC 9110, 9.3.6)
        self._host = self._checked_host(self._target, "the target of CONNECT is not host:port")
        self._upgrade = True

    def _checked_target(self, method: str) -> bytes:
        """Origin form or `*`; absolute form becomes origin form, its authority the Host (RFC 9112, 3.2.2)."""
        target = self._target
        if method == "CONNECT":
            return target
        if target.startswith(b"/"):
            return target.partition(b"#")[0] if b"#" in target else target
        if target == b"*" and method == "OPTIONS":
            return target
        scheme, found, rest = target.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            self._refuse(BadRequest("the request target is neither a path nor an http URL"))
        authority, slash, path = rest.partition(b"/")
        if not slash and b"?" in authority:
            authority, _, query = authority.partition(b"?")
            path = b"?" + query
        if not authority or b"@" in authority:
            self._refuse(BadRequest("the request target names no host, or a user"))
        self._host = self._checked_host(authority, "the request target names what is not a host")
        if self._proxy:
            self._absolute = scheme.lower().decode()
        if method == "OPTIONS" and not slash and not path:  # RFC 9112, 3.2.4
            return b"*"
        return b"/" + path.partition(b"#")[0]

    def _checked_host(self, value: bytes, otherwise: str = "Host is not a host") -> bytes:
        if value != self._good_host:
            if _AUTHORITY.fullmatch(value) is None:
                self._refuse(BadRequest(otherwise))
            self._good_host = value
        return value

    def on_body(self, data: bytes) -> None:
        self.progress = True
        current = self._current
        if current is None:
            return
        current.size += len(data)
        if self._max_body is not None and current.size > self._max_body:
            self._refuse(BodyTooLarge(f"at most {self._max_body} bytes are taken"))
        if current.stream is not None:
            current.stream.feed(data)
        else:
            current.chunks.append(data)

    def on_message_complete(self) -> None:
        self.progress = True
        current, self._current = self._current, None
        self.in_message = False
        if current is None:
            return
        current.complete = True
        self.finished = not current.keep_alive and not current.upgrade
        if current.stream is not None:
            self.on_body_end(current)

    def _refuse(self, error: ClientError) -> None:
        self._refused = error
        raise error

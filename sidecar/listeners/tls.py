"""TLS over a connection that is there already: between its raw transport and the protocol above.

`loop.start_tls` cannot take what the client sent right behind its CONNECT, nor the ClientHello that was
looked at first, so the records go through `ssl.MemoryBIO` here. On a kept-alive connection a request
costs two calls into OpenSSL in each direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

_PIECE: Final = 64 * 1024
"""Bytes that go through OpenSSL at a time: its buffers grow to the most there ever was in them, and keep that
for as long as the connection lives. It gives one record, of 16 KiB at most, per read.
"""
MEND: Final = "`sidecar ca` says what to set"


class TlsTransport(asyncio.Protocol):
    """Two faces: the protocol of the raw connection, and the transport of the protocol above.

    The one above hears of the connection once the handshake is complete. An end of either direction is
    passed on as with TCP: TLS 1.3 has half-closed connections too (RFC 8446, 6.1).
    """

    __slots__ = (
        "_above",
        "_answered",
        "_eof_told",
        "_incoming",
        "_is_paused",
        "_make",
        "_on_failed",
        "_outgoing",
        "_raw",
        "_said_goodbye",
        "_tls",
    )

    def __init__(
        self,
        raw: asyncio.Transport,
        context: ssl.SSLContext,
        make: Callable[[], asyncio.Protocol],
        on_failed: Callable[[str], None],
    ) -> None:
        """`make` gives the protocol above; `on_failed` is told why there will be none."""
        self._raw = raw
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._make = make
        self._on_failed: Callable[[str], None] | None = on_failed
        self._above: asyncio.Protocol | None = None
        self._answered = False
        self._is_paused = False
        self._eof_told = False
        self._said_goodbye = False

    def begin(self, data: bytes) -> None:
        """Takes the raw transport over, with the bytes that were read from it already."""
        self._raw.set_protocol(self)
        self.data_received(data)

    # -- the raw connection's protocol -------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if len(data) > _PIECE and self._above is not None:
            rest = memoryview(data)
            while rest and not self._is_paused:
                self._incoming.write(rest[:_PIECE])
                rest = rest[_PIECE:]
                self._read()
            if rest:
                self._incoming.write(rest)
            return
        self._incoming.write(data)
        if self._above is None:
            self._shake_hands()
        elif not self._is_paused:
            self._read()

    def eof_received(self) -> bool:
        if self._above is None:
            self._left()
            return False
        self._end_of_input()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        above, self._above = self._above, None
        if above is not None:
            above.connection_lost(exc)
        else:
            self._left()
        self._is_paused = True

    def pause_writing(self) -> None:
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._above is not None:
            self._above.resume_writing()

    def _shake_hands(self) -> None:
        if self._on_failed is None:  # failed already: what still comes means nothing
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._answered = self._answered or bool(self._outgoing.pending)
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(_reason(error))
            self._raw.close()
            return
        self._flush()
        self._on_failed = None
        above = self._above = self._make()
        above.connection_made(cast(asyncio.Transport, self))
        if self._above is not None:  # it may have been turned away
            self._read()

    def give_up(self, reason: str | None) -> None:
        """Ends a handshake that is not over, for `reason`; None: for none that is to be told."""
        if reason is None:
            self._on_failed = None
        else:
            self._fail(reason)
        self._raw.abort()

    def _left(self) -> None:
        # Clients on asyncio, aiohttp among them, send no alert when they do not accept a certificate.
        seen = " when it saw our certificate: perhaps it does not trust the local CA; " + MEND
        self._fail("the client left" + (seen if self._answered else " in the middle of the handshake"))

    def _fail(self, reason: str) -> None:
        on_failed, self._on_failed = self._on_failed, None
        if on_failed is not None:
            on_failed(reason)

    def _read(self) -> None:
        """Hands on what can be decrypted."""
        tls, incoming = self._tls, self._incoming
        try:
            while self._above is not None and not self._is_paused:
                data = tls.read(_PIECE)
                if not data:  # close_notify
                    self._end_of_input()
                    break
                self._above.data_received(data)
                if not incoming.pending and not tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._break(error)
            return
        if self._outgoing.pending:  # a key update is answered (RFC 8446, 4.6.3)
            self._flush()

    def _end_of_input(self) -> None:
        if self._eof_told or self._above is None:
            return
        self._eof_told = True
        if not self._above.eof_received():
            self.close()

    def _break(self, error: ssl.SSLError) -> None:
        """What came is not what the keys say: nothing of this connection can be trusted any more."""
        if self._said_goodbye:  # the client does not read alerts before it writes; it is not listened to
            return
        self._flush()
        above, self._above = self._above, None
        self._is_paused = True
        if above is not None:
            above.connection_lost(error)
        self._raw.abort()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._raw.is_closing():
            self._raw.write(self._outgoing.read())

    # -- the transport of the protocol above -------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._said_goodbye or not data:
            return
        if len(data) <= _PIECE:
            self._tls.write(data)
            self._raw.write(self._outgoing.read())
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest[:_PIECE]) :]
            self._raw.write(self._outgoing.read())

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def pause_reading(self) -> None:
        self._is_paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        if not self._is_paused:
            return
        self._is_paused = False
        self._raw.resume_reading()
        # Records that are here already come without a further event of the socket. Not at once: the one
        # who resumes is in the middle of something.
        asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._above is not None and not self._is_paused and not self._eof_told:
            self._read()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._goodbye()
        if not self._raw.is_closing() and self._raw.can_write_eof():
            self._raw.write_eof()

    def _goodbye(self) -> None:
        """Sends close_notify (RFC 8446, 6.1), once."""
        if self._said_goodbye or self._above is None:
            return
        self._said_goodbye = True
        with contextlib.suppress(ssl.SSLError):  # it would wait for the client's, which we do not
            self._tls.unwrap()
        self._flush()

    def close(self) -> None:
        self._goodbye()
        self._raw.close()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._said_goodbye or self._raw.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._raw.get_extra_info(name, default)


def _reason(error: ssl.SSLError) -> str:
    """Why a handshake failed, in words for whoever looks after the app."""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "unknown ca" in reason or "bad certificate" in reason or "certificate unknown" in reason:
        return f"the client does not trust the local CA ({reason}); {MEND}"
    return reason

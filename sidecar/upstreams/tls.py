"""TLS towards upstreams: what is trusted, sessions that are resumed, and what goes wrong in plain words."""

from __future__ import annotations

import re
import ssl
from typing import Final, Self

from sidecar.errors import BadCertificate, TlsFailed

SESSION_AGE: Final = 3600.0
"""Seconds that a session is resumed for. The certificate is not looked at again when one is: this bounds how
long an expired or withdrawn one goes unseen."""

_UNKNOWN: Final = "unknown_ca", "is signed by an authority that is not trusted"
_MISSING: Final = (
    "unknown_ca",
    "is signed by an authority that is not trusted, or the server leaves out one between",
)
_FAULTS: Final[dict[int, tuple[str, str]]] = {
    # X509_V_ERR_… of OpenSSL (x509_vfy.h).
    2: _UNKNOWN,
    9: ("not_yet_valid", "is not valid yet (is the clock of this machine right?)"),
    10: ("expired", "has expired"),
    18: ("self_signed", "is signed by itself"),
    19: _UNKNOWN,
    20: _MISSING,
    21: _MISSING,
    23: ("revoked", "is revoked"),
    62: ("wrong_host", ""),
    64: ("wrong_host", ""),
}
"""Fault and text by what verification said; no text: it is OpenSSL's."""
_TRUST: Final = " (tls.ca names a file of certificates to trust)"

_NO_TLS: Final = "protocol", "what listens there does not speak TLS"
_VERSION: Final = "protocol", "it takes no version of TLS that is taken here: 1.2 and 1.3"
_CIPHERS: Final = (
    "protocol",
    "it takes none of our ciphers, or asks for a client certificate (tls.cert, tls.key)",
)
_WANTED: Final = "client_certificate", "it asks for a client certificate (tls.cert and tls.key)"
_REFUSED: Final = "client_certificate", "it does not accept our client certificate"
_REASONS: Final[dict[str, tuple[str, str]]] = {
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "UNEXPECTED_MESSAGE": _NO_TLS,
    "UNSUPPORTED_PROTOCOL": _VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": _VERSION,
    "NO_PROTOCOLS_AVAILABLE": _VERSION,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _CIPHERS,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _WANTED,
    "SSLV3_ALERT_BAD_CERTIFICATE": _REFUSED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _REFUSED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _REFUSED,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": _REFUSED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _REFUSED,
    "TLSV1_ALERT_UNKNOWN_CA": _REFUSED,
    "TLSV1_ALERT_ACCESS_DENIED": _REFUSED,
    "TLSV1_UNRECOGNIZED_NAME": ("unknown_host", "it does not serve the host that it was asked for (SNI)"),
}
"""Fault and text by OpenSSL's reason, of ours or of the alert that came."""


class UpstreamTls(ssl.SSLContext):
    """How one upstream is spoken to. A new connection resumes the session of the last one.

    asyncio and uvloop know nothing of sessions, but both begin TLS by `wrap_bio`: there it is put in. Under
    TLS 1.2 that saves a round trip, under both versions the signatures and their verification.
    """

    session: ssl.SSLSession | None
    """Of the upstream; None: the next handshake is a whole one."""
    since: float
    """Monotonic seconds: when the handshake was in which the certificate was last looked at."""

    def __new__(cls) -> Self:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.session = None
        context.since = 0.0
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session or self.session)

    def begin(self, now: float) -> None:
        """A connection is about to be made."""
        if now - self.since > SESSION_AGE:
            self.session = None

    def made(self, connection: ssl.SSLObject, now: float) -> bool:
        """A handshake is complete. Whether it resumed a session."""
        if connection.session_reused:
            return True
        self.since = now
        return False

    def answered(self, connection: ssl.SSLObject) -> None:
        """An answer came, and with TLS 1.3 the tickets for the next session before it (RFC 8446, 4.6.1)."""
        session = connection.session
        if session is not None and session.has_ticket:
            self.session = session

    def failed(self) -> None:
        """A handshake failed: the next one is a whole one."""
        self.session = None


def tls_context(ca: str | None, cert: str | None, key: str | None, *, verify: bool) -> UpstreamTls:
    """TLS towards an upstream: verified against the system's roots or `ca`.

    Raises `OSError` or `ssl.SSLError` when a file cannot be used.
    """
    context = UpstreamTls()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A certificate of the file is good enough as it is, though it may not be a root (RFC 5280, 6.2).
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        context.load_verify_locations(cafile=ca)
    else:
        context.load_default_certs()
    if cert is not None:
        context.load_cert_chain(cert, key, password=_no_password)
    return context


def _no_password() -> str:
    """Without this, OpenSSL would ask whoever sits at the terminal."""
    raise ssl.SSLError("the key is encrypted (write one that is not: openssl pkey -in KEY -out PLAIN)")


def explained(error: ssl.SSLError) -> TlsFailed:
    """What went wrong, in words, and for metrics."""
    if isinstance(error, ssl.SSLCertVerificationError):
        fault, text = _FAULTS.get(error.verify_code, ("other", ""))
        said = re.sub(r"^(Hostname|IP address) mismatch, certificate ", "", error.verify_message or "")
        trust = _TRUST if fault in ("self_signed", "unknown_ca") else ""
        return BadCertificate(f"the certificate {text or said.rstrip('.')}{trust}", fault=fault)
    fault, text = _REASONS.get(error.reason or "", ("other", ""))
    if isinstance(error, ssl.SSLEOFError):
        return cut_off()
    return TlsFailed(text or (error.reason or str(error)).replace("_", " ").lower(), fault=fault)


def cut_off() -> TlsFailed:
    """What is to be said where it gives no reason."""
    return TlsFailed("it closed the connection in the middle of the handshake", fault="closed")

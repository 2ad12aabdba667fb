"""The local certificate authority: its files, and the leaves it signs for the hosts that policies own.

Files in `ca.dir` (mode 0700): `ca.key` (0600), `ca.pem`, `bundle.pem` (the system's roots and ours, for
clients whose settings replace the roots) and `lock`. All are written whole or not at all; two processes
that start at once make one authority.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import ssl
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.listeners import certificates
from sidecar.listeners.certificates import Key
from sidecar.trust import bundle

KEY: Final = "ca.key"
CERTIFICATE: Final = "ca.pem"
BUNDLE: Final = "bundle.pem"
MOST_LEAVES: Final = 256
RENEWED_AFTER: Final = 86400.0 * certificates.LEAF_DAYS / 2
"""Seconds after which a leaf is made anew: long before it expires, whatever connections do."""
SOON: Final = 86400.0 * 30
"""Seconds before its end when an authority is made anew."""


class AuthorityError(Exception):
    """The authority cannot be made or used; the message says why, and the mend."""


class Authority:
    """Signs for the listed hosts. Made by `open_authority`."""

    def __init__(self, directory: Path, key: Key, certificate: x509.Certificate, changed: str = "") -> None:
        self.directory = directory
        self.certificate = certificate
        self.changed = changed
        """What `open_authority` did that whoever deploys the bundle must know; empty: nothing."""
        self._key = key
        self._chain = certificates.pem(certificate)
        self._leaves: OrderedDict[str, tuple[float, ssl.SSLContext]] = OrderedDict()

    @property
    def bundle(self) -> Path:
        """The file for SSL_CERT_FILE and its like."""
        return self.directory / BUNDLE

    @property
    def file(self) -> Path:
        """The authority's certificate alone."""
        return self.directory / CERTIFICATE

    def context(self, host: str, wall: float) -> ssl.SSLContext:
        """TLS for a client that asks for `host`, `wall` (Unix seconds) being now.

        One context a host: its session tickets are good for as long as its leaf is.
        """
        known = self._leaves.get(host)
        if known is not None and 0 <= wall - known[0] < RENEWED_AFTER:
            self._leaves.move_to_end(host)
            return known[1]
        key = certificates.new_key()
        leaf = certificates.leaf(host, key, self.certificate, self._key, wall)
        context = _server_context(certificates.pem(leaf) + self._chain, certificates.key_pem(key))
        self._leaves[host] = (wall, context)
        self._leaves.move_to_end(host)
        while len(self._leaves) > MOST_LEAVES:
            self._leaves.popitem(last=False)
        return context


def open_authority(directory: Path, hosts: Sequence[str], wall: float, *, rotate: bool = False) -> Authority:
    """The authority of `directory`, made where there is none, `wall` (Unix seconds) being now.

    It keeps its key when its certificate has to be made anew, for hosts it may not vouch for or because it
    ends soon: clients that have the old bundle then still accept what both certificates allow. `rotate`
    makes a new key: clients must get the new bundle first. Raises `AuthorityError`.
    """
    try:
        with _locked(directory):
            return _opened(directory, hosts, wall, rotate=rotate)
    except OSError as error:
        raise AuthorityError(
            f"{error.filename or directory}: {error.strerror or error} "
            "(set ca.dir to a directory that the sidecar may write to)"
        ) from error


def _opened(directory: Path, hosts: Sequence[str], wall: float, *, rotate: bool) -> Authority:
    key, certificate = _stored(directory)
    changed = ""
    if certificate is not None and not certificates.is_ours(certificate):
        if rotate:
            raise AuthorityError(f"{directory / CERTIFICATE}: not made by a sidecar, so not rotated by it")
        _check_foreign(directory, key, certificate, hosts, wall)
    else:
        reason = _reason_to_renew(key, certificate, hosts, wall)
        if rotate or key is None:
            if certificate is not None:
                changed = (
                    "rotated: a new key"
                    if rotate
                    else f"made anew with a new key: {directory / KEY} is missing"
                ) + ". Clients trust it once they have the new bundle and are started again"
            key, certificate = certificates.new_key(), None
        elif reason and certificate is not None:
            changed = (
                f"its certificate was made anew with the same key: {reason}. Clients with the old bundle "
                "go on to accept the hosts they could before; the others need the new bundle and a restart"
            )
        if certificate is None or reason:
            certificate = certificates.authority(key, hosts, wall)
            # The key first: without a certificate it gets one at the next start, the reverse would not do.
            _write(directory / KEY, certificates.key_pem(key), 0o600)
            _write(directory / CERTIFICATE, certificates.pem(certificate), 0o644)
    assert key is not None
    assert certificate is not None
    text = bundle(certificates.pem(certificate), os.environ)
    if _read(directory / BUNDLE) != text:
        _write(directory / BUNDLE, text, 0o644)
    return Authority(directory, key, certificate, changed)


def _reason_to_renew(
    key: Key | None, certificate: x509.Certificate | None, hosts: Sequence[str], wall: float
) -> str:
    """Why the certificate there is will not do; empty where it does."""
    if certificate is None or key is None:
        return "there is none"
    if certificate.public_key() != key.public_key():
        return "its key is another"
    if certificate.not_valid_after_utc.timestamp() - wall < SOON:
        return f"it ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    strangers = certificates.outside(certificate, hosts)
    return f"it may not vouch for {', '.join(strangers)}" if strangers else ""


def _check_foreign(
    directory: Path, key: Key | None, certificate: x509.Certificate, hosts: Sequence[str], wall: float
) -> None:
    """An authority that somebody else made is used as it is, or not at all. Raises `AuthorityError`."""
    file = directory / CERTIFICATE
    if key is None:
        raise AuthorityError(f"{directory / KEY}: missing (it belongs to {file})")
    try:
        able = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        able = False
    if not able:
        raise AuthorityError(f"{file}: no certificate of an authority (CA, with a subject key identifier)")
    reason = _reason_to_renew(key, certificate, hosts, wall - SOON)
    if reason:
        raise AuthorityError(f"{file}: {reason}, and it was not made by a sidecar (bring one that fits)")


def _stored(directory: Path) -> tuple[Key | None, x509.Certificate | None]:
    """What the files hold. Raises `AuthorityError` where it is of no use."""
    key: Key | None = None
    certificate: x509.Certificate | None = None
    raw = _read(directory / KEY)
    if raw is not None:
        mode = stat.S_IMODE((directory / KEY).stat().st_mode)
        if mode & 0o007:
            raise AuthorityError(
                f"{directory / KEY}: everybody may use it (mode {mode:04o}): chmod 600, and then "
                "`sidecar ca rotate`, as somebody may have read it"
            )
        try:
            loaded = serialization.load_pem_private_key(raw, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            loaded = None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{directory / KEY}: no EC private key in PEM (remove it for a new one)")
        key = loaded
    raw = _read(directory / CERTIFICATE)
    if raw is not None:
        try:
            certificate = x509.load_pem_x509_certificate(raw)
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise AuthorityError(
                f"{directory / CERTIFICATE}: no self-signed certificate in PEM (remove it for a new one)"
            ) from error
    return key, certificate


def _server_context(chain: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 1
    with _in_memory(key + chain) as name:
        context.load_cert_chain(name)
    return context


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A name for bytes that `ssl` only reads from files; the key of a leaf comes on no disk."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile(prefix="leaf-") as file:  # of mode 0600
            file.write(content)
            file.flush()
            yield file.name


# -- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Alone with the directory, which is made where it is missing. Raises `OSError`."""
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _write(file: Path, content: bytes, mode: int) -> None:
    """Writes a file whole or not at all, never readable by more than `mode` says."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fchmod(opened.fileno(), mode)
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

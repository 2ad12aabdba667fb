"""Certificates of an authority that a test makes, and of servers and clients that it vouches for."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.config.addresses import Address
from tests.support.origin import OK, Certificate

Key = ec.EllipticCurvePrivateKey


@dataclass
class Signer:
    """An authority; used to sign."""

    directory: Path
    name: str = "Test Root"
    above: Signer | None = None
    """Who vouches for it; None: it itself."""
    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.certificate = _certificate(self.name, self.key, self.above or self, authority=True)
        self.path = self.directory / f"{self.name}.pem"
        self.path.write_bytes(_pem(self.certificate))

    def issue(
        self,
        name: str = "localhost",
        *,
        days: tuple[float, float] = (-1, 30),
        chain: bool = False,
        password: bytes | None = None,
    ) -> Certificate:
        """A certificate for a host, or for a client; `chain`: with ours behind it, as servers send it."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = Certificate(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        text = _pem(_certificate(name, key, self, days=days))
        made.path.write_bytes(text + _pem(self.certificate) if chain else text)
        encryption = serialization.BestAvailableEncryption(password) if password else None
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                encryption or serialization.NoEncryption(),
            )
        )
        return made

    def asking(self, server: ssl.SSLContext) -> ssl.SSLContext:
        """A server that asks its clients for a certificate of ours."""
        server.load_verify_locations(self.path)
        server.verify_mode = ssl.CERT_REQUIRED
        return server


def _certificate(
    name: str, key: Key, issuer: Signer, *, days: tuple[float, float] = (-1, 30), authority: bool = False
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if name == "localhost":
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer.name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextlib.contextmanager
def alerting(context: ssl.SSLContext) -> Iterator[tuple[Address, bytearray]]:
    """A server that says by a TLS alert what it does not like, as others do; asyncio's only hang up.

    Gives its address, and what it read of requests.
    """
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    raw, _ = listening.accept()
                except OSError:
                    return
                raw.settimeout(10)
                with raw, contextlib.suppress(OSError):
                    secure = context.wrap_socket(raw, server_side=True)
                    received.extend(secure.recv(65536))
                    secure.sendall(OK)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("127.0.0.1", listening.getsockname()[1]), received
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()

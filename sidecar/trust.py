"""What a client needs to trust the local authority: a bundle with the system's roots, and variables.

`SSL_CERT_FILE` and its like replace a client's roots: a file with our certificate alone would break
every other call of the app.
"""

from __future__ import annotations

import base64
import re
import shlex
import ssl
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509

from sidecar.listeners import certificates

if TYPE_CHECKING:
    from sidecar.config.addresses import Address
    from sidecar.listeners.authority import Authority

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s[^-]+-----END CERTIFICATE-----")
USUAL: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
"""Where systems have their roots, in one file."""
REPLACES_ROOTS: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name all that is trusted: OpenSSL, Python's ssl, aiohttp and httpx; requests; curl."""
ADDS_ROOTS: Final = ("NODE_EXTRA_CA_CERTS",)
"""Variables that name what is trusted besides the roots."""


def bundle(ours: bytes, environment: Mapping[str, str]) -> bytes:
    """The system's roots, then `ours` (PEM)."""
    return system_roots(environment) + ours


def system_roots(environment: Mapping[str, str]) -> bytes:
    """The roots that clients here trust, in PEM, without those of any sidecar; empty where none are found.

    A file that `SSL_CERT_FILE` names goes before the system's: a company's own, or our own bundle.
    """
    compiled = ssl.get_default_verify_paths().openssl_cafile
    for name in (environment.get("SSL_CERT_FILE"), *USUAL, compiled, _certifi()):
        if name and (text := _read(name)):
            return b"".join(_without_ours(text))
    return b""


def _certifi() -> str | None:
    """The roots of the package that requests and httpx bring."""
    found = find_spec("certifi")
    return str(Path(found.origin).with_name("cacert.pem")) if found and found.origin else None


def _read(name: str) -> bytes | None:
    try:
        text = Path(name).read_bytes()
    except OSError:
        return None
    return text if _BEGIN in text else None


def _without_ours(text: bytes) -> list[bytes]:
    marker = certificates.ORGANIZATION.encode()
    kept = []
    for found in _CERTIFICATE.findall(text):
        ours = marker in base64.b64decode(found.split(b"-----")[2])
        if not (ours and certificates.is_ours(x509.load_pem_x509_certificate(found))):
            kept.append(found + b"\n")
    return kept


def told(
    authority: Authority, hosts: Sequence[str], egress: Address | None, intercept: Sequence[Address]
) -> Iterator[str]:
    """What `sidecar ca` prints: lines for a shell, to be read by people too."""
    ends = authority.certificate.not_valid_after_utc
    yield f"# The local CA in {authority.directory}, for {', '.join(hosts)} alone; until {ends:%Y-%m-%d}."
    yield "# The app's clients trust it with this environment (set before the app starts):"
    for name, value in variables(authority.file, authority.bundle).items():
        yield f"export {name}={shlex.quote(value)}"
    if egress is not None and egress.unix is None:
        proxy = egress.reached
        yield "# Clients that heed a proxy (requests, httpx, curl, openai; not aiohttp by itself):"
        yield f"# export HTTP_PROXY=http://{proxy} HTTPS_PROXY=http://{proxy} NO_PROXY=localhost,127.0.0.1"
    if intercept:
        at = intercept[0]
        yield "# Clients that heed none, with these lines in /etc/hosts:"
        for host in hosts:
            yield f"# {at.reached.host} {host}"


def variables(file: Path, bundle_file: Path) -> dict[str, str]:
    """The environment in which clients trust the authority whose certificate is `file`."""
    return {
        **{name: str(bundle_file.absolute()) for name in REPLACES_ROOTS},
        **{name: str(file.absolute()) for name in ADDS_ROOTS},
    }

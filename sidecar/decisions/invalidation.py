"""What a change made through this cache makes invalid (RFC 9111, 4.4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

if TYPE_CHECKING:
    from sidecar.headers import Line

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH", "PRI"})
"""By RFC 9110, 9.2.1 and the IANA registry of methods. One that is unknown may change anything."""
_PORTS: Final = {"http": 80, "https": 443}


class Uri(NamedTuple):
    """What a key is made from."""

    scheme: str
    host: bytes
    target: bytes
    """Path and query (RFC 9112, 3.2.1)."""


def invalidated(
    method: str,
    status: int,
    uri: Uri,
    headers: Iterable[Line],
    *,
    declared_safe: frozenset[str] = frozenset(),
) -> list[Uri]:
    """The URIs whose stored responses a response makes invalid; none for a safe method or an error.

    The target's own first, then `Location` and `Content-Location` where they are of the same origin:
    nobody invalidates what is another's. `declared_safe`: methods that the route's policy caches.
    """
    if method in SAFE or method in declared_safe or not 200 <= status < 400:
        return []
    uris = [uri]
    for line in headers:
        if line.name in {b"location", b"content-location"}:
            named = resolve(uri, line.value)
            if named is not None and named not in uris:
                uris.append(named)
    return uris


def names_itself(uri: Uri, headers: Iterable[Line]) -> bool:
    """Whether `Content-Location` says that the content is what a GET of `uri` gives (RFC 9110, 8.7)."""
    for line in headers:
        if line.name == b"content-location":
            return resolve(uri, line.value) == uri
    return False


def resolve(base: Uri, reference: bytes) -> Uri | None:
    """The URI that `reference` names, seen from `base` (RFC 3986, 5); None for another origin."""
    root = f"{base.scheme}://{base.host.decode('latin-1')}{base.target.decode('latin-1')}"
    try:
        named = urlsplit(urljoin(root, reference.decode("latin-1").strip()))
        if _origin(named) != _origin(urlsplit(root)):
            return None
    except ValueError:
        return None
    target = (named.path or "/") + (f"?{named.query}" if named.query else "")
    return Uri(base.scheme, base.host, target.encode("latin-1"))


def _origin(uri: SplitResult) -> tuple[str, str, int | None]:
    """RFC 9110, 4.3.1."""
    return uri.scheme, uri.hostname or "", _PORTS.get(uri.scheme) if uri.port is None else uri.port

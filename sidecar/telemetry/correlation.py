"""What ties a log line to others: `X-Correlation-ID`, and the request headers that `logging.fields` names.

Both give text for a line of JSON, quoted: they are asked for once a request.
"""

from __future__ import annotations

from hashlib import blake2b
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Final

from sidecar.headers import first
from sidecar.telemetry.redact import is_secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.exchange import Request

LONGEST: Final = 128
"""Bytes of a header's value that are logged."""
_NAME: Final = b"x-correlation-id"


def correlation_id(request: Request) -> str:
    """`X-Correlation-ID` as it came, quoted; empty where there is none, or an empty one."""
    value = request.correlation
    if value is None:
        value = first(request.headers, _NAME)
    return quote(value[:LONGEST].decode("latin-1")) if value else ""


class Fields:
    """Further members of a line, from the headers of its request."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        """`fields`: a member's name and a header's. A header of a secret is logged by its digest."""
        self._fields = tuple(
            (quote(member), header.lower().encode("ascii"), is_secret(header.encode("ascii")))
            for member, header in fields
        )

    @property
    def headers(self) -> frozenset[bytes]:
        """Those that are looked at, in lower case."""
        return frozenset(header for _, header, _ in self._fields)

    def of(self, request: Request) -> str:
        """The members of a request, each with a comma after it."""
        headers = request.headers
        return "".join(
            [
                f"{member}:{_shown(first(headers, header), secret=secret)},"
                for member, header, secret in self._fields
            ]
        )


def _shown(value: bytes | None, *, secret: bool) -> str:
    if not value:
        return "null"
    if secret:
        return f'"{blake2b(value, digest_size=8).hexdigest()}"'
    return quote(value[:LONGEST].decode("latin-1"))

"""Secrets that are put on requests to an upstream, at the last moment: no layer, key or log sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

if TYPE_CHECKING:
    from sidecar.config.inject_policy import Inject


class Injection:
    """What one policy file injects, as bytes for the wire."""

    __slots__ = ("_names", "_pairs", "fields", "lines")

    def __init__(self, inject: Inject) -> None:
        query = [(name, value.get_secret_value()) for name, value in inject.query]
        headers = [(name, value.get_secret_value()) for name, value in inject.headers]
        self._pairs = b"&".join(
            f"{name}={quote(value, safe='')}".encode("ascii") for name, value in query if value
        )
        self._names = frozenset(name.encode("ascii") for name, value in query if value)
        self.fields = frozenset(name.lower().encode("ascii") for name, value in headers if value)
        """Names, in lower case, of the fields that take the place of the app's own."""
        self.lines = b"".join(f"{name}: {value}\r\n".encode("ascii") for name, value in headers if value)

    @classmethod
    def of(cls, inject: Inject) -> Injection | None:
        """None where nothing is to be put."""
        return cls(inject) if inject.any else None

    def target(self, target: bytes) -> bytes:
        """`target` with our parameters behind the app's, those of the same names left out."""
        if not self._names:
            return target
        path, _, query = target.partition(b"?")
        kept = [part for part in query.split(b"&") if part and _name(part) not in self._names]
        return path + b"?" + b"&".join([*kept, self._pairs])


def _name(part: bytes) -> bytes:
    """The name of a parameter, as a server reads it."""
    name = part.partition(b"=")[0].replace(b"+", b" ")
    return unquote_to_bytes(name) if b"%" in name else name

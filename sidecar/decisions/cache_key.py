"""The key that a response is stored under.

    {namespace}:v1:{host}:{path}:{digest}

The first parts are for people and for purging by prefix: printable, cut to a bound. The digest alone
tells requests apart. It covers scheme, host, path and query in their canonical spelling, the method
where it is neither GET nor HEAD, the headers that the rules select, and the body.
A parameter that the rules drop reaches neither part; a query, a header or a body only the digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from sidecar.decisions.canonical_json import canonical_json
from sidecar.decisions.canonical_url import QueryCanon, QueryRules, canonical_escapes, canonical_host
from sidecar.decisions.vary import normalised

if TYPE_CHECKING:
    from sidecar.headers import Line

VERSION: Final = b"v1"
HOST_MOST: Final = 64
"""Bytes of the host that a key shows."""
PATH_MOST: Final = 96
DIGEST: Final = 20
"""Bytes: two URLs that somebody makes up to collide cost 2^80 tries."""
MOST_KNOWN: Final = 4096
"""URLs whose key is remembered; all are forgotten when there are more."""
LONGEST_KNOWN: Final = 1024

_UNSHOWN: Final = re.compile(rb"[^A-Za-z0-9._~%/@!$&',;=+\-]")
_DESCRIBING: Final = frozenset({b"content-type", b"content-encoding"})


class BodyRule(Enum):
    """How a request's body tells requests apart."""

    NONE = "none"
    """Not in a GET or HEAD. The content of other methods is what they ask: its bytes."""
    BYTES = "bytes"
    JSON = "json"
    """Its meaning, where it is JSON; else its bytes."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What a route's `key` says."""

    query: QueryRules = field(default_factory=QueryRules)
    headers: tuple[bytes, ...] = ()
    """Names in lower case. A credential here separates its holders; it is digested like all else."""
    body: BodyRule = BodyRule.NONE


NO_RULES: Final = KeyRules()


class CacheKeys:
    """Makes the keys of one route. What it remembers changes no key, only how soon it is there."""

    __slots__ = ("_body", "_headers", "_known", "_prefix", "_query", "_rules_query")

    def __init__(self, namespace: str, rules: KeyRules = NO_RULES) -> None:
        """`namespace`: printable ASCII without colons, as the configuration demands."""
        self._prefix = b"%b:%b:" % (namespace.encode("ascii"), VERSION)
        self._query = QueryCanon(rules.query)
        self._rules_query = rules.query.any
        self._headers = tuple(sorted(rules.headers))
        self._body = rules.body
        self._known: dict[tuple[str, bytes, bytes], bytes] | None = None if self._query.timed else {}

    @property
    def timed(self) -> bool:
        """The key of a URL may depend on the clock."""
        return self._known is None

    def url(self, scheme: str, host: bytes, target: bytes, now: float) -> bytes:
        """The key of a GET or HEAD, where no header is selected. `now`: Unix seconds, for buckets."""
        known = self._known
        if known is None:
            return self._key(scheme, host, target, now, b"")
        try:
            return known[scheme, host, target]
        except KeyError:
            key = self._key(scheme, host, target, now, b"")
            if len(target) <= LONGEST_KNOWN:
                if len(known) >= MOST_KNOWN:
                    known.clear()
                known[scheme, host, target] = key
            return key

    def request(
        self,
        method: str,
        scheme: str,
        host: bytes,
        target: bytes,
        headers: Iterable[Line],
        body: bytes,
        now: float,
    ) -> bytes:
        """The key of any request. `body` is all of it; that of a GET or HEAD counts by a rule only."""
        plain = method in {"GET", "HEAD"}
        if plain and not self._headers and not (body and self._body is not BodyRule.NONE):
            return self.url(scheme, host, target, now)
        facts = [] if plain else [method.encode("ascii")]
        facts += self._selected(headers)
        if not plain or (body and self._body is not BodyRule.NONE):
            facts.append(self._body_fact(headers, body))
        return self._key(scheme, host, target, now, b"\n".join(facts))

    def prefix(self, host: bytes = b"", path: bytes = b"", *, scheme: str = "https") -> bytes:
        """What the keys begin with of all URLs under `path`, which counts up to `PATH_MOST` bytes."""
        if not host:
            return self._prefix
        shown = self._prefix + _shown(canonical_host(scheme, host), HOST_MOST) + b":"
        return shown + _shown(canonical_escapes(path), PATH_MOST)

    def _key(self, scheme: str, host: bytes, target: bytes, now: float, facts: bytes) -> bytes:
        host = canonical_host(scheme, host)
        path, mark, query = target.partition(b"?")
        path = canonical_escapes(path)
        if self._rules_query:
            query = self._query(query, now)
            mark = b"?" if query else b""
        else:
            query = canonical_escapes(query)
        # None of the parts can hold a line feed.
        text = b"%b\n%b\n%b%b%b\n%b" % (scheme.encode("ascii"), host, path, mark, query, facts)
        digest = blake2b(text, digest_size=DIGEST).hexdigest().encode("ascii")
        return b"%b%b:%b:%b" % (self._prefix, _shown(host, HOST_MOST), _shown(path, PATH_MOST), digest)

    def _selected(self, headers: Iterable[Line]) -> list[bytes]:
        if not self._headers:
            return []
        values: dict[bytes, list[bytes]] = {}
        for line in headers:
            if line.name in self._headers:
                values.setdefault(line.name, []).append(line.value)
        return [
            name + (b": " + normalised(name, b",".join(values[name])) if name in values else b" is missing")
            for name in self._headers
        ]

    def _body_fact(self, headers: Iterable[Line], body: bytes) -> bytes:
        """What the body is and says: its metadata belongs to it (RFC 10008 on the keys of QUERY)."""
        described = {line.name: line.value.lower() for line in headers if line.name in _DESCRIBING}
        kind = b";".join(part.strip(b" \t") for part in described.get(b"content-type", b"").split(b";"))
        coding = described.get(b"content-encoding", b"")
        canonical = canonical_json(body) if self._body is BodyRule.JSON and not coding else None
        if canonical is not None:
            kind = kind.removesuffix(b";charset=utf-8")
            return b"json %b %b" % (kind, _digest(canonical))
        return b"bytes %b %b %b" % (kind, coding, _digest(body))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST).hexdigest().encode("ascii")


def _shown(text: bytes, most: int) -> bytes:
    """The beginning of `text`, what would mean something in a key or in a pattern replaced."""
    return _UNSHOWN.sub(b"_", text[:most])

"""How long an answer asks its client to wait before the next try.

Facts: `Retry-After` is RFC 9110, 10.2.3. OpenAI and Azure send `retry-after-ms` beside it, in milliseconds,
which is more exact. OpenAI's `x-ratelimit-reset-requests` and `-tokens` tell when the quota is whole again,
as `1s`, `6m0s` or `250ms`; of the two only what is used up (`x-ratelimit-remaining-…: 0`) makes anybody wait.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.decisions.retry_after import LONGEST, parse_retry_after

if TYPE_CHECKING:
    from sidecar.headers import Line

_PART: Final = re.compile(rb"(\d{1,12}(?:\.\d{1,9})?)(ms|us|\xc2\xb5s|ns|s|m|h|d)")
_PLAIN: Final = re.compile(rb"\d{1,12}(?:\.\d{1,9})?")
_SECONDS: Final[Mapping[bytes, float]] = {
    b"ns": 1e-9,
    b"us": 1e-6,
    b"\xc2\xb5s": 1e-6,
    b"ms": 1e-3,
    b"s": 1.0,
    b"m": 60.0,
    b"h": 3600.0,
    b"d": 86400.0,
}
_KINDS: Final = (b"requests", b"tokens")


def parse_span(value: bytes) -> float | None:
    """Seconds of a span of time as Go writes it (`6m0s`, `1.5s`, `250ms`) or plain seconds; None: neither."""
    value = value.strip(b" \t")
    if _PLAIN.fullmatch(value):
        return min(float(value), LONGEST)
    seconds, at = 0.0, 0
    while at < len(value):
        part = _PART.match(value, at)
        if part is None:
            return None
        seconds += float(part[1]) * _SECONDS[part[2]]
        at = part.end()
    return min(seconds, LONGEST) if at else None


def _found(headers: Sequence[Line], prefixes: tuple[bytes, ...]) -> dict[bytes, bytes]:
    # The first of a name counts.
    return {line.name: line.value for line in reversed(headers) if line.name.startswith(prefixes)}


def _stated(found: Mapping[bytes, bytes], wall: float) -> float | None:
    exact = found.get(b"retry-after-ms")
    if exact is not None and _PLAIN.fullmatch(exact.strip(b" \t")):
        return min(float(exact) / 1000, LONGEST)
    stated = found.get(b"retry-after")
    return parse_retry_after(stated, wall) if stated is not None else None


def retry_after_of(headers: Sequence[Line], wall: float) -> float | None:
    """Seconds from `wall` (Unix seconds) on that `Retry-After` or `retry-after-ms` states; None: neither."""
    return _stated(_found(headers, (b"retry-after",)), wall)


def asked_wait(headers: Sequence[Line], wall: float) -> float | None:
    """Seconds from `wall` (Unix seconds) on that an answer asks for; None where it asks for none."""
    found = _found(headers, (b"retry-after", b"x-ratelimit-re"))
    wait = _stated(found, wall) if found else None
    if wait is not None:
        return wait
    spans = [
        parse_span(found.get(b"x-ratelimit-reset-" + kind, b""))
        for kind in _KINDS
        if found.get(b"x-ratelimit-remaining-" + kind, b"").strip() == b"0"
    ]
    return max((span for span in spans if span is not None), default=None)

"""What an answer states of its provider's quota.

Facts. `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10, 3 and 4): lists of quotas;
`r` is what is left, `t` the seconds that it is for, `q` the whole, `w` its window in seconds, `qu` what is
counted (`requests` where absent); a malformed field is ignored. Its earlier drafts had `RateLimit:
limit=…, remaining=…, reset=…` (07) and three fields, `RateLimit-Limit`, `-Remaining` and `-Reset` (06), of
which `X-RateLimit-*` are the unwritten form. There `Reset` is seconds, or Unix time (GitHub), or that in
milliseconds. OpenAI's `x-ratelimit-{limit,remaining,reset}-requests` and `-tokens` have spans (`6m0s`): the
time until the quota is whole again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.decisions.asked_wait import parse_span
from sidecar.decisions.retry_after import LONGEST
from sidecar.decisions.structured_fields import parse_dictionary, parse_members

if TYPE_CHECKING:
    from sidecar.headers import Line

NAMES: Final = frozenset(
    {
        b"ratelimit",
        b"ratelimit-policy",
        *(
            prefix + what
            for prefix in (b"ratelimit-", b"x-ratelimit-", b"x-rate-limit-")
            for what in (b"limit", b"remaining", b"reset")
        ),
        *(
            b"x-ratelimit-" + what + kind
            for what in (b"limit-", b"remaining-", b"reset-")
            for kind in (b"requests", b"tokens")
        ),
    }
)
"""Every field that is read here, in lower case."""

_NUMBER: Final = re.compile(rb"\d{1,15}")
_UNIX: Final = 100_000_000.0
"""A reset from here on is a date, not a span: that many seconds are three years."""
_UNIX_MILLISECONDS: Final = 100_000_000_000.0


class Quota(NamedTuple):
    """A quota of requests, as an answer states it."""

    name: str
    remaining: int
    """Requests that may still be sent."""
    reset: float
    """Seconds until it is whole again."""
    limit: int | None = None
    """Requests in all."""
    window: float | None = None
    """Seconds that `limit` is for, where they are stated."""


class Stated(NamedTuple):
    """All that one answer states."""

    quotas: tuple[Quota, ...] = ()
    empty_for: float | None = None
    """Seconds until a quota of something else than requests (tokens, bytes), now used up, is whole again."""


NOTHING: Final = Stated()


def read_quotas(lines: Sequence[Line], wall: float) -> Stated:
    """What header lines, of which those with other names do not matter, state. `wall`: Unix seconds."""
    fields: dict[bytes, bytes] = {}
    for line in lines:
        if line.name in NAMES:
            before = fields.get(line.name)
            # The structured ones are lists, which may come in parts; of the others the first counts.
            if before is None:
                fields[line.name] = line.value
            elif line.name in (b"ratelimit", b"ratelimit-policy"):
                fields[line.name] = before + b", " + line.value
    if not fields:
        return NOTHING
    standard = fields.get(b"ratelimit")
    if standard is not None:
        stated = _listed(standard, fields.get(b"ratelimit-policy", b"")) or _seventh_draft(standard)
        if stated is not None:
            return stated
    return _triple(fields, wall) or _by_kind(fields)


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _listed(value: bytes, policies: bytes) -> Stated | None:
    items = parse_members(value)
    if not items or not all(type(name) is not int and "r" in given for name, given in items):
        return None
    policy = {str(name): given for name, given in parse_members(policies) or ()}
    quotas: list[Quota] = []
    empty_for: float | None = None
    for name, given in items:
        stated = policy.get(str(name), {})
        remaining = _count(given["r"])
        window = _count(stated.get("w"))
        reset = _count(given.get("t"))
        if reset is None:
            reset = window
        if remaining is None or reset is None:
            continue
        if stated.get("qu", "requests") == "requests":
            quotas.append(Quota(str(name), remaining, float(reset), _count(stated.get("q")), window or None))
        elif stated["qu"] != "concurrent-requests" and remaining == 0:
            empty_for = max(empty_for or 0.0, float(reset))
    return Stated(tuple(quotas), empty_for)


def _seventh_draft(value: bytes) -> Stated | None:
    members = parse_dictionary(value)
    if not members:
        return None
    remaining, reset = _count(members.get("remaining")), _count(members.get("reset"))
    if remaining is None or reset is None:
        return None
    return Stated((Quota("requests", remaining, float(reset), _count(members.get("limit"))),))


def _triple(fields: Mapping[bytes, bytes], wall: float) -> Stated | None:
    for prefix in (b"ratelimit-", b"x-ratelimit-", b"x-rate-limit-"):
        remaining = _whole(fields.get(prefix + b"remaining"))
        reset = _until(fields.get(prefix + b"reset"), wall)
        if remaining is not None and reset is not None:
            limit = _whole(fields.get(prefix + b"limit"))
            return Stated((Quota("requests", remaining, reset, limit),))
    return None


def _by_kind(fields: Mapping[bytes, bytes]) -> Stated:
    quotas: tuple[Quota, ...] = ()
    empty_for = None
    remaining = _whole(fields.get(b"x-ratelimit-remaining-requests"))
    reset = parse_span(fields.get(b"x-ratelimit-reset-requests", b""))
    if remaining is not None and reset is not None:
        limit = _whole(fields.get(b"x-ratelimit-limit-requests"))
        quotas = (Quota("requests", remaining, reset, limit),)
    if _whole(fields.get(b"x-ratelimit-remaining-tokens")) == 0:
        empty_for = parse_span(fields.get(b"x-ratelimit-reset-tokens", b""))
    return Stated(quotas, empty_for)


def _whole(value: bytes | None) -> int | None:
    """The number that a field begins with: some list their windows after it (`100, 100;w=60`)."""
    found = _NUMBER.match(value.strip(b" \t")) if value is not None else None
    return int(found[0]) if found is not None else None


def _until(value: bytes | None, wall: float) -> float | None:
    """Seconds that a `Reset` is away: it is a span, or Unix time in seconds or milliseconds."""
    if value is None:
        return None
    number = _whole(value)
    if number is None or number < _UNIX:
        return parse_span(value)
    seconds = number / 1000 if number >= _UNIX_MILLISECONDS else number
    return min(max(seconds - wall, 0.0), LONGEST)

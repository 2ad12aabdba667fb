"""Cache directives: what an origin and a client say about storing and reusing a response.

Facts (RFC 9111, 5.2): names are case-insensitive, an argument may be a token or a quoted string, and
unknown directives are ignored. Of several values of one directive the first counts, and an invalid
one makes the response stale (4.2.1). Directives that forbid count however they are spelled; those
that allow count only when they are well-formed.

A targeted field (RFC 9213) is a structured Dictionary. The first of the target list that is valid
and not empty stands in for `Cache-Control` and for `Expires`; an invalid one is as if it were not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sidecar.decisions.structured_fields import Bare, parse_dictionary

if TYPE_CHECKING:
    from sidecar.headers import Line

LONGEST: Final = 2**31
"""Seconds that a delta too large for 31 bits counts as (RFC 9111, 1.2.2)."""
FOREVER: Final = float(LONGEST)
TARGETS: Final = (b"sidecar-cache-control", b"cdn-cache-control")
"""The target list (RFC 9213, 2.2), nearest to this cache first."""
SURROGATE: Final = b"surrogate-control"
"""May stand in a target list too: the field of the W3C's Edge Architecture Specification 1.0."""
SURROGATE_NAME: Final = b"sidecar"
"""What a `Surrogate-Control` directive calls this cache; `Surrogate-Capability` has to announce it."""

_NONE: Final[frozenset[bytes]] = frozenset()
# A comma in a quoted string separates nothing. It never fails halfway, so that it never looks twice.
_MEMBER: Final = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"\Z', re.DOTALL)
_NAMES: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_LIMITS: Final = {
    b"max-age": "max_age",
    b"s-maxage": "s_maxage",
    b"stale-while-revalidate": "stale_while_revalidate",
    b"stale-if-error": "stale_if_error",
}
_FORBIDDING: Final = {
    b"no-store": "no_store",
    b"no-cache": "no_cache",
    b"private": "private",
    b"must-revalidate": "must_revalidate",
    b"proxy-revalidate": "proxy_revalidate",
}
_ALLOWING: Final = {b"public": "public", b"must-understand": "must_understand"}
_REQUEST_LIMITS: Final = {
    b"max-age": "max_age",
    b"min-fresh": "min_fresh",
    b"max-stale": "max_stale",
    b"stale-if-error": "stale_if_error",
}


@dataclass(slots=True)
class ResponseDirectives:
    """Of one response, from whichever field counts for this cache. Seconds are capped at 31 bits."""

    max_age: int | None = None
    s_maxage: int | None = None
    stale_while_revalidate: int | None = None
    stale_if_error: int | None = None
    no_store: bool = False
    no_cache: bool = False
    """Unqualified: of the whole response."""
    private: bool = False
    """Unqualified."""
    public: bool = False
    must_revalidate: bool = False
    proxy_revalidate: bool = False
    must_understand: bool = False
    hidden: frozenset[bytes] = _NONE
    """Fields that a qualified `no-cache` or `private` names, in lower case: not stored (RFC 9111,
    5.2.2.4 and 5.2.2.7), so that the rest can be reused without asking."""
    targeted: bool = False
    """From a targeted field: `Expires` does not count."""


@dataclass(slots=True)
class RequestDirectives:
    """What a client asks of caches (RFC 9111, 5.2.1; RFC 5861, 4)."""

    max_age: int | None = None
    min_fresh: int | None = None
    max_stale: float | None = None
    """Seconds; `FOREVER` where it has no argument."""
    stale_if_error: int | None = None
    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False


NOTHING_ASKED: Final = RequestDirectives()
"""Of a request without directives. Compared by identity where it saves time; never changed."""


def delta_seconds(value: bytes) -> int | None:
    """A non-negative number of seconds, capped at 31 bits; None when it is not one (RFC 9111, 1.2.2)."""
    if not value.isdigit():
        return None
    digits = value.lstrip(b"0")
    return LONGEST if len(digits) > 10 else min(int(digits or b"0"), LONGEST)


def response_directives(headers: Iterable[Line], targets: Sequence[bytes] = TARGETS) -> ResponseDirectives:
    """The directives of a response that count for a cache with this target list."""
    found: dict[bytes, list[bytes]] = {}
    for line in headers:
        if line.name == b"cache-control" or line.name in targets:
            found.setdefault(line.name, []).append(line.value)
    for target in targets:
        values = found.get(target)
        if values is not None:
            joined = b", ".join(values)
            directives = _surrogate(joined) if target == SURROGATE else _targeted(joined)
            if directives is not None:
                return directives
    directives = ResponseDirectives()
    for name, value in _members(found.get(b"cache-control", ())):
        _note(directives, name, value)
    return directives


def request_directives(cache_control: Sequence[bytes], pragma: Sequence[bytes] = ()) -> RequestDirectives:
    """The directives of a request, from the values of its fields.

    `Pragma: no-cache` counts only where there is no `Cache-Control` (RFC 9111, 5.4). A limit that is
    not a number asks for the strictest there is; a `max-stale` that is not allows nothing.
    """
    asked = RequestDirectives()
    if not cache_control:
        asked.no_cache = any(name == b"no-cache" for name, _ in _members(pragma))
        return asked
    seen: set[bytes] = set()
    for name, value in _members(cache_control):
        if name == b"no-cache":
            asked.no_cache = True
        elif name == b"no-store":
            asked.no_store = True
        elif name == b"only-if-cached":
            asked.only_if_cached = True
        elif name in _REQUEST_LIMITS and name not in seen:
            seen.add(name)
            seconds = None if value is None else delta_seconds(value)
            if name == b"max-age":
                asked.max_age = seconds or 0
            elif name == b"min-fresh":
                asked.min_fresh = LONGEST if seconds is None else seconds
            elif name == b"max-stale":
                asked.max_stale = FOREVER if value is None else seconds
            else:
                asked.stale_if_error = seconds
    return asked


def _members(values: Sequence[bytes]) -> list[tuple[bytes, bytes | None]]:
    """Names in lower case and their arguments, unquoted; None where there is none."""
    members: list[tuple[bytes, bytes | None]] = []
    for value in values:
        # A quote that is never closed must not hide what follows it.
        balanced = re.sub(rb"\\.", b"", value).count(b'"') % 2 == 0
        for member in _MEMBER.findall(value) if balanced else value.split(b","):
            name, equals, argument = member.strip(b" \t").partition(b"=")
            if not equals:
                members.append((name.lower(), None))
                continue
            quoted = _QUOTED.match(argument)
            if quoted is not None:
                argument = re.sub(rb"\\(.)", rb"\1", quoted[1])
            # A space around the equals sign is outside the grammar: the argument means nothing.
            bare = name.rstrip(b" \t")
            members.append((bare.lower(), argument if bare == name else b""))
    return members


def _note(directives: ResponseDirectives, name: bytes, value: bytes | None) -> None:
    limit = _LIMITS.get(name)
    if limit is not None:
        if getattr(directives, limit) is None:
            # Invalid freshness is none (RFC 9111, 4.2.1).
            setattr(directives, limit, delta_seconds(value or b"") or 0)
    elif name in _FORBIDDING:
        if value and name in {b"no-cache", b"private"}:
            _hide(directives, name, value)
        else:
            setattr(directives, _FORBIDDING[name], True)
    elif value is None and name in _ALLOWING:
        setattr(directives, _ALLOWING[name], True)


def _hide(directives: ResponseDirectives, name: bytes, value: bytes) -> None:
    fields = [field.strip(b" \t") for field in value.lower().split(b",")]
    if all(map(_NAMES.fullmatch, fields)):
        directives.hidden |= frozenset(fields)
    else:
        setattr(directives, _FORBIDDING[name], True)


def _targeted(value: bytes) -> ResponseDirectives | None:
    members = parse_dictionary(value)
    if not members:
        return None
    directives = ResponseDirectives(targeted=True)
    for key, member in members.items():
        name = key.encode("ascii")
        argument = _argument(name, member)
        if argument is False:
            return None
        if member is not False:
            _note(directives, name, None if argument is True else argument)
    return directives


def _argument(name: bytes, member: Bare) -> bytes | bool:
    """As `Cache-Control` would have it: True for none, False when the type is wrong (RFC 9213, 2.1)."""
    if name in _LIMITS:
        return str(member).encode("ascii") if type(member) is int else False
    if isinstance(member, bool):
        return True
    if name in {b"no-cache", b"private"}:
        return member.encode("ascii") if isinstance(member, str) else False
    return name not in _FORBIDDING and name not in _ALLOWING


def _surrogate(value: bytes) -> ResponseDirectives | None:
    """`Surrogate-Control` (Edge Architecture Specification 1.0): directives that name another are not ours.

    In `max-age=600+60` the second number is how long a stale response may be served.
    """
    directives = ResponseDirectives(targeted=True)
    empty = True
    for name, argument in _members([value]):
        bare, *before = (part.strip(b" \t") for part in name.split(b";"))
        first, *after = (argument or b"").split(b";")
        targets = before or [part.strip(b" \t") for part in after]
        if targets and SURROGATE_NAME not in targets:
            continue
        empty = False
        if bare == b"max-age":
            fresh, plus, stale = first.partition(b"+")
            _note(directives, bare, fresh)
            if plus:
                _note(directives, b"stale-while-revalidate", stale)
        elif bare == b"no-store":
            directives.no_store = True
    return None if empty else directives

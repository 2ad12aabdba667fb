"""Cache groups (RFC 9875): responses that become invalid together.

Both fields are structured Lists of Strings; one that is anything else is ignored. Names are compared
as they are, and belong to the origin that gave them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sidecar.decisions.invalidation import SAFE
from sidecar.decisions.structured_fields import Token, parse_list

if TYPE_CHECKING:
    from sidecar.headers import Line

MOST: Final = 64
"""Groups of one response; the RFC asks for at least 32 (2)."""
LONGEST: Final = 128
"""Characters of a name; the RFC asks for at least 32."""


def cache_groups(headers: Iterable[Line]) -> tuple[str, ...]:
    """The groups that a response belongs to (RFC 9875, 2), each once."""
    return _names(headers, b"cache-groups")


def invalidated_groups(
    method: str,
    headers: Iterable[Line],
    *,
    declared_safe: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """The groups whose stored responses of the same origin become invalid; none for a safe method (3)."""
    if method in SAFE or method in declared_safe:
        return ()
    return _names(headers, b"cache-group-invalidation")


def group_tag(host: bytes, group: str) -> str:
    """The tag that stands for a group: two origins may use the same name (2.1)."""
    return f"group:{host.decode('latin-1').lower()}:{group}"


def _names(headers: Iterable[Line], field: bytes) -> tuple[str, ...]:
    values = [line.value for line in headers if line.name == field]
    members = parse_list(b", ".join(values)) if values else None
    names: dict[str, None] = {}
    for member in members or ():
        if not isinstance(member, str) or isinstance(member, Token):
            return ()
        if len(member) <= LONGEST and len(names) < MOST:
            names[member] = None
    return tuple(names)

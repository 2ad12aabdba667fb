"""In which order the addresses of a name are tried (RFC 8305, "Happy Eyeballs")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Final, TypeVar

T = TypeVar("T")

STAGGER: Final = 0.25
"""Seconds that a connection has before the next address is tried beside it (RFC 8305, 5)."""
PREFERRED: Final = 600.0
"""Seconds for which a family that answered first goes first: the other one may be broken here."""


def is_v6(host: str) -> bool:
    return ":" in host


def interleaved(hosts: Iterable[T], of: Callable[[T], str], first: bool | None = None) -> list[T]:
    """`hosts` with both families in turn (RFC 8305, 4), each in its own order; `of` tells an address.

    `first`: whether IPv6 begins; None: the family of the first one does.
    """
    families: tuple[list[T], list[T]] = ([], [])
    for host in hosts:
        if first is None:
            first = is_v6(of(host))
        families[is_v6(of(host)) != first].append(host)
    return [host for pair in zip_longest(*families) for host in pair if host is not None]


def usable_first(hosts: Sequence[str], usable: Callable[[str], bool]) -> Iterator[str]:
    """IPv6 before IPv4, and last those that this machine has no way to (RFC 6724, 6, rules 1 and 6)."""
    ordered = sorted(hosts, key=is_v6, reverse=True)
    reachable = {host: usable(host) for host in ordered}
    yield from (host for host in ordered if reachable[host])
    yield from (host for host in ordered if not reachable[host])

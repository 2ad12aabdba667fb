"""What a store holds: whole responses, and the variants of a URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.decisions.freshness import Lifetime
    from sidecar.headers import Line

MOST_VARIANTS: Final = 64
"""Responses kept of one key whose `Vary` tells them apart; the oldest makes room."""

# What objects cost beside their payload, in bytes, measured on CPython 3.11 (`python -m bench.zipf fill`).
OVERHEAD: Final = 800
"""Of an entry: itself, its lifetime, its list of lines, its key, its node, its places in a memory store."""
PER_LINE: Final = 120
"""Of a header line. It takes 260 more than its text when no other response has it, and nothing when one has:
in between, for among eight lines some two are new.
"""
PER_TAG: Final = 500
"""Of a tag: its string, its place in the index, a set of one."""


@dataclass(slots=True, eq=False)
class Entry:
    """A stored response. Not changed once stored: a revalidation stores a new one."""

    status: int
    reason: bytes
    headers: list[Line]
    """As they are to be sent on; no line of one hop, no `Age`, no `Cache-Status` of ours."""
    body: bytes
    lifetime: Lifetime
    """Computed when stored, so that a look-up is comparisons (Unix seconds throughout)."""
    method: str = "GET"
    tags: tuple[str, ...] = ()
    verdict: str = "ok"
    unchanged: int = 0
    """Revalidations in a row that found nothing new: adaptive TTL and refresh-ahead look at it."""
    used: int = 0
    """Hits since stored; in memory only."""
    failed_at: float = 0.0
    """`Clock.now()` when the origin last failed to bring it up to date, 0 for never; in memory only."""
    plain: bytes | None = None
    """The lines as they are sent, joined at the first use; in memory only."""

    @property
    def size(self) -> int:
        """Bytes that it counts for in a bounded store."""
        lines = self.headers
        text = sum([len(line.wire) for line in lines])
        return len(self.body) + text + OVERHEAD + PER_LINE * len(lines) + PER_TAG * len(self.tags)

    @property
    def kept_until(self) -> float:
        """Unix seconds after which it is of no use to anybody."""
        return self.lifetime.kept_until


@dataclass(slots=True, eq=False)
class Variants:
    """Stands at a key whose responses vary: which request headers to look at, newest answer first."""

    names: list[tuple[bytes, ...]]
    """Distinct `Vary` sets, in lower case and sorted; `()` for a response without one."""
    keys: list[bytes]
    """Keys of the variants, oldest first; at most `MOST_VARIANTS`."""
    lifetime_end: float
    """Unix seconds after which no variant can be of use."""

    @property
    def size(self) -> int:
        """Bytes that it counts for in a bounded store."""
        names = sum(100 + sum(60 + len(name) for name in each) for each in self.names)
        return OVERHEAD + names + sum(100 + len(key) for key in self.keys)

    @property
    def kept_until(self) -> float:
        return self.lifetime_end

    @property
    def tags(self) -> tuple[str, ...]:
        """None: a purge by tag takes the variants, and what points at them then finds nothing."""
        return ()

    def merged(self, other: Variants) -> Variants:
        """Both, with what is in `self` as the newest: what two replicas wrote at the same time."""
        mine = set(self.keys)
        keys = [key for key in other.keys if key not in mine] + self.keys
        names = [*self.names, *(each for each in other.names if each not in self.names)]
        return Variants(
            names[:MOST_VARIANTS], keys[-MOST_VARIANTS:], max(self.lifetime_end, other.lifetime_end)
        )


Record = Entry | Variants

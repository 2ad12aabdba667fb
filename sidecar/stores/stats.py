"""What the stores count: plain integers, read by the admin listener and the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


def percent(part: int, whole: int) -> float:
    """With two decimals; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


@dataclass(slots=True)
class SpaceStats:
    """Of one namespace, both levels taken together."""

    hits: int = 0
    """Look-ups that found a response."""
    misses: int = 0
    sets: int = 0
    deletes: int = 0
    """Keys dropped by name; purges by prefix and tag are not counted by namespace."""
    errors: int = 0
    """Responses that the shared level would not take while it was there."""

    def add(self, other: SpaceStats) -> None:
        self.hits += other.hits
        self.misses += other.misses
        self.sets += other.sets
        self.deletes += other.deletes
        self.errors += other.errors

    def as_dict(self) -> dict[str, object]:
        return {
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate_percent": percent(self.hits, self.hits + self.misses),
            "sets": self.sets,
            "deletes": self.deletes,
            "errors": self.errors,
        }


@dataclass(slots=True)
class MemoryStats:
    sets: int = 0
    evictions: int = 0
    expired: int = 0
    """Dropped because their time was over, when somebody asked for them or room was made."""
    refused: int = 0
    """Too large for the store."""


@dataclass(slots=True)
class SharedStats:
    """Of the shared store. Times are seconds."""

    connected: bool = False
    """It answers: the breaker is closed and the connection stands. In a cluster: all of its primaries."""
    hits: int = 0
    misses: int = 0
    sets: int = 0
    deletes: int = 0
    timeouts: int = 0
    """Operations given up at their bound."""
    skipped: int = 0
    """Operations not even tried, as it was gone, stalled or full."""
    damaged: int = 0
    """Values that no decoder of this version understands: each a miss."""
    connects: int = 0
    latency: float = 0.0
    """Smoothed round-trip time."""
    slowest: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    """By kind: the first word of the server's error in lower case (`oom`, `wrongpass`…), or `connect`,
    `timeout`, `reset`, `protocol`, `replica`."""
    reason: str = "not connected yet"
    """Why it is not connected; empty while it is."""

    def as_dict(self) -> dict[str, object]:
        """For the admin listener; times in milliseconds."""
        return {
            "connected": self.connected,
            "reason": self.reason,
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate_percent": percent(self.hits, self.hits + self.misses),
            "sets": self.sets,
            "deletes": self.deletes,
            "timeouts": self.timeouts,
            "skipped": self.skipped,
            "damaged": self.damaged,
            "connects": self.connects,
            "latency_ms": round(self.latency * 1000, 3),
            "slowest_ms": round(self.slowest * 1000, 3),
            "errors": dict(self.errors),
        }

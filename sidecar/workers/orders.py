"""What the lead tells its workers to do. Plain values: they are sent as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.config.load import Loaded
    from sidecar.decisions.breaker import State
    from sidecar.decisions.kept import Kept
    from sidecar.faults import InForce
    from sidecar.features import Switched


@dataclass(frozen=True, slots=True)
class Part:
    """One generation that serves."""

    loaded: Loaded
    number: int
    since: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Which generations serve: one, or the one in force and one under trial."""

    number: int
    """Of the order."""
    parts: Sequence[Part]
    switched: Mapping[str, Switched]
    """Features, as operators switched them."""


@dataclass(frozen=True, slots=True)
class Start:
    """All that a new worker must know."""

    index: int
    """From 0: which part it has of what is divided, and which sockets are its own."""
    count: int
    slot: int
    """In the ledger."""
    slots: int
    ledger: int
    """File descriptor."""
    sockets: Mapping[str, Sequence[Sequence[int]]]
    """File descriptors of the listening sockets: by the address as configured, those of each worker."""
    serve: Serve
    faults: Sequence[InForce] = ()
    forced: Mapping[str, tuple[State, float]] = field(default_factory=dict)
    """Breakers that operators have forced: the state, and until when."""
    seen: Sequence[str] = ()
    """Policies that the app calls through the sidecar."""
    breakers: Sequence[tuple[str, State, float, float]] = ()
    """Those that are open: name, state, until when, and for how long in all."""
    kept: Mapping[str, Kept] = field(default_factory=dict)
    """By policy, what the app may have kept of fallbacks."""
    held: Sequence[tuple[str, float]] = ()
    """Quotas that are used up, by the names that metrics show, and until when."""

"""Feature flags at run time: what operators switch for a while, over what the files say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.config.features import NAMES, Features
from sidecar.config.problems import suggestion

if TYPE_CHECKING:
    from sidecar.clock import Clock


@dataclass(frozen=True, slots=True)
class Switched:
    """One feature, as an operator switched it."""

    on: bool
    reason: str
    client: str
    until: float
    """`Clock.now()`."""


class Flags:
    """What is switched on. A change shows in the next pipelines that are compiled: none asks per request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._switched: dict[str, Switched] = {}
        self.on_change: Callable[[str, bool | None, str], None] = lambda *_: None
        """Hears of each change: the feature, on, off or None for as the files say, and why."""

    def set(self, name: str, *, on: bool, reason: str, seconds: float, client: str) -> None:
        """Switches a feature for so long. Raises ValueError, in words for whoever asked."""
        self._known(name)
        self._switched[name] = Switched(on, reason, client, self._clock.now() + seconds)
        self.on_change(name, on, reason)

    def reset(self, name: str, reason: str) -> None:
        """As the files say again. Raises ValueError."""
        self._known(name)
        if self._switched.pop(name, None) is not None:
            self.on_change(name, None, reason)

    @property
    def all_switched(self) -> dict[str, Switched]:
        """By feature."""
        return dict(self._switched)

    def adopt(self, switched: dict[str, Switched]) -> None:
        """As operators switched them in another process; nobody hears of it."""
        self._switched = dict(switched)

    def sweep(self, now: float) -> None:
        """Called about once a second: what was switched for a time ends."""
        for name in [name for name, switched in self._switched.items() if now >= switched.until]:
            del self._switched[name]
            self.on_change(name, None, "its time is over")

    def effective(self, configured: Features) -> Features:
        if not self._switched:
            return configured
        return configured.model_copy(update={name: it.on for name, it in self._switched.items()})

    def switched(self, name: str) -> bool:
        """Whether an operator switched it, on or off."""
        return name in self._switched

    @property
    def overrides(self) -> int:
        return len(self._switched)

    def listed(self, configured: Features) -> list[dict[str, object]]:
        """Plain values, ready for JSON."""
        now = self._clock.now()
        rows: list[dict[str, object]] = []
        for name in NAMES:
            there: bool = getattr(configured, name)
            switched = self._switched.get(name)
            row: dict[str, object] = {"feature": name, "on": there, "configured": there}
            if switched is not None:
                row |= {
                    "on": switched.on,
                    "reason": switched.reason,
                    "client": switched.client,
                    "expires_in_seconds": round(max(switched.until - now, 0.0), 3),
                }
            rows.append(row)
        return rows

    def _known(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f'feature: "{name}" is not known ({suggestion(name, NAMES)})')

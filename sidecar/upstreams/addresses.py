"""The addresses that an upstream's name stands for, and in which order they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sidecar.decisions.eyeballs import PREFERRED, interleaved, is_v6
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.addresses import Address
    from sidecar.upstreams.dial import Resolve

KEEP: Final = 5.0
"""Seconds that addresses are used without asking again: a name that moves is followed that soon."""


class Addresses:
    """Of one server: those that could not be connected to are tried last, until the name is asked again."""

    def __init__(self, asked: Address, clock: Clock, resolve: Resolve) -> None:
        self._asked = asked
        self._clock = clock
        self._resolve = resolve
        self._known: Sequence[Address] = ()
        self._refused: set[str] = set()
        self._fresh_until = float("-inf")
        self._v6_first: bool | None = None
        """The family that goes first since the other one was slow or failed; None: as resolved."""
        self._v6_first_until = float("-inf")

    async def find(self) -> None:
        """Asks for the addresses, where they are not known or not fresh. Raises what `resolve` raises.

        While they are asked for again, and while the resolver fails, the last ones are used on.
        """
        now = self._clock.now()
        if now < self._fresh_until:
            return
        if self._known:
            self._fresh_until = now + KEEP
        try:
            self._known = await self._resolve(self._asked)
        except OSError:
            if not self._known:
                raise
        except SidecarError:  # not a failure to find out: there are none that may be called
            self._known = ()
            self._fresh_until = float("-inf")
            raise
        self._refused.clear()
        self._fresh_until = self._clock.now() + KEEP

    def ordered(self, avoid: Sequence[str]) -> list[Address]:
        """All, both families in turn; behind the others those known to refuse, and last those to avoid."""
        if len(self._known) == 1:
            return list(self._known)
        first = self._v6_first if self._clock.now() < self._v6_first_until else None
        found = interleaved(self._known, lambda it: it.host, first)
        return sorted(found, key=lambda it: (it.host in avoid, it.host in self._refused))

    def avoidable(self, avoid: Sequence[str]) -> Sequence[str]:
        """`avoid`, where another address is left that is not known to refuse; else nothing."""
        left = any(it.host not in avoid and it.host not in self._refused for it in self._known)
        return avoid if left else ()

    def failed(self, address: Address) -> None:
        """No connection could be made to it, or another address was faster though it began later."""
        self._refused.add(address.host)

    def connected(self, address: Address) -> None:
        """It took a connection."""
        self._refused.discard(address.host)
        v6 = is_v6(address.host)
        if any(is_v6(host) != v6 for host in self._refused):
            self._v6_first = v6
            self._v6_first_until = self._clock.now() + PREFERRED

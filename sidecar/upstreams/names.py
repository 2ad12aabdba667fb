"""By whom the names that the app's calls go to are resolved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sidecar.errors import NameNotFound
from sidecar.upstreams.dial import Resolve, system_resolve

if TYPE_CHECKING:
    from sidecar.config.addresses import Address


class Names:
    """A `Resolve`: the DNS for hosts that the app calls, past a hosts file that leads them here.

    A name that a policy file writes as `upstream` or `connect_to`, and no file lists in `hosts`, is one of
    the operator's own: without a dot (`bridge`, of a compose file, say) the system resolves it, hosts file
    and search domains included; with one it is asked of the DNS, and of the system if that knows no such
    name.
    """

    def __init__(
        self,
        dns: Resolve,
        *,
        written: Iterable[str],
        listed: Iterable[str],
        system: Resolve = system_resolve,
    ) -> None:
        self._dns = dns
        self._system = system
        self._own = frozenset(written) - frozenset(listed)

    async def __call__(self, address: Address) -> list[Address]:
        """Raises `OSError`, `NameNotFound` and `NameNotResolved`."""
        if address.host not in self._own:
            return await self._dns(address)
        if "." not in address.host:
            return await self._system(address)
        try:
            return await self._dns(address)
        except NameNotFound:
            return await self._system(address)

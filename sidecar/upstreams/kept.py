"""Pools that outlive a configuration: one that the next generation has too keeps its connections."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from sidecar.upstreams.pool import Upstream
    from sidecar.upstreams.tls import UpstreamTls


class SpareContexts:
    """TLS contexts made ahead, by a thread: reading the system's roots takes some 20 ms."""

    def __init__(self) -> None:
        self._made: dict[Hashable, list[UpstreamTls]] = {}

    def add(self, key: Hashable, context: UpstreamTls) -> None:
        self._made.setdefault(key, []).append(context)

    def take(self, key: Hashable) -> UpstreamTls | None:
        made = self._made.get(key)
        return made.pop() if made else None

    def clear(self) -> None:
        self._made.clear()


class KeptPools:
    """The pools of a process, by all that they were made from."""

    def __init__(self) -> None:
        self._pools: dict[tuple[Any, ...], Upstream] = {}
        # Requests in flight hold theirs: it may call once more, on a connection that must be watched too.
        self._leaving: WeakSet[Upstream] = WeakSet()
        self.asked: set[Hashable] = set()
        """The keys of those that were asked for; whoever compiles begins a new set."""

    def get(self, key: tuple[Any, ...], make: Callable[[], Upstream]) -> Upstream:
        """The pool that was made from `key`, or else a new one."""
        self.asked.add(key)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = make()
        pool.shown()
        return pool

    @property
    def there(self) -> list[Upstream]:
        """Those that the generations in use have."""
        return list(self._pools.values())

    def made_from(self) -> list[tuple[Any, ...]]:
        """Each is of its name, its URL, its `connect_to`, its `tls` and the digests of the files of that."""
        return list(self._pools)

    def keep(self, used: Iterable[frozenset[Hashable]]) -> None:
        """Lets those go that none of these sets names: what they have in flight ends by itself."""
        keys = frozenset[Hashable]().union(*used)
        for key in [key for key in self._pools if key not in keys]:
            pool = self._pools.pop(key)
            pool.leave()
            self._leaving.add(pool)

    def sweep(self, now: float) -> None:
        """Called about once a second; see `Upstream.sweep`."""
        for pool in (*self._pools.values(), *self._leaving):
            pool.sweep(now)

    def close(self) -> None:
        for pool in (*self._pools.values(), *self._leaving):
            pool.close()

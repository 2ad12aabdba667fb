"""The Redis or Valkey that replicas share: one set of connections, for all that is kept there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.stores.redis_nodes import Nodes, make_nodes
from sidecar.stores.stats import SharedStats

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.stores.redis_url import Target


class RedisServer:
    """Owned by the application; the cache and the rate limits ask through its `nodes`."""

    def __init__(self, target: Target, clock: Clock, changed: Callable[[str], None] | None = None) -> None:
        """`changed` gets "" when the server is there, else why it is not."""
        self.target = target
        self.stats = SharedStats()
        self.nodes: Nodes = make_nodes(target, clock, self.stats, self._link_changed)
        self._changed = changed

    def start(self) -> None:
        """Begins to connect, in the background; until then nothing is answered, at once."""
        self.nodes.start()

    async def close(self) -> None:
        await self.nodes.close()

    def _link_changed(self, why: str) -> None:
        connected = not why
        self.stats.reason = why
        if connected is not self.stats.connected:
            self.stats.connected = connected
            if self._changed is not None:
                self._changed(why)

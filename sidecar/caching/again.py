"""A fresh answer once more: what the cache layer decided about a request is remembered, not decided anew.

What it rests on is looked at each time: that the response is still there and fresh, and that no replica has
to be asked about it. As soon as there is more to decide, the layer is asked, as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.caching.answers import whole
from sidecar.decisions.cache_control import NOTHING_ASKED
from sidecar.decisions.cache_status import hit
from sidecar.decisions.freshness import steady_until, ttl
from sidecar.decisions.refresh import refresh_at, refresh_due
from sidecar.decisions.reuse import Use, judge_use
from sidecar.stores.entry import Entry, Variants

if TYPE_CHECKING:
    from sidecar.caching.cache import RouteCache
    from sidecar.exchange import Exchange, Response
    from sidecar.listeners.memo import Memo
    from sidecar.stores.memory import Node
    from sidecar.telemetry.route_cells import RouteCells


Opening = Callable[["Response", int], bytes | None]
"""What is sent of a response before the id, for a body of so many bytes; None: not so simply."""


class Repeats:
    """What the layer of one route lets be repeated. Its key must be of the URL alone, whatever the time."""

    def __init__(self, route: RouteCache, cells: RouteCells, memo: Memo, ahead: float | None) -> None:
        """`memo` remembers heads of requests; `ahead` is `refresh_ahead` as a share."""
        self.route = route
        self.cells = cells
        self.memo = memo
        self.ahead = ahead

    def again(self, exchange: Exchange, now: float, opening: Opening) -> Again | None:
        """What answers requests like this one, which had a fresh answer; None where that is gone by now."""
        request = exchange.request
        if exchange.cached is None:
            return None
        key = self.route.keys.url(request.scheme, request.host, request.target, now)
        found = self.route.held(key, exchange.cached[0], request.headers)
        return None if found is None else Again(self, opening, *found)


class Again:
    """Answers requests that ask nothing of a cache from one place of the store; counts as the layer does."""

    __slots__ = (
        "_ahead",
        "_cells",
        "_lead",
        "_lifetime",
        "_node",
        "_opening",
        "_since",
        "_stats",
        "_store",
        "_until",
        "_variants",
        "cached",
        "head",
        "response",
        "varies",
    )

    def __init__(self, repeats: Repeats, opening: Opening, node: Node, lead: Node | None) -> None:
        """`node` holds the response; `lead`, where the URL has variants, leads there."""
        self._store = repeats.route.caching.store
        self._stats = repeats.route.space.stats
        self._cells = repeats.cells
        self._ahead = repeats.ahead
        self._opening = opening
        # Nodes and lifetimes, and no entry: what memory gave up must not live on here.
        self._node = node
        self._lead = lead
        variants = None if lead is None else lead.record
        self._variants = variants
        self.varies: frozenset[bytes] = frozenset()
        """The request headers, in lower case, that may decide between variants."""
        if isinstance(variants, Variants):
            self.varies = frozenset(name for names in variants.names for name in names)
        self._lifetime: object = None
        self._since = self._until = 0.0
        self.response: Response | None = None
        """The answer, without its body."""
        self.head = b""
        """The same as it is sent, up to the id of the request."""
        self.cached: tuple[bytes, int | None] | None = None
        """As `Exchange.cached`."""

    def look(self, now: float) -> Entry | None:
        """What answers at `now` (Unix seconds), under the head `response`. None: the layer must be asked."""
        node, lead = self._node, self._lead
        entry = node.record
        if type(entry) is not Entry or (lead is not None and lead.record is not self._variants):
            return None
        if (entry.lifetime is not self._lifetime or not self._since <= now < self._until) and not self._judge(
            entry, now
        ):
            return None
        if not self._store.again(node, now) or (lead is not None and not self._store.again(lead, now)):
            return None
        entry.used += 1
        self._stats.hits += 1
        self._cells.cached("hit")
        return entry

    def _judge(self, entry: Entry, now: float) -> bool:
        """Whether there is nothing to do but to answer; makes the head that holds for a while."""
        lifetime, ahead = entry.lifetime, self._ahead
        if entry.verdict != "ok" or judge_use(lifetime, NOTHING_ASKED, now) is not Use.FRESH:
            return False
        until = steady_until(lifetime, now)
        if ahead is not None:
            if refresh_due(lifetime, ahead, now):
                return False
            until = min(until, refresh_at(lifetime, ahead))
        left = ttl(lifetime, now)
        response = whole(entry, now, hit(left))
        head = self._opening(response, len(entry.body))
        if head is None:
            return False
        response.body = b""
        self.response, self.head = response, head
        self.cached = self._node.key, left
        self._lifetime, self._since, self._until = lifetime, now, until
        return True

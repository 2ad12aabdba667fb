"""What the cache layers of all routes share, and what one route's layer is made from."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from sidecar.caching.fill import Fills
from sidecar.config.cache_rules import cache_keys, cache_rules, namespace
from sidecar.decisions.groups import group_tag
from sidecar.decisions.invalidation import Uri
from sidecar.decisions.vary import VariantKeys
from sidecar.routing import Matcher, path_pattern
from sidecar.stores.entry import MOST_VARIANTS, Entry, Variants
from sidecar.stores.memory import Memory
from sidecar.stores.tiered import Tiered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.clock import Clock
    from sidecar.config.schema import Route
    from sidecar.decisions.cache_rules import CacheRules
    from sidecar.exchange import Request
    from sidecar.headers import Line
    from sidecar.stores.memory import Node

PASS_FOR: Final = 60.0
"""Seconds for which a URL whose answer was not shared is not queued for (Varnish's hit-for-miss)."""
MOST_PASSED: Final = 8192
MOST_WANTED: Final = 4096
"""URLs whose hits are remembered for warming; the less wanted half is forgotten when there are more."""
TAG_FIELDS: Final = {b"cache-tag": b",", b"surrogate-key": b" "}
"""Response fields that carry tags, with what separates them."""
SIMPLE: Final = frozenset({"GET", "HEAD"})
LONGEST_TAG: Final = 256
MOST_TAGS: Final = 64
UNVARIED: Final = b":-"
"""Ends the key of a response without `Vary` whose URL had responses with one."""


def url_tag(key: bytes) -> str:
    """Stands for all that is stored for a URL, whatever else is in the keys. `key`: of a GET of it."""
    return "url:" + key.decode("ascii")


class Caching:
    """One per process: the store, the fills under way, and what was learnt about URLs."""

    def __init__(self, store: Tiered, clock: Clock, *, in_use: bool) -> None:
        self.store = store
        self.in_use = in_use
        """Some route has a cache."""
        self.clock = clock
        self.fills = Fills()
        self.variants = VariantKeys()
        self.routes: dict[str, RouteCache] = {}
        """By the route's name."""
        self._passed: dict[bytes, float] = {}
        self._wanted: Counter[tuple[str, str, bytes, bytes]] = Counter()

    @classmethod
    def unused(cls, clock: Clock) -> Caching:
        """Where no route has a cache."""
        return cls(Tiered(Memory(1 << 16, clock), None, clock), clock, in_use=False)

    # -- hit-for-miss ----------------------------------------------------------------------------

    def passes(self, key: bytes) -> bool:
        """The last answer was for its client alone: waiting for the next one would be in vain."""
        until = self._passed.get(key)
        return until is not None and until > self.clock.now()

    def pass_on(self, key: bytes) -> None:
        if len(self._passed) >= MOST_PASSED:
            self._passed.clear()
        self._passed[key] = self.clock.now() + PASS_FOR

    def share(self, key: bytes) -> None:
        self._passed.pop(key, None)

    # -- what is wanted --------------------------------------------------------------------------

    def want(self, route: str, request: Request, times: int) -> None:
        """A stored GET was of use `times` times."""
        if request.method != "GET" or len(request.target) > 1024:
            return
        self._wanted[route, request.scheme, request.host, request.target] += times
        if len(self._wanted) > MOST_WANTED:
            self._wanted = Counter(dict(self._wanted.most_common(MOST_WANTED // 2)))

    def most_wanted(self, count: int) -> list[tuple[str, str, bytes, bytes]]:
        """Route, scheme, host and target of the URLs that were of most use."""
        return [url for url, _ in self._wanted.most_common(count)]

    # -- removal ---------------------------------------------------------------------------------

    def invalidate(self, uri: Uri) -> None:
        """Drops what is stored for a URI, in every route that may have it, without waiting for replicas."""
        now = self.clock.wall()
        for route in self.routes.values():
            if route.serves(uri):
                key = route.keys.url(uri.scheme, uri.host, uri.target, now)
                route.drop(key)
                if route.several:
                    self.fills.background(self.store.purge_tag(url_tag(key)))

    async def remove(self, uri: Uri) -> int:
        """As `invalidate`; how many responses there were."""
        now = self.clock.wall()
        removed = 0
        for route in self.routes.values():
            if route.serves(uri):
                key = route.keys.url(uri.scheme, uri.host, uri.target, now)
                removed += await route.remove(key)
                if route.several:
                    removed += await self.store.purge_tag(url_tag(key))
        return removed

    def invalidate_group(self, host: bytes, group: str) -> None:
        self.fills.forget()
        self.fills.background(self.store.purge_tag(group_tag(host, group)))

    async def close(self) -> None:
        await self.fills.close()
        await self.store.close()


class RouteCache:
    """The cache of one route, compiled from its settings."""

    def __init__(self, route: Route, caching: Caching) -> None:
        settings = route.cache
        assert settings is not None
        self.name = route.name
        self.settings = settings
        self.caching = caching
        self.namespace = namespace(route)
        self.space = caching.store.space(self.namespace)
        self.keys = cache_keys(route)
        self.rules = cache_rules(settings)
        self.several = bool(settings.key.headers) or not SIMPLE.issuperset(settings.methods)
        """One URL may have several keys: each of its responses has a tag for the URL."""
        self._matcher = Matcher([route.match])
        self._path = re.compile(path_pattern(route.match.path, named=False), re.DOTALL).fullmatch
        self._tags = settings.tags
        caching.routes[route.name] = self

    def serves(self, uri: Uri) -> bool:
        """Whether something may be stored here for `uri`."""
        path = uri.target.partition(b"?")[0].decode("latin-1")
        # A path is matched as it was sent, keys are made of its canonical spelling.
        return "%" in path or self._path(path) is not None

    # -- look-up ---------------------------------------------------------------------------------

    async def find(self, key: bytes, headers: Sequence[Line]) -> tuple[bytes, Entry | None]:
        """The stored response for a request, and its key: `key` itself where nothing varies.

        Where the stored responses are for others, the key that one for this request would have.
        """
        space = self.space
        record = space.look(key)
        if record is None:
            record = await space.get(key)
        if not isinstance(record, Variants):
            return key, record
        newest = key
        for names in record.names:
            variant = self.place(key, names, headers) if names else key + UNVARIED
            if newest is key:
                newest = variant
            found = space.look(variant)
            if found is None:
                found = await space.get(variant)
            if isinstance(found, Entry):
                return variant, found
        return newest, None

    def held(self, key: bytes, place: bytes, headers: Sequence[Line]) -> tuple[Node, Node | None] | None:
        """The nodes of the response that `find` found at `place`, and of the variants that led there.

        None where it is gone, or not the first that another look-up would come to.
        """
        memory = self.caching.store.memory
        node = memory.peek(place)
        if node is None or not isinstance(node.record, Entry):
            return None
        if place == key:
            return node, None
        lead = memory.peek(key)
        if lead is None or not isinstance(lead.record, Variants):
            return None
        names = lead.record.names[0]
        first = self.place(key, names, headers) if names else key + UNVARIED
        return (node, lead) if first == place else None

    # -- storing ---------------------------------------------------------------------------------

    def place(self, key: bytes, names: tuple[bytes, ...], headers: Sequence[Line]) -> bytes:
        """Where a response that varies by `names` is stored."""
        return self.caching.variants.key(key, names, headers) if names else key

    def put(self, key: bytes, place: bytes, names: tuple[bytes, ...], entry: Entry, since: int) -> bool:
        """Stores `entry` at `place`; `key` then leads there."""
        space = self.space
        record = self.caching.store.look(key)  # not counted
        if place == key and not isinstance(record, Variants):
            return space.put(key, entry, since)
        if isinstance(record, Variants):
            sets = [names, *(each for each in record.names if each != names)]
            keys = [each for each in record.keys if each != place]
            until = record.lifetime_end
        else:
            sets, keys, until = [names], [], 0.0
        if place == key:  # no Vary any more: a place of its own, as the key leads to variants
            place = key + UNVARIED
        keys.append(place)
        if len(keys) > MOST_VARIANTS:
            space.drop(*keys[:-MOST_VARIANTS])
            keys = keys[-MOST_VARIANTS:]
        if not space.put(place, entry, since):
            return False
        until = max(until, entry.kept_until)
        return space.put(key, Variants(sets[:8], keys, until), since)

    def drop(self, key: bytes) -> None:
        """Removes a URL with all its variants, at once; what only replicas know of, in the background."""
        self.caching.fills.forget(key)
        record = self.caching.store.look(key)
        if isinstance(record, Variants):
            self.space.drop(key, *record.keys)
        elif record is None and self.caching.store.shared is not None:
            self.caching.fills.background(self.remove(key))
        else:
            self.space.drop(key)

    async def remove(self, key: bytes) -> int:
        """As `drop`; how many responses there were."""
        self.caching.fills.forget(key)
        record = await self.caching.store.get(key)
        if isinstance(record, Variants):
            await self.space.delete(key, *record.keys)
            return len(record.keys)
        await self.space.delete(key)
        return int(record is not None)

    def tags_of(self, request: Request, headers: Sequence[Line], groups: tuple[str, ...]) -> tuple[str, ...]:
        """From the path's variables, from the response's fields, from its groups."""
        tags: dict[str, None] = {}
        if self.several:
            now = self.caching.clock.wall()
            tags[url_tag(self.keys.url(request.scheme, request.host, request.target, now))] = None
        if self._tags:
            variables = self._matcher.variables(0, request.path)
            for template in self._tags:
                tags[template.format_map(variables) if "{" in template else template] = None
        for line in headers:
            separator = TAG_FIELDS.get(line.name)
            if separator is not None:
                for tag in line.value.split(separator):
                    text = tag.strip().decode("latin-1")
                    if text and len(text) <= LONGEST_TAG:
                        tags[text] = None
        for group in groups:
            tags[group_tag(request.host, group)] = None
        return tuple(tags)[:MOST_TAGS]

    def rules_after(self, ttl: float | None) -> CacheRules:
        """The rules with a `ttl` that was learnt."""
        return self.rules if ttl is None else dataclasses.replace(self.rules, ttl=ttl)

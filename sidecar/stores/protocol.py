"""What every store of the cache can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidecar.decisions.freshness import Lifetime
    from sidecar.stores.entry import Record


class Store(Protocol):
    """Records by key. No method raises for a store that is broken, slow or gone: that is a miss, or nothing
    done.

    A key is `{namespace}:v1:…`: what stands before the first colon is counted as the namespace. A record
    is gone once its `kept_until` (Unix seconds) is past, at the latest.
    """

    async def get(self, key: bytes) -> Record | None: ...

    async def set(self, key: bytes, record: Record, since: int | None = None) -> bool:
        """Stores `record` in place of what is there; False when it was not stored.

        `since` is a `mark` taken before its request went to the upstream: what was purged after that
        is not stored, for the upstream may have answered before the change that the purge tells of.
        """
        ...

    async def touch(self, key: bytes, lifetime: Lifetime, tags: Sequence[str] = ()) -> bool:
        """Gives the stored response a new lifetime and leaves its body where it is; False without one.

        `tags` are those it was stored with.
        """
        ...

    async def delete(self, *keys: bytes) -> int:
        """How many were there."""
        ...

    async def purge_prefix(self, prefix: bytes) -> int:
        """Drops every key that starts with `prefix`; how many were there."""
        ...

    async def purge_tag(self, tag: str) -> int:
        """Drops every response stored with `tag`; how many were there."""
        ...

    def mark(self) -> int:
        """The moment, for `set`."""
        ...

    async def close(self) -> None: ...

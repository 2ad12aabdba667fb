"""Rate limits that replicas share: GCRA in the server, one round trip a request.

The clock is the server's, so replicas need not agree on theirs; times there are microseconds. A key lives as
long as its TAT is ahead, so what is kept is what is needed. See `decisions/gcra.py` for the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.decisions.client_key import Key, digest

if TYPE_CHECKING:
    from sidecar.stores.redis_nodes import Nodes

PREFIX: Final = b"nextvision:#rate:"
_MICRO: Final = 1_000_000

# Key: the client's TAT. Arguments: the interval, and the tolerance.
# A TAT further ahead than one can be was set by a primary whose clock was ahead: it is brought down, or its
# client would be refused until that time has come.
_TAKE: Final = b"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2])
local function keep(tat)
  redis.call('SET', KEYS[1], string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
end
local tat = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
if tat > now + tolerance + 1 then
  tat = now + tolerance
  keep(tat)
end
local ahead = tat + interval - now
if ahead > tolerance + 1 then return math.floor(tolerance - ahead) end
keep(now + ahead)
return math.ceil(ahead)"""


class SharedBuckets:
    """The buckets of one limit, on the server. Never raises; waits 50 ms at most (`redis_link.BOUND`)."""

    __slots__ = ("_arguments", "_nodes", "_prefix")

    def __init__(self, nodes: Nodes, name: str, interval: float, tolerance: float) -> None:
        """`name` tells this limit from others. Times are seconds."""
        self._nodes = nodes
        self._prefix = PREFIX + name.encode() + b":"
        self._arguments = tuple(b"%.3f" % (seconds * _MICRO) for seconds in (interval, tolerance))

    async def take(self, client: Key) -> float | None:
        """As `Buckets.take`; None when the server did not say."""
        key = self._prefix + digest(client)
        link = self._nodes.link(key)
        future = None if link is None else link.call(b"EVAL", _TAKE, b"1", key, *self._arguments)
        answer = None if future is None else await future
        return answer / _MICRO if type(answer) is int else None

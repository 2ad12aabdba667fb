"""One server that may be slow, frozen or gone, without anybody waiting for it.

    request ── call ──▶ ready? ──▶ wire           a reply, or `Lost` after 50 ms at most
                         │ no
                         └──▶ None                at once

Requests only use a connection that stands. Connecting, logging in and probing happen in one background
task, which also asks the breaker: it is closed only after probes have succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from sidecar.clock import TICK
from sidecar.decisions.breaker import Breaker, State
from sidecar.decisions.verdict import Outcome
from sidecar.stores.found import Lost
from sidecar.stores.redis_wire import (
    CONNECT_TIME,
    Answer,
    ConnectError,
    Operation,
    Wire,
    dial,
    within,
)
from sidecar.stores.resp import Reply, ReplyError

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.stores.redis_url import Place, Target
    from sidecar.stores.stats import SharedStats

BOUND: Final = 0.050
"""Seconds that anybody waits for an operation, at most."""
PATIENCE: Final = BOUND - 2 * TICK
"""A timer fires at the sweep after the tick after its time: up to two ticks late."""
MOST_SLOW: Final = 3
"""Operations that may wait on a server that has fallen silent; also those that open the breaker."""
SILENCE: Final = (0.008, 0.025)
"""Seconds without a reply that mean a stall: four round trips, between these."""
SMOOTHING: Final = 0.1
MOST_UNSENT: Final = 4 * 1024 * 1024
"""Bytes waiting to be sent above which nothing more is."""
PAUSE: Final = 0.05
"""Seconds between two attempts to connect while the breaker lets both through."""
BEAT: Final = 5.0
"""Seconds between two looks at a connection that nobody uses."""
FAILING: Final = frozenset({"LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "NOAUTH", "NOPERM"})
"""Errors of a server that cannot do its work now. Others, `OOM` among them, are answers."""


def make_breaker() -> Breaker:
    """Opens after three slow operations; probes again after half a second, later every two."""
    return Breaker(
        failure_ratio=0.5,
        minimum_calls=20,
        window=10.0,
        consecutive=MOST_SLOW,
        open_for=0.5,
        open_max=2.0,
        half_open_probes=2,
    )


class Link:
    """Keeps one connection to the server that `locate` names, and reconnects for ever."""

    __slots__ = (
        "_due",
        "_granted",
        "_keeper",
        "_locate",
        "_lost",
        "_target",
        "_watched",
        "_wire",
        "breaker",
        "changed",
        "clock",
        "moved",
        "stats",
    )

    def __init__(
        self,
        target: Target,
        locate: Callable[[], Awaitable[Place]],
        clock: Clock,
        stats: SharedStats,
        changed: Callable[[str], None],
        moved: Callable[[], None],
    ) -> None:
        """`locate` may raise ConnectError. `changed` gets "" when it is ready, else why it is not;
        `moved` is told that a key is another server's.
        """
        self._target = target
        self._locate = locate
        self.clock = clock
        self.stats = stats
        self.changed = changed
        self.moved = moved
        self.breaker = make_breaker()
        self._wire: Wire | None = None
        """Set while requests may use it."""
        self._lost = asyncio.Event()
        self._watched = False
        self._due = 0.0
        self._granted = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._wire is not None

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._wire is not None:
            self._wire.close()

    def call(self, *parts: bytes) -> asyncio.Future[Answer] | None:
        """Sends a command. None when that would be of no use now; the future never raises."""
        wire = self._wire
        if wire is None or (len(wire.waiting) >= MOST_SLOW and self._stalled(wire)):
            self.stats.skipped += 1
            return None
        return self._send(wire, parts)

    def tell(self, *parts: bytes) -> None:
        """Sends a command that nobody waits for: also to a server that has fallen silent."""
        if self._wire is not None:
            self._send(self._wire, parts)

    def _send(self, wire: Wire, parts: tuple[bytes, ...]) -> asyncio.Future[Answer] | None:
        now = self.clock.now()
        permit = self.breaker.acquire(now)
        if permit is None or (wire.waiting and wire.unsent > MOST_UNSENT):
            self.stats.skipped += 1
            return None
        future = wire.ask(*parts, permit=permit)
        if not self._watched:
            self._watch_until(now + PATIENCE)
        return future

    def _stalled(self, wire: Wire) -> bool:
        silent = self.clock.now() - max(wire.heard, wire.waiting[0].sent)
        return silent > SILENCE[0] and silent > min(4 * self.stats.latency, SILENCE[1])

    def _watch_until(self, at: float) -> None:
        self._watched = True
        self._due = at
        self.clock.arm(at, self._watch)

    def _watch(self) -> None:
        """Gives up what has waited too long. Replies come in order, so the oldest are first."""
        self._watched = False
        wire = self._wire
        if wire is None or not wire.waiting:
            return
        now = self.clock.now()
        if now - self._due > 3 * TICK and not self._granted:
            # The loop itself was held up: the replies may be in the socket. One turn to read them.
            self._granted = True
            self._watch_until(now)
            return
        self._granted = False
        gave_up = False
        for operation in list(wire.waiting):
            if operation.given_up:
                continue
            if now - operation.sent < PATIENCE:
                self._watch_until(operation.sent + PATIENCE)
                break
            self._give_up(operation, now)
            gave_up = True
            if wire.closed:
                return
        if gave_up:
            # Is it frozen? Not for the next requests to find out.
            for _ in range(MOST_SLOW - 1):
                self.tell(b"PING")

    def _give_up(self, operation: Operation, now: float) -> None:
        operation.given_up = True
        self.stats.timeouts += 1
        if not operation.future.done():
            operation.future.set_result(Lost.TIMEOUT)
        self._end(operation, Outcome.FAILURE, now, "timeout")

    def _answered(self, operation: Operation, reply: Reply, now: float) -> None:
        if operation.given_up or operation.permit is None:
            return
        stats = self.stats
        elapsed = now - operation.sent
        stats.latency += (elapsed - stats.latency) * SMOOTHING
        stats.slowest = max(stats.slowest, elapsed)
        outcome = Outcome.SUCCESS
        kind = ""
        if type(reply) is ReplyError:
            kind = reply.kind.lower()
            stats.errors[kind] += 1
            if reply.kind in FAILING:
                outcome = Outcome.FAILURE
            elif reply.kind in {"MOVED", "ASK"}:
                self.moved()
        self._end(operation, outcome, now, kind)

    def _end(self, operation: Operation, outcome: Outcome, now: float, why: str) -> None:
        assert operation.permit is not None
        self.breaker.end(operation.permit, outcome, now, now - operation.sent)
        if outcome is Outcome.FAILURE and self.breaker.opened_at is not None and self._wire is not None:
            self._wire.close(why)

    def _gone(self, wire: Wire, why: str) -> None:
        if wire is self._wire:
            self._wire = None
            if why in {"reset", "protocol"}:
                self.stats.errors[why] += 1
            self._lost.set()
            self.changed(why)

    async def _keep(self) -> None:
        """Connects, probes, waits until the connection is lost; and again."""
        clock, breaker = self.clock, self.breaker
        while True:
            wire = Wire(clock, self._answered, self._gone)
            try:
                await self._prove(wire)
                since = clock.now()
                self.stats.connects += 1
                self._lost.clear()
                self._wire = wire
                self.changed("")
                clock.arm(since + BEAT, partial(self._beat, wire))
                await self._lost.wait()
                # A server that drops each connection at once is not asked as often as it can.
                await clock.sleep(PAUSE if clock.now() - since > BEAT else 10 * PAUSE)
            except (ConnectError, TimeoutError) as error:
                kind = error.kind if isinstance(error, ConnectError) else "timeout"
                self.stats.errors[kind] += 1
                self.changed(str(error) or "no answer in time")
                await clock.sleep(max(PAUSE, breaker.retry_after(clock.now())))
            finally:
                wire.close()

    async def _prove(self, wire: Wire) -> None:
        """Returns when `wire` stands and the breaker is closed. Raises ConnectError, TimeoutError."""
        clock, breaker = self.clock, self.breaker
        connected = False
        while not connected or breaker.state(clock.now()) is not State.CLOSED:
            permit = breaker.acquire(clock.now())
            if permit is None:
                await clock.sleep(max(PAUSE, breaker.retry_after(clock.now())))
                continue
            outcome = Outcome.FAILURE
            started = clock.now()
            try:
                if not connected:
                    await within(clock, CONNECT_TIME, self._connect(wire))
                    connected = True
                await within(clock, PATIENCE, _probe(wire))
                outcome = Outcome.SUCCESS
            finally:
                breaker.end(permit, outcome, clock.now(), clock.now() - started)

    async def _connect(self, wire: Wire) -> None:
        place = await self._locate()
        await dial(place, self._target, wire)
        # A replica takes reads and refuses writes, and a former primary may not know yet that it is one.
        role = await wire.ask(b"ROLE")
        if isinstance(role, list) and role and role[0] != b"master":
            raise ConnectError("replica", f"{place}: not the primary")

    def _beat(self, wire: Wire) -> None:
        """A connection that says nothing may be gone without a word."""
        if wire is not self._wire:
            return
        now = self.clock.now()
        if now - wire.heard > BEAT / 2:
            self.tell(b"PING")
        self.clock.arm(now + BEAT, partial(self._beat, wire))


async def _probe(wire: Wire) -> None:
    answer = await wire.ask(b"PING")
    if answer != b"PONG":
        kind = answer.kind.lower() if isinstance(answer, ReplyError) else "reset"
        raise ConnectError(kind, f"the probe was answered with {kind}")

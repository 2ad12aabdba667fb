"""Names of hosts to addresses, by the DNS alone: never through the hosts file, which may lead them here.

An answer is used for its TTL, within bounds; asked for again before it ends, by whoever looks it up then;
and used on while the DNS fails. All who want the same name at once share one question.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from sidecar.config.addresses import Address, is_ip
from sidecar.decisions.dns_memory import Memory, Standing
from sidecar.decisions.eyeballs import is_v6, usable_first
from sidecar.errors import NameNotFound, NameNotResolved
from sidecar.upstreams import dns_wire
from sidecar.upstreams.dns_wire import Family, Found, NoAnswer
from sidecar.upstreams.race import first_done

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.upstreams.name_servers import NameServers

TRY: Final = (1.0, 2.0)
"""Seconds that a server gets to answer, in the first round over all of them and in the second."""
QUESTION: Final = 4.0
"""Seconds for all of them together: less than a connection has to be made."""
STALE_PATIENCE: Final = 1.8
"""Seconds that a question may take where a stale answer could do (RFC 8767, 5)."""
RESOLUTION_DELAY: Final = 0.05
"""Seconds that IPv4 addresses wait for IPv6 ones (RFC 8305, 3). The reverse would make calls depend on IPv6
where it is announced and broken."""
MOST_NAMES: Final = 1024
"""Names that are remembered; the one looked up least recently goes first."""
_LOOPBACK: Final = {Family.V6: "::1", Family.V4: "127.0.0.1"}
_AT_HAND: Final = frozenset({Standing.FRESH, Standing.DUE})
_TO_ASK: Final = frozenset({Standing.DUE, Standing.EXPIRED, Standing.UNKNOWN})
_TO_WAIT_FOR: Final = frozenset({Standing.EXPIRED, Standing.UNKNOWN})


class Cells(Protocol):
    """What the resolver counts (`telemetry.metrics`)."""

    def looked_up(self, outcome: str) -> None: ...
    def asked(self, outcome: str) -> None: ...


class Resolver:
    """`resolve` is a `Resolve` (`upstreams.dial`)."""

    def __init__(
        self,
        servers: Callable[[], NameServers],
        *,
        clock: Clock,
        cells: Cells,
        log: Any,
        usable: Callable[[str], bool] | None = None,
    ) -> None:
        """`usable`: whether this machine has a way to an address; by default its routes are asked."""
        self._servers = servers
        self._clock = clock
        self._cells = cells
        self._log = log
        self._usable = usable or has_route
        self._names: OrderedDict[tuple[str, Family], _Name] = OrderedDict()
        self._asking: set[asyncio.Task[None]] = set()
        self._last_good: Address | None = None
        self._fails = False
        """It is said that the DNS does not answer for a name whose addresses are known."""

    def ask(self, servers: Callable[[], NameServers]) -> None:
        """From now on others are asked; what is known stays known for its time."""
        self._servers = servers
        self._last_good = None

    async def resolve(self, address: Address) -> list[Address]:
        """The addresses of a name, in the order in which to try them.

        Raises `NameNotFound` where there are none, and `NameNotResolved` where the DNS gave no answer.
        """
        host = address.host
        if address.unix is not None or is_ip(host):
            return [address]
        hosts = await self._found(host.lower().removesuffix("."))
        return [Address(it, address.port) for it in usable_first(hosts, self._usable)]

    async def close(self) -> None:
        """Ends what is being asked."""
        asking = tuple(self._asking)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    # -- names ---------------------------------------------------------------------------------

    async def _found(self, host: str) -> Sequence[str]:
        if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
            return tuple(_LOOPBACK.values())
        absent: NameNotFound | None = None
        for name in self._complete(host):
            try:
                return await self._look_up(name)
            except NameNotFound as error:
                absent = absent or error
        self._cells.looked_up("absent")
        raise absent or NameNotFound(f"{host} is not a name that the DNS could know")

    def _complete(self, host: str) -> Iterable[str]:
        """The names that `host` may stand for. One with a dot is asked for as it is first."""
        search = self._servers().search
        under = [f"{host}.{domain}" for domain in search]
        names = [host, *under] if "." in host else [*under, host]
        return (name for name in names if dns_wire.valid(name))

    async def _look_up(self, name: str) -> Sequence[str]:
        """Raises `NameNotFound` and `NameNotResolved`."""
        now = self._clock.now()
        both = [self._name(name, family) for family in Family]
        waited = False
        for one in both:
            standing = one.memory.standing(now)
            if standing in _TO_ASK and one.asking is None:
                self._start(one, now)
            waited = waited or standing in _TO_WAIT_FOR
        if waited:
            await self._wait(both)
        now = self._clock.now()
        standings = [one.memory.standing(now) for one in both]
        hosts = [host for one in both for host in one.memory.usable(now)]
        if hosts:
            stale = not any(it in _AT_HAND for it in standings)
            self._cells.looked_up("stale" if stale else "asked" if waited else "fresh")
            return hosts
        failure = next((one.memory.failure for one in both if one.memory.failure), "")
        if failure or any(it is not Standing.ABSENT for it in standings):
            self._cells.looked_up("failed")
            raise NameNotResolved(f"the DNS has no answer for {name}: {failure or 'it is slow'}")
        raise NameNotFound(f"the DNS knows no address of {name}")

    def _name(self, name: str, family: Family) -> _Name:
        key = (name, family)
        known = self._names.get(key)
        if known is None:
            known = self._names[key] = _Name(name, family)
            if len(self._names) > MOST_NAMES:
                self._names.popitem(last=False)
        else:
            self._names.move_to_end(key)
        return known

    async def _wait(self, both: Sequence[_Name]) -> None:
        """Until both families are answered for, or one has to do."""
        v4_since: float | None = None
        while True:
            now = self._clock.now()
            standings = {one.family: one.memory.standing(now) for one in both}
            pending = [one for one in both if one.asking and standings[one.family] in _TO_WAIT_FOR]
            if not pending:
                return
            until = None
            if standings[Family.V4] in _AT_HAND:
                v4_since = now if v4_since is None else v4_since
                until = v4_since + RESOLUTION_DELAY
            elif any(one.memory.usable(now) for one in both):
                until = min(one.asked_at for one in pending) + STALE_PATIENCE
            if until is not None and until <= now:
                return
            await first_done([one.asking for one in pending if one.asking is not None], self._clock, until)

    # -- questions -----------------------------------------------------------------------------

    def _start(self, name: _Name, now: float) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(name))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        name.asking = task
        name.asked_at = now

    async def _ask(self, name: _Name) -> None:
        try:
            found = await self._answer(name)
        except NoAnswer as error:
            name.memory.fail(str(error), self._clock.now())
            if name.memory.addresses and not self._fails:
                self._fails = True
                self._log.warning(
                    "the DNS does not answer, calls go on to the last known addresses",
                    host=name.name,
                    reason=name.memory.failure,
                )
        else:
            if name.memory.failure and name.memory.addresses and self._fails:
                self._fails = False
                self._log.info("the DNS answers again", host=name.name)
            name.memory.learn(found.addresses, found.ttl, self._clock.now())
        finally:
            name.asking = None

    async def _answer(self, name: _Name) -> Found:
        """What the first server says that answers. Raises `NoAnswer`."""
        servers = list(self._servers().servers)
        servers.sort(key=lambda it: it != self._last_good)
        until = self._clock.now() + QUESTION
        failure: NoAnswer | None = None
        for patience in TRY:
            for server in servers:
                left = min(until - self._clock.now(), patience)
                if left <= 0:
                    break
                try:
                    found = await self._one_server(server, name, left)
                except NoAnswer as error:
                    self._cells.asked(error.outcome)
                    failure = error
                else:
                    self._cells.asked("answer" if found.addresses else "absent")
                    self._last_good = server
                    return found
        raise failure or NoAnswer("no name server is known")

    async def _one_server(self, server: Address, name: _Name, patience: float) -> Found:
        task = asyncio.current_task()
        assert task is not None
        timer = self._clock.arm(self._clock.now() + patience, task.cancel)
        try:
            return await dns_wire.ask(server, name.name, name.family)
        except asyncio.CancelledError:
            if timer.fired and task.uncancel() == 0:
                raise TimedOut(f"{server}: no answer within {patience:.3g} s") from None
            raise
        finally:
            timer.cancel()


class TimedOut(NoAnswer):
    outcome = "timeout"


class _Name:
    """One name and family."""

    __slots__ = ("asked_at", "asking", "family", "memory", "name")

    def __init__(self, name: str, family: Family) -> None:
        self.name = name
        self.family = family
        self.memory = Memory()
        self.asking: asyncio.Task[None] | None = None
        self.asked_at = 0.0


def has_route(host: str) -> bool:
    """Whether this machine has a route to the address, and an address to come from. Sends nothing."""
    family = socket.AF_INET6 if is_v6(host) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # connecting a datagram socket only looks up the route (udp(7))
    except OSError:
        return False
    return True

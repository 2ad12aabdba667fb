"""Making connections: where they may go, and to which of a name's addresses."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Protocol

from sidecar.clock import Clock
from sidecar.config.addresses import Address, Network, is_ip
from sidecar.decisions import reachable
from sidecar.errors import ConnectFailed, EgressDenied, LoopDetected
from sidecar.upstreams.race import race
from sidecar.upstreams.tls import cut_off, explained

Factory = Callable[[], asyncio.Protocol]
Resolve = Callable[[Address], Awaitable[list[Address]]]
"""All addresses of a name, an IP address each, in the order in which to try them. Raises `OSError`, and a
`SidecarError` where none of them may be called."""


class Dial(Protocol):
    """Makes one connection. Raises `OSError`, `ssl.SSLError`, and where it may not, a `SidecarError`."""

    async def __call__(
        self, factory: Factory, address: Address, tls: ssl.SSLContext | None, server_name: str | None, /
    ) -> None: ...


class Abortable(asyncio.Protocol):
    """A protocol that can drop its connection."""

    __slots__ = ()
    transport: asyncio.Transport | None

    def abort(self) -> None:
        raise NotImplementedError


@contextlib.contextmanager
def in_time(clock: Clock, patience: float) -> Iterator[None]:
    """Turns what takes longer than `patience` seconds, and what the system refuses, into `ConnectFailed`."""
    task = asyncio.current_task()
    assert task is not None
    timer = clock.arm(clock.now() + patience, task.cancel)
    try:
        yield
    except asyncio.CancelledError:
        if timer.fired and task.uncancel() == 0:
            raise ConnectFailed(f"no connection within {patience:.3g} s") from None
        raise
    except ssl.SSLError as error:
        raise explained(error) from error
    except ConnectionResetError as error:
        if error.errno is None:  # not the system's: how event loops say that a handshake was cut off
            raise cut_off() from error
        raise ConnectFailed(error.strerror or str(error)) from error
    except OSError as error:
        raise ConnectFailed(error.strerror or str(error)) from error
    finally:
        timer.cancel()


async def reach(
    dial: Dial,
    connection: Abortable,
    address: Address,
    tls: ssl.SSLContext | None,
    server_name: str | None,
    *,
    clock: Clock,
    patience: float,
) -> None:
    """Connects `connection` within `patience` seconds, TLS included.

    Raises `ConnectFailed`, and where the connection may not be made, `EgressDenied` or `LoopDetected`.
    """
    try:
        with in_time(clock, patience):
            await dial(lambda: connection, address, tls, server_name)
    except asyncio.CancelledError:
        connection.abort()  # it may have been made in the same moment
        raise
    except ConnectFailed:
        connection.abort()
        raise
    if _meets_itself(connection):
        connection.abort()
        raise ConnectFailed("the connection met itself: nobody listens there")


async def dial(
    factory: Factory, address: Address, tls: ssl.SSLContext | None, server_name: str | None
) -> None:
    """To wherever the configuration says."""
    loop = asyncio.get_running_loop()
    if address.unix is not None:
        await loop.create_unix_connection(factory, address.unix)
    else:
        await loop.create_connection(
            factory,
            address.host,
            address.port,
            ssl=tls,
            server_hostname=server_name if tls is not None else None,
        )


def over(sock: socket.socket) -> Dial:
    """A `Dial` by a socket that is connected already."""

    async def dial_over(
        factory: Factory, _: Address, tls: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(
            factory, sock=sock, ssl=tls, server_hostname=server_name if tls is not None else None
        )

    return dial_over


class EgressDial:
    """Connections for the app's own calls: never to private addresses, unless listed, nor to ourselves.

    A name is resolved first, its addresses are judged, and one of those judged is connected to: no second
    look-up can give another answer in between.
    """

    def __init__(
        self,
        allowed: Sequence[Network],
        own: Callable[[], Iterable[Address]],
        resolve: Resolve | None = None,
        *,
        clock: Clock,
    ) -> None:
        """`own`: where the listeners for the app's calls listen; `resolve`: by default the system's."""
        self._resolve = resolve or system_resolve
        self._allowed = allowed
        self._own = own
        self._clock = clock

    def follow(self, allowed: Sequence[Network], resolve: Resolve) -> None:
        """From now on others are allowed, or names are resolved by another."""
        self._allowed = allowed
        self._resolve = resolve

    async def __call__(
        self, factory: Factory, address: Address, tls: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        """As `dial`. Raises `EgressDenied` and `LoopDetected`, too."""
        found = await self.find(address)
        if len(found) == 1:
            await dial(factory, found[0], tls, server_name)
            return
        sock, chosen = await race(found, self._clock)
        await over(sock)(factory, chosen, tls, server_name)

    async def find(self, address: Address) -> list[Address]:
        """Those of its addresses that may be called. Raises `OSError`, `EgressDenied` and `LoopDetected`."""
        if address.unix is not None:
            return [address]
        return self.permitted(address, await self._resolve(address))

    def permitted(self, asked: Address, found: Sequence[Address]) -> list[Address]:
        """Those of the addresses that may be called. Raises `EgressDenied` or `LoopDetected` for none."""
        permitted: list[Address] = []
        denied = ""
        loops = False
        for address in found:
            kind = self._refused(address.host)
            if any(_is_at(address, own) for own in self._own()):
                loops = True
            elif kind is None:
                permitted.append(address)
            elif not denied:
                is_at = "is" if address.host == asked.host else f"is at {address.host},"
                denied = f"{asked.host} {is_at} {kind}"
        if permitted:
            return permitted
        if loops:
            raise LoopDetected(
                f"{asked.host} leads back here (set connect_to in its policy file, or dns.servers)"
            )
        if denied:
            raise EgressDenied(f"{denied} (egress.allow_private lists those that may be called)")
        return permitted

    def _refused(self, host: str) -> str | None:
        ip = reachable.parse_ip(host)
        return "no address" if ip is None else reachable.refused(ip, self._allowed)


async def system_resolve(address: Address) -> list[Address]:
    """Every address of a name, as the system gives them. Raises `OSError`."""
    if address.unix is not None or is_ip(address.host):
        return [address]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Address(str(it[4][0]), address.port) for it in found))


def _meets_itself(connection: Abortable) -> bool:
    """A port that nobody listens on may be chosen for the client's end of a connection to it: then TCP opens
    both ends at once (RFC 9293, 3.5), and what is sent comes back. Happens while an app on loopback is away.
    """
    transport = connection.transport
    if transport is None:
        return False
    local = transport.get_extra_info("sockname")
    return isinstance(local, tuple) and local == transport.get_extra_info("peername")


def _is_at(target: Address, own: Address) -> bool:
    """Whether a connection to `target`, an IP address, comes in at our listener `own`."""
    ip = reachable.parse_ip(target.host)
    if ip is None or own.unix is not None or target.port != own.port:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped  # to the system it is that address
    if ip.is_unspecified:  # leads to this machine's loopback
        return own.wildcard or own.loopback
    if own.host == "localhost":
        return ip.is_loopback
    return str(ip) == own.host or (own.wildcard and _is_local(str(ip)))


def _is_local(host: str) -> bool:
    """Whether the address is one of this machine: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True

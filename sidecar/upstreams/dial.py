"""Making connections: where they may go, and to which of a name's addresses."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from sidecar.clock import Clock
from sidecar.config.addresses import Address, Network, is_ip
from sidecar.errors import BadCertificate, ConnectFailed, EgressDenied, LoopDetected

Factory = Callable[[], asyncio.Protocol]
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_V4_IN_V6: Final = (
    ipaddress.ip_network("64:ff9b::/96"),  # RFC 6052
    ipaddress.ip_network("::/96"),  # RFC 4291, 2.5.5.1
)


Resolve = Callable[[Address], Awaitable[list[Address]]]
"""All addresses of a name, an IP address each, in the order in which to try them. Raises `OSError`, and a
`SidecarError` where none of them may be called."""


class Dial(Protocol):
    """Makes one connection. Raises `OSError`, `ssl.SSLError`, and where it may not, a `SidecarError`."""

    async def __call__(
        self, factory: Factory, address: Address, tls: ssl.SSLContext | None, server_name: str | None
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
    except ssl.SSLCertVerificationError as error:
        raise BadCertificate(error.verify_message) from error
    except ssl.SSLError as error:
        raise ConnectFailed(f"TLS: {error.reason or error}") from error
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
    ) -> None:
        """`own`: where the listeners for the app's calls listen; `resolve`: by default the system's."""
        self._resolve = resolve or system_resolve
        self._allowed = allowed
        self._own = own

    async def __call__(
        self, factory: Factory, address: Address, tls: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        """As `dial`. Raises `EgressDenied` and `LoopDetected`, too."""
        failed: OSError | None = None
        for found in await self.find(address):
            try:
                await dial(factory, found, tls, server_name)
            except ssl.SSLError:
                raise
            except OSError as error:
                failed = failed or error
            else:
                return
        if failed is not None:
            raise failed

    async def find(self, address: Address) -> list[Address]:
        """Those of its addresses that may be called. Raises `OSError`, `EgressDenied` and `LoopDetected`."""
        if address.unix is not None:
            return [address]
        return self.permitted(address, await self._resolve(address))

    def permitted(self, asked: Address, found: Sequence[Address]) -> list[Address]:
        """Those of the addresses that may be called. Raises `EgressDenied` or `LoopDetected` for none."""
        permitted = [it for it in found if not is_private(it.host) or self._is_allowed(it.host)]
        if found and not permitted:
            host = found[0].host
            what = f"{host} is" if host == asked.host else f"{asked.host} is at {host},"
            raise EgressDenied(
                f"{what} a private address (egress.allow_private lists those that may be called)"
            )
        permitted = [it for it in permitted if not any(_is_at(it, own) for own in self._own())]
        if found and not permitted:
            raise LoopDetected(f"{asked.host} leads back here (set connect_to in its policy file)")
        return permitted

    def _is_allowed(self, host: str) -> bool:
        ip = _embedded(ipaddress.ip_address(host.partition("%")[0]))
        return any(ip in network for network in self._allowed)


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


def is_private(host: str) -> bool:
    """Whether an IP address is not one of the public internet: private, loopback, link-local and so on.

    An IPv4 address within an IPv6 one is judged by itself (RFC 4291, 2.5.5; RFC 6052; RFC 3056).
    """
    ip = _embedded(ipaddress.ip_address(host.partition("%")[0]))
    return not ip.is_global or ip.is_multicast


def _embedded(ip: Ip) -> Ip:
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return inner
        if any(ip in network for network in _V4_IN_V6) and int(ip) > 1:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def _is_at(target: Address, own: Address) -> bool:
    """Whether a connection to `target` comes in at our listener `own`."""
    if own.unix is not None or target.port != own.port:
        return False
    return target.host == own.host or (own.wildcard and _is_local(target.host)) or _same_loopback(target, own)


def _same_loopback(target: Address, own: Address) -> bool:
    return own.host == "localhost" and ipaddress.ip_address(target.host.partition("%")[0]).is_loopback


def _is_local(host: str) -> bool:
    """Whether the address is one of this machine: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True

"""The listening sockets of all workers, bound once by the lead and open as long as it lives.

Each worker accepts from a socket of its own on the shared port: the kernel spreads connections over the
sockets (SO_REUSEPORT, socket(7)), which one socket for all does not do, as the worker that wakes first
takes all that wait. Linux resets what waits on a socket that is closed; here none is, before the lead ends:
what waits for a worker that has died, or is being replaced, its neighbour or its successor accepts.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sidecar.config.addresses import Address
from sidecar.listeners.binding import binding
from sidecar.listeners.ingress import BACKLOG


def bind(key: str, address: Address, count: int) -> tuple[Address, list[list[socket.socket]]]:
    """Sockets that listen on `address`, for each of `count` workers; and the address with its real port.

    Raises `CannotStart`.
    """
    with binding(key, address):
        if address.unix is not None:
            # One for all: there is no SO_REUSEPORT for these.
            shared = _unix(address.unix)
            return address, [[shared] for _ in range(count)]
        return _internet(address, count)


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _internet(address: Address, count: int) -> tuple[Address, list[list[socket.socket]]]:
    found = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    places = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
    opened: list[socket.socket] = []
    workers: list[list[socket.socket]] = [[] for _ in range(count)]
    port = address.port
    try:
        for family, where in places:
            # With SO_REUSEPORT another sidecar of the same user would be joined, unknown to either.
            probe = _socket(family, opened)
            probe.bind((where[0], port, *where[2:]))
            port = probe.getsockname()[1]
            probe.close()
            for mine in workers:
                sock = _socket(family, opened)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind((where[0], port, *where[2:]))
                mine.append(sock)
        # A socket that is bound but does not listen gets nothing: all begin together.
        for mine in workers:
            for sock in mine:
                sock.listen(BACKLOG)
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return Address(address.host, port), workers


def _socket(family: int, opened: list[socket.socket]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    opened.append(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def numbers(workers: Sequence[Sequence[socket.socket]]) -> list[list[int]]:
    """The file descriptors, as a process that inherits them knows them too."""
    return [[sock.fileno() for sock in mine] for mine in workers]

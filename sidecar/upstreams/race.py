"""Which of a name's addresses takes a connection first (RFC 8305, 5)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sidecar.decisions.eyeballs import STAGGER, is_v6

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.addresses import Address

Failed = Callable[["Address"], None]


async def race(
    addresses: Sequence[Address],
    clock: Clock,
    *,
    failed: Failed = lambda _: None,
    overtaken: Failed = lambda _: None,
) -> tuple[socket.socket, Address]:
    """A socket that is connected to one of them, and to which.

    They are begun in their order, the next when the one before has failed or `STAGGER` seconds have passed;
    the first that is connected stays, the others are dropped. `failed` hears of each that could not be
    connected to, `overtaken` of each that was begun before the one that won, and was slower. Raises the
    `OSError` of the first that failed when all have.
    """
    waiting = list(reversed(addresses))
    running: dict[asyncio.Task[socket.socket], Address] = {}
    error: OSError = OSError("there is no address")
    first = True
    loop = asyncio.get_running_loop()
    try:
        while waiting or running:
            if waiting:
                address = waiting.pop()
                running[loop.create_task(_connected(address))] = address
            await first_done(running, clock, clock.now() + STAGGER if waiting else None)
            # One that is connected comes first: a failure ends nothing.
            done = [task for task in running if task.done()]
            for task in sorted(done, key=lambda task: task.exception() is not None):
                address = running.pop(task)
                problem = task.exception()
                if problem is None:
                    for slower in running.values():
                        if addresses.index(slower) < addresses.index(address):
                            overtaken(slower)
                    return task.result(), address
                if not isinstance(problem, OSError):
                    raise problem
                if first:
                    error, first = problem, False
                failed(address)
    finally:
        await _dropped(running)
    raise error


async def first_done(tasks: Iterable[asyncio.Task[Any]], clock: Clock, until: float | None) -> None:
    """Returns when one of them is done, or at `until`. None of them is ended by that."""
    alarm: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    timer = None if until is None else clock.arm(until, alarm.cancel)
    waited_for: list[asyncio.Future[Any]] = [*tasks, alarm]
    try:
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if timer is not None:
            timer.cancel()


async def _dropped(running: dict[asyncio.Task[socket.socket], Address]) -> None:
    for task in running:
        task.cancel()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(outcome, socket.socket):  # connected in the same moment
            outcome.close()


async def _connected(address: Address) -> socket.socket:
    """Raises `OSError`."""
    family = socket.AF_INET6 if is_v6(address.host) else socket.AF_INET
    # With a zone, an address is more than its text and its port.
    place = socket.getaddrinfo(
        address.host, address.port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0][4]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, place)
    except OSError as error:
        sock.close()
        # asyncio's text names the address, which error answers do not.
        raise OSError(error.errno, os.strerror(error.errno or 0)) from error
    except BaseException:
        sock.close()
        raise
    return sock

"""Which of several addresses takes a connection first: real sockets, and time in the hands of the test."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.config.addresses import Address
from sidecar.decisions.eyeballs import STAGGER
from sidecar.upstreams.race import race
from tests.support.clock import ManualClock, settle
from tests.support.harness import eventually
from tests.support.origin import Origin


@contextlib.contextmanager
def black_holes(port: int, *hosts: str) -> Iterator[None]:
    """Addresses that take no connection and refuse none: their queues are full."""
    with contextlib.ExitStack() as stack:
        for host in hosts:
            listening = stack.enter_context(socket.socket())
            listening.bind((host, port))
            listening.listen(0)
            for _ in range(2):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listening.getsockname())
        yield


class Race:
    """A race to one port of several addresses."""

    def __init__(self, port: int, *hosts: str) -> None:
        self.clock = ManualClock()
        self.failed: list[str] = []
        self.overtaken: list[str] = []
        self.addresses = [Address(host, port) for host in hosts]
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> str:
        sock, address = await race(
            self.addresses,
            self.clock,
            failed=lambda it: self.failed.append(it.host),
            overtaken=lambda it: self.overtaken.append(it.host),
        )
        assert sock.getpeername()[:2] == (address.host, address.port)
        sock.close()
        return address.host


async def test_the_first_wins() -> None:
    """While it takes the connection, no other is tried."""
    async with Origin() as first, Origin(address=Address("127.0.0.2", first.address.port)) as second:
        running = Race(first.address.port, "127.0.0.1", "127.0.0.2")
        assert await running.task == "127.0.0.1"
        assert (second.connections, running.failed, running.overtaken) == (0, [], [])


async def test_one_that_refuses_costs_no_time() -> None:
    """The next is begun at once."""
    async with Origin() as origin:
        running = Race(origin.address.port, "127.0.0.2", "127.0.0.3", "127.0.0.1")
        assert await running.task == "127.0.0.1"
        assert running.failed == ["127.0.0.2", "127.0.0.3"]
        assert running.clock.now() == 1000


async def test_one_that_does_not_answer_costs_a_stagger() -> None:
    """250 ms later the next is tried beside it (RFC 8305, 5); it is heard that it was overtaken."""
    async with Origin() as origin:
        port = origin.address.port
        with black_holes(port, "127.0.0.2", "127.0.0.3"):
            running = Race(port, "127.0.0.2", "127.0.0.3", "127.0.0.1")
            await running.clock.advance(2 * STAGGER - 0.01)
            assert not running.task.done()
            await running.clock.advance(0.011)
            assert await running.task == "127.0.0.1"
            assert (running.failed, running.overtaken) == ([], ["127.0.0.2", "127.0.0.3"])


async def test_a_slow_one_may_still_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not given up when the next is begun; that one is, and was not overtaken."""
    loop = asyncio.get_running_loop()
    pending: dict[str, asyncio.Future[socket.socket]] = {}

    async def connected(address: Address) -> socket.socket:
        pending[address.host] = loop.create_future()
        return await pending[address.host]

    monkeypatch.setattr("sidecar.upstreams.race._connected", connected)
    async with Origin() as origin:
        running = Race(origin.address.port, "127.0.0.1", "127.0.0.2")
        await running.clock.advance(STAGGER + 0.01)
        with socket.create_connection(("127.0.0.1", origin.address.port)) as sock:
            pending["127.0.0.1"].set_result(sock)
            assert await running.task == "127.0.0.1"
    assert running.overtaken == []
    assert pending["127.0.0.2"].cancelled()


async def test_all_fail() -> None:
    """The first error is the one that is told."""
    async with Origin() as origin:
        port = origin.address.port
    running = Race(port, "127.0.0.1", "127.0.0.2")
    with pytest.raises(ConnectionRefusedError, match=r"^\[Errno 111\] Connection refused$"):
        await running.task
    assert running.failed == ["127.0.0.1", "127.0.0.2"]


async def test_there_is_none() -> None:
    """Then nothing can be connected to."""
    with pytest.raises(OSError, match="there is no address"):
        await Race(1).task


async def test_ipv6() -> None:
    """Both families run in one race."""
    with socket.socket(socket.AF_INET6) as listening:
        listening.bind(("::1", 0))
        listening.listen()
        number = listening.getsockname()[1]
        assert await Race(number, "127.0.0.9", "::1").task == "::1"


async def test_nothing_is_left_of_those_that_lost() -> None:
    """Sockets, tasks and timers are gone, whether one won or whoever waited left."""
    async with Origin() as origin:
        port = origin.address.port
        with black_holes(port, "127.0.0.2", "127.0.0.3"):
            before = descriptors()
            for leave in (False, True):
                running = Race(port, "127.0.0.2", "127.0.0.3", "127.0.0.1")
                await running.clock.advance(STAGGER + 0.01)
                if leave:
                    running.task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await running.task
                else:
                    await running.clock.advance(STAGGER)
                    await running.task
                await settle()
                assert running.clock.armed == 0
                assert len(asyncio.all_tasks()) <= 3
                await eventually(lambda: not origin.open)
                await eventually(lambda: descriptors() <= before)
    gc.collect()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())

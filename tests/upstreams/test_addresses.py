"""An upstream of several addresses: which is tried, and what is done about one that fails."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.config.addresses import Address
from sidecar.decisions.eyeballs import PREFERRED, STAGGER
from sidecar.errors import EgressDenied
from sidecar.upstreams.addresses import KEEP, Addresses
from sidecar.upstreams.dial import Factory, system_resolve
from sidecar.upstreams.pool import CONNECT_TIMEOUT
from sidecar.upstreams.tls import tls_context
from tests.support.clock import ManualClock
from tests.support.harness import GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection, answers, self_signed

POST = b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
RETRY = {"retry": {"attempts": 3, "backoff": {"base": "0ms"}, "budget": "off"}}


class Names:
    """A resolver that a test speaks for."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.asked = 0
        self.fails = False

    async def __call__(self, address: Address) -> list[Address]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.fails:
            raise OSError("no answer")
        return [Address(host, address.port) for host in self.addresses]


# -- what is known ---------------------------------------------------------------------------------


APP = Address("app", 80)


async def found(addresses: Addresses, *avoid: str) -> list[str]:
    await addresses.find()
    return [address.host for address in addresses.ordered(avoid)]


async def test_a_name_is_asked_again_after_a_while() -> None:
    """Within `KEEP` seconds the answer is remembered; then a name that has moved is followed."""
    clock, names = ManualClock(), Names("10.0.0.1")
    addresses = Addresses(APP, clock, names)
    assert await found(addresses) == ["10.0.0.1"]
    names.addresses = ("10.0.0.2",)
    await clock.advance(KEEP - 0.1)
    assert await found(addresses) == ["10.0.0.1"]
    await clock.advance(0.1)
    assert await found(addresses) == ["10.0.0.2"]
    assert names.asked == 2


async def test_a_name_that_stops_to_resolve() -> None:
    """Its last addresses go on; one that never did is an error, each time."""
    clock, names = ManualClock(), Names("10.0.0.1")
    addresses = Addresses(APP, clock, names)
    await found(addresses)
    names.fails = True
    await clock.advance(KEEP)
    assert await found(addresses) == ["10.0.0.1"]
    unknown = Addresses(Address("other", 80), clock, names)
    for _ in range(2):
        with pytest.raises(OSError, match="no answer"):
            await unknown.find()


async def test_who_comes_while_it_is_asked_again() -> None:
    """Has the last answer, and does not ask as well."""
    clock, names = ManualClock(), Names("10.0.0.1")
    addresses = Addresses(APP, clock, names)
    await found(addresses)
    await clock.advance(KEEP)
    await asyncio.gather(*(addresses.find() for _ in range(9)))
    assert names.asked == 2


async def test_the_order() -> None:
    """As resolved; those that refused are behind, those to avoid last; nothing is left out."""
    clock = ManualClock()
    addresses = Addresses(APP, clock, Names("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    assert await found(addresses, "10.0.0.1") == ["10.0.0.2", "10.0.0.3", "10.0.0.1"]
    addresses.failed(Address("10.0.0.2", 80))
    assert await found(addresses) == ["10.0.0.1", "10.0.0.3", "10.0.0.2"]
    assert await found(addresses, "10.0.0.1") == ["10.0.0.3", "10.0.0.2", "10.0.0.1"]
    await clock.advance(KEEP)
    assert await found(addresses) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


async def test_both_families_in_turn() -> None:
    """The family of the first begins (RFC 8305, 4)."""
    addresses = Addresses(APP, ManualClock(), Names("::1", "::2", "10.0.0.1", "10.0.0.2"))
    assert await found(addresses) == ["::1", "10.0.0.1", "::2", "10.0.0.2"]
    assert await found(addresses, "::1") == ["10.0.0.1", "::2", "10.0.0.2", "::1"]


async def test_the_family_that_works_is_remembered() -> None:
    """For ten minutes it goes first, though the name is asked again meanwhile; until it fails itself."""
    clock = ManualClock()
    addresses = Addresses(APP, clock, Names("::1", "10.0.0.1"))
    assert await found(addresses) == ["::1", "10.0.0.1"]
    addresses.connected(Address("::1", 80))
    addresses.failed(Address("::1", 80))
    addresses.connected(Address("10.0.0.1", 80))
    await clock.advance(PREFERRED - 1)
    assert await found(addresses) == ["10.0.0.1", "::1"]
    addresses.failed(Address("10.0.0.1", 80))
    assert await found(addresses) == ["::1", "10.0.0.1"]
    await clock.advance(1)
    assert await found(addresses) == ["::1", "10.0.0.1"]


async def test_addresses_that_may_not_be_called_any_more() -> None:
    """A name that leads to a private address now is refused, and not called at its last address either."""
    clock, names = ManualClock(), Names("192.0.2.1")
    may = True

    async def resolve(address: Address) -> list[Address]:
        if not may:
            raise EgressDenied
        return await names(address)

    addresses = Addresses(APP, clock, resolve)
    await found(addresses)
    may = False
    await clock.advance(KEEP)
    for _ in range(2):
        with pytest.raises(EgressDenied):
            await addresses.find()
    may = True
    assert await found(addresses) == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("known", "refused", "avoid", "avoided"),
    [
        (["a", "b"], [], ["a"], ["a"]),
        (["a", "b"], [], ["a", "b"], []),
        (["a"], [], ["a"], []),
        (["a", "b"], ["b"], ["a"], []),
        (["a", "b", "c"], ["b"], ["a"], ["a"]),
        ([], [], ["a"], []),
    ],
)
async def test_only_a_choice_is_avoided(
    known: list[str], refused: list[str], avoid: list[str], avoided: list[str]
) -> None:
    """Where nothing else is left that takes connections, an address is not avoided."""
    addresses = Addresses(APP, ManualClock(), Names(*known))
    await addresses.find()
    for each in refused:
        addresses.failed(Address(each, 80))
    assert list(addresses.avoidable(avoid)) == avoided


async def test_the_system_resolves() -> None:
    """Each address once, whatever the kinds of sockets that it is for; what is one already stays as it is."""
    found = await system_resolve(Address("localhost", 80))
    assert Address("127.0.0.1", 80) in found
    assert len(set(found)) == len(found)
    for literal in (Address("127.0.0.1", 80), Address("::1", 80), Address(unix="/run/app")):
        assert await system_resolve(literal) == [literal]


# -- what is done ----------------------------------------------------------------------------------


class Pair:
    """Two servers of one name, with one port."""

    def __init__(self, first: Origin, second: Origin, proxy: Harness) -> None:
        self.first = first
        self.second = second
        self.proxy = proxy

    @property
    def served(self) -> tuple[int, int]:
        return len(self.first.requests), len(self.second.requests)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Origin())
        port = first.address.port
        second = await stack.enter_async_context(Origin(address=Address("127.0.0.2", port)))
        names = Names("127.0.0.1", "127.0.0.2")
        proxy = await stack.enter_async_context(Harness(Address("app", port), RETRY, resolve=names))
        yield Pair(first, second, proxy)


async def test_the_first_serves_while_it_can(pair: Pair) -> None:
    """One connection, kept."""
    for _ in range(3):
        assert (await pair.proxy.ask(GET)).status == 200
    assert pair.served == (3, 0)


async def test_a_refused_connection_goes_to_the_next(pair: Pair) -> None:
    """Within the attempt: it costs no retry, and a POST may take it too."""
    await pair.first.close()
    assert (await pair.proxy.ask(POST)).status == 200
    assert pair.served == (0, 1)
    assert pair.proxy.exchanges[0].attempts == 1
    assert pair.proxy.exchanges[0].address == "127.0.0.2"
    assert pair.proxy.metrics.upstream("origin").connect_failures == 1


async def test_who_refused_is_not_asked_first_again(pair: Pair) -> None:
    """The next new connection goes to the other address at once."""
    await pair.first.close()
    together = asyncio.Barrier(2)

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await together.wait()
        await connection.send(OK)
        await connection.gone()

    pair.second.script = script
    clients = [await pair.proxy.connect(), await pair.proxy.connect()]
    await clients[0].send(GET)
    await eventually(lambda: len(pair.second.requests) == 1)
    await clients[1].send(GET)
    await eventually(lambda: len(pair.second.requests) == 2)
    assert pair.proxy.metrics.upstream("origin").connect_failures == 1


async def test_all_refuse(pair: Pair) -> None:
    """It is a failed connection, of which each attempt has tried all."""
    await pair.first.close()
    await pair.second.close()
    answer = await pair.proxy.ask(GET)
    assert (answer.status, answer.problem["detail"]) == (502, "Connection refused")
    assert pair.proxy.metrics.upstream("origin").connect_failures == 6


async def broken(connection: OriginConnection) -> None:
    """Ends the connection instead of answering."""
    await connection.request()


@pytest.mark.parametrize("script", [broken, answers(UNAVAILABLE)], ids=["reset", "503"])
async def test_a_retry_goes_elsewhere(pair: Pair, script: Any) -> None:
    """After a reset, and after an answer that is a failure."""
    pair.first.script = script
    assert (await pair.proxy.ask(GET)).status == 200
    assert pair.served == (1, 1)


async def test_a_kept_connection_to_the_failed_address_is_left(pair: Pair) -> None:
    """Two are kept to the first address; a retry after its 503 takes neither, and they stay."""
    together = asyncio.Barrier(2)

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await together.wait()
        await connection.send(OK)
        await answers(UNAVAILABLE)(connection)

    pair.first.script = script
    await asyncio.gather(pair.proxy.ask(GET), pair.proxy.ask(GET))
    assert pair.proxy.upstream.idle == 2
    assert (await pair.proxy.ask(GET)).status == 200
    assert pair.served == (3, 1)
    assert pair.proxy.upstream.idle == 3


async def test_a_kept_connection_elsewhere_is_taken(pair: Pair) -> None:
    """A retry that finds one to another address needs no new one."""
    pair.first.script = answers(UNAVAILABLE)
    for _ in range(2):
        assert (await pair.proxy.ask(GET)).status == 200
    assert pair.second.connections == 1
    assert pair.proxy.metrics.upstream("origin").connections_reused >= 1


async def test_when_all_have_failed_they_are_tried_again(pair: Pair) -> None:
    """Three attempts at two addresses: the third is made like a first."""
    pair.first.script = pair.second.script = answers(UNAVAILABLE)
    assert (await pair.proxy.ask(GET)).status == 503
    assert sorted(pair.served) == [1, 2]


async def test_a_single_address_keeps_its_connections() -> None:
    """There is nowhere else to go: a retry uses what is kept."""
    async with Origin(answers(UNAVAILABLE, OK)) as origin, Harness(origin, RETRY) as proxy:
        assert (await proxy.ask(GET)).status == 200
        assert origin.connections == 1


async def test_retries_say_so_upstream() -> None:
    """`X-Sidecar-Retry` numbers them, so that another tier does not retry them again; a first has none."""
    async with Origin(answers(UNAVAILABLE, UNAVAILABLE, OK)) as origin, Harness(origin, RETRY) as proxy:
        assert (await proxy.ask(GET)).status == 200
        assert [request.header("x-sidecar-retry") for request in origin.requests] == [None, "1", "2"]


@contextlib.contextmanager
def unreachable(host: str, port: int) -> Iterator[None]:
    """An address that takes no connection and refuses none: its queue is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind((host, port))
        listening.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield


async def test_an_address_that_does_not_answer_is_overtaken() -> None:
    """After 250 ms the next is tried beside it; while the name is not asked again, it goes first then."""
    async with Origin() as origin:
        port = origin.address.port
        names = Names("127.0.0.3", "127.0.0.1")
        with unreachable("127.0.0.3", port):
            async with Harness(Address("app", port), RETRY, resolve=names) as proxy:
                client = await proxy.connect()
                await client.send(GET)
                await eventually(lambda: proxy.exchanges and proxy.exchanges[0].address == "127.0.0.3")
                await eventually(lambda: proxy.manual.armed)
                await proxy.manual.advance(STAGGER + 0.01)
                assert (await client.answer()).status == 200
                assert proxy.exchanges[0].address == "127.0.0.1"
                assert proxy.metrics.upstream("origin").connect_failures == 0
                for connection in tuple(origin.open):
                    connection.close()
                await eventually(lambda: not proxy.upstream.connections)
                assert (await proxy.ask(GET)).status == 200


async def test_no_address_answers() -> None:
    """All of them are given up when the time is over."""
    async with Origin() as origin:
        port = origin.address.port
        with unreachable("127.0.0.3", port), unreachable("127.0.0.4", port):
            async with Harness(Address("app", port), resolve=Names("127.0.0.3", "127.0.0.4")) as proxy:
                client = await proxy.connect()
                await client.send(GET)
                await eventually(lambda: proxy.exchanges and proxy.exchanges[0].address == "127.0.0.3")
                await eventually(lambda: proxy.manual.armed)
                await proxy.manual.advance(CONNECT_TIMEOUT + 0.1)
                assert (await client.answer()).problem["detail"] == "no connection within 5 s"
                assert proxy.metrics.upstream("origin").connect_failures == 2


async def test_tls_that_fails_at_one_address(tmp_path: Path) -> None:
    """The connection is made to the next, as with one that refuses."""
    certificate = self_signed(tmp_path)

    async def hangs_up(connection: OriginConnection) -> None:
        await connection.reader.read(1)

    async with Origin(tls=certificate.server()) as good:
        port = good.address.port
        async with Origin(hangs_up, address=Address("127.0.0.2", port)):
            context = tls_context(str(certificate.path), None, None, verify=True)
            names = Names("127.0.0.2", "127.0.0.1")
            async with Harness(Address("app", port), tls=context, resolve=names) as proxy:
                assert (await proxy.ask(GET)).status == 200
                assert proxy.exchanges[0].address == "127.0.0.1"
                cells = proxy.metrics.upstream("origin")
                assert cells.connect_failures == 1


async def test_a_name_without_addresses() -> None:
    """Is a failed connection that says so."""
    async with Harness(Address("app", 80), resolve=Names()) as proxy:
        answer = await proxy.ask(GET)
        assert (answer.status, answer.problem["detail"]) == (502, "app has no address")


async def test_a_name_that_does_not_resolve_in_time() -> None:
    """Waiting for the resolver is within the time for connecting."""

    async def silent(_: Address) -> list[Address]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with Harness(Address("app", 80), resolve=silent) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: proxy.exchanges and proxy.manual.armed)
        await proxy.manual.advance(CONNECT_TIMEOUT + 0.1)
        assert (await client.answer()).problem["detail"] == "no connection within 5 s"


# -- a connection to itself --------------------------------------------------------------------------


async def test_a_connection_that_meets_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP opens both ends of it at once, and our request would come back: it counts as nobody listening."""
    async with Origin() as origin, Harness(origin) as proxy:
        port = origin.address.port
        await origin.close()

        async def from_that_port(factory: Factory, address: Address, *_: object) -> None:
            loop = asyncio.get_running_loop()
            await loop.create_connection(factory, address.host, address.port, local_addr=("127.0.0.1", port))

        monkeypatch.setattr("sidecar.upstreams.pool.dial", from_that_port)
        answer = await proxy.ask(POST)
        assert (answer.status, answer.problem["code"]) == (502, "connect_failed")
        assert answer.problem["detail"] == "the connection met itself: nobody listens there"
        assert proxy.upstream.connections == 0
        assert proxy.metrics.upstream("origin").connect_failures == 1
        await origin.listen()

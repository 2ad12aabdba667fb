"""The sidecar's own resolver, with real name servers on loopback and time in the hands of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import dns.message
import pytest
import structlog.testing

from sidecar.config.addresses import Address
from sidecar.decisions.dns_memory import ABSENT_MOST, RECHECK, STALE
from sidecar.errors import NameNotFound, NameNotResolved
from sidecar.telemetry.log import get_logger
from sidecar.telemetry.metrics import DnsCells
from sidecar.upstreams import resolver as resolver_module
from sidecar.upstreams.name_servers import NameServers
from sidecar.upstreams.resolver import RESOLUTION_DELAY, STALE_PATIENCE, TRY, Resolver, has_route
from tests.support.clock import ManualClock, settle
from tests.support.dns import DnsServer, Reply, code, records, silence, truncated
from tests.support.harness import eventually

HOST = "api.example"
ONE = records("api.example A 192.0.2.1", "api.example AAAA 2001:db8::1", negative=10)
V4 = records("api.example A 192.0.2.1", negative=10)


class Resolving:
    """A resolver and the servers it asks."""

    def __init__(self, *servers: DnsServer | Address, search: Sequence[str] = ()) -> None:
        self.clock = ManualClock()
        self.cells = DnsCells()
        self.servers = servers
        self.search = tuple(search)
        self.unusable: set[str] = set()
        self.resolver = Resolver(
            self._named,
            clock=self.clock,
            cells=self.cells,
            log=get_logger("test"),
            usable=lambda host: host not in self.unusable,
        )

    def _named(self) -> NameServers:
        found = [it.address if isinstance(it, DnsServer) else it for it in self.servers]
        return NameServers(tuple(found), self.search)

    async def __call__(self, host: str = HOST) -> list[str]:
        found = await self.resolver.resolve(Address(host, 443))
        assert all(it.port == 443 for it in found)
        return [it.host for it in found]

    async def start(self, host: str = HOST) -> asyncio.Task[list[str]]:
        """A look-up whose questions have been sent, and not been answered."""
        server = self.servers[0]
        assert isinstance(server, DnsServer)
        asked = len(server.asked)
        task = asyncio.create_task(self(host))
        await eventually(lambda: len(server.asked) > asked)
        return task


@contextlib.asynccontextmanager
async def resolving(
    reply: Reply, *, search: Sequence[str] = (), **settings: Any
) -> AsyncIterator[tuple[Resolving, DnsServer]]:
    async with DnsServer(reply, **settings) as server:
        asking = Resolving(server, search=search)
        yield asking, server
        await asking.resolver.close()


# -- what is answered ------------------------------------------------------------------------------


async def test_both_families_are_asked_for() -> None:
    """IPv6 first, as getaddrinfo orders them (RFC 6724)."""
    async with resolving(ONE) as (resolve, server):
        assert await resolve() == ["2001:db8::1", "192.0.2.1"]
        assert sorted(server.asked) == [(HOST, "A"), (HOST, "AAAA")]


async def test_addresses_without_a_way_are_last() -> None:
    """A machine without IPv6 does not try it first."""
    async with resolving(ONE) as (resolve, _):
        resolve.unusable.add("2001:db8::1")
        assert await resolve() == ["192.0.2.1", "2001:db8::1"]


async def test_aliases_are_followed() -> None:
    """The addresses at the end of a chain of CNAMEs; the shortest TTL of the chain counts."""

    def reply(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        for text in (
            "api.example. 6 IN CNAME lb.example.",
            "lb.example. 300 IN CNAME x.example.",
            "x.example. 300 IN A 192.0.2.7",
        ):
            owner, ttl, _, kind, value = text.split(" ")
            response.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, value))
        return response

    async with resolving(reply) as (resolve, server):
        assert await resolve() == ["192.0.2.7"]
        await resolve.clock.advance(6)
        await resolve()
        assert server.count(HOST) == 2


async def test_addresses_are_their_own() -> None:
    """Nobody is asked for them, nor for a Unix socket."""
    async with resolving(silence) as (resolve, server):
        assert await resolve("192.0.2.9") == ["192.0.2.9"]
        assert await resolve("2001:db8::9") == ["2001:db8::9"]
        socket = Address(unix="/run/app")
        assert await resolve.resolver.resolve(socket) == [socket]
        assert not server.asked


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost"])
async def test_localhost_is_no_question(host: str) -> None:
    """It is this machine, whatever a name server would say (RFC 6761, 6.3)."""
    async with resolving(silence) as (resolve, server):
        assert sorted(await resolve(host)) == ["127.0.0.1", "::1"]
        assert not server.asked


async def test_names_in_any_spelling_are_one() -> None:
    """Letters of either case, and a dot at the end."""
    async with resolving(ONE) as (resolve, server):
        for host in ("api.example", "API.Example", "api.example."):
            await resolve(host)
        assert server.count(HOST) == 1


async def test_what_the_dns_could_not_know() -> None:
    """A label that is too long is not asked for."""
    async with resolving(silence) as (resolve, server):
        with pytest.raises(NameNotFound, match="not a name that the DNS could know"):
            await resolve(f"{'a' * 64}.example")
        assert not server.asked


async def test_a_long_answer_comes_over_tcp() -> None:
    """A truncated answer is asked for again, by the other way."""
    many = records(*(f"api.example A 192.0.2.{number}" for number in range(200)))
    async with resolving(truncated(many), over_tcp=many) as (resolve, server):
        assert len(await resolve()) == 200
        assert server.asked_over_tcp == 2


async def test_what_is_not_the_answer_is_passed_over() -> None:
    """Bytes that are no message, another id, another question: the right one is still waited for."""
    async with resolving(silence) as (resolve, server):

        def reply(query: dns.message.Message) -> None:
            right = V4(query)
            assert isinstance(right, dns.message.Message)
            strange = dns.message.make_response(query)
            strange.id ^= 1
            other = dns.message.make_response(dns.message.make_query("other.example", "A", id=query.id))
            udp = server._udp
            assert udp is not None
            for wire in (b"", b"nonsense", strange.to_wire(), other.to_wire(), right.to_wire()):
                udp.sendto(wire, addresses[-1])

        addresses: list[Any] = []
        protocol = server.protocol
        received = protocol.datagram_received

        def noting(data: bytes, addr: Any) -> None:
            addresses.append(addr)
            received(data, addr)

        protocol.datagram_received = noting  # type: ignore[method-assign]
        server.reply = reply
        assert await resolve() == ["192.0.2.1"]


# -- time ------------------------------------------------------------------------------------------


async def test_an_answer_is_kept_for_its_ttl() -> None:
    """No question within it; one after it."""
    async with resolving(ONE) as (resolve, server):
        await resolve()
        await resolve.clock.advance(47)
        await resolve()
        assert server.count(HOST) == 1
        server.reply = records("api.example A 192.0.2.2")
        await resolve.clock.advance(13)
        assert await resolve() == ["192.0.2.2"]
        assert resolve.cells.lookups == {"asked": 2, "fresh": 1}


async def test_it_is_asked_again_before_its_end() -> None:
    """A look-up in the last fifth of the TTL has the old answer at once; the next has the new one."""
    async with resolving(ONE) as (resolve, server):
        await resolve()
        server.reply = records("api.example A 192.0.2.2")
        await resolve.clock.advance(49)
        assert await resolve() == ["2001:db8::1", "192.0.2.1"]
        await eventually(lambda: not resolve.resolver._asking)
        assert await resolve() == ["192.0.2.2"]
        assert server.count(HOST) == 2
        assert resolve.cells.lookups == {"asked": 1, "fresh": 2}


async def test_all_who_ask_at_once_share_a_question() -> None:
    """Also when the first of them leaves."""
    async with resolving(silence) as (resolve, server):
        first = await resolve.start()
        others = [asyncio.create_task(resolve()) for _ in range(20)]
        await settle()
        first.cancel()
        server.reply = ONE
        await resolve.clock.advance(TRY[0])
        assert {tuple(await other) for other in others} == {("2001:db8::1", "192.0.2.1")}
        assert server.count(HOST) == 2, "one, and its repetition after the time-out"
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_absence_is_kept_briefly() -> None:
    """A name that has no addresses is asked for again after its SOA's minimum, or half a minute."""
    async with resolving(code("NXDOMAIN", negative=3600)) as (resolve, server):
        for _ in range(3):
            with pytest.raises(NameNotFound, match=r"the DNS knows no address of api\.example"):
                await resolve()
        assert server.count(HOST) == 1
        server.reply = ONE
        await resolve.clock.advance(ABSENT_MOST)
        assert len(await resolve()) == 2
        assert resolve.cells.lookups == {"absent": 3, "asked": 1}
        assert resolve.cells.questions == {"absent": 2, "answer": 2}


async def test_a_name_without_ipv6() -> None:
    """Its absence is remembered apart: IPv4 is not asked for again because of it."""
    async with resolving(V4) as (resolve, server):
        assert await resolve() == ["192.0.2.1"]
        await resolve.clock.advance(15)
        assert await resolve() == ["192.0.2.1"]
        assert (server.count(HOST), server.count(HOST, "AAAA")) == (1, 2)


async def test_names_are_forgotten() -> None:
    """Those looked up least recently, once there are too many."""
    async with resolving(ONE) as (resolve, server):
        limit = resolver_module.MOST_NAMES
        resolver_module.MOST_NAMES = 4  # type: ignore[misc]
        try:
            for host in ("api.example", "b.example", "api.example", "c.example", "api.example"):
                with contextlib.suppress(NameNotFound):
                    await resolve(host)
        finally:
            resolver_module.MOST_NAMES = limit  # type: ignore[misc]
        assert len(resolve.resolver._names) == 4
        assert server.count(HOST) == 1


# -- one family is late ------------------------------------------------------------------------------


def only(kind: str, reply: Reply, other: Reply) -> Reply:
    """`reply` to questions of one type, `other` to those of the other."""

    def choose(query: dns.message.Message) -> dns.message.Message | bytes | None:
        return (reply if dns.rdatatype.to_text(query.question[0].rdtype) == kind else other)(query)

    return choose


async def test_ipv4_does_not_wait_for_ipv6() -> None:
    """But for 50 ms (RFC 8305, 3): some servers never answer for IPv6."""
    async with resolving(only("A", ONE, silence)) as (resolve, _):
        task = await resolve.start()
        await eventually(lambda: resolve.cells.questions == {"answer": 1})
        await resolve.clock.advance(RESOLUTION_DELAY - 0.01)
        assert not task.done()
        await resolve.clock.advance(0.011)
        assert await task == ["192.0.2.1"]


async def test_ipv6_waits_for_ipv4() -> None:
    """For a while: where IPv6 is broken, calls would fail for as long as its addresses alone are known."""
    async with resolving(only("AAAA", ONE, silence)) as (resolve, _):
        task = await resolve.start()
        await eventually(lambda: resolve.cells.questions == {"answer": 1})
        await resolve.clock.advance(STALE_PATIENCE - 0.01)
        assert not task.done()
        await resolve.clock.advance(0.011)
        assert await task == ["2001:db8::1"]


# -- a DNS that fails --------------------------------------------------------------------------------


async def test_the_next_server_is_asked() -> None:
    """When one does not answer in a second, and when one refuses; the one that answered is first then."""
    async with DnsServer(silence) as silent, DnsServer(code("SERVFAIL")) as broken, DnsServer(V4) as good:
        resolve = Resolving(silent, broken, good)
        task = await resolve.start()
        await eventually(lambda: len(silent.asked) == 2)
        await resolve.clock.advance(TRY[0])
        assert await task == ["192.0.2.1"]
        assert (len(silent.asked), len(broken.asked), len(good.asked)) == (2, 2, 2)
        assert resolve.cells.questions == {"timeout": 2, "refused": 2, "answer": 1, "absent": 1}
        await resolve.clock.advance(60)
        await resolve()
        assert (len(silent.asked), len(good.asked)) == (2, 4)


async def test_nobody_listens() -> None:
    """It is known at once, and said; not asked again for two seconds."""
    server = DnsServer(V4)
    async with server:
        pass
    resolve = Resolving(server)
    with pytest.raises(
        NameNotResolved, match=r"no answer for api.example: 127.0.0.1:\d+: Connection refused"
    ):
        await resolve()
    assert resolve.cells.questions == {"unreachable": 4}
    with pytest.raises(NameNotResolved):
        await resolve()
    assert resolve.cells.questions == {"unreachable": 4}
    async with server:
        await resolve.clock.advance(2)
        assert await resolve() == ["192.0.2.1"]
    assert resolve.cells.lookups == {"failed": 2, "asked": 1}


async def test_nobody_answers() -> None:
    """Two rounds, three seconds: less than a connection may take."""
    async with resolving(silence) as (resolve, server):
        task = await resolve.start()
        assert await resolve.clock.complete(finished(task)) == (
            f"the DNS has no answer for api.example: {server.address}: no answer within 2 s"
        )
        assert resolve.clock.now() == 1000 + sum(TRY)


async def finished(task: asyncio.Task[list[str]]) -> str:
    with pytest.raises(NameNotResolved) as caught:
        await task
    return caught.value.detail


@pytest.mark.parametrize(
    ("reply", "over_tcp", "says"),
    [
        (code("SERVFAIL"), None, "SERVFAIL"),
        (code("REFUSED"), None, "REFUSED"),
        (truncated(V4), lambda _: b"\0", "not a valid answer"),
        (truncated(V4), lambda _: b"", "not a valid answer"),
        (truncated(V4), silence, "it closed the connection"),
    ],
)
async def test_bad_answers(reply: Reply, over_tcp: Reply | None, says: str) -> None:
    """A server that cannot answer is no server; what it did is said."""
    async with resolving(reply, over_tcp=over_tcp) as (resolve, _):
        with pytest.raises(NameNotResolved, match=says):
            await resolve()


async def test_stale_answers() -> None:
    """While the DNS fails, what was known serves: after 1.8 s at the first look-up, then at once. It is said
    once that it fails, and once that it is back.
    """
    with structlog.testing.capture_logs() as log:
        async with resolving(ONE) as (resolve, server):
            await resolve()
            server.reply = silence
            await resolve.clock.advance(60)
            task = await resolve.start()
            await resolve.clock.advance(STALE_PATIENCE - 0.01)
            assert not task.done()
            await resolve.clock.advance(0.011)
            assert await task == ["2001:db8::1", "192.0.2.1"]
            await resolve.clock.advance(sum(TRY))
            asked = len(server.asked)
            assert await resolve() == ["2001:db8::1", "192.0.2.1"]
            assert len(server.asked) == asked, "it has just failed"
            server.reply = code("SERVFAIL")
            for _ in range(3):
                await resolve.clock.advance(RECHECK)
                assert await resolve() == ["2001:db8::1", "192.0.2.1"]
            server.reply = V4
            await resolve.clock.advance(RECHECK)
            assert await resolve() == ["192.0.2.1"]
            assert resolve.cells.lookups == {"asked": 2, "stale": 5}
    events = [(line["event"], line["host"]) for line in log]
    assert events == [
        ("the DNS does not answer, calls go on to the last known addresses", HOST),
        ("the DNS answers again", HOST),
    ]
    assert log[0]["reason"] == f"{server.address}: no answer within 2 s"


async def test_stale_answers_end() -> None:
    """After a day there is nothing left to go on with."""
    async with resolving(V4) as (resolve, server):
        await resolve()
        server.reply = code("SERVFAIL")
        await resolve.clock.advance(60 + STALE - 1)
        assert await resolve() == ["192.0.2.1"]
        await resolve.clock.advance(RECHECK)
        with pytest.raises(NameNotResolved, match="SERVFAIL"):
            await resolve()


async def test_absence_is_no_failure() -> None:
    """A name that is gone is gone: the stale answer does not serve (RFC 8767, 4)."""
    async with resolving(V4) as (resolve, server):
        await resolve()
        server.reply = code("NXDOMAIN", negative=5)
        await resolve.clock.advance(60)
        with pytest.raises(NameNotFound):
            await resolve()


async def test_a_name_that_only_fails_for_ipv6() -> None:
    """Look-ups do not wait for it any more, and it is asked for less and less."""
    async with resolving(only("A", V4, code("SERVFAIL"))) as (resolve, server):
        for _ in range(50):
            assert await resolve() == ["192.0.2.1"]
            await resolve.clock.advance(1)
        assert server.count(HOST, "AAAA") <= 2 * 5, "two rounds, after 0, 2, 6, 14 and 30 s"


async def test_closing_ends_what_is_asked() -> None:
    """Nothing is left behind, and nobody waits for ever."""
    async with resolving(silence) as (resolve, _):
        task = await resolve.start()
        await resolve.resolver.close()
        await settle()
        with pytest.raises(NameNotResolved):
            await task
        assert resolve.clock.armed == 0


# -- search domains ----------------------------------------------------------------------------------


SEARCHED = records("bridge.ns.example A 192.0.2.3", "api.example A 192.0.2.1", negative=5)


@pytest.mark.parametrize(
    ("host", "found", "asked"),
    [
        ("bridge", "192.0.2.3", ["bridge.ns.example"]),
        ("bridge.ns", "192.0.2.3", ["bridge.ns", "bridge.ns.ns.example", "bridge.ns.example"]),
        ("api.example", "192.0.2.1", ["api.example"]),
        ("other", None, ["other.ns.example", "other.example", "other"]),
    ],
)
async def test_search_domains(host: str, found: str | None, asked: list[str]) -> None:
    """A name without a dot is looked for in the domains first; one with a dot is itself first."""
    async with resolving(SEARCHED, search=["ns.example", "example"]) as (resolve, server):
        if found is None:
            with pytest.raises(NameNotFound, match=host):
                await resolve(host)
        else:
            assert await resolve(host) == [found]
        assert [name for name, kind in server.asked if kind == "A"] == asked


# -- routes ------------------------------------------------------------------------------------------


def test_routes() -> None:
    """Loopback has one; nothing is sent to find out. What is no address has none."""
    assert has_route("127.0.0.1")
    assert not has_route("256.0.0.1")

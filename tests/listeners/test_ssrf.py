"""What the app is talked into calling: addresses that only this machine or its network should reach.

Through the real egress listener, with its own resolver and a name server of the test's. The target is there
and would answer: a test that passes has seen that it was not called.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.message
import pytest

from sidecar.upstreams.addresses import KEEP
from tests.support.clock import ManualClock
from tests.support.dns import DnsServer, Reply, records
from tests.support.egress import HOST, Egress, get
from tests.support.harness import Answer
from tests.support.origin import OK, Origin

ZONE = records(
    "inside.example A 127.0.0.1",
    "private.example A 10.1.2.3",
    "metadata.example A 169.254.169.254",
    "alias.example CNAME inside.example.",
    "six.example AAAA ::1",
    "mapped.example AAAA ::ffff:127.0.0.1",
    "both.example A 127.0.0.1",
    "both.example AAAA fd00::1",
    "zero.example A 0.0.0.0",
    f"{HOST} A 127.0.0.1",
    negative=5,
)

ADDRESSES = [
    "127.0.0.1", "127.0.0.1.", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1",
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "100.64.0.1", "192.0.0.192",
    "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "203.0.113.1", "[::1]", "[::]",
    "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::FFFF:7F00:1]", "[::127.0.0.1]", "[::ffff:a9fe:a9fe]",
    "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
    "[2001:0:7f00:1::]", "[fd00:ec2::254]", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]",
    "[2001:db8::1]",
]  # fmt: skip
"""Spelled as addresses are."""
DISGUISED = [
    "2130706433", "017700000001", "0x7f000001", "0X7F000001", "0x7f.0.0.1", "0x7f.1", "0177.0.0.1", "127.1",
    "127.0.1", "127.0.0.01", "127.000.000.001", "0", "0x0", "00", "2852039166", "0xa9fea9fe",
    "0251.0376.0251.0376", "169.254.43518", "1.2.3.4.5", "999.1.1.1", "127.0.0.1.0x0", "foo.127",
    "%31%32%37.0.0.1", "127.0.0.1%2e", "127%2e0%2e0%2e1",
]  # fmt: skip
"""Spelled as some programs take for addresses."""
NAMES = [
    "localhost", "LOCALHOST", "LocalHost.", "localhost.", "a.localhost", "inside.example", "INSIDE.Example.",
    "private.example", "metadata.example", "alias.example", "six.example", "mapped.example", "both.example",
    "zero.example",
]  # fmt: skip
"""That lead to such addresses."""
NO_HOSTS = [
    b"evil@127.0.0.1", b"public.example@127.0.0.1", b"127.0.0.1@public.example", b"user:pw@localhost",
    "１２７.0.0.1".encode(), "127。0。0。1".encode(), "ⓛocalhost".encode(), b"127.0.0.1\\@public.example",
    b"[::1", b"::1", b"[::1%25lo]", b"[fe80::1%eth0]", b"[127.0.0.1]", b"[::ffff:0177.0.0.1]",
    b"127.0.0.1;x", b"127.0.0.1,x", b"a..b", b"localhost:80:80", b"localhost:-1", b"localhost:0x50",
    b"localhost:65536", b"localhost:0", b"",
]  # fmt: skip
"""That are no hosts at all."""


@asynccontextmanager
async def sidecar(
    directory: Path, reply: Reply = ZONE, **settings: Any
) -> AsyncIterator[tuple[Egress, Origin, DnsServer]]:
    """An egress plane that may call no private address, and a target on loopback that would answer."""
    settings = {"egress": {"allow_private": []}, **settings}
    async with Origin(OK) as target, DnsServer(reply) as server:
        servers = {"servers": [str(server.address)]}
        policy = {"upstream": f"http://{HOST}:{target.address.port}", **settings.pop("policy", {})}
        async with Egress(directory, policy=policy, dns=servers, **settings) as egress:
            yield egress, target, server


async def both(egress: Egress, host: bytes, port: int) -> list[Answer]:
    """What a URL and a CONNECT with the host are answered."""
    answers = []
    where = host + b":%d" % port
    for request in (
        b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n" % where,
        b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % where,
    ):
        client = await egress.connect()
        await client.send(request)
        answer = await client.head()
        if answer.status != 200:
            await client._body(answer, "GET")
        answers.append(answer)
        client.close()
    return answers


@pytest.mark.parametrize("host", [*ADDRESSES, *DISGUISED, *NAMES])
async def test_spellings(tmp_path: Path, host: str) -> None:
    """403 `egress_denied`, which says why; for CONNECT in the place of the 200. Nothing is connected to."""
    async with sidecar(tmp_path) as (egress, target, _):
        for answer in await both(egress, host.encode(), target.address.port):
            assert (answer.status, answer.problem["code"]) == (403, "egress_denied")
            assert answer.header("sidecar-error") == "egress_denied"
            detail = answer.problem["detail"]
            if host in DISGUISED:
                assert detail.startswith(f"{host}: ")
            else:
                assert "egress.allow_private" in detail
        assert target.connections == 0
        assert egress.metrics.upstream("unlisted").connections_opened == 0
        assert egress.plane.tunnels.connections == 0


def test_there_are_enough_spellings() -> None:
    """Thirty are promised."""
    assert len({*ADDRESSES, *DISGUISED, *NAMES, *NO_HOSTS}) >= 30


@pytest.mark.parametrize("host", NO_HOSTS)
async def test_no_hosts(tmp_path: Path, host: bytes) -> None:
    """What a URL parser elsewhere might read as a host is none here: 400 or 403, and nothing is looked up."""
    async with sidecar(tmp_path) as (egress, target, server):
        for request in (
            b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n" % host,
            b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % (host if b":" in host else host + b":80"),
        ):
            client = await egress.connect()
            answer = await client.ask(request)
            assert answer.status in (400, 403)
            client.close()
        assert (target.connections, server.asked) == (0, [])


@pytest.mark.parametrize("name", ["127.1", "0x7f.1", "2130706433", "private.example", "metadata.example"])
async def test_by_sni(tmp_path: Path, name: str) -> None:
    """A ClientHello that names such a host is answered with an alert."""
    async with sidecar(tmp_path) as (egress, target, _):
        context = ssl.create_default_context()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await egress.secure(name, tls=context)
        assert target.connections == 0
        line = egress.requests()[0]
        assert (line["status"], line["error"]) == (403, "egress_denied")


async def test_a_listed_host_that_leads_inside(tmp_path: Path) -> None:
    """That a policy file owns the host changes nothing: its name may lead anywhere."""
    async with sidecar(tmp_path) as (egress, target, _):
        for answer in (
            await (await egress.connect()).ask(get(str(egress.address), "/provider/")),
            await (await egress.secure()).ask(get()),
        ):
            assert (answer.status, answer.problem["code"]) == (403, "egress_denied")
            assert answer.problem["detail"].startswith(f"{HOST} is at 127.0.0.1, a loopback address (egress.")
        assert target.connections == 0


@pytest.mark.parametrize("key", ["upstream", "connect_to"])
async def test_an_address_that_the_operator_wrote(tmp_path: Path, key: str) -> None:
    """It is called without being listed: who writes the file knows where it leads."""
    async with Origin(OK) as origin:
        at = str(origin.address)
        policy = {"upstream": f"http://{at}" if key == "upstream" else f"http://{HOST}"}
        if key == "connect_to":
            policy["connect_to"] = at
        async with sidecar(tmp_path, policy=policy) as (egress, _, server):
            answer = await (await egress.connect()).ask(get(str(egress.address), "/provider/"))
            assert (answer.status, server.asked) == (200, [])


@pytest.mark.parametrize("listed", ["127.0.0.1", "127.0.0.0/8", "::ffff:127.0.0.0/104"])
async def test_listed_addresses(tmp_path: Path, listed: str) -> None:
    """`egress.allow_private` lets calls pass to what it lists, and to nothing else."""
    networks = [listed] if ":" not in listed else [listed, "127.0.0.1"]
    async with sidecar(tmp_path, egress={"allow_private": networks}) as (egress, target, _):
        port = target.address.port
        for host in (b"127.0.0.1", b"inside.example"):
            assert [it.status for it in await both(egress, host, port)] == [200, 200]
        for host in (b"10.0.0.1", b"metadata.example"):
            assert [it.status for it in await both(egress, host, port)] == [403, 403]


async def test_rebinding(tmp_path: Path) -> None:
    """A name that leads elsewhere at the next look: each connection goes to an address that was judged in
    the look it came from, and there is one look for a connection.
    """
    turns = iter(["127.0.0.9", "127.0.0.1", "127.0.0.1", "127.0.0.1"])
    current = ""

    def reply(query: dns.message.Message) -> dns.message.Message | bytes | None:
        nonlocal current
        if dns.rdatatype.to_text(query.question[0].rdtype) == "A":
            current = next(turns)
        return records(f"rebinding.example A {current}", ttl=0, negative=600)(query)

    clock = ManualClock()
    egress_settings = {"allow_private": ["127.0.0.9"]}
    async with sidecar(tmp_path, reply, egress=egress_settings, clock=clock) as (egress, inside, server):
        port = inside.address.port
        async with Origin(OK, address=type(inside.address)("127.0.0.9", port)) as outside:
            request = b"GET http://rebinding.example:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port
            assert (await (await egress.connect()).ask(request)).status == 200
            assert server.count("rebinding.example") == 1
            await clock.advance(KEEP)
            for answer in await both(egress, b"rebinding.example", port):
                if answer.status == 200:  # over the connection that was kept to the first address
                    continue
                assert answer.problem["code"] == "egress_denied"
            await outside.close()
            answer = await (await egress.connect()).ask(request)
            assert (answer.status, answer.problem["code"]) == (403, "egress_denied")
        assert inside.connections == 0


async def test_a_name_with_addresses_of_both_kinds(tmp_path: Path) -> None:
    """Only those that may be called are: none of the others is a second choice."""
    reply = records("mixed.example A 127.0.0.1", "mixed.example A 127.0.0.9", negative=5)
    async with sidecar(tmp_path, reply, egress={"allow_private": ["127.0.0.9"]}) as (egress, target, _):
        answers = await both(egress, b"mixed.example", target.address.port)
        assert [answer.status for answer in answers] == [502, 502], "nobody listens at the other"
        assert target.connections == 0


async def test_redirects_are_the_apps_affair(tmp_path: Path) -> None:
    """An answer that points inside is handed over as it is, and not followed."""
    location = b"http://169.254.169.254/latest/meta-data/"
    moved = b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location
    async with Origin(moved) as origin:
        policy = {"upstream": f"http://{origin.address}"}
        async with sidecar(tmp_path, policy=policy) as (egress, _, server):
            answer = await (await egress.connect()).ask(get(str(egress.address), "/provider/"))
            assert (answer.status, answer.header("location")) == (302, location.decode())
            assert (origin.connections, server.asked) == (1, [])

"""Who gets the decision trail of an answer, and what the app learns of the question."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.decisions.trail import Member, parse
from tests.support.egress import Egress, get
from tests.support.harness import Answer, Harness
from tests.support.origin import Origin, OriginConnection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POLICIES = {"deadline": "30s", "circuit_breaker": {}, "retry": {"attempts": 2}}
USUAL = "deadline;ok, circuit_breaker;closed, attempt_timeout;ok, upstream;status=200, classify;ok, retry;ok"


def asking(value: bytes = b"1", *, method: bytes = b"GET", more: bytes = b"") -> bytes:
    return method + b" / HTTP/1.1\r\nHost: app\r\nX-Sidecar-Debug: " + value + b"\r\n" + more + b"\r\n"


def decided(answer: Answer) -> list[Member]:
    """The trail that an answer carries, its time left out."""
    [value] = answer.every("sidecar-decision")
    members = parse(value.encode())
    assert members is not None
    assert members[-1].layer == "observe"
    assert isinstance(members[-1].parameters["ms"], float)
    return members[:-1]


async def test_whoever_may_ask_is_told() -> None:
    """One field with every layer's decision, and the milliseconds that it took to come to them."""
    async with Origin(OK) as origin, Harness(origin, POLICIES, debug=["127.0.0.1/32"]) as proxy:
        assert decided(await proxy.ask(asking())) == parse(USUAL.encode())


@pytest.mark.parametrize(
    ("value", "told"),
    [(b"1", True), (b"yes", True), (b"", True), (b"0", False), (b"false", False), (b"False", False)],
)
async def test_what_counts_as_asking(value: bytes, told: bool) -> None:
    """Any value but 0 and false."""
    async with Origin(OK) as origin, Harness(origin, debug=["127.0.0.1/32"]) as proxy:
        answer = await proxy.ask(asking(value))
        assert (answer.header("sidecar-decision") is not None) == told


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\nHost: app\r\n\r\n", asking()])
async def test_nobody_else_is_told(request_: bytes) -> None:
    """Neither who does not ask, nor who asks from elsewhere."""
    networks = ["127.0.0.1/32"] if b"Debug" not in request_ else ["192.0.2.0/24"]
    async with Origin(OK) as origin, Harness(origin, debug=networks) as proxy:
        answer = await proxy.ask(request_)
        assert (answer.status, answer.header("sidecar-decision")) == (200, None)


@pytest.mark.parametrize(
    ("trusted", "client", "told"),
    [
        ((), b"192.0.2.1", True),
        (("127.0.0.1/32",), b"192.0.2.1", False),
        (("127.0.0.1/32",), b"127.0.0.1", True),
    ],
)
async def test_the_client_counts_not_its_proxy(trusted: tuple[str, ...], client: bytes, told: bool) -> None:
    """Behind a trusted proxy it is the client's address that must be trusted; else nobody's word counts."""
    async with Origin(OK) as origin, Harness(origin, trusted=trusted, debug=["127.0.0.1/32"]) as proxy:
        answer = await proxy.ask(asking(more=b"X-Forwarded-For: " + client + b"\r\n"))
        assert (answer.header("sidecar-decision") is not None) == told


@pytest.mark.parametrize("networks", [["127.0.0.1/32"], []])
@pytest.mark.parametrize("odd", [b"", b"X-Odd: \xe9\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_the_app_does_not_learn_of_it(networks: list[str], odd: bytes) -> None:
    """Asked in whatever spelling, and allowed or not, it ends here."""
    more = b"x-sidecar-DEBUG: 1\r\nX-Kept: 1\r\n" + odd
    async with Origin(OK) as origin, Harness(origin, debug=networks) as proxy:
        await proxy.ask(asking(more=more) + (b"0\r\n\r\n" if b"chunked" in odd else b""))
        names = {name.lower() for name, _ in origin.requests[0].headers}
        assert "x-kept" in names
        assert "x-sidecar-debug" not in names


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSidecar-Decision: forged;ok\r\nX-Kept: 1\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_every_kind_of_answer_tells(answer: bytes, method: bytes) -> None:
    """Counted, chunked, until close, without a body, and in the place of what the app claims."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    sent = head + b"\r\n\r\n" if method == b"HEAD" else answer

    async def closing(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(sent)

    script = closing if b"close" in head else sent
    async with Origin(script) as origin, Harness(origin, debug=["127.0.0.1/32"]) as proxy:
        got = await proxy.ask(asking(method=method))
        [upstream, *_] = decided(got)
        assert upstream == ("upstream", {"status": got.status})
        assert got.header("x-kept") == ("1" if b"X-Kept" in answer else None)


async def test_an_error_tells() -> None:
    """What the sidecar answers itself says which layer refused or failed, and why."""

    async def resets(connection: OriginConnection) -> None:
        await connection.request()

    async with Origin(resets) as origin, Harness(origin, POLICIES, debug=["127.0.0.1/32"]) as proxy:
        answer = await proxy.ask(asking(method=b"POST", more=b"Content-Length: 0\r\n"))
        assert (answer.status, answer.header("sidecar-error")) == (502, "upstream_reset")
        assert ("upstream", {"error": "upstream_reset"}) in decided(answer)
        assert ("retry", {"skipped": "method"}) in decided(answer)


async def test_an_upgrade_tells() -> None:
    """The answer that makes a connection a tunnel, too."""
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    async with Origin(switch) as origin, Harness(origin, debug=["127.0.0.1/32"]) as proxy:
        client = await proxy.connect()
        await client.send(asking(more=b"Connection: Upgrade\r\nUpgrade: echo\r\n"))
        assert decided(await client.head())[0] == ("upstream", {"status": 101})


@pytest.mark.parametrize("value", ["1", "0"])
async def test_the_app_may_ask_of_its_own_calls(tmp_path: Path, value: str) -> None:
    """On the egress side too; the provider does not learn of it."""
    async with Origin(OK) as origin, Egress(tmp_path, f"http://{origin.address}") as egress:
        client = await egress.connect()
        answer = await client.ask(get(path="/provider/a", X_Sidecar_Debug=value))
        assert (answer.header("sidecar-decision") is not None) == (value == "1")
        if value == "1":
            assert decided(answer)[0] == ("upstream", {"status": 200})
        assert "sidecar" not in str(origin.requests[0].headers).lower()


@pytest.mark.parametrize(
    ("egress", "trail"),
    [
        ({}, "upstream;status=200"),
        ({"unlisted": "deny"}, "egress;denied, observe;error=egress_denied"),
    ],
)
async def test_the_trail_of_a_tunnel(tmp_path: Path, egress: dict[str, str], trail: str) -> None:
    """What is not looked into passes no layer but `observe`; a refusal says who refused."""
    async with Origin(OK) as origin, Egress(tmp_path, egress=egress) as proxy:
        client = await proxy.connect()
        await client.send(f"CONNECT {origin.address} HTTP/1.1\r\nX-Sidecar-Debug: 1\r\n\r\n".encode())
        assert decided(await client.head()) == parse(trail.encode())

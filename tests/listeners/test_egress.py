"""The egress listener: URLs, CONNECT and base URLs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sidecar.config.addresses import Url
from sidecar.exchange import Exchange, Request
from tests.support.egress import HOST, OTHER, Egress, get
from tests.support.harness import GET, eventually
from tests.support.origin import Origin, OriginConnection, answers

OK = b"HTTP/1.1 200 OK\r\nX-Request-ID: theirs\r\nContent-Length: 2\r\n\r\nok"
TAKES = (
    "this listener is a forward proxy (http://host/… and CONNECT host:port), and serves /POLICY/… for the "
    "policy files of direction egress: provider"
)


HTTPS = b"GET https://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n"


def url(origin: Origin) -> str:
    return f"http://{origin.address}"


def absolute(host: str, path: str = "/") -> bytes:
    return f"GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


# -- what a policy owns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        f"http://{HOST}/a?b=c",
        f"HTTP://{HOST.upper()}/a?b=c",
        f"http://{HOST}:80/a?b=c",
        f"http://{HOST}./a?b=c",
        f"https://{HOST}/a?b=c",
        f"https://{HOST}:443/a?b=c",
    ],
)
async def test_a_url_of_a_listed_host(tmp_path: Path, target: str) -> None:
    """It goes to the file's upstream, in the name of that, through the file's routes."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        answer = await client.ask(f"GET {target} HTTP/1.1\r\nHost: else.example\r\n\r\n".encode())
        assert (answer.status, answer.body) == (200, b"ok")
        (request,) = origin.requests
        assert (request.target, request.header("host")) == ("/a?b=c", str(origin.address))
    (line,) = egress.requests()
    assert (line["route"], line["upstream"], line["path"]) == ("all", "provider", "/a?b=c")


@pytest.mark.parametrize("prefix", ["/provider", "http://localhost:{port}/provider"])
@pytest.mark.parametrize(
    ("rest", "asked"), [("/a?b=c", "/a?b=c"), ("", "/"), ("?b=c", "/?b=c"), ("/", "/"), ("//a", "//a")]
)
async def test_a_base_url(tmp_path: Path, prefix: str, rest: str, asked: str) -> None:
    """`/POLICY` is taken off, also where the client goes through the proxy to the proxy itself."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        target = prefix.format(port=egress.address.port) + rest
        answer = await client.ask(f"GET {target} HTTP/1.1\r\nHost: {egress.address}\r\n\r\n".encode())
        assert answer.status == 200
        (request,) = origin.requests
        assert (request.target, request.header("host")) == (asked, str(origin.address))


async def test_the_provider_hears_nothing_of_the_sidecar(tmp_path: Path) -> None:
    """Lines of the app pass as they are; those for the proxy do not, and none is added."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        await client.ask(
            b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\nAccept: */*\r\nX-Forwarded-For: 1.2.3.4\r\n"
            b"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nVia: 1.1 mine\r\n"
            b"X-Request-ID: app-7\r\n\r\n" % (HOST.encode(), HOST.encode())
        )
        (request,) = origin.requests
        assert request.headers == [
            ("Host", str(origin.address)),
            ("Accept", "*/*"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("Via", "1.1 mine"),
            ("X-Request-ID", "app-7"),
        ]
    assert egress.requests()[0]["request_id"] == "app-7"


async def test_ids_of_answers(tmp_path: Path) -> None:
    """The provider's id of an answer reaches the app; where it gives none, ours does."""
    script = answers(OK, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    async with Origin(script) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        assert (await client.ask(absolute(HOST))).every("x-request-id") == ["theirs"]
        (made,) = (await client.ask(absolute(HOST))).every("x-request-id")
    assert made == egress.requests()[1]["request_id"]


async def test_a_request_that_no_route_takes(tmp_path: Path) -> None:
    """It goes to the file's upstream, observed under the file's name."""
    async with (
        Origin(OK) as origin,
        Egress(tmp_path, url(origin), route={"match": {"path": "/maps"}}) as egress,
    ):
        client = await egress.connect()
        assert (await client.ask(absolute(HOST, "/other"))).status == 200
    (line,) = egress.requests()
    assert (line["route"], line["upstream"]) == ("provider/unmatched", "provider")


async def test_the_cache_knows_a_call_by_any_door(tmp_path: Path) -> None:
    """What was fetched for one door answers at all others."""
    cached = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok"
    async with (
        Origin(cached) as origin,
        Egress(tmp_path, url(origin), route={"cache": {}}, policy={"takeover": "127.0.0.1:0"}) as egress,
    ):
        for ask in (absolute(HOST, "/x"), absolute(OTHER, "/x"), get(str(egress.address), "/provider/x")):
            assert (await (await egress.connect()).ask(ask)).body == b"ok"
        assert (await (await egress.secure()).ask(get(HOST, "/x"))).body == b"ok"
        taken = await egress.connect(egress.taken_over)
        assert (await taken.ask(get("localhost:5053", "/x"))).body == b"ok"
        assert len(origin.requests) == 1


async def test_hosts_without_an_upstream_have_a_pool_each(tmp_path: Path) -> None:
    """Each is called by https, by its own name and at its own port; `connect_to` pins where."""
    async with Origin(OK) as origin:
        policy = {"hosts": [HOST, f"{OTHER}:8443"], "connect_to": str(origin.address)}
        async with Egress(tmp_path, policy=policy) as egress:
            pools = {pool.name: str(pool.url) for pool in egress.plane.upstreams}
    assert pools == {
        f"provider/{HOST}": f"https://{HOST}",
        f"provider/{OTHER}:8443": f"https://{OTHER}:8443",
    }


async def test_a_takeover_address(tmp_path: Path) -> None:
    """Plain HTTP to an address the app has hard-coded goes to the file's upstream, whatever Host says."""
    policy = {"hosts": [], "takeover": ["127.0.0.1:0", "127.0.0.1:0"]}
    async with Origin(OK) as origin, Egress(tmp_path, url(origin), policy=policy, intercept=[]) as egress:
        client = await egress.connect(egress.taken_over)
        assert (await client.ask(get("localhost:5053", "/api"))).status == 200
        assert origin.requests[0].header("host") == str(origin.address)
        assert egress.metrics.listeners["takeover"].accepted == 1
        assert egress.plane.authority is None
    assert egress.requests()[0]["route"] == "all"


async def test_purge(tmp_path: Path) -> None:
    """PURGE of a listed host's URL drops what is stored for it, by any door, for those who may."""
    cached = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok"
    async with Origin(cached) as origin, Egress(tmp_path, url(origin), route={"cache": {}}) as egress:
        client = await egress.connect()
        await client.ask(absolute(HOST, "/x"))
        for purge, found in (
            (absolute(HOST, "/x").replace(b"GET", b"PURGE"), 1),
            (get("x", "/provider/x").replace(b"GET", b"PURGE"), 0),
        ):
            answer = await client.ask(purge)
            assert (answer.status, answer.body) == (200 if found else 404, b'{"purged": %d}' % found)
        await client.ask(absolute(HOST, "/x"))
        assert len(origin.requests) == 2


async def test_calls_that_come_in_by_no_listener(tmp_path: Path) -> None:
    """Warming and the like find the file by the URL, as it is listed or as it is stored; else it has none."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:

        def found(address: str) -> str | None:
            parts = urlsplit(address)
            request = Request("GET", parts.path.encode(), [], host=parts.netloc.encode(), scheme=parts.scheme)
            exchange = Exchange(request, "", 0.0)
            if egress.plane.routes.of_url(exchange) is None:
                return None
            return f"{exchange.route} {request.scheme}://{request.host.decode()}"

        upstream = f"http://{origin.address}"
        assert found(f"https://{HOST}/x") == f"all {upstream}"
        assert found(f"{upstream}/x") == f"all {upstream}"
        assert found(f"https://{origin.address}/x") is None
        assert found("https://other.example/x") is None
        assert egress.plane.homes["all"] == Url("http", "127.0.0.1", origin.address.port)


# -- what nobody owns ------------------------------------------------------------------------------


async def test_a_url_of_another_host(tmp_path: Path) -> None:
    """It is called as it is, over a connection that is kept, and counted as unlisted."""
    async with Origin(OK) as origin, Egress(tmp_path) as egress:
        client = await egress.connect()
        for _ in range(2):
            answer = await client.ask(absolute(f"localhost:{origin.address.port}", "/a"))
            assert (answer.status, answer.body) == (200, b"ok")
        assert origin.connections == 1
        assert origin.requests[0].headers == [("Host", f"localhost:{origin.address.port}")]
        cells = egress.metrics.upstreams["unlisted"]
        assert (cells.connections_opened, cells.connections_reused) == (1, 1)
    line = egress.requests()[0]
    assert (line["route"], line["upstream"]) == ("unlisted", f"localhost:{origin.address.port}")


@pytest.mark.parametrize(
    "request_", [absolute("localhost:1"), b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n"]
)
async def test_unlisted_hosts_denied(tmp_path: Path, request_: bytes) -> None:
    """`egress: {unlisted: deny}` refuses with 403 and says what to do."""
    async with Egress(tmp_path, egress={"unlisted": "deny"}) as egress:
        answer = await (await egress.connect()).ask(request_)
        assert (answer.status, answer.header("sidecar-error")) == (403, "egress_denied")
        assert answer.problem["detail"] == (
            "no policy file lists this host, and egress.unlisted is deny (add it to hosts)"
        )
    (line,) = egress.requests()
    assert (line["route"], line["status"], line["error"]) == ("unlisted", 403, "egress_denied")


@pytest.mark.parametrize(
    ("request_", "status", "code", "detail"),
    [
        (GET, 404, "not_served", TAKES),
        (get("x", "/nobody/a"), 404, "not_served", TAKES),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_served", TAKES),
        (HTTPS, 400, "bad_request", "https goes through this proxy by CONNECT"),
        (absolute("localhost:99999"), 400, "bad_request", "99999 is no port: write a number of 1 to 65535"),
        (absolute("localhost:0"), 400, "bad_request", "0 is no port: write a number of 1 to 65535"),
        (absolute("nowhere.example"), 502, "connect_failed", "no such name: nowhere.example"),
        (absolute("localhost:1"), 502, "connect_failed", "Connection refused"),
    ],
)  # fmt: skip
async def test_what_it_does_not_take(
    tmp_path: Path, request_: bytes, status: int, code: str, detail: str
) -> None:
    """The answer says what it takes; the connection goes on."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        answer = await client.ask(request_)
        assert (answer.status, answer.problem["code"], answer.problem["detail"]) == (status, code, detail)
        assert (await client.ask(absolute(HOST))).status == 200


async def test_several_hosts_have_no_base_url(tmp_path: Path) -> None:
    """Where a file has a pool for each host, a base URL does not tell which."""
    async with Egress(tmp_path) as egress:
        answer = await (await egress.connect()).ask(get("x", "/provider/a"))
        assert (answer.status, answer.problem["code"]) == (404, "not_served")
        assert "lists several hosts and no upstream" in answer.problem["detail"]


# -- CONNECT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status", "detail"),
    [
        (b"CONNECT localhost HTTP/1.1\r\n", 400, "the request names no port: CONNECT takes host:port"),
        (b"CONNECT localhost:99999 HTTP/1.1\r\n", 400, "99999 is no port: write a number of 1 to 65535"),
        (b"CONNECT localhost:0 HTTP/1.0\r\n", 400, "0 is no port: write a number of 1 to 65535"),
        (b"CONNECT :443 HTTP/1.1\r\n", 400, "the request names no host"),
        (b"CONNECT localhost:http HTTP/1.1\r\n", 400, "the target of CONNECT is not host:port"),
        (b"CONNECT u:p@localhost:1 HTTP/1.1\r\n", 400, "the target of CONNECT is not host:port"),
        (b"CONNECT localhost:1 HTTP/1.1\r\n", 502, "Connection refused"),
        (b"CONNECT nowhere.example:443 HTTP/1.1\r\n", 502, "no such name: nowhere.example"),
        (b"CONNECT localhost:1 HTTP/1.1\r\nContent-Length: 5\r\n", 400, "CONNECT has no body"),
        (b"CONNECT localhost:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", 400, "CONNECT has no body"),
    ],
)
async def test_connect_to_nowhere(tmp_path: Path, head: bytes, status: int, detail: str) -> None:
    """It is answered with the reason and closed, and one line is logged."""
    async with Egress(tmp_path) as egress:
        client = await egress.connect()
        answer = await client.ask(head + b"\r\n")
        assert (answer.status, answer.problem["detail"]) == (status, detail)
        assert answer.closes
        assert await client.rest() == b""
        client.close()
        await eventually(lambda: not egress.plane.connections)
    assert len(egress.requests()) + len(egress.refused) == 1


async def echo(connection: OriginConnection) -> None:
    while data := await connection.reader.read(65536):
        await connection.send(data)
    await connection.send(b"bye")


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("host", [b"Host: x\r\n", b"Proxy-Connection: keep-alive\r\n", b""])
@pytest.mark.parametrize("early", [b"", b"\x16\x03\x01 early"])
async def test_a_tunnel(tmp_path: Path, version: bytes, host: bytes, early: bytes) -> None:
    """CONNECT to another host joins client and host, byte for byte, half-closes too; with what came early."""
    async with Origin(echo) as origin, Egress(tmp_path) as egress:
        client = await egress.connect()
        target = b"localhost:%d" % origin.address.port
        await client.send(b"CONNECT %b HTTP/%b\r\n%b\r\n%b" % (target, version, host, early))
        answer = await client.head()
        assert answer.head == b"HTTP/1.1 200 Connection established\r\n%b\r\n\r\n" % (
            b"X-Request-ID: " + (answer.header("x-request-id") or "").encode()
        )
        everything = bytes(range(256)) * 1000
        await client.send(everything)
        client.half_close()
        assert await client.rest() == early + everything + b"bye"
        await eventually(lambda: not egress.plane.connections and not egress.plane.tunnels.connections)
    assert bytes(origin.received) == early + everything
    (line,) = egress.requests()
    assert (line["method"], line["path"], line["status"]) == ("CONNECT", target.decode(), 200)
    assert (line["bytes_in"], line["bytes_out"]) == (len(early) + 256_000, len(early) + 256_003)


async def test_an_idle_tunnel(tmp_path: Path) -> None:
    """A tunnel ends after an hour in which nothing moved in it."""
    async with Origin(echo) as origin, Egress(tmp_path) as egress:
        client = await egress.tunnel(f"localhost:{origin.address.port}")
        now = egress.clock.now()
        egress.plane.sweep(now + 3599)
        await client.send(b"x")
        assert await client.reader.readexactly(1) == b"x"
        egress.plane.sweep(now + 3601 + 1)
        assert await client.ended()
        await eventually(lambda: not egress.plane.tunnels.connections)


async def test_a_call_that_comes_back(tmp_path: Path) -> None:
    """A call that leads to the egress or the intercept listener is refused: 508."""
    async with Egress(tmp_path) as egress:
        for target in (egress.address, egress.intercept):
            answer = await (await egress.connect()).ask(
                f"CONNECT localhost:{target.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            assert (answer.status, answer.problem["code"]) == (508, "loop_detected")


async def test_a_private_address(tmp_path: Path) -> None:
    """What `allow_private` does not list is not called, by whatever name it goes."""
    names = {"inside.example": "10.1.2.3"}
    async with Egress(tmp_path, egress={"allow_private": []}, names=names) as egress:
        for host, says in (
            ("127.0.0.1:80", "127.0.0.1 is a loopback address"),
            ("inside.example:80", "inside.example is at 10.1.2.3, a private address"),
            ("169.254.169.254:80", "169.254.169.254 is the address of a metadata service"),
        ):
            for request in (absolute(host), f"CONNECT {host} HTTP/1.1\r\nHost: x\r\n\r\n".encode()):
                answer = await (await egress.connect()).ask(request)
                assert (answer.status, answer.problem["code"]) == (403, "egress_denied")
                assert answer.problem["detail"] == (
                    f"{says} (egress.allow_private lists those that may be called)"
                )


@pytest.mark.parametrize("side", ["client", "host"])
async def test_back_pressure_in_a_tunnel(tmp_path: Path, side: str) -> None:
    """A side that does not read pauses the other."""
    go = asyncio.Event()
    size = 64 * 1024**2
    sent = received = 0

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < size:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
        writer.write_eof()

    async def receive(reader: asyncio.StreamReader) -> None:
        nonlocal received
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        while data := await reader.read(256 * 1024):
            received += len(data)

    async def script(connection: OriginConnection) -> None:
        if side == "host":
            await receive(connection.reader)
        else:
            await send(connection.writer)
            await connection.gone()

    async with Origin(script, record=False, buffer=16 * 1024) as origin, Egress(tmp_path) as egress:
        client = await egress.tunnel(f"localhost:{origin.address.port}")
        work = asyncio.create_task(receive(client.reader) if side == "client" else send(client.writer))
        await asyncio.sleep(0.3)
        assert 0 < sent < 20 * 1024**2, "kernel buffers, and a few of ours"
        go.set()
        await eventually(lambda: received == size)
        await work


async def test_a_connect_behind_another_request(tmp_path: Path) -> None:
    """A connection may serve requests first; what comes behind the CONNECT, early too, is the tunnel's."""
    async with Origin(echo) as far, Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        await client.send(
            absolute(HOST) + b"CONNECT localhost:%d HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03" % far.address.port
        )
        assert (await client.answer()).body == b"ok"
        assert (await client.head()).status == 200
        await client.send(b"more")
        assert await client.reader.readexactly(6) == b"\x16\x03more"


async def test_too_many_connections(tmp_path: Path) -> None:
    """`limits.connections` bounds tunnels too."""
    async with Origin(echo) as origin, Egress(tmp_path, limits={"connections": 2}) as egress:
        tunnels = [await egress.tunnel(f"localhost:{origin.address.port}") for _ in range(2)]
        answer = await (await egress.connect()).answer()
        assert (answer.status, answer.problem["code"]) == (503, "draining")
        tunnels[0].close()
        await eventually(lambda: egress.plane.connections == 1)
        await egress.tunnel(f"localhost:{origin.address.port}")

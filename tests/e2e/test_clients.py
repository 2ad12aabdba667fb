"""Clients written in Python, and raw sockets, through a real sidecar to a real app."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx
import pytest
import pytest_asyncio
import requests
from yarl import URL

from tests.support import tiny_app
from tests.support.origin import self_signed
from tests.support.processes import Program, Sidecar, TinyApp, free_port, total, until_connects

TEN_MB = 10 * 1000 * 1000
PIECES = [b"first", b"", *[b"x" * 100_000] * 20, b"last"]
"""Too much to come whole with its head: such a body would go on with a Content-Length."""
WHOLE = b"".join(PIECES)
POLICIES = {
    "name": "clients",
    "defaults": {
        "deadline": "30s",
        "attempt_timeout": "10s",
        "retry": {"attempts": 2},
        "circuit_breaker": {"consecutive": 5},
        "concurrency_limit": {"max": 32},
    },
    "routes": [{"name": "all", "match": {"path": "/*"}}],
}


@asynccontextmanager
async def running(program: Program) -> AsyncIterator[None]:
    """Starts the program, and ends it whatever happens."""
    try:
        await program.start()
        yield
    finally:
        if program.process is not None and program.process.returncode is None:
            await program.end(signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TinyApp]:
    tiny = TinyApp(tmp_path_factory.mktemp("app"))
    async with running(tiny):
        yield tiny


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sidecar(tmp_path_factory: pytest.TempPathFactory, app: TinyApp) -> AsyncIterator[Sidecar]:
    """One for all tests of this file, with every layer in the way."""
    process = Sidecar(tmp_path_factory.mktemp("sidecar"), app.port, POLICIES)
    async with running(process):
        yield process


# -- three libraries, one surface --------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    """As the library gives it: unzipped."""

    def json(self) -> Any:
        return json.loads(self.body)


class Client(Protocol):
    """What the tests ask of a library. It keeps its connections alive, as it does by default."""

    async def send(
        self,
        method: str,
        url: str,
        *,
        data: Any = None,
        pieces: list[bytes] | None = None,
        follow: bool = False,
    ) -> Answer:
        """`data` goes out as JSON, `pieces` from a generator: in chunks."""
        ...

    async def close(self) -> None: ...


class Requests:
    def __init__(self) -> None:
        self._session = requests.Session()

    async def send(
        self,
        method: str,
        url: str,
        *,
        data: Any = None,
        pieces: list[bytes] | None = None,
        follow: bool = False,
    ) -> Answer:
        def send() -> Answer:
            body: Iterator[bytes] | None = iter(pieces) if pieces is not None else None
            reply = self._session.request(
                method, url, json=data, data=body, allow_redirects=follow, timeout=20
            )
            headers = {name.lower(): value for name, value in reply.headers.items()}
            return Answer(reply.status_code, headers, reply.content)

        return await asyncio.to_thread(send)

    async def close(self) -> None:
        self._session.close()


class Httpx:
    def __init__(self) -> None:
        self._client = httpx.AsyncClient(timeout=20)

    async def send(
        self,
        method: str,
        url: str,
        *,
        data: Any = None,
        pieces: list[bytes] | None = None,
        follow: bool = False,
    ) -> Answer:
        body = _as_they_come(pieces) if pieces is not None else None
        reply = await self._client.request(method, url, json=data, content=body, follow_redirects=follow)
        return Answer(reply.status_code, dict(reply.headers), reply.content)

    async def close(self) -> None:
        await self._client.aclose()


class Aiohttp:
    def __init__(self) -> None:
        self._session = aiohttp.ClientSession()

    async def send(
        self,
        method: str,
        url: str,
        *,
        data: Any = None,
        pieces: list[bytes] | None = None,
        follow: bool = False,
    ) -> Answer:
        body = _as_they_come(pieces) if pieces is not None else None
        sent = self._session.request(method, url, json=data, data=body, allow_redirects=follow)
        async with sent as reply:
            headers = {name.lower(): value for name, value in reply.headers.items()}
            return Answer(reply.status, headers, await reply.read())

    async def close(self) -> None:
        await self._session.close()


async def _as_they_come(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.fixture(params=[Requests, Httpx, Aiohttp], ids=lambda kind: kind.__name__.lower())
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    made: Client = request.param()
    yield made
    await made.close()


async def test_get(client: Client, sidecar: Sidecar) -> None:
    """The app gets the target as the client wrote it, and the client the app's answer."""
    answer = await client.send("GET", sidecar.url + "/echo?q=a%20b&q=%C3%A9")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert (answer.json()["method"], answer.json()["target"]) == ("GET", "/echo?q=a%20b&q=%C3%A9")
    assert answer.json()["headers"]["host"] == f"127.0.0.1:{sidecar.port}"


async def test_json(client: Client, sidecar: Sidecar) -> None:
    """A POST with JSON arrives with its type and its length."""
    sent = {"name": "Zoë", "list": [1, 2.5, None]}
    got = (await client.send("POST", sidecar.url + "/echo", data=sent)).json()
    assert json.loads(got["body"].encode("latin-1")) == sent
    assert got["headers"]["content-type"] == "application/json"
    assert int(got["headers"]["content-length"]) == got["length"]


async def test_chunked_upload(client: Client, sidecar: Sidecar) -> None:
    """A generator's pieces arrive whole, in chunks."""
    got = (await client.send("POST", sidecar.url + "/echo", pieces=PIECES)).json()
    assert (got["length"], got["sha256"]) == (len(WHOLE), hashlib.sha256(WHOLE).hexdigest())
    assert got["headers"]["transfer-encoding"] == "chunked"
    assert "content-length" not in got["headers"]


@pytest.mark.parametrize(("kind", "length"), [("bytes", str(TEN_MB)), ("stream", None)])
async def test_download(client: Client, sidecar: Sidecar, kind: str, length: str | None) -> None:
    """10 MB come down byte-exact, counted and chunked."""
    answer = await client.send("GET", f"{sidecar.url}/{kind}/{TEN_MB}")
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(tiny_app.payload(TEN_MB)).digest()
    assert answer.headers.get("content-length") == length


async def test_gzip(client: Client, sidecar: Sidecar) -> None:
    """A compressed body is passed on as it is; the client unzips it."""
    answer = await client.send("GET", sidecar.url + "/zipped")
    assert answer.body == tiny_app.UNZIPPED
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) == len(tiny_app.ZIPPED)


async def test_head(client: Client, sidecar: Sidecar) -> None:
    """HEAD has the length that GET would have, no body, and leaves the connection usable."""
    answer = await client.send("HEAD", sidecar.url + "/bytes/1234")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "1234", b"")
    assert (await client.send("GET", sidecar.url + "/bytes/3")).body == tiny_app.payload(3)


@pytest.mark.parametrize("to", ["/echo?from=here", "http://elsewhere.example/x?y=%20"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_passed_on(client: Client, sidecar: Sidecar, status: int, to: str) -> None:
    """Status, Location and body reach the client untouched: the sidecar follows none."""
    target = str(URL("/redirect").with_query(status=str(status), to=to))
    answer = await client.send("GET", sidecar.url + target)
    assert (answer.status, answer.headers["location"], answer.body) == (status, to, b"elsewhere")


async def test_redirects_are_followed_by_the_client(client: Client, sidecar: Sidecar) -> None:
    """A client that follows 307 sends its body again, to the sidecar."""
    target = "/redirect?status=307&to=/echo"
    got = (await client.send("POST", sidecar.url + target, data={"a": 1}, follow=True)).json()
    assert (got["method"], got["target"], json.loads(got["body"])) == ("POST", "/echo", {"a": 1})


async def test_keep_alive(client: Client, sidecar: Sidecar) -> None:
    """Requests of every kind share one connection."""
    before = await accepted(sidecar)
    for _ in range(3):
        await client.send("GET", sidecar.url + "/echo")
        await client.send("POST", sidecar.url + "/echo", data={"a": 1})
        await client.send("POST", sidecar.url + "/echo", pieces=PIECES)
        await client.send("HEAD", sidecar.url + "/bytes/1000")
        await client.send("GET", sidecar.url + "/stream/100000")
        await client.send("GET", sidecar.url + "/redirect?status=302&to=/x")
    assert await accepted(sidecar) - before == 1


async def accepted(sidecar: Sidecar) -> float:
    """Connections of clients so far."""
    return total(await sidecar.metrics(), "nextvision_connections_accepted_total", listener="ingress")


# -- what only some clients can do -------------------------------------------------------------------


async def test_expect_continue(sidecar: Sidecar) -> None:
    """The client waits for 100 Continue before it sends the body."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(sidecar.url + "/echo", data=_as_they_come(PIECES), expect100=True) as reply,
    ):
        assert (await reply.json())["sha256"] == hashlib.sha256(WHOLE).hexdigest()


async def test_server_sent_events(sidecar: Sidecar) -> None:
    """Each event reaches the client before the app has the next: httpx reads them as lines."""
    url = sidecar.url + "/events/httpx"
    async with httpx.AsyncClient(timeout=10) as http, http.stream("GET", url) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        seen = []
        async for line in reply.aiter_lines():
            if line:
                seen.append(line)
                await http.post(url)
    assert seen == ["data: 1", "data: 2", "data: 3"]


async def test_websocket(sidecar: Sidecar) -> None:
    """Text, bytes, the subprotocol, a ping and the app's close code go through."""
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(sidecar.url + "/ws", protocols=["echo"]) as chat,
    ):
        assert chat.protocol == "echo"
        for number in range(100):
            await chat.send_str(f"é{number}")
            assert await chat.receive_str(timeout=5) == f"é{number}"
        await chat.send_bytes(WHOLE)
        assert await chat.receive_bytes(timeout=5) == WHOLE
        await chat.ping(b"there?")
        await chat.send_str("close")
        message = await chat.receive(timeout=5)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4000)
        assert message.extra == "as told"


# -- raw sockets -------------------------------------------------------------------------------------


class Raw:
    """One connection, written to and read from as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> tuple[bytes, dict[bytes, bytes]]:
        """Status line, and fields by their names in lower case."""
        raw = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 5)
        first, *lines = raw[:-4].split(b"\r\n")
        fields = (line.partition(b":") for line in lines)
        return first, {name.lower(): value.strip() for name, _, value in fields}

    async def answer(self) -> tuple[bytes, dict[bytes, bytes], bytes]:
        """An answer with a Content-Length."""
        first, fields = await self.head()
        return (
            first,
            fields,
            await asyncio.wait_for(self._reader.readexactly(int(fields[b"content-length"])), 5),
        )

    async def rest(self) -> bytes:
        """All until the sidecar closes."""
        return await asyncio.wait_for(self._reader.read(-1), 5)


@pytest.fixture
async def raw(sidecar: Sidecar) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    yield Raw(reader, writer)
    writer.close()
    await writer.wait_closed()


async def test_pipelining(raw: Raw) -> None:
    """Ten requests in one write, slow and quick, with and without a body, are answered in order."""
    asked = ["/echo?0", "/slow", *(f"/echo?{number}" for number in range(2, 9)), "/bytes/100000"]
    heads = [f"GET {target} HTTP/1.1\r\nHost: app\r\n\r\n".encode() for target in asked]
    heads[4] = b"POST /echo?4 HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"
    heads[5] = (
        b"POST /echo?5 HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    await raw.write(b"".join(heads))
    answers = [await raw.answer() for _ in asked]
    assert {first for first, _, _ in answers} == {b"HTTP/1.1 200 OK"}
    bodies = [body for _, _, body in answers]
    assert (bodies[1], bodies[9]) == (b"slow", tiny_app.payload(100_000))
    echoed = [json.loads(body) for number, body in enumerate(bodies) if number not in (1, 9)]
    assert [got["target"] for got in echoed] == [f"/echo?{number}" for number in (0, 2, 3, 4, 5, 6, 7, 8)]
    assert [got["body"] for got in echoed] == ["", "", "", "hello", "abc", "", "", ""]


async def test_http_1_0_closes(raw: Raw) -> None:
    """Without keep-alive the connection ends with the answer, and no Host is needed."""
    await raw.write(b"GET /echo HTTP/1.0\r\n\r\n")
    first, fields, body = await raw.answer()
    assert (first, fields[b"connection"]) == (b"HTTP/1.1 200 OK", b"close")
    assert json.loads(body)["target"] == "/echo"
    assert await raw.rest() == b""


async def test_http_1_0_keeps_alive(raw: Raw) -> None:
    """A client that asks for it is told that the connection stays, and may use it again."""
    for number in range(3):
        await raw.write(b"GET /echo?%d HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" % number)
        _, fields, body = await raw.answer()
        assert fields[b"connection"].lower() == b"keep-alive"
        assert json.loads(body)["target"] == f"/echo?{number}"
    await raw.write(b"GET /echo HTTP/1.0\r\n\r\n")
    assert (await raw.answer())[1][b"connection"] == b"close"
    assert await raw.rest() == b""


@pytest.mark.parametrize("field", [b"", b"Connection: keep-alive\r\n"], ids=["plain", "keep-alive"])
async def test_http_1_0_knows_no_chunks(raw: Raw, field: bytes) -> None:
    """A body of unknown length ends with the connection, even where the client asked to keep it."""
    await raw.write(b"GET /stream/%d HTTP/1.0\r\n%b\r\n" % (TEN_MB, field))
    _, fields = await raw.head()
    assert not {b"transfer-encoding", b"content-length"} & fields.keys()
    assert fields[b"connection"] == b"close"
    assert await raw.rest() == tiny_app.payload(TEN_MB)


# -- other ways in and out ---------------------------------------------------------------------------


@asynccontextmanager
async def listening_on(ingress: str, folder: Path, app: TinyApp) -> AsyncIterator[None]:
    """A sidecar that clients do not reach over IPv4."""
    listen = {"ingress": ingress, "admin": f"127.0.0.1:{free_port()}"}
    sidecar = Sidecar(folder, app.port, listen=listen)
    async with running(Program(sidecar.command, sidecar.output)):
        for _ in range(1000):
            if '"listening"' in sidecar.output.read_text():
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError(f"it does not listen: {sidecar.output.read_text()[-3000:]}")
        yield


async def echoed(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.post(url, data=_as_they_come(PIECES)) as reply:
        assert reply.status == 200
        got: dict[str, Any] = await reply.json()
        assert got["sha256"] == hashlib.sha256(WHOLE).hexdigest()
        return got


async def test_over_a_unix_socket(tmp_path: Path, app: TinyApp) -> None:
    """`listen.ingress: unix:/path` serves clients on a socket file."""
    path = tmp_path / "in.sock"
    async with listening_on(f"unix:{path}", tmp_path, app):
        assert path.is_socket()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http:
            assert (await echoed(http, "http://app.example/echo"))["headers"]["host"] == "app.example"
            async with http.get(f"http://app.example/bytes/{TEN_MB}") as reply:
                assert await reply.read() == tiny_app.payload(TEN_MB)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
async def test_over_ipv6(tmp_path: Path, app: TinyApp) -> None:
    """`listen.ingress: "[::1]:port"` serves clients over IPv6; the app learns the client's address."""
    where = f"[::1]:{free_port()}"
    async with listening_on(where, tmp_path, app), aiohttp.ClientSession() as http:
        got = await echoed(http, f"http://{where}/echo")
    assert (got["headers"]["host"], got["headers"]["x-forwarded-for"]) == (where, "::1")


async def test_to_an_app_over_tls(tmp_path: Path) -> None:
    """An https upstream is verified against `tls.ca` where it is given, else against the system's roots."""
    certificate = self_signed(tmp_path)
    port = free_port()
    command = [sys.executable, tiny_app.__file__, str(port), str(certificate.path), str(certificate.key)]
    url = f"https://localhost:{port}"
    policies = {
        "name": "over-tls",
        "upstream": url,
        "tls": {"ca": str(certificate.path)},
        "routes": [{"name": "trusted", "match": {"path": "/*"}}],
    }
    trusting, wary = tmp_path / "trusting", tmp_path / "wary"
    for folder in (trusting, wary):
        folder.mkdir()
    trusted = Sidecar(trusting, free_port(), policies)
    doubted = Sidecar(wary, free_port(), app={"url": url})
    async with AsyncExitStack() as stack:
        for program in (Program(command, tmp_path / "app.out"), trusted, doubted):
            await stack.enter_async_context(running(program))
        await until_connects(port)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await echoed(http, trusted.url + "/echo")
        async with http.get(f"{trusted.url}/stream/{TEN_MB}") as reply:
            assert await reply.read() == tiny_app.payload(TEN_MB)
        async with http.get(doubted.url + "/echo") as reply:
            assert reply.status == 502

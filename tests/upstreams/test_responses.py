"""Responses of the upstream: what is passed on, and what is not."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.harness import ALL_POLICIES, GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection, answers

GET10 = b"GET / HTTP/1.0\r\nHost: app\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: app\r\n\r\n"
S = b"HTTP/1.1 200 OK\r\n"

BAD = {
    "length, then chunked": S + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then length": S + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "two equal lengths": S + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "two different lengths": S + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "a list of lengths": S + b"Content-Length: 2, 2\r\n\r\nok",
    "a length with a plus": S + b"Content-Length: +2\r\n\r\nok",
    "an empty length": S + b"Content-Length:\r\n\r\nok",
    "a length beyond 64 bits": S + b"Content-Length: 99999999999999999999\r\n\r\nok",
    "gzip": S + b"Transfer-Encoding: gzip\r\n\r\nok",
    "identity": S + b"Transfer-Encoding: identity\r\n\r\nok",
    "gzip, then chunked": S + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, then gzip": S + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked in two lines": S + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "http/1.1": b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a body alone": b"<html></html>\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "a status below 100": b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
    "a NUL in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\nok",
    "a control character in the reason": b"HTTP/1.1 200 O\x1bK\r\nContent-Length: 2\r\n\r\nok",
    "a CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok",
    "LF after the status line": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "LF after a header": S + b"Content-Length: 2\n\r\nok",
    "LF at the end": S + b"Content-Length: 2\r\n\nok",
    "a folded line": S + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "a space before the colon": S + b"X : a\r\nContent-Length: 2\r\n\r\nok",
    "an empty name": S + b": a\r\nContent-Length: 2\r\n\r\nok",
    "a NUL in a value": S + b"X: a\x00\r\nContent-Length: 2\r\n\r\nok",
    "a control character in a value": S + b"X: a\x01\r\nContent-Length: 2\r\n\r\nok",
    "a CR in a value": S + b"X: a\rb\r\nContent-Length: 2\r\n\r\nok",
    "a bad chunk size at once": S + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an unasked 101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    "an unasked 101 and more": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK,
    "a 101 without Upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "a head of 300 KiB": S + b"X: %b\r\n" % (b"a" * 1000) * 300 + b"Content-Length: 2\r\n\r\nok",
    "a line of 300 KiB": S + b"X: %b\r\n" % (b"a" * 300_000) + b"Content-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("response", [pytest.param(response, id=name) for name, response in BAD.items()])
async def test_not_passed_on(response: bytes) -> None:
    """A malformed or ambiguous response becomes a 502; nothing of it is shown, its connection is dropped."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(response)
        await connection.gone()

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        answer = await client.ask(GET)
        assert (answer.status, answer.problem["code"]) == (502, "bad_upstream_response")
        await eventually(lambda: not origin.open)
        assert proxy.upstream.connections == 0
        origin.script = answers(OK)
        assert (await client.ask(GET)).body == b"ok"


async def test_101_without_upgrade_when_one_was_asked() -> None:
    """A 101 that names no protocol changes none."""
    request = b"GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with Origin(b"HTTP/1.1 101 Switching Protocols\r\n\r\n") as origin, Harness(origin) as proxy:
        assert (await proxy.ask(request)).status == 502


CHUNKS = (
    S
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX-Checksum: 1\r\nContent-Type: x\r\n\r\n"
)
COUNTED = S + b"Content-Length: 5\r\nX-A: 1\r\n\r\nhello"


@pytest.mark.parametrize("response", [COUNTED, CHUNKS], ids=["counted", "chunked"])
@pytest.mark.parametrize("request_", [GET, GET10], ids=["1.1", "1.0"])
async def test_any_cut(response: bytes, request_: bytes) -> None:
    """Where the segments of a response are cut makes no difference, at whatever byte."""
    cuts = iter(range(1, len(response)))
    bytewise = [response[i : i + 1] for i in range(len(response))]

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            cut = next(cuts, None)
            await connection.send(*((response[:cut], response[cut:]) if cut is not None else bytewise))

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        for _ in response:
            answer = await client.ask(request_)
            assert (answer.status, answer.body, answer.trailers) == (200, b"hello", b"")
            if request_ is GET10:
                assert await client.ended()
                client = await proxy.connect()
        assert origin.connections == 1


async def test_chunked_to_http10() -> None:
    """A client of HTTP/1.0 gets a chunked body as one that ends with the connection."""
    async with Origin(CHUNKS) as origin, Harness(origin) as proxy:

        async def script(connection: OriginConnection) -> None:
            await connection.request()
            await connection.send(CHUNKS[:60], CHUNKS[60:])
            await connection.gone()

        origin.script = script
        answer = await proxy.ask(GET10)
        assert (answer.framing, answer.body, answer.closes) == ("close", b"hello", True)


async def test_chunks_end_here() -> None:
    """Chunk extensions and trailers of the upstream are dropped."""
    async with Origin(CHUNKS) as origin, Harness(origin) as proxy:
        answer = await proxy.ask(GET)
        assert answer.body == b"hello"
        assert answer.header("x-checksum") is None
        assert answer.header("content-type") is None


@pytest.mark.parametrize("request_", [GET, GET10], ids=["1.1", "1.0"])
async def test_read_to_close(request_: bytes) -> None:
    """A body that ends with its connection is chunked for HTTP/1.1, and ends the connection in 1.0."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo")

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        answer = await client.ask(request_)
        assert answer.body == b"hello"
        if request_ is GET:
            assert answer.framing == "chunked"
            assert (await client.ask(request_)).body == b"hello"
        else:
            assert (answer.framing, answer.closes) == ("close", True)


async def test_read_to_close_that_is_reset() -> None:
    """A body that should have ended with a FIN and ends with a RST is not passed off as complete."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await asyncio.sleep(0.02)
        connection.reset()

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.ask(GET)
        assert proxy.ended == ["broken"]


@pytest.mark.parametrize(
    ("request_", "response", "status", "length"),
    [
        pytest.param(HEAD, S + b"Content-Length: 12345\r\n\r\n", 200, "12345", id="HEAD with a length"),
        pytest.param(HEAD, S + b"Transfer-Encoding: chunked\r\n\r\n", 200, None, id="HEAD chunked"),
        pytest.param(HEAD, S + b"\r\n", 200, None, id="HEAD without a length"),
        pytest.param(HEAD, b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", 404, "9", id="HEAD 404"),
        pytest.param(GET, b"HTTP/1.1 204 No Content\r\n\r\n", 204, None, id="204"),
        pytest.param(
            GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, None, id="204 with a length"
        ),
        pytest.param(GET, b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, None, id="304"),
        pytest.param(
            GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, "5", id="304 with a length"
        ),
        pytest.param(
            GET,
            b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
            304,
            None,
            id="304 chunked",
        ),
        pytest.param(GET, S + b"Content-Length: 0\r\n\r\n", 200, "0", id="empty"),
    ],
)
async def test_without_a_body(request_: bytes, response: bytes, status: int, length: str | None) -> None:
    """What can have no body has none, whatever its header says; both connections go on (RFC 9112, 6.3)."""
    async with Origin(answers(response)) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        for _ in range(3):
            answer = await client.ask(request_)
            assert (answer.status, answer.header("content-length"), answer.body) == (status, length, b"")
            assert answer.header("transfer-encoding") is None
        assert origin.connections == 1


async def test_a_body_after_head() -> None:
    """A body that an upstream sends after HEAD is neither passed on nor taken for the next answer."""
    async with Origin(answers(COUNTED)) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        assert (await client.ask(HEAD)).header("content-length") == "5"
        origin.script = answers(OK)
        assert (await client.ask(GET)).body == b"ok"
        assert origin.connections == 2


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    "response",
    [OK, CHUNKS, S + b"Content-Length: 200000\r\n\r\n" + bytes(200_000), b"HTTP/1.1 204 No Content\r\n\r\n"],
    ids=["counted", "chunked", "large", "204"],
)
@pytest.mark.parametrize("more", [OK, b"x", b"HTTP/1.1 200"], ids=["a response", "a byte", "a part of one"])
async def test_bytes_after_the_response(response: bytes, more: bytes, pause: bool) -> None:
    """Whose they are cannot be known: the answer is passed on, and its connection not used again."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(*((response, more) if pause else (response + more,)))
        await connection.gone()

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        answer = await client.ask(GET)
        assert answer.status in (200, 204)
        await eventually(lambda: not origin.open)
        origin.script = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew")
        assert (await client.ask(GET)).body == b"new"
        assert origin.connections == 2


async def test_early_hints() -> None:
    """A 103 is passed on before the answer; its header does not leak into that of the answer."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: X-Hop\r\n\r\n"
    go = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await connection.send(hints)
            await go.wait()
            await connection.send(hints + OK)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        first = await client.head()
        assert (first.status, first.reason, first.header("link")) == (
            103,
            "Early Hints",
            "</a.css>; rel=preload",
        )
        assert first.header("connection") is None
        go.set()
        assert (await client.head()).status == 103
        answer = await client.answer()
        assert (answer.status, answer.body, answer.header("link")) == (200, b"ok", None)
        assert (await (await proxy.connect()).ask(GET10)).status == 200, "HTTP/1.0 knows no 1xx"


async def test_unasked_100() -> None:
    """A 100 of the upstream ends here: whether the client waits for one is settled on its own hop."""
    for interim in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n"):
        async with Origin(interim * 3 + OK) as origin, Harness(origin) as proxy:
            answer = await proxy.ask(GET)
            assert (answer.status, answer.body) == (200, b"ok")
            assert origin.connections == 1


async def test_interim_responses_without_end() -> None:
    """They count towards the size of the head."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        while True:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    async with Origin(script) as origin, Harness(origin) as proxy:
        assert (await proxy.ask(GET)).status == 502


async def test_unknown_statuses_and_reasons() -> None:
    """They are passed on as they are."""
    for line in (b"299 Fine", b"599 ", b"200 Very Well", b"451 \xe9", b"999 x"):
        async with (
            Origin(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % line) as origin,
            Harness(origin) as proxy,
        ):
            answer = await proxy.ask(GET)
            assert answer.head.startswith(b"HTTP/1.1 %b\r\n" % line)


async def test_status_line_without_reason() -> None:
    """Servers leave even the space away; the client gets a valid status line."""
    async with Origin(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok") as origin, Harness(origin) as proxy:
        assert (await proxy.ask(GET)).head.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "response",
    [
        S + b"Content-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        S + b"Transfer-Encoding: chunked\r\nConnection: X-Hop, close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["close", "HTTP/1.0", "close in a list"],
)
async def test_upstream_closes(response: bytes) -> None:
    """An upstream that closes its connection does not close the client's, and gets a new one next time."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(response)
        await connection.gone()

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        for _ in range(3):
            answer = await client.ask(GET)
            assert (answer.body, answer.closes) == (b"ok", False)
        assert origin.connections == 3
        await eventually(lambda: not proxy.upstream.connections)


async def test_http10_upstream_that_stays() -> None:
    """A connection of HTTP/1.0 is used again when the upstream says so."""
    response = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"
    async with Origin(response) as origin, Harness(origin) as proxy:
        for _ in range(3):
            assert (await proxy.ask(GET)).body == b"ok"
        assert origin.connections == 1


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(S + b"Content-Length: 100000\r\n\r\nshort", id="counted"),
        pytest.param(S + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", id="chunked"),
        pytest.param(S + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", id="bad chunk size"),
        pytest.param(S + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", id="LF after a chunk"),
        pytest.param(
            S + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX : y\r\n\r\n", id="bad trailer"
        ),
    ],
)
async def test_cut_short(broken: bytes) -> None:
    """After the head is out, the only honest end of a broken body is to break off; it counts as a failure."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        end = broken.index(b"\r\n\r\n") + 4
        await connection.send(broken[:end])
        await asyncio.sleep(0.02)
        await connection.send(broken[end:])

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        with pytest.raises(asyncio.IncompleteReadError):
            await client.ask(GET)
        assert proxy.ended == ["broken"]
        assert proxy.metrics.route("tested", "origin").aborts == 1
        assert len(origin.requests) == 1, "nothing is retried once it streams"
        await eventually(lambda: not proxy.upstream.connections)


async def test_cut_short_for_http10() -> None:
    """A client that knows a body's end by the connection's gets a RST, not a FIN, when it is not the end."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(CHUNKS[:60])
        await asyncio.sleep(0.02)

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        with pytest.raises(ConnectionResetError):
            await client.ask(GET10)
        assert proxy.ended == ["broken"]


async def test_answer_before_the_upload_is_over() -> None:
    """A final answer that comes while the client still sends reaches it; both connections then end."""
    refused = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlarge"[:-1]

    async def script(connection: OriginConnection) -> None:
        await connection.head()
        await connection.reader.readexactly(1000)
        await connection.send(refused)
        await connection.gone()

    size = 5_000_000
    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % size + bytes(1_000_000)
        )
        answer = await client.answer()
        assert (answer.status, answer.body, answer.closes) == (413, b"larg", True)
        assert await client.ended()
        assert proxy.in_flight == 0
        await eventually(lambda: not origin.open)
        proxy.sweep(3)
        await eventually(lambda: not proxy.listener.connections)


async def test_streamed_answer_before_the_upload_is_over() -> None:
    """The same for an answer that streams."""
    large = bytes(300_000)

    async def script(connection: OriginConnection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body) == (400, large)
        assert await client.ended()
        await eventually(lambda: not origin.open)
        assert proxy.in_flight == 0


async def test_retry_after_an_early_answer() -> None:
    """An attempt that is repeated while its body still comes in sends that body whole, once, to the next."""
    body = bytes(range(256)) * 2000
    first = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        request = await connection.head()
        assert request is not None
        if not first.is_set():
            first.set()
            await connection.reader.readexactly(100)
            await connection.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            await connection.gone()
            return
        request.body = b"".join([piece async for piece in connection.pieces(request)])
        await connection.send(OK)

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(
            b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:200_000]
        )
        await first.wait()
        await eventually(lambda: len(origin.requests) == 2)
        await client.send(body[200_000:])
        assert (await client.answer()).status == 200
        assert origin.requests[1].body == body
        assert origin.requests[1].complete

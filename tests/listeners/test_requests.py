"""Requests that are valid, however unusual, reach the app as one plain HTTP/1.1 request each."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.harness import ALL_POLICIES, GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection, answers

HELLO = b"POST /a HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /a HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'2;name=value\r\nhe\r\n3;q="a;b"\r\nllo\r\n0\r\nX-Checksum: 1\r\nHost: other\r\n\r\n'
)


@pytest.mark.parametrize(
    ("request_", "method", "target", "host"),
    [
        pytest.param(GET, "GET", "/", "app", id="plain"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: app\r\n\r\n", "OPTIONS", "*", "app", id="OPTIONS *"),
        pytest.param(
            b"GET http://Other:81/a?b HTTP/1.1\r\nHost: app\r\n\r\n",
            "GET",
            "/a?b",
            "Other:81",
            id="absolute form",
        ),
        pytest.param(
            b"GET HTTP://other HTTP/1.1\r\nHost: app\r\n\r\n", "GET", "/", "other", id="URL without path"
        ),
        pytest.param(
            b"GET http://other?q HTTP/1.1\r\nHost: app\r\n\r\n", "GET", "/?q", "other", id="URL with query"
        ),
        pytest.param(
            b"OPTIONS http://other HTTP/1.1\r\nHost: app\r\n\r\n",
            "OPTIONS",
            "*",
            "other",
            id="OPTIONS of a URL",
        ),
        pytest.param(b"GET /a#b HTTP/1.1\r\nHost: app\r\n\r\n", "GET", "/a", "app", id="fragment"),
        pytest.param(
            b"GET //a/../b HTTP/1.1\r\nHost: app\r\n\r\n", "GET", "//a/../b", "app", id="path as it is"
        ),
        pytest.param(
            b"GET /%00%2f HTTP/1.1\r\nHost: app\r\n\r\n", "GET", "/%00%2f", "app", id="escapes as they are"
        ),
        pytest.param(b"\r\n\r\n" + GET, "GET", "/", "app", id="empty lines before it"),
        pytest.param(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET", "/", "", id="empty Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET", "/", "[::1]:80", id="IPv6 Host"),
        pytest.param(
            b"GET / HTTP/1.1\r\nhOST: \tapp \t\r\n\r\n", "GET", "/", "app", id="space around a value"
        ),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", "GET", "/", "", id="HTTP/1.0 without Host"),
        pytest.param(b"PATCH / HTTP/1.1\r\nHost: app\r\n\r\n", "PATCH", "/", "app", id="PATCH"),
        pytest.param(b"PROPFIND / HTTP/1.1\r\nHost: app\r\n\r\n", "PROPFIND", "/", "app", id="WebDAV"),
    ],
)
async def test_passed_on(request_: bytes, method: str, target: str, host: str) -> None:
    """The app gets the method and the target as they were, and the Host that was meant."""
    async with Origin() as origin, Harness(origin) as proxy:
        assert (await proxy.ask(request_)).status == 200
        (received,) = origin.requests
        assert (received.method, received.target, received.version) == (method, target, "HTTP/1.1")
        assert received.every("host") == [host]


async def test_header_lines_are_kept() -> None:
    """Spelling, order and repetition of header lines stay, and bytes beyond ASCII in values do."""
    lines = b"x-B: 1\r\nX-a: 2\r\nx-B: 3\r\nX-Empty:\r\nX-Latin: \xe9\xff\r\n"
    async with Origin() as origin, Harness(origin) as proxy:
        await proxy.ask(b"GET / HTTP/1.1\r\nHost: app\r\n" + lines + b"\r\n")
        assert [pair for pair in origin.requests[0].headers if pair[0][1:2] == "-" and pair[0][0] in "xX"][
            :5
        ] == [
            ("x-B", "1"),
            ("X-a", "2"),
            ("x-B", "3"),
            ("X-Empty", ""),
            ("X-Latin", "\xe9\xff"),
        ]


@pytest.mark.parametrize(
    "request_", [GET, HELLO, CHUNKED, b"\r\n" + GET], ids=["GET", "POST", "chunked", "CRLF"]
)
async def test_any_cut(request_: bytes) -> None:
    """Where the segments of a request are cut makes no difference, at whatever byte."""
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        for cut in range(1, len(request_)):
            assert (await client.ask(request_[:cut], request_[cut:])).body == b"ok", cut
        await client.send(*(request_[i : i + 1] for i in range(len(request_))))
        assert (await client.answer()).body == b"ok"
        bodies = {received.body for received in origin.requests}
        assert bodies == {b"hello" if b"POST" in request_ else b""}
        assert len(origin.requests) == len(request_)


async def test_chunks_are_framed_anew() -> None:
    """Chunk extensions and trailers end here; neither is ever taken for a header."""
    async with Origin() as origin, Harness(origin) as proxy:
        assert (await proxy.ask(CHUNKED)).status == 200
        (received,) = origin.requests
        assert received.body == b"hello"
        assert received.every("host") == ["app"]
        assert b"name=value" not in origin.received
        assert b"X-Checksum" not in origin.received


async def test_pipelined() -> None:
    """Pipelined requests are answered in their order, each by its own answer."""

    async def script(connection: OriginConnection) -> None:
        while (request := await connection.request()) is not None:
            if request.target == "/0":
                await asyncio.sleep(0.02)
            body = request.target.encode()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        many = 50
        await client.send(
            b"".join(b"GET /%d HTTP/1.1\r\nHost: app\r\n\r\n" % number for number in range(many))
        )
        answers_ = [(await client.answer()).body for _ in range(many)]
        assert answers_ == [b"/%d" % number for number in range(many)]
        assert origin.connections == 1


async def test_pipelined_with_bodies() -> None:
    """Bodies between pipelined requests, counted, chunked and large, are told apart."""
    large = b"x" * 300_000
    requests = [
        b"POST /a HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello",
        CHUNKED,
        GET,
        b"PUT /large HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n%b" % (len(large), large),
        b"POST /e HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        GET,
    ]
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        sending = asyncio.create_task(client.send(b"".join(requests)))
        for _ in requests:
            assert (await client.answer()).status == 200
        await sending
        assert [request.body for request in origin.requests] == [b"hello", b"hello", b"", large, b"", b""]


async def test_a_large_body_waits_its_turn_outside() -> None:
    """What is pipelined behind a slow request is not read into memory without end."""
    go = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        while (request := await connection.head()) is not None:
            if request.method == "GET":
                await go.wait()
            async for _ in connection.pieces(request):
                pass
            await connection.send(OK)

    size = 20_000_000
    async with Origin(script, record=False) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        client.writer.write(
            GET + b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
        )
        await eventually(lambda: origin.requests)
        await asyncio.sleep(0.1)
        (connection,) = proxy.listener._connections
        assert sum(incoming.size for incoming in connection._queue) < 1_000_000
        go.set()
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 200
        assert origin.requests[1].complete


@pytest.mark.parametrize(
    ("request_", "stays"),
    [
        pytest.param(GET, True, id="1.1"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n", False, id="1.1 close"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: app\r\nConnection: X, CLOSE\r\n\r\n", False, id="1.1 close in a list"
        ),
        pytest.param(b"GET / HTTP/1.0\r\nHost: app\r\n\r\n", False, id="1.0"),
        pytest.param(
            b"GET / HTTP/1.0\r\nHost: app\r\nConnection: Keep-Alive\r\n\r\n", True, id="1.0 keep-alive"
        ),
        pytest.param(
            b"GET / HTTP/1.0\r\nHost: app\r\nConnection: keep-alive, close\r\n\r\n",
            False,
            id="1.0 keep-alive and close",
        ),
    ],
)
async def test_keep_alive(request_: bytes, stays: bool) -> None:
    """The connection stays open exactly when the client's version and `Connection` say so, and it is told."""
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        answer = await client.ask(request_)
        if stays:
            assert not answer.closes
            if b"HTTP/1.0" in request_:
                assert answer.header("connection") == "keep-alive"
            assert (await client.ask(request_)).status == 200
        else:
            assert answer.closes
            assert await client.ended()


async def test_a_client_that_leaves() -> None:
    """Its request is given up, and the app's connection with it."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        client.close()
        await eventually(lambda: not origin.open)
        assert proxy.in_flight == 0
        assert proxy.metrics.route("tested", "origin").clients_gone == 1


async def test_upgrade_refused() -> None:
    """An upgrade that the app does not take is answered as any request, and the connection goes on."""
    upgrade = b"GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        assert (await client.ask(upgrade)).body == b"ok"
        assert (await client.ask(HELLO)).body == b"ok"
        await client.send(upgrade + GET + upgrade + HELLO)
        for _ in range(4):
            assert (await client.answer()).body == b"ok"
        assert [request.header("upgrade") for request in origin.requests] == [
            "websocket",
            None,
            "websocket",
            None,
            "websocket",
            None,
        ]
        assert origin.requests[-1].body == b"hello"


async def test_nonsense_after_a_refused_upgrade() -> None:
    """What comes after it is held to be HTTP again."""
    upgrade = b"GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(upgrade + b"\x81\x05hello")
        assert (await client.answer()).status == 200
        answer = await client.answer()
        assert (answer.status, answer.closes) == (400, True)
        assert await client.ended()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n"


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"websocket, h2c"])
@pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])
@pytest.mark.parametrize("cut", [0, -1, -20, -60])
async def test_upgrade_with_a_body(protocol: bytes, chunked: bool, cut: int) -> None:
    """It is served as a plain request; its body is a body, even one that looks like a request."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if chunked else SMUGGLED
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    request = (
        b"POST /up HTTP/1.1\r\nHost: app\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n"
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n%b\r\n\r\n%b" % (protocol, framing, body)
    )
    pieces = (request[:cut], request[cut:] + HELLO) if cut else (request + HELLO,)
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(*pieces)
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 200
        assert (await client.ask(GET)).status == 200
        assert [(request.target, request.body) for request in origin.requests] == [
            ("/up", SMUGGLED),
            ("/a", b"hello"),
            ("/", b""),
        ]
        assert origin.requests[0].header("upgrade") is None
        assert origin.requests[0].header("http2-settings") is None


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", id="h2c"),
        pytest.param(
            b"GET / HTTP/1.0\r\nHost: app\r\nConnection: Upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n",
            id="HTTP/1.0",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\n\r\n", id="not a Connection option"
        ),
    ],
)
async def test_upgrade_not_heard(head: bytes) -> None:
    """No upgrade is asked of the app where none may come of it, and the connection goes on."""
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(head + HELLO)
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 200
        assert [request.header("upgrade") for request in origin.requests] == [None, None]
        assert [request.header("connection") for request in origin.requests] == [None, None]


async def test_a_client_that_leaves_before_its_upgrade_is_answered() -> None:
    """It is noticed like any other."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.gone()

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(
            b"GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await eventually(lambda: origin.requests)
        client.close()
        await eventually(lambda: not proxy.listener.connections and not origin.open)


async def test_answers_of_one_connection_do_not_mix() -> None:
    """Each request gets the answer that was made for it, whatever their sizes."""
    sizes = [0, 1, 70_000, 2, 300_000, 0, 5]
    responses = [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"%d" % (size % 10) * size for size in sizes
    ]
    async with Origin(answers(*responses)) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(GET * len(sizes))
        for size in sizes:
            assert (await client.answer()).body == b"%d" % (size % 10) * size
        assert origin.connections == 1

"""What is not one unambiguous request is answered with an error, and no byte of it is forwarded."""

from __future__ import annotations

import pytest

from tests.support.harness import ALL_POLICIES, GET, Harness, eventually
from tests.support.origin import Origin

LINE = b"POST / HTTP/1.1\r\n"
HOST = b"Host: app\r\n"
POST = LINE + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

FRAMING = {
    "length, then chunked": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two equal lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "two different lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a plus": POST + b"Content-Length: +5\r\n\r\nhello",
    "a length with a minus": POST + b"Content-Length: -5\r\n\r\nhello",
    "a length with an underscore": POST + b"Content-Length: 5_0\r\n\r\nhello",
    "a length in hexadecimal": POST + b"Content-Length: 0x5\r\n\r\nhello",
    "an empty length": POST + b"Content-Length:\r\n\r\nhello",
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\nhello",
    "gzip": POST + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "gzip, then chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, then gzip": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice in a line": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two lines": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip and chunked in two lines": POST
    + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an empty coding": POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "a vertical tab before chunked": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size of 0x5": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a space after a chunk size": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a space before a chunk size": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a plus": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "an empty chunk size": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a chunk size that ends in LF": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "a chunk size that ends in CR": CHUNKED + b"5\rhello\r\n0\r\n\r\n",
    "chunk data that ends in LF": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "chunk data without an end": CHUNKED + b"5\r\nhello0\r\n\r\n",
    "chunk data that is too long": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "an LF in a chunk extension": CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a CR in a chunk extension": CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a NUL in a chunk extension": CHUNKED + b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "an open quote in a chunk extension": CHUNKED + b'5;a="b\r\nhello\r\n0\r\n\r\n',
    "a last chunk that ends in LF": CHUNKED + b"5\r\nhello\r\n0\n\r\n",
    "trailers that end in LF": CHUNKED + b"5\r\nhello\r\n0\r\n\n",
    "a trailer that ends in LF": CHUNKED + b"5\r\nhello\r\n0\r\nX: y\n\r\n",
    "a space before a trailer's colon": CHUNKED + b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "a length in the trailers": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
}

HEADS = {
    "LF after the request line": b"GET / HTTP/1.1\nHost: app\r\n\r\n",
    "LF after a header": b"GET / HTTP/1.1\r\nHost: app\n\r\n",
    "LF at the end": b"GET / HTTP/1.1\r\nHost: app\r\n\n",
    "LF everywhere": b"GET / HTTP/1.1\nHost: app\n\n",
    "CR after the request line": b"GET / HTTP/1.1\rHost: app\r\n\r\n",
    "CR within a value": b"GET / HTTP/1.1\r\nHost: app\r\nX: a\rb\r\n\r\n",
    "CR CR LF": b"GET / HTTP/1.1\r\nHost: app\r\r\n\r\n",
    "a folded line": b"GET / HTTP/1.1\r\nHost: app\r\nX: a\r\n b\r\n\r\n",
    "a line folded with a tab": b"GET / HTTP/1.1\r\nHost: app\r\nX: a\r\n\tb\r\n\r\n",
    "a folded Transfer-Encoding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a space before the first header": b"GET / HTTP/1.1\r\n Host: app\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: app\r\nX : a\r\n\r\n",
    "a tab before the colon": b"GET / HTTP/1.1\r\nHost: app\r\nX\t: a\r\n\r\n",
    "a space within a name": b"GET / HTTP/1.1\r\nHost: app\r\nX Y: a\r\n\r\n",
    "an empty name": b"GET / HTTP/1.1\r\nHost: app\r\n: a\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: app\r\nX\r\n\r\n",
    "a NUL in a name": b"GET / HTTP/1.1\r\nHost: app\r\nX\x00: a\r\n\r\n",
    "a NUL in a value": b"GET / HTTP/1.1\r\nHost: app\r\nX: a\x00b\r\n\r\n",
    "a control character in a name": b"GET / HTTP/1.1\r\nHost: app\r\nX\x01: a\r\n\r\n",
    "a control character in a value": b"GET / HTTP/1.1\r\nHost: app\r\nX: a\x01b\r\n\r\n",
    "a DEL in a value": b"GET / HTTP/1.1\r\nHost: app\r\nX: a\x7fb\r\n\r\n",
    "a non-ASCII name": b"GET / HTTP/1.1\r\nHost: app\r\nX\xe9: a\r\n\r\n",
    "a separator in a name": b"GET / HTTP/1.1\r\nHost: app\r\nX(Y): a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: app\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\nHost: app\r\n\r\n",
    "HTTP/0.9 as it was": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: app\r\n\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\nHost: app\r\n\r\n",
    "http/1.1": b"GET / http/1.1\r\nHost: app\r\n\r\n",
    "a space after the version": b"GET / HTTP/1.1 \r\nHost: app\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(192),
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: app\r\n\r\n",
    "a tab in the target": b"GET /a\tb HTTP/1.1\r\nHost: app\r\n\r\n",
    "non-ASCII in the target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: app\r\n\r\n",
    "a NUL in the target": b"GET /a\x00b HTTP/1.1\r\nHost: app\r\n\r\n",
    "a DEL in the target": b"GET /a\x7fb HTTP/1.1\r\nHost: app\r\n\r\n",
    "a relative target": b"GET a HTTP/1.1\r\nHost: app\r\n\r\n",
    "an authority as the target": b"GET app:80 HTTP/1.1\r\nHost: app\r\n\r\n",
    "* for another method than OPTIONS": b"GET * HTTP/1.1\r\nHost: app\r\n\r\n",
    "a URL of another scheme": b"GET ftp://app/ HTTP/1.1\r\nHost: app\r\n\r\n",
    "a URL without a host": b"GET http:///a HTTP/1.1\r\nHost: app\r\n\r\n",
    "a URL with a user": b"GET http://user@app/ HTTP/1.1\r\nHost: app\r\n\r\n",
    "a URL with a bad host": b"GET http://a<b/ HTTP/1.1\r\nHost: app\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "no Host beside a URL": b"GET http://app/ HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: app\r\nHost: app\r\n\r\n",
    "two Hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: app\r\nHost: other\r\n\r\n",
    "a space in Host": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a slash in Host": b"GET / HTTP/1.1\r\nHost: app/x\r\n\r\n",
    "a user in Host": b"GET / HTTP/1.1\r\nHost: user@app\r\n\r\n",
    "a question mark in Host": b"GET / HTTP/1.1\r\nHost: app?x\r\n\r\n",
    "a comma and a space in Host": b"GET / HTTP/1.1\r\nHost: app, other\r\n\r\n",
    "a port that is no number": b"GET / HTTP/1.1\r\nHost: app:http\r\n\r\n",
    "non-ASCII in Host": b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n",
    "an open bracket in Host": b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\nHost: app\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: app\r\n\r\n",
    "a space before the method": b" GET / HTTP/1.1\r\nHost: app\r\n\r\n",
    "a tab after the method": b"GET\t/ HTTP/1.1\r\nHost: app\r\n\r\n",
}

OTHER = {
    "CONNECT": (b"CONNECT app:443 HTTP/1.1\r\nHost: app:443\r\n\r\n", 405, "method_refused"),
    "CONNECT of a path": (b"CONNECT / HTTP/1.1\r\nHost: app\r\n\r\n", 405, "method_refused"),
    "an unknown expectation": (
        POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\nhello",
        417,
        "expectation_failed",
    ),
    "a long target": (
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: app\r\n\r\n",
        431,
        "headers_too_large",
    ),
    "a long header": (
        b"GET / HTTP/1.1\r\nHost: app\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        431,
        "headers_too_large",
    ),
    "many headers": (
        b"GET / HTTP/1.1\r\nHost: app\r\n" + b"X: abcdefgh\r\n" * 4000 + b"\r\n",
        431,
        "headers_too_large",
    ),
}

CASES = [
    *((name, request, 400, "bad_request") for name, request in {**FRAMING, **HEADS}.items()),
    *((name, *case) for name, case in OTHER.items()),
]


@pytest.mark.parametrize(
    ("request_", "status", "code"), [pytest.param(*case, id=name) for name, *case in CASES]
)
async def test_refused(request_: bytes, status: int, code: str) -> None:
    """It is answered with a problem document, the connection ends, and the app hears nothing of it."""
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(request_)
        answer = await client.answer()
        assert (answer.status, answer.problem["code"]) == (status, code)
        assert answer.header("sidecar-error") == code
        assert answer.closes
        assert answer.header("x-request-id") == answer.problem["request_id"] != ""
        assert await client.ended()
        assert origin.connections == 0
        assert not proxy.exchanges
        assert [error.status for error in proxy.refused] == [status]
        proxy.sweep(3)
        await eventually(lambda: not proxy.listener.connections)


@pytest.mark.parametrize(
    "name",
    [
        "length, then chunked",
        "two equal lengths",
        "a folded line",
        "LF after a header",
        "no Host",
        "an unknown method",
    ],
)
async def test_refused_in_pieces(name: str) -> None:
    """Where the segments of a bad head are cut makes no difference, at whatever byte."""
    request = FRAMING.get(name) or HEADS[name]
    async with Origin() as origin, Harness(origin) as proxy:
        for cut in range(1, len(request)):
            client = await proxy.connect()
            await client.send(request[:cut], request[cut:])
            assert (await client.answer()).problem["code"] == "bad_request", cut
            assert await client.ended()
        assert origin.connections == 0
        assert len(proxy.refused) == len(request) - 1


@pytest.mark.parametrize(
    "name",
    [
        "a chunk size of 0x5",
        "chunk data without an end",
        "a trailer that ends in LF",
        "a length in the trailers",
    ],
)
async def test_bad_chunks_in_pieces(name: str) -> None:
    """A body that turns out to be malformed while it is passed on never looks complete to the app."""
    request = FRAMING[name]

    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        for cut in range(1, len(request)):
            client = await proxy.connect()
            await client.send(request[:cut], request[cut:])
            answer = await client.answer()
            assert answer.problem["code"] == "bad_request", cut
            assert answer.closes
            assert await client.ended()
        await eventually(lambda: not origin.open)
        assert not any(request.complete for request in origin.requests)
        assert proxy.in_flight == 0


async def test_error_after_good_requests() -> None:
    """Pipelined requests before a bad one are answered, in order, and then the error is."""
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.send(GET * 3 + b"nonsense\r\n\r\n" + GET)
        answers = [await client.answer() for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 400]
        assert [answer.closes for answer in answers] == [False, False, False, True]
        assert await client.ended()
        assert len(origin.requests) == 3


async def test_nothing_after_the_last_request() -> None:
    """What follows a request with `Connection: close` is not served, and spoils nothing."""
    async with Origin() as origin, Harness(origin) as proxy:
        for more in (GET, b"nonsense\r\n\r\n", b"\x00"):
            client = await proxy.connect()
            await client.send(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n" + more)
            answer = await client.answer()
            assert (answer.status, answer.closes) == (200, True)
            assert await client.ended()
        assert len(origin.requests) == 3
        assert not proxy.refused

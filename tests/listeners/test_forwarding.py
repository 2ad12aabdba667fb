"""What the app and the client learn of each other: header lines that end, change or begin here."""

from __future__ import annotations

import re

import pytest

from tests.support.harness import Answer, Harness
from tests.support.origin import Origin, Received

TRUSTED = ("127.0.0.0/8", "10.0.0.0/8")


async def exchange(
    lines: bytes = b"",
    response: bytes = b"",
    *,
    trusted: tuple[str, ...] = (),
    first: bytes = b"GET / HTTP/1.1\r\nHost: app:80\r\n",
) -> tuple[Received, Answer, str]:
    """The request as it came, the answer as it came, and whom the sidecar took for the client."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + response + b"\r\nok"
    async with Origin(answer) as origin, Harness(origin, trusted=trusted) as proxy:
        got = await proxy.ask(first + lines + b"\r\n")
        return origin.requests[0], got, proxy.exchanges[0].client


HOP_BY_HOP = [
    b"Keep-Alive: timeout=5\r\n",
    b"Proxy-Connection: keep-alive\r\n",
    b"Trailer: X-Checksum\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: X-One, x-TWO\r\nX-One: 1\r\nX-Two: 2\r\n",
    b"X-One: 1\r\nConnection: X-One\r\nConnection: X-Two\r\nX-Two: 2\r\n",
]


@pytest.mark.parametrize(
    "lines",
    [*HOP_BY_HOP, b"TE: trailers\r\n", b"HTTP2-Settings: AAMA\r\n", b"Proxy-Authorization: Basic YTpi\r\n"],
)
async def test_hop_by_hop_up(lines: bytes) -> None:
    """Fields of the client's connection, and those it names, do not reach the app (RFC 9110, 7.6.1)."""
    request, _, _ = await exchange(lines + b"X-Kept: 1\r\n")
    assert {name.lower() for name, _ in request.headers} == {
        "host",
        "x-kept",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-request-id",
        "via",
    }


@pytest.mark.parametrize("lines", [*HOP_BY_HOP, b"Proxy-Authenticate: Basic\r\n"])
async def test_hop_by_hop_down(lines: bytes) -> None:
    """Fields of the app's connection, and those it names, do not reach the client."""
    _, answer, _ = await exchange(response=lines + b"X-Kept: 1\r\n")
    assert {name.lower() for name, _ in answer.headers} == {"content-length", "x-kept", "x-request-id"}


async def test_connection_cannot_name_everything() -> None:
    """A client cannot have Host or the framing removed by naming them, nor what the sidecar says of it."""
    names = b"Host, Content-Length, Transfer-Encoding, X-Forwarded-For, X-Request-ID, Via"
    request, _, _ = await exchange(
        b"Content-Length: 2\r\nConnection: %b\r\n\r\nhi" % names, first=b"POST / HTTP/1.1\r\nHost: app\r\n"
    )
    assert request.header("host") == "app"
    assert request.header("content-length") == "2"
    assert request.header("x-forwarded-for") == "127.0.0.1"
    assert request.header("x-request-id")
    assert request.header("via") == "1.1 sidecar"


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"X-Forwarded-For: 1.2.3.4\r\n",
        b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n",
        b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n",
    ],
)
async def test_untrusted_forwarded(lines: bytes) -> None:
    """What an untrusted client claims of those before it is dropped; the app is told what is known."""
    request, _, client = await exchange(lines)
    assert client == "127.0.0.1"
    assert request.every("x-forwarded-for") == ["127.0.0.1"]
    assert request.every("x-forwarded-proto") == ["http"]
    assert request.every("x-forwarded-host") == ["app:80"]
    assert request.every("forwarded") == []


@pytest.mark.parametrize(
    ("lines", "client", "chain"),
    [
        (b"", "127.0.0.1", "127.0.0.1"),
        (b"X-Forwarded-For: 1.2.3.4\r\n", "1.2.3.4", "1.2.3.4, 127.0.0.1"),
        (
            b"X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.1\r\n",
            "1.2.3.4",
            "6.6.6.6, 1.2.3.4, 10.0.0.1, 127.0.0.1",
        ),
        (
            b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\n",
            "1.2.3.4",
            "6.6.6.6, 1.2.3.4, 127.0.0.1",
        ),
        (b"X-Forwarded-For: 10.0.0.2\r\n", "10.0.0.2", "10.0.0.2, 127.0.0.1"),
        (b"X-Forwarded-For: 2001:db8::1\r\n", "2001:db8::1", "2001:db8::1, 127.0.0.1"),
        (b"X-Forwarded-For: unknown\r\n", "unknown", "unknown, 127.0.0.1"),
    ],
)
async def test_trusted_forwarded_for(lines: bytes, client: str, chain: str) -> None:
    """The client is the last address that no trusted proxy has; the chain goes on with the peer added."""
    request, _, found = await exchange(lines, trusted=TRUSTED)
    assert (found, request.every("x-forwarded-for")) == (client, [chain])


async def test_trusted_forwarded_others() -> None:
    """Scheme and host that a trusted proxy tells are kept, and `Forwarded` grows by one hop (RFC 7239)."""
    request, _, _ = await exchange(
        b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: public\r\n"
        b"Forwarded: for=1.2.3.4\r\nForwarded: for=5.6.7.8\r\n",
        trusted=TRUSTED,
    )
    assert request.every("x-forwarded-proto") == ["https"]
    assert request.every("x-forwarded-host") == ["public"]
    assert request.every("forwarded") == ['for=1.2.3.4, for=5.6.7.8, for=127.0.0.1;host="app:80";proto=http']


MADE = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize("value", [b"abc-123", b"x" * 128, b"{a}!~"])
async def test_request_id_kept(value: bytes) -> None:
    """A client's request id goes to the app, and back to the client."""
    request, answer, _ = await exchange(b"X-Request-ID: %b\r\n" % value)
    assert request.every("x-request-id") == [value.decode()]
    assert answer.every("x-request-id") == [value.decode()]


@pytest.mark.parametrize("value", [None, b"", b"a b", b"x" * 129, b"\xe9"])
async def test_request_id_made(value: bytes | None) -> None:
    """Where there is none, or one that would not do in a log, one is made."""
    request, answer, _ = await exchange(b"" if value is None else b"X-Request-ID: %b\r\n" % value)
    (made,) = request.every("x-request-id")
    assert MADE.fullmatch(made)
    assert answer.every("x-request-id") == [made]


async def test_request_id_of_the_app() -> None:
    """The app's own does not take the place of the one the client is told."""
    request, answer, _ = await exchange(response=b"X-Request-ID: app\r\n")
    assert answer.every("x-request-id") == request.every("x-request-id") != ["app"]


TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize("flags", ["00", "01"])
@pytest.mark.parametrize(("version", "more"), [("00", ""), ("01", ""), ("cc", "-what-comes")])
async def test_traceparent_kept(version: str, more: str, flags: str) -> None:
    """The trace goes on, with a span of the sidecar's own (W3C Trace Context, 3.2)."""
    line = f"traceparent: {version}-{TRACE}-{SPAN}-{flags}{more}\r\ntracestate: a=b\r\n"
    request, _, _ = await exchange(line.encode())
    (value,) = request.every("traceparent")
    found = re.fullmatch(rf"00-{TRACE}-([0-9a-f]{{16}})-{flags}", value)
    assert found is not None
    assert found[1] not in (SPAN, "0" * 16)
    assert request.every("tracestate") == ["a=b"]


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}x-{SPAN}-01",
        f"00-{TRACE[:-1]}-a{SPAN[1:]}-01-",
        f"00-{TRACE}0{SPAN[1:]}-0-01",
        f"cc-{TRACE}-{SPAN}-01more",
        "00-1-1-01",
        "nonsense",
    ],
)
async def test_traceparent_dropped(value: str) -> None:
    """A malformed one is not passed on."""
    request, _, _ = await exchange(f"traceparent: {value}\r\n".encode())
    assert request.every("traceparent") == []


async def test_a_span_for_each_attempt() -> None:
    """Each attempt is a span of its own."""
    route = {"retry": {"attempts": 2, "backoff": {"strategy": "fixed", "base": "0ms"}}}
    busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    async with Origin(busy) as origin, Harness(origin, route) as proxy:
        line = f"traceparent: 00-{TRACE}-{SPAN}-01\r\n".encode()
        assert (await proxy.ask(b"GET / HTTP/1.1\r\nHost: app\r\n" + line + b"\r\n")).status == 503
        spans = {request.header("traceparent") for request in origin.requests}
        assert len(origin.requests) == len(spans) == 2


async def test_via() -> None:
    """The sidecar adds itself to those before it (RFC 9110, 7.6.3)."""
    request, _, _ = await exchange(b"Via: 1.0 fred\r\n")
    assert request.every("via") == ["1.0 fred", "1.1 sidecar"]


@pytest.mark.parametrize(
    ("first", "length"),
    [
        (b"GET / HTTP/1.1\r\nHost: app\r\n", None),
        (b"DELETE / HTTP/1.1\r\nHost: app\r\n", None),
        (b"POST / HTTP/1.1\r\nHost: app\r\n", "0"),
        (b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n", "0"),
        (b"GET / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n", None),
    ],
)
async def test_length_of_no_body(first: bytes, length: str | None) -> None:
    """Where a method may have a body, the app is told that there is none (RFC 9110, 8.6)."""
    request, _, _ = await exchange(first=first)
    assert (request.header("content-length"), request.header("transfer-encoding")) == (length, None)


async def test_upgrade_required() -> None:
    """A 426 says which protocol, and `Connection` goes with it (RFC 9110, 7.8)."""
    response = (
        b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: x/2\r\nContent-Length: 0\r\n\r\n"
    )
    async with Origin(response) as origin, Harness(origin) as proxy:
        answer = await proxy.ask(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")
        assert (answer.header("upgrade"), answer.header("connection")) == ("x/2", "Upgrade")

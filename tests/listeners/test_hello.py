"""Reading a ClientHello."""

from __future__ import annotations

import ssl
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.listeners.hello import LONGEST, Hello, NotTls, read_hello


def hello(name: str | None = "api.example.com", minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = minimum
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def record(content: bytes, kind: int = 22) -> bytes:
    return bytes([kind, 3, 1]) + len(content).to_bytes(2) + content


def message(extensions: bytes = b"", *, kind: int = 1) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    if extensions:
        body += len(extensions).to_bytes(2) + extensions
    return bytes([kind]) + len(body).to_bytes(3) + body


def server_name(name: bytes, kind: int = 0) -> bytes:
    entry = bytes([kind]) + len(name).to_bytes(2) + name
    content = len(entry).to_bytes(2) + entry
    return b"\x00\x00" + len(content).to_bytes(2) + content


WHOLE = hello()


@pytest.mark.parametrize("minimum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["api.example.com", "a", "x" * 63 + ".example", None])
def test_of_openssl(name: str | None, minimum: ssl.TLSVersion) -> None:
    """The name that the client asks for, or that it names none."""
    assert read_hello(hello(name, minimum)) == Hello(name)


def test_what_comes_behind_it_does_not_matter() -> None:
    """Early data, or a second request, may be there already."""
    assert read_hello(WHOLE + b"\x17\x03\x03\x00\x05hello") == Hello("api.example.com")


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_it_waits_for_the_rest(cut: int) -> None:
    """No beginning of one is taken for garbage, nor for a whole one."""
    assert read_hello(WHOLE[:cut]) is None


@given(st.sets(st.integers(1, len(WHOLE) - 6), max_size=8), st.integers(0, len(WHOLE)))
def test_spread_over_records(cuts: set[int], seen: int) -> None:
    """A message may be cut into records anywhere (RFC 8446, 5.1)."""
    message = WHOLE[5:]
    edges = [0, *sorted(cuts), len(message)]
    pieces = b"".join(record(message[start:end]) for start, end in pairwise(edges))
    assert read_hello(pieces) == Hello("api.example.com")
    assert read_hello(pieces[: min(seen, len(pieces) - 1)]) is None


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (record(message()), None),
        (record(message(b"\x00\x17\x00\x00")), None),
        (record(message(server_name(b"API.Example.com."))), "api.example.com"),
        (record(message(b"\x00\x17\x00\x00" + server_name(b"a_b.example"))), "a_b.example"),
        (record(message(server_name(b"a", kind=7))), None),
    ],
)
def test_by_hand(data: bytes, name: str | None) -> None:
    """Extensions may be absent, others may stand before; a name is given in lower case, without its dot."""
    assert read_hello(data) == Hello(name)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x00", "bytes that are no TLS (they begin with 00)"),
        (b"GET / HTTP/1.1\r\n", "a plain HTTP request"),
        (b"PRI * HTTP/2.0\r\n", "a plain HTTP request"),
        (b"\x80\x2e\x01\x03\x01", "bytes that are no TLS (they begin with 80 2e 01 03)"),
        (b"\x16\x02", "bytes that are no TLS (they begin with 16 02)"),
        (b"\x16\x03\x01\x40\x01", "a record of an impossible size"),
        (record(b""), "a record of an impossible size"),
        (record(message(kind=2)), "a handshake that begins with something else than a ClientHello"),
        (record(b"\x01\x00\x00") + record(b"x", 23), "a record of another type within the ClientHello"),
        (record(b"\x01\xff\xff\xff"), f"a ClientHello of more than {LONGEST} bytes"),
        (record(message(server_name(b"a b"))), "a ClientHello that names no valid host"),
        (record(message(server_name(b""))), "a ClientHello that names no valid host"),
        (record(message(server_name(b"a" * 300))), "a ClientHello that names no valid host"),
        (record(message(b"\x00\x00\xff\xff")), "a ClientHello whose fields go past its end"),
        (record(b"\x01\x00\x00\x01\x03"), "a ClientHello whose fields go past its end"),
    ],
)
def test_what_is_none(data: bytes, what: str) -> None:
    """Told as soon as it is seen, in words."""
    with pytest.raises(NotTls) as caught:
        read_hello(data)
    assert str(caught.value) == what


@given(st.binary(max_size=400) | st.binary(max_size=400).map(record) | st.binary(max_size=300).map(message).map(record))  # fmt: skip # noqa: E501
def test_whatever_comes(data: bytes) -> None:
    """Bytes of any kind are one of three: a hello, the beginning of one, or none."""
    try:
        found = read_hello(data)
    except NotTls:
        return
    assert found is None or found.name is None or found.name


def test_it_does_not_wait_for_ever() -> None:
    """A client that goes on and on is told apart at a limit."""
    endless = record(b"\x01\x00\xff\xff" + bytes(100)) + record(bytes(1)) * 20_000
    with pytest.raises(NotTls, match="more than"):
        read_hello(endless)

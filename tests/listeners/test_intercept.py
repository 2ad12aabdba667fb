"""TLS that ends here: by CONNECT and by SNI, for hosts of ours, for others, and for nobody."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.listeners.hello import alert
from tests.support.egress import HOST, OTHER, Egress, get
from tests.support.harness import Client, eventually
from tests.support.origin import OK, Origin, OriginConnection, self_signed
from tests.support.tls import Tls

DOORS = ("connect", "intercept")
LARGE = bytes(range(256)) * 2048


def url(origin: Origin) -> str:
    return f"http://{origin.address}"


def connect(authority: str, version: str = "1.1") -> bytes:
    return f"CONNECT {authority} HTTP/{version}\r\nHost: {authority}\r\n\r\n".encode()


async def opened(egress: Egress, door: str) -> Client:
    """A connection on which the listener waits for a ClientHello."""
    return await (egress.tunnel(f"{HOST}:443") if door == "connect" else egress.connect(egress.intercept))


# -- hosts of ours ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_by_connect(tmp_path: Path, version: str) -> None:
    """CONNECT to a host of ours is answered with a leaf for it, and what is inside goes by its routes."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        await client.send(connect(f"{HOST}:443", version))
        assert (await client.head()).head == b"HTTP/1.1 200 Connection established\r\n\r\n"
        await client.writer.start_tls(egress.trusting(), server_hostname=HOST)
        for path in ("/a", "/b"):
            assert (await client.ask(get(HOST, path))).body == b"ok"
        assert [request.target for request in origin.requests] == ["/a", "/b"]
        cells = egress.metrics.listeners["egress"]
        assert (cells.accepted, cells.active, cells.intercepted, cells.tls_failures) == (1, 1, 1, 0)
        client.close()
        await eventually(lambda: not egress.plane.connections)
        assert cells.active == 0
    assert [(line["route"], line["path"]) for line in egress.requests()] == [("all", "/a"), ("all", "/b")]


@pytest.mark.parametrize("cut", [0, 1, 5, 20, 60, 150, 10_000])
async def test_a_hello_that_comes_early(tmp_path: Path, cut: int) -> None:
    """A client may send its ClientHello, or a part of it, right behind the CONNECT."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect()
        tls = Tls(client, egress.trusting())
        first = tls.hello()
        await client.send(connect(f"{HOST}:443") + first[:cut])
        assert (await client.head()).status == 200
        await client.send(first[cut:])
        await tls.shake_hands()
        await client.send(tls.encrypted(get()))
        assert (await tls.until(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("door", DOORS)
async def test_limits_of_a_reload(tmp_path: Path, door: str) -> None:
    """They count inside of TLS too, for hosts that were called before, on connections that are there."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await opened(egress, door)
        await client.writer.start_tls(egress.trusting(), server_hostname=HOST)
        assert (await client.ask(get(HOST))).status == 200
        for listener in egress.plane.listeners:
            listener.limits = replace(listener.limits, idle=5.0)
        egress.plane.sweep(egress.clock.now() + 4)
        assert egress.plane.connections == 1
        egress.plane.sweep(egress.clock.now() + 6)
        assert await client.reader.read() == b""
        await eventually(lambda: not egress.plane.connections)


async def test_byte_by_byte(tmp_path: Path) -> None:
    """Records may be cut anywhere."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect(egress.intercept)
        tls = Tls(client, egress.trusting())
        await client.send(*(bytes([byte]) for byte in tls.hello()))
        await tls.shake_hands()
        await client.send(*(bytes([byte]) for byte in tls.encrypted(get())))
        assert (await tls.until(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_request_within_the_last_flight(tmp_path: Path) -> None:
    """A request right behind the client's Finished is not lost."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect(egress.intercept)
        tls = Tls(client, egress.trusting())
        await client.send(tls.hello())
        await tls.shake_hands(get())
        assert (await tls.until(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_by_sni(tmp_path: Path) -> None:
    """The intercept listener, at several addresses, answers for whichever host of ours is asked for."""
    async with (
        Origin(OK) as origin,
        Egress(tmp_path, url(origin), intercept=["127.0.0.1:0", "127.0.0.2:0"]) as egress,
    ):
        assert len(egress.plane.shown["intercept"].split(", ")) == 2
        for at in egress.intercepts:
            for name in (HOST, OTHER, HOST.upper()):
                client = await egress.secure(name, at)
                assert (await client.ask(get(name))).status == 200
        cells = egress.metrics.listeners["intercept"]
        assert (cells.accepted, cells.intercepted) == (6, 6)


async def test_bodies_both_ways(tmp_path: Path) -> None:
    """Large bodies keep every byte, whatever records they come in."""

    async def script(connection: OriginConnection) -> None:
        while (request := await connection.request()) is not None:
            assert request.body == LARGE
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE)

    async with Origin(script) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.secure()
        for _ in range(2):
            head = f"PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(LARGE)}\r\n\r\n".encode()
            assert (await client.ask(head + LARGE)).body == LARGE


async def test_alpn(tmp_path: Path) -> None:
    """HTTP/1.1 is what is spoken, also with a client that would rather speak HTTP/2."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        context = egress.trusting()
        context.set_alpn_protocols(["h2", "http/1.1"])
        client = await egress.secure(tls=context)
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert (await client.ask(get())).status == 200


async def test_sessions_are_resumed(tmp_path: Path) -> None:
    """A client that comes again may leave out half of the handshake."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        context = egress.trusting()
        session = None
        for resumed in (False, True):
            client = await egress.connect(egress.intercept)
            tls = Tls(client, context)
            if session is not None:
                tls.tls.session = session
            await client.send(tls.hello())
            await tls.shake_hands()
            await client.send(tls.encrypted(get()))
            await tls.until(b"\r\n\r\nok")
            assert tls.tls.session_reused is resumed
            session = tls.tls.session


@pytest.mark.parametrize("minimum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_half_closed(tmp_path: Path, minimum: ssl.TLSVersion) -> None:
    """A client that says goodbye ends its connection, and nothing of it is left."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        context = egress.trusting()
        context.minimum_version = context.maximum_version = minimum
        client = await egress.connect(egress.intercept)
        tls = Tls(client, context)
        await client.send(tls.hello())
        await tls.shake_hands()
        await client.send(tls.encrypted(get()))
        await tls.until(b"\r\n\r\nok")
        with pytest.raises(ssl.SSLError):
            tls.tls.unwrap()
        await tls.flush()
        await asyncio.wait_for(client.reader.read(), 10)
        await eventually(lambda: not egress.plane.connections)


async def test_another_host_inside(tmp_path: Path) -> None:
    """Requests inside a connection are for the hosts of the file it was made for, else 421."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.secure(HOST)
        assert (await client.ask(get(OTHER))).status == 200
        answer = await client.ask(get("evil.example"))
        assert (answer.status, answer.problem["code"]) == (421, "misdirected")
        assert answer.problem["detail"] == f"the connection was made for {HOST}:443"
        assert (await client.ask(b"GET / HTTP/1.0\r\n\r\n")).status == 200


async def test_websocket_inside(tmp_path: Path) -> None:
    """An upgrade inside of TLS becomes a tunnel, with its half-closes."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
        )
        await connection.send(b"got " + await connection.reader.readexactly(5))
        connection.half_close()
        await connection.gone()

    async with Origin(script) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.secure()
        await client.send(get(Connection="Upgrade", Upgrade="x"))
        assert (await client.head()).status == 101
        await client.send(b"hello")
        assert await client.rest() == b"got hello"
        client.close()
        await eventually(lambda: not egress.plane.connections)


# -- SNI and CONNECT -------------------------------------------------------------------------------


async def test_sni_of_the_same_file(tmp_path: Path) -> None:
    """A ClientHello may ask for another host of the file that the CONNECT was for."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.tunnel(f"{HOST}:443")
        await client.writer.start_tls(egress.trusting(), server_hostname=OTHER)
        assert (await client.ask(get(OTHER))).status == 200


async def test_no_sni_after_connect(tmp_path: Path) -> None:
    """Without SNI it is the host of the CONNECT."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        context = egress.trusting()
        context.check_hostname = False
        client = await egress.tunnel(f"{HOST}:443")
        tls = Tls(client, context, None)
        await client.send(tls.hello())
        await tls.shake_hands()
        assert tls.tls.getpeercert()["subjectAltName"] == (("DNS", HOST),)  # type: ignore[index]


async def test_sni_of_nobody(tmp_path: Path) -> None:
    """A ClientHello that asks for a host of nobody's within a CONNECT to ours is refused by an alert."""
    async with Egress(tmp_path) as egress:
        client = await egress.tunnel(f"{HOST}:443")
        tls = Tls(client, egress.trusting(), "evil.example")
        await client.send(tls.hello())
        assert await client.rest() == alert(112)
        await eventually(lambda: not egress.plane.connections)
        assert egress.said() == ["the ClientHello asks for evil.example"]
        assert egress.log[-1]["host"] == f"{HOST}:443"


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"\x00\x01\x02\x03", "bytes that are no TLS (they begin with 00 01 02 03) instead of TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "a plain HTTP request instead of TLS"),
        (b"SSH-2.0-x\r\n", "bytes that are no TLS (they begin with 53 53 48 2d) instead of TLS"),
        (b"\x16\x03\x01\xff\xff", "a record of an impossible size instead of TLS"),
        (
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            "a handshake that begins with something else than a ClientHello instead of TLS",
        ),
    ],
)
async def test_garbage_instead_of_tls(tmp_path: Path, door: str, garbage: bytes, reason: str) -> None:
    """One log line says what came; the connection is closed; the listener goes on."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await opened(egress, door)
        await client.send(garbage)
        rest = await client.rest()
        if door == "intercept" and garbage.startswith(b"GET"):
            assert rest.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"this listener takes TLS" in rest
        else:
            assert rest == b""
        assert egress.said() == [reason]
        name = "egress" if door == "connect" else "intercept"
        assert egress.metrics.listeners[name].tls_failures == 1
        await eventually(lambda: not egress.plane.connections)
        assert (await (await egress.secure()).ask(get())).status == 200


async def test_no_sni(tmp_path: Path) -> None:
    """Without SNI the intercept listener cannot tell which host is meant, and says so."""
    async with Egress(tmp_path) as egress:
        context = egress.trusting()
        context.check_hostname = False
        client = await egress.connect(egress.intercept)
        await client.send(Tls(client, context, None).hello())
        assert await client.rest() == alert(112)
        assert egress.said() == ["the ClientHello names no host (SNI)"]


async def test_an_untrusting_client(tmp_path: Path) -> None:
    """A client that was not told of the local CA is named in the log, with the mend."""
    async with Egress(tmp_path) as egress:
        with pytest.raises(ssl.SSLCertVerificationError):  # it leaves without a word
            await egress.secure(tls=ssl.create_default_context())
        await eventually(lambda: not egress.plane.connections)
        client = await egress.connect(egress.intercept)
        tls = Tls(client, ssl.create_default_context())
        await client.send(tls.hello())
        with pytest.raises(ssl.SSLCertVerificationError):
            await tls.shake_hands()
        await tls.flush()  # it says why
        await eventually(lambda: not egress.plane.connections)
        assert egress.said() == [
            (
                "the client left when it saw our certificate: perhaps it does not trust the local CA; "
                "`sidecar ca` says what to set"
            ),
            "the client does not trust the local CA (tlsv1 alert unknown ca); `sidecar ca` says what to set",
        ]


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", "hello"])
@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
async def test_a_client_that_leaves(tmp_path: Path, sent: bytes | str, how: str) -> None:
    """A client may leave at any moment of the handshake."""
    async with Egress(tmp_path) as egress:
        for door in DOORS:
            client = await opened(egress, door)
            if isinstance(sent, str):
                await client.send(Tls(client, egress.trusting()).hello())
                await client.reader.readexactly(5)
            else:
                await client.send(sent)
            await asyncio.sleep(0.01)
            getattr(client, how)()
            await eventually(lambda: not egress.plane.connections, f"{how} after {sent!r}")


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
async def test_a_port_that_somebody_looks_at(tmp_path: Path, how: str) -> None:
    """Who connects, as health checks do, and leaves without a byte is no failure, and not in the log; after
    a CONNECT it is.
    """
    async with Egress(tmp_path) as egress:
        for door in DOORS:
            client = await opened(egress, door)
            await asyncio.sleep(0.01)
            getattr(client, how)()
            await eventually(lambda: not egress.plane.connections, how)
        assert [(line["listener"], line["reason"]) for line in egress.log] == [
            ("egress", "the client left before it began TLS")
        ]
        failures = {name: cells.tls_failures for name, cells in egress.metrics.listeners.items()}
        assert failures == {"egress": 1, "intercept": 0}


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", "hello"])
async def test_a_slow_handshake(tmp_path: Path, sent: bytes | str) -> None:
    """A handshake has as long as a request's head; then the connection is ended."""
    async with Egress(tmp_path) as egress:
        for door in DOORS:
            client = await opened(egress, door)
            if isinstance(sent, str):
                await client.send(Tls(client, egress.trusting()).hello())
                await client.reader.readexactly(5)
            else:
                await client.send(sent)
            await asyncio.sleep(0.01)
            egress.plane.sweep(egress.clock.now() + 9)
            await asyncio.sleep(0.01)
            assert egress.plane.connections == 1
            egress.plane.sweep(egress.clock.now() + 11)
            await eventually(lambda: not egress.plane.connections)
        assert egress.said() == ["no TLS within 10 s"] * 2


async def test_an_expired_certificate_upstream(tmp_path: Path) -> None:
    """The provider's certificate is judged here: the app gets 502 with the reason, and one line is logged."""
    certificate = self_signed(tmp_path, HOST, days=(-10, -1))
    async with Origin(OK, tls=certificate.server()) as origin:
        policy = {"tls": {"ca": str(certificate.path)}, "connect_to": str(origin.address)}
        async with Egress(tmp_path, policy=policy) as egress:
            answer = await (await egress.secure()).ask(get())
            assert (answer.status, answer.problem["code"]) == (502, "upstream_certificate")
            assert answer.problem["detail"] == "the certificate has expired"
            await (await egress.secure()).ask(get())
            (said,) = (line for line in egress.log if line["event"] == "tls with an upstream failed")
            assert (said["upstream"], said["fault"]) == (f"provider/{HOST}", "expired")
    for line in egress.requests():
        assert (line["status"], line["error"]) == (502, "upstream_certificate")


async def test_tls_on_both_sides(tmp_path: Path) -> None:
    """To the provider it is TLS again, by the host's name."""
    certificate = self_signed(tmp_path, HOST)
    async with Origin(OK, tls=certificate.server()) as origin:
        policy = {"tls": {"ca": str(certificate.path)}, "connect_to": str(origin.address)}
        async with Egress(tmp_path, policy=policy) as egress:
            client = await egress.secure()
            for _ in range(2):
                assert (await client.ask(get())).status == 200
            assert origin.requests[0].header("host") == HOST
            assert origin.connections == 1


async def test_garbage_within_tls(tmp_path: Path) -> None:
    """Bytes that the keys do not fit end the connection."""
    async with Origin(OK) as origin, Egress(tmp_path, url(origin)) as egress:
        client = await egress.connect(egress.intercept)
        tls = Tls(client, egress.trusting())
        await client.send(tls.hello())
        await tls.shake_hands()
        await client.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        await asyncio.wait_for(client.reader.read(), 10)
        await eventually(lambda: not egress.plane.connections)


# -- hosts of nobody -------------------------------------------------------------------------------


async def test_a_host_of_nobody_by_connect(tmp_path: Path) -> None:
    """The client sees the host's own certificate, and the bytes on both sides are the same."""
    certificate = self_signed(tmp_path, "other.example")
    async with (
        Origin(OK, tls=certificate.server()) as origin,
        Egress(tmp_path, names={"other.example": "127.0.0.1"}) as egress,
    ):
        client = await egress.tunnel(f"other.example:{origin.address.port}")
        await client.writer.start_tls(
            ssl.create_default_context(cafile=str(certificate.path)), server_hostname="other.example"
        )
        seen = client.writer.get_extra_info("ssl_object").getpeercert(True)
        assert seen == ssl.PEM_cert_to_DER_cert(certificate.path.read_text())
        assert (await client.ask(get("other.example"))).body == b"ok"


async def test_a_host_of_nobody_by_sni(tmp_path: Path) -> None:
    """What the intercept listener is asked for and nobody owns goes on to where it is, untouched."""
    certificate = self_signed(tmp_path, "other.example")
    async with Origin(OK, tls=certificate.server()) as origin:
        at = f"127.0.0.2:{origin.address.port}"
        async with Egress(tmp_path, intercept=at, names={"other.example": "127.0.0.1"}) as egress:
            context = ssl.create_default_context(cafile=str(certificate.path))
            client = await egress.secure("other.example", tls=context)
            assert (await client.ask(get("other.example"))).body == b"ok"
            client.close()
            await eventually(lambda: not egress.plane.connections and not egress.plane.tunnels.connections)
    (line,) = egress.requests()
    assert (line["method"], line["route"], line["status"]) == ("CONNECT", "unlisted", 200)
    assert line["path"] == f"other.example:{origin.address.port}"


@pytest.mark.parametrize(
    ("settings", "sent", "said"),
    [
        ({"unlisted": "deny"}, alert(112), True),
        ({"allow_private": []}, alert(49), False),
        ({}, alert(80), False),
    ],
    ids=["denied", "private", "nowhere"],
)
async def test_a_host_that_cannot_be_passed_to(
    tmp_path: Path, settings: dict[str, object], sent: bytes, said: bool
) -> None:
    """The client gets an alert, and one line is logged."""
    names = {"other.example": "10.0.0.1"} if "allow_private" in settings else {}
    async with Egress(tmp_path, egress=settings, names=names) as egress:
        client = await egress.connect(egress.intercept)
        await client.send(Tls(client, egress.trusting(), "other.example").hello())
        assert await client.rest() == sent
        await eventually(lambda: not egress.plane.connections)
        assert bool(egress.said()) is said
    assert len(egress.requests()) + len(egress.said()) == 1


@pytest.mark.parametrize("side", ["client", "provider"])
async def test_back_pressure(tmp_path: Path, side: str) -> None:
    """A side that does not read pauses the other, through TLS on both; not a byte is lost."""
    certificate = self_signed(tmp_path, HOST)
    go = asyncio.Event()
    size = 32 * 1024**2
    piece = bytes(range(256)) * 256
    sent = received = 0

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < size:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async def receive(reader: asyncio.StreamReader) -> None:
        nonlocal received
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        while received < size:
            data = await reader.read(65536)
            assert data[:1] == bytes([received % 256])
            received += len(data)

    async def script(connection: OriginConnection) -> None:
        await connection.head()
        if side == "provider":
            await receive(connection.reader)
            await connection.send(OK)
        else:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            await send(connection.writer)

    async with Origin(script, tls=certificate.server(), record=False, buffer=16 * 1024) as origin:
        policy = {"tls": {"ca": str(certificate.path)}, "connect_to": str(origin.address)}
        async with Egress(tmp_path, policy=policy) as egress:
            client = await egress.secure(limit=65536)
            if side == "provider":
                await client.send(
                    f"PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n".encode()
                )
                work = asyncio.create_task(send(client.writer))
            else:
                await client.send(get())
                await client.head()
                work = asyncio.create_task(receive(client.reader))
            await asyncio.sleep(0.5)
            assert 0 < sent < 20 * 1024**2, "kernel buffers, and a few of ours"
            go.set()
            await eventually(lambda: received == size)
            await work
            if side == "provider":
                assert (await client.answer()).status == 200

"""TLS towards upstreams: what is trusted, what is said of what is not, and sessions that are resumed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from sidecar.errors import TlsFailed
from sidecar.telemetry.complaints import EVERY, TlsComplaints
from sidecar.telemetry.log import get_logger
from sidecar.upstreams.tls import SESSION_AGE, UpstreamTls, tls_context
from tests.support.certificates import Signer, alerting
from tests.support.clock import ManualClock
from tests.support.harness import GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection, Script, answers, self_signed

CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
V12 = ssl.TLSVersion.TLSv1_2
V13 = ssl.TLSVersion.TLSv1_3
TRUST = " (tls.ca names a file of certificates to trust)"


def trusting(signer: Signer, cert: Any = None) -> UpstreamTls:
    pair = (None, None) if cert is None else (str(cert.path), str(cert.key))
    return tls_context(str(signer.path), *pair, verify=True)


# -- what goes wrong -------------------------------------------------------------------------------

Made = tuple[ssl.SSLContext, UpstreamTls]


def expired(directory: Path) -> Made:
    signer = Signer(directory)
    return signer.issue(days=(-20, -10)).server(), trusting(signer)


def not_yet(directory: Path) -> Made:
    signer = Signer(directory)
    return signer.issue(days=(10, 20)).server(), trusting(signer)


def wrong_host(directory: Path) -> Made:
    signer = Signer(directory)
    return signer.issue("other.example").server(), trusting(signer)


def alone(directory: Path) -> Made:
    return self_signed(directory).server(), tls_context(None, None, None, verify=True)


def stranger(directory: Path) -> Made:
    return Signer(directory, "Stranger").issue(chain=True).server(), trusting(Signer(directory))


def gap(directory: Path) -> Made:
    root = Signer(directory)
    return Signer(directory, "Between", above=root).issue().server(), trusting(root)


def old_version(directory: Path) -> Made:
    signer = Signer(directory)
    server = signer.issue().server()
    server.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        server.minimum_version = server.maximum_version = ssl.TLSVersion.TLSv1_1
    return server, trusting(signer)


def no_cipher(directory: Path) -> Made:
    signer = Signer(directory)
    server, context = signer.issue().server(), trusting(signer)
    server.maximum_version = context.maximum_version = V12
    server.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    return server, context


def unknown_name(directory: Path) -> Made:
    signer = Signer(directory)
    server = signer.issue().server()
    server.sni_callback = lambda *_: ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    return server, trusting(signer)


def wants_ours(directory: Path) -> Made:
    signer = Signer(directory)
    return signer.asking(signer.issue().server()), trusting(signer)


def wants_ours_12(directory: Path) -> Made:
    server, context = wants_ours(directory)
    server.maximum_version = V12
    return server, context


def refuses_ours(directory: Path) -> Made:
    signer, other = Signer(directory), Signer(directory, "Stranger")
    return signer.asking(signer.issue().server()), trusting(signer, other.issue("client"))


def refuses_ours_12(directory: Path) -> Made:
    server, context = refuses_ours(directory)
    server.maximum_version = V12
    return server, context


UNKNOWN = "the certificate is signed by an authority that is not trusted"
CIPHERS = "it takes none of our ciphers, or asks for a client certificate (tls.cert, tls.key)"
CERTIFICATE = "upstream_certificate"
TLS = "upstream_tls"


@pytest.mark.parametrize(
    ("make", "code", "fault", "says"),
    [
        (expired, CERTIFICATE, "expired", "the certificate has expired"),
        (
            not_yet,
            CERTIFICATE,
            "not_yet_valid",
            "the certificate is not valid yet (is the clock of this machine right?)",
        ),
        (wrong_host, CERTIFICATE, "wrong_host", "the certificate is not valid for 'localhost'"),
        (alone, CERTIFICATE, "self_signed", f"the certificate is signed by itself{TRUST}"),
        (stranger, CERTIFICATE, "unknown_ca", f"{UNKNOWN}{TRUST}"),
        (gap, CERTIFICATE, "unknown_ca", f"{UNKNOWN}, or the server leaves out one between{TRUST}"),
        (old_version, TLS, "protocol", "it takes no version of TLS that is taken here: 1.2 and 1.3"),
        (no_cipher, TLS, "protocol", CIPHERS),
        (unknown_name, TLS, "unknown_host", "it does not serve the host that it was asked for (SNI)"),
        (wants_ours, TLS, "client_certificate", "it asks for a client certificate (tls.cert and tls.key)"),
        (wants_ours_12, TLS, "protocol", CIPHERS),
        (refuses_ours, TLS, "client_certificate", "it does not accept our client certificate"),
        (refuses_ours_12, TLS, "client_certificate", "it does not accept our client certificate"),
    ],
)
async def test_what_is_wrong_is_said(
    tmp_path: Path, make: Callable[[Path], Made], code: str, fault: str, says: str
) -> None:
    """To the client, in the log and in metrics; and the upstream has not got a byte of the request."""
    server, context = make(tmp_path)
    complaints: list[tuple[str, str, TlsFailed]] = []
    with alerting(server) as (address, received):
        async with Harness(address, tls=context, complain=lambda *it: complaints.append(it)) as proxy:
            answer = await proxy.ask(GET)
            assert (answer.status, answer.problem["code"]) == (502, code)
            assert answer.problem["detail"] == says
            assert not received
            assert proxy.upstream.connections == 0
            assert proxy.metrics.upstream("origin").tls_failures == {fault: 1}
    assert [(it[0], it[1], it[2].detail) for it in complaints] == [("origin", "127.0.0.1", says)]


async def test_a_server_that_hangs_up() -> None:
    """In the middle of the handshake, without a word."""

    async def hangs_up(connection: OriginConnection) -> None:
        await connection.reader.read(65536)

    context = tls_context(None, None, None, verify=True)
    async with Origin(hangs_up) as origin, Harness(origin, tls=context) as proxy:
        answer = await proxy.ask(GET)
        assert (answer.status, answer.problem["code"]) == (502, "upstream_tls")
        assert answer.problem["detail"] == "it closed the connection in the middle of the handshake"
        assert proxy.metrics.upstream("origin").tls_failures == {"closed": 1}


POST = b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"


async def cuts(connection: OriginConnection) -> None:
    """Reads a request and ends the TCP connection, without an end of TLS."""
    await connection.request()
    raw = connection.writer.get_extra_info("socket")
    with socket.socket(fileno=os.dup(raw.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)
    await connection.gone()


async def garbles(connection: OriginConnection) -> None:
    """Reads a request and sends what is no record of TLS."""
    await connection.request()
    raw = connection.writer.get_extra_info("socket")
    with socket.socket(fileno=os.dup(raw.fileno())) as same:
        same.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    await connection.gone()


@pytest.mark.parametrize("script", [cuts, garbles])
async def test_tls_that_breaks_after_the_request(tmp_path: Path, script: Script) -> None:
    """The upstream has the request: it is a reset, and a POST is not sent again."""
    signer = Signer(tmp_path)
    retry = {"retry": {"attempts": 3, "backoff": {"base": "0ms"}, "budget": "off"}}
    async with (
        Origin(script, tls=signer.issue().server()) as origin,
        Harness(origin, retry, tls=trusting(signer)) as proxy,
    ):
        answer = await proxy.ask(POST)
        assert (answer.status, answer.problem["code"]) == (502, "upstream_reset")
        assert len(origin.requests) == 1
        assert proxy.metrics.upstream("origin").tls_failures == {}


async def test_complaints_are_not_repeated() -> None:
    """Each upstream's each fault is logged once in five minutes, however many requests it fails."""
    clock = ManualClock()
    with structlog.testing.capture_logs() as log:
        complain = TlsComplaints(clock, get_logger("test"))
        for upstream, fault in (("a", "expired"), ("a", "expired"), ("a", "wrong_host"), ("b", "expired")):
            complain(upstream, "192.0.2.1:443", TlsFailed("it has expired", fault=fault))
        await clock.advance(EVERY - 1)
        complain("a", "192.0.2.1:443", TlsFailed("it has expired", fault="expired"))
        await clock.advance(1)
        complain("a", "192.0.2.2:443", TlsFailed("it has expired", fault="expired"))
    assert [(line["upstream"], line["fault"]) for line in log] == [
        ("a", "expired"),
        ("a", "wrong_host"),
        ("b", "expired"),
        ("a", "expired"),
    ]
    assert log[0] == {
        "event": "tls with an upstream failed",
        "log_level": "warning",
        "source": "test",
        "upstream": "a",
        "address": "192.0.2.1:443",
        "fault": "expired",
        "reason": "it has expired",
    }


# -- what goes right -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V12, V13])
async def test_a_client_certificate(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """`tls.cert` and `tls.key` are shown to a server that asks for them."""
    signer = Signer(tmp_path)
    server = signer.asking(signer.issue().server())
    server.maximum_version = version
    context = trusting(signer, signer.issue("client"))
    async with Origin(tls=server) as origin, Harness(origin, tls=context) as proxy:
        assert (await proxy.ask(GET)).status == 200


async def test_the_name_is_the_upstreams_wherever_it_is(tmp_path: Path) -> None:
    """With `connect_to`, SNI and the check of the certificate are for the upstream's host; of protocols,
    only HTTP/1.1 is offered.
    """
    signer = Signer(tmp_path)
    server = signer.issue("api.example").server()
    server.set_alpn_protocols(["h2", "http/1.1"])
    asked: list[str | None] = []
    server.sni_callback = lambda _, name, __: asked.append(name)
    chosen: list[str | None] = []

    async def script(connection: OriginConnection) -> None:
        chosen.append(connection.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answers(OK)(connection)

    async with (
        Origin(script, tls=server) as origin,
        Harness(origin, tls=trusting(signer), server_name="api.example") as proxy,
    ):
        assert (await proxy.ask(GET)).status == 200
    assert (asked, chosen) == (["api.example"], ["http/1.1"])


async def test_a_chain(tmp_path: Path) -> None:
    """A server's own authority between the root and it, and that one itself as `tls.ca`."""
    root = Signer(tmp_path)
    between = Signer(tmp_path, "Between", above=root)
    for ca in (root, between):
        server = between.issue(chain=True).server()
        async with Origin(tls=server) as origin, Harness(origin, tls=trusting(ca)) as proxy:
            assert (await proxy.ask(GET)).status == 200


def test_the_system_is_trusted_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With no `ca`: what OpenSSL trusts here, which `SSL_CERT_FILE` may name; with one, nothing but it."""
    own, other = Signer(tmp_path), Signer(tmp_path, "Other")
    monkeypatch.setenv("SSL_CERT_FILE", str(own.path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    for ca, subject in ((None, "Test Root"), (str(other.path), "Other")):
        (trusted,) = tls_context(ca, None, None, verify=True).get_ca_certs()
        assert trusted["subject"] == ((("commonName", subject),),)


def test_an_encrypted_key_is_not_asked_for(tmp_path: Path) -> None:
    """OpenSSL would ask whoever sits at the terminal for its password, and wait."""
    client = Signer(tmp_path).issue("client", password=b"secret")
    with pytest.raises(ssl.SSLError, match="the key is encrypted"):
        tls_context(None, str(client.path), str(client.key), verify=True)


# -- sessions --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def closing(directory: Path, version: ssl.TLSVersion, **settings: Any) -> Any:
    """An origin that closes after each answer, and the sidecar in front of it."""
    signer = Signer(directory)
    server = signer.issue().server()
    server.maximum_version = version
    async with (
        Origin(CLOSING, tls=server) as origin,
        Harness(origin, tls=trusting(signer), **settings) as proxy,
    ):
        yield proxy, origin


@pytest.mark.parametrize("version", [V12, V13])
async def test_sessions_are_resumed(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """The first handshake is a whole one; those of later connections begin where an earlier one ended."""
    async with closing(tmp_path, version) as (proxy, origin):
        for _ in range(5):
            assert (await proxy.ask(GET)).status == 200
        assert origin.connections == 5
        assert proxy.metrics.upstream("origin").handshakes == {"full": 1, "resumed": 4}


async def test_certificates_are_looked_at_again(tmp_path: Path) -> None:
    """An hour after they were last seen, however often the session was resumed meanwhile."""
    async with closing(tmp_path, V13) as (proxy, _):
        for _ in range(13):
            assert (await proxy.ask(GET)).status == 200
            await proxy.manual.advance(SESSION_AGE / 6)
        assert proxy.metrics.upstream("origin").handshakes == {"full": 2, "resumed": 11}


@pytest.mark.parametrize("version", [V12, V13])
async def test_a_server_that_forgot_the_session(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """It was started again, say: the handshake is a whole one, and the certificate is checked in it."""
    async with closing(tmp_path, version) as (proxy, origin):
        await proxy.ask(GET)
        await origin.close()
        origin._tls = Signer(tmp_path, "Test Root").issue().server()
        await origin.listen()
        answer = await proxy.ask(GET)
        assert (answer.status, answer.problem["code"]) == (502, "upstream_certificate")
        assert proxy.metrics.upstream("origin").handshakes == {"full": 1, "resumed": 0}


async def test_no_session_after_a_failure(tmp_path: Path) -> None:
    """A server that stumbles over the session gets a whole handshake the next time."""
    async with closing(tmp_path, V13) as (proxy, origin):
        await proxy.ask(GET)
        tls = proxy.upstream._tls
        assert tls.session is not None
        await origin.close()
        secure, origin._tls = origin._tls, None
        origin.script = plain
        await origin.listen()
        assert (await proxy.ask(GET)).status == 502
        assert tls.session is None
        await origin.close()
        origin._tls, origin.script = secure, answers(CLOSING)
        await origin.listen()
        assert (await proxy.ask(GET)).status == 200
        assert proxy.metrics.upstream("origin").handshakes == {"full": 2, "resumed": 0}


async def plain(connection: OriginConnection) -> None:
    await connection.reader.readexactly(1)
    await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await connection.gone()


# -- how long connections are kept -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("egress", "secure", "kept"),
    [(False, False, 4), (False, True, 4), (True, False, 4), (True, True, 50)],
)
async def test_unused_connections(tmp_path: Path, egress: bool, secure: bool, kept: float) -> None:
    """To a provider over TLS they are kept for long; to an app, which closes them after 5 s, for less."""
    signer = Signer(tmp_path)
    server = signer.issue().server() if secure else None
    context = trusting(signer) if secure else None
    async with Origin(tls=server) as origin, Harness(origin, tls=context, egress=egress) as proxy:
        await proxy.ask(GET)
        proxy.sweep(kept - 0.1)
        assert proxy.upstream.idle == 1
        proxy.sweep(kept + 0.1)
        await eventually(lambda: not proxy.upstream.connections)


async def test_how_many_are_kept(tmp_path: Path) -> None:
    """To a provider 64 at most: each holds some ten kilobytes of TLS."""
    signer = Signer(tmp_path)
    go = asyncio.Event()

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await go.wait()
        await connection.send(OK)
        await connection.gone()

    async with (
        Origin(script, tls=signer.issue().server()) as origin,
        Harness(origin, tls=trusting(signer), egress=True) as proxy,
    ):
        asking = [asyncio.create_task(proxy.ask(GET)) for _ in range(70)]
        await eventually(lambda: len(origin.requests) == 70)
        go.set()
        await asyncio.gather(*asking)
        assert proxy.upstream.idle == 64

"""The local CA: its files, what it may vouch for, its leaves."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from sidecar.listeners import authority as module
from sidecar.listeners import certificates
from sidecar.listeners.authority import Authority, AuthorityError, open_authority

HOSTS = ("maps.googleapis.com", "api.openai.com")
DAY = 86400.0
NOW = time.time()


@pytest.fixture(autouse=True)
def _few_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's roots are one certificate, so that bundles are quick to make and to read."""
    key = certificates.new_key()
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "ORGANIZATION", "somebody-else")
        root = certificates.pem(certificates.authority(key, ["roots.example"], NOW))
    (tmp_path / "roots.pem").write_bytes(b"# their roots\n" + root)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))


def opened(tmp_path: Path, hosts: tuple[str, ...] = HOSTS, wall: float = NOW, **settings: bool) -> Authority:
    return open_authority(tmp_path / "ca", hosts, wall, **settings)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Both ends in memory. Raises what the client does."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            one.do_handshake()
        with contextlib.suppress(ssl.SSLWantReadError):
            other.do_handshake()
    return one


def trusting(ca: Authority, *, strict: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca.bundle))
    if strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


# -- files -----------------------------------------------------------------------------------------


def test_modes(tmp_path: Path) -> None:
    """The key is its owner's alone, and so is the directory; certificates may be read."""
    old = os.umask(0)
    try:
        opened(tmp_path)
    finally:
        os.umask(old)
    modes = {it.name: stat.S_IMODE(it.stat().st_mode) for it in (tmp_path / "ca").iterdir()}
    assert modes == {"ca.key": 0o600, "lock": 0o600, "ca.pem": 0o644, "bundle.pem": 0o644}
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_it_is_made_once(tmp_path: Path) -> None:
    """The next start finds the same; nothing is written anew."""
    first = opened(tmp_path)
    before = {it.name: it.stat().st_mtime_ns for it in (tmp_path / "ca").iterdir() if it.name != "lock"}
    second = opened(tmp_path)
    assert second.certificate == first.certificate
    assert (first.changed, second.changed) == ("", "")
    after = {it.name: it.stat().st_mtime_ns for it in (tmp_path / "ca").iterdir() if it.name != "lock"}
    assert after == before


def test_a_key_that_everybody_may_read(tmp_path: Path) -> None:
    """It is not used: whoever read it can pass for the hosts."""
    opened(tmp_path)
    (tmp_path / "ca/ca.key").chmod(0o644)
    with pytest.raises(AuthorityError, match=r"ca\.key: everybody may use it \(mode 0644\): chmod 600"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("ca.key", b"", "no EC private key in PEM"),
        ("ca.key", b"\xff\xfe", "no EC private key in PEM"),
        ("ca.pem", b"", "no self-signed certificate in PEM"),
        ("ca.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no self-signed"),
    ],
)
def test_a_file_that_is_broken(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """The file is named, and left as it is."""
    opened(tmp_path)
    (tmp_path / "ca" / name).write_bytes(content)
    with pytest.raises(AuthorityError, match=f"{name}: {says}"):
        opened(tmp_path)
    assert (tmp_path / "ca" / name).read_bytes() == content


def test_a_start_that_was_cut_off(tmp_path: Path) -> None:
    """A key without its certificate gets one; a certificate without its key is replaced, and that is told."""
    first = opened(tmp_path)
    (tmp_path / "ca/ca.pem").unlink()
    second = opened(tmp_path)
    assert second.certificate.public_key() == first.certificate.public_key()
    assert second.changed == ""
    (tmp_path / "ca/ca.key").unlink()
    third = opened(tmp_path)
    assert third.certificate.public_key() != first.certificate.public_key()
    assert "with a new key" in third.changed


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves neither half a file nor another one."""
    ca = opened(tmp_path)
    before = {it.name: it.read_bytes() for it in ca.directory.iterdir()}

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(AuthorityError, match="No space left on device"):
        opened(tmp_path, rotate=True)
    assert {it.name: it.read_bytes() for it in ca.directory.iterdir()} == before


def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    """The error names it, and the key that says where."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityError, match=r"set ca\.dir to a directory that the sidecar may write to"):
        open_authority(tmp_path / "file" / "ca", HOSTS, NOW)


async def test_many_at_once(tmp_path: Path) -> None:
    """Processes that start together make one CA, and each has it whole."""
    program = (
        "import sys, pathlib\n"
        "from sidecar.listeners.authority import open_authority\n"
        "ca = open_authority(pathlib.Path(sys.argv[1]), ['a.example'], float(sys.argv[2]))\n"
        "print(hex(ca.certificate.serial_number), len(ca.bundle.read_bytes()))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "ca"), str(NOW)]
    running = [await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE) for _ in range(6)]
    outputs = {(await process.communicate())[0] for process in running}
    assert len(outputs) == 1
    assert all(process.returncode == 0 for process in running)


def test_no_key_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the repr nor any file but its own holds the private key; leaves' keys are in no file."""
    ca = opened(tmp_path)
    ca.context(HOSTS[0], NOW)
    assert "PRIVATE" not in repr(ca) + repr(vars(ca).keys())
    holders = [it.name for it in ca.directory.iterdir() if b"PRIVATE KEY" in it.read_bytes()]
    assert holders == ["ca.key"]
    assert "PRIVATE" not in "".join(capfd.readouterr())


# -- what it may vouch for -------------------------------------------------------------------------


def test_its_certificate(tmp_path: Path) -> None:
    """An authority for the listed hosts: critical constraints, no further authorities, servers only."""
    found = {it.oid._name: (it.critical, it.value) for it in opened(tmp_path).certificate.extensions}
    assert found["basicConstraints"] == (True, x509.BasicConstraints(ca=True, path_length=0))
    critical, constraints = found["nameConstraints"]
    assert critical
    assert isinstance(constraints, x509.NameConstraints)
    assert constraints.permitted_subtrees == [x509.DNSName(it) for it in sorted(HOSTS)]
    assert [str(it.value) for it in constraints.excluded_subtrees or ()] == ["0.0.0.0/0", "::/0"]
    usage = found["keyUsage"][1]
    assert isinstance(usage, x509.KeyUsage)
    assert (usage.key_cert_sign, usage.digital_signature, found["keyUsage"][0]) == (True, False, True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_clients_accept_its_leaves(tmp_path: Path, host: str, strict: bool) -> None:
    """OpenSSL does, also at its strictest, which is Python 3.13's default."""
    ca = opened(tmp_path)
    client = handshake(ca.context(host, NOW), trusting(ca, strict=strict), host)
    certificate = client.getpeercert()
    assert certificate is not None
    assert certificate["subjectAltName"] == (("DNS", host),)


@pytest.mark.parametrize(
    "host", ["www.example.com", "googleapis.com", "evil-maps.googleapis.com", "127.0.0.1"]
)
def test_clients_refuse_other_hosts(tmp_path: Path, host: str) -> None:
    """Even with its key nobody can pass for a host that is not listed: clients check the constraints."""
    ca = opened(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"permitted subtree violation|excluded subtree"):
        handshake(forged(ca, host), trusting(ca), host)


def forged(ca: Authority, host: str) -> ssl.SSLContext:
    """A leaf for `host`, by whoever has the key."""
    key = certificates.new_key()
    leaf = certificates.leaf(host, key, ca.certificate, ca._key, NOW)
    if host[0].isdigit():
        leaf = _for_address(host, leaf, ca)
        key = ca._key
    return module._server_context(
        certificates.pem(leaf) + certificates.pem(ca.certificate), certificates.key_pem(key)
    )


def _for_address(address: str, like: x509.Certificate, ca: Authority) -> x509.Certificate:
    import ipaddress

    from cryptography.hazmat.primitives import hashes

    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x")]))
        .issuer_name(ca.certificate.subject)
        .public_key(ca._key.public_key())
        .serial_number(1)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
        )
        .sign(ca._key, hashes.SHA256())
    )


def test_a_new_host(tmp_path: Path) -> None:
    """The certificate is made anew with the same key: old bundles still do for the old hosts, not the new."""
    before = opened(tmp_path)
    (tmp_path / "old.pem").write_bytes(before.bundle.read_bytes())
    after = opened(tmp_path, (*HOSTS, "new.example"))
    assert after.certificate.public_key() == before.certificate.public_key()
    assert "it may not vouch for new.example" in after.changed
    assert "Clients with the old bundle go on to accept the hosts they could before" in after.changed
    old = ssl.create_default_context(cafile=str(tmp_path / "old.pem"))
    for host in HOSTS:
        handshake(after.context(host, NOW), old, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        handshake(after.context("new.example", NOW), old, "new.example")
    handshake(after.context("new.example", NOW), trusting(after), "new.example")


def test_fewer_hosts(tmp_path: Path) -> None:
    """A host that is no longer listed is no reason to make anything anew."""
    assert opened(tmp_path, HOSTS[:1]).certificate is not None
    both = opened(tmp_path)
    assert opened(tmp_path, HOSTS[:1]).certificate == both.certificate


def test_it_is_renewed_in_time(tmp_path: Path) -> None:
    """A month before its end, with the same key."""
    first = opened(tmp_path)
    later = first.certificate.not_valid_after_utc.timestamp() - 31 * DAY
    assert opened(tmp_path, wall=later).certificate == first.certificate
    renewed = opened(tmp_path, wall=later + 2 * DAY)
    assert renewed.certificate.public_key() == first.certificate.public_key()
    assert "it ends on" in renewed.changed


def test_rotation(tmp_path: Path) -> None:
    """A new key: clients with the old bundle accept none of its leaves."""
    before = opened(tmp_path)
    old = ssl.create_default_context(cadata=certificates.pem(before.certificate).decode())
    after = opened(tmp_path, rotate=True)
    assert after.changed.startswith("rotated: a new key.")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(after.context(HOSTS[0], NOW), old, HOSTS[0])
    handshake(after.context(HOSTS[0], NOW), trusting(after), HOSTS[0])


def foreign(tmp_path: Path, hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's own authority, put into the directory."""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "ORGANIZATION", "Example Inc.")
        opened(tmp_path, hosts)


def test_an_authority_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used where it fits, and never replaced."""
    foreign(tmp_path, HOSTS, monkeypatch)
    ca = opened(tmp_path)
    handshake(ca.context(HOSTS[0], NOW), trusting(ca), HOSTS[0])
    files = {it.name: it.read_bytes() for it in ca.directory.iterdir()}
    with pytest.raises(AuthorityError, match=r"it may not vouch for new\.example, and it was not made by a"):
        opened(tmp_path, ("new.example",))
    with pytest.raises(AuthorityError, match="so not rotated by it"):
        opened(tmp_path, rotate=True)
    (tmp_path / "ca/ca.key").unlink()
    with pytest.raises(AuthorityError, match=r"ca\.key: missing"):
        opened(tmp_path)
    assert (tmp_path / "ca/ca.pem").read_bytes() == files["ca.pem"]


# -- leaves ----------------------------------------------------------------------------------------


def test_a_leaf_is_kept(tmp_path: Path) -> None:
    """One context a host, until half of its time is over; then another, valid for a week from then."""
    ca = opened(tmp_path)
    first = ca.context(HOSTS[0], NOW)
    assert ca.context(HOSTS[0], NOW + 3 * DAY) is first
    second = ca.context(HOSTS[0], NOW + 4 * DAY)
    assert second is not first
    assert ca.context(HOSTS[0], NOW + 5 * DAY) is second


def test_a_leafs_time(tmp_path: Path) -> None:
    """Valid a day ago already, for slow clocks; for a week; never for longer than its authority."""
    ca = opened(tmp_path)
    leaf = certificates.leaf(HOSTS[0], certificates.new_key(), ca.certificate, ca._key, NOW)
    now = dt.datetime.fromtimestamp(NOW, dt.UTC).replace(microsecond=0)
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (
        now - dt.timedelta(days=1),
        now + dt.timedelta(days=7),
    )
    end = ca.certificate.not_valid_after_utc
    late = certificates.leaf(HOSTS[0], certificates.new_key(), ca.certificate, ca._key, end.timestamp() - DAY)
    assert late.not_valid_after_utc == end


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    """A leaf from the future is not given to clients of the present."""
    ca = opened(tmp_path)
    future = ca.context(HOSTS[0], NOW + 100 * DAY)
    assert ca.context(HOSTS[0], NOW) is not future


def test_the_least_used_leaf_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is bounded."""
    monkeypatch.setattr(module, "MOST_LEAVES", 2)
    ca = opened(tmp_path, ("example",))
    contexts = {name: ca.context(name, NOW) for name in ("a.example", "b.example")}
    ca.context("a.example", NOW)
    ca.context("c.example", NOW)
    assert ca.context("a.example", NOW) is contexts["a.example"]
    assert ca.context("b.example", NOW) is not contexts["b.example"]


def test_a_long_name(tmp_path: Path) -> None:
    """A host may be longer than a common name can be."""
    host = ".".join(["x" * 60] * 4)[:250].rstrip(".")
    ca = opened(tmp_path, (host,))
    handshake(ca.context(host, NOW), trusting(ca, strict=True), host)


# -- bundles ---------------------------------------------------------------------------------------


def test_the_bundle(tmp_path: Path) -> None:
    """The roots there are, and ours; ours alone is in the file for NODE_EXTRA_CA_CERTS."""
    ca = opened(tmp_path)
    names = [it.subject.rfc4514_string() for it in x509.load_pem_x509_certificates(ca.bundle.read_bytes())]
    assert [("somebody-else" in name, "nextvision-sidecar" in name) for name in names] == [
        (True, False),
        (False, True),
    ]
    assert x509.load_pem_x509_certificate(ca.file.read_bytes()) == ca.certificate


def test_a_bundle_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own lines in the environment already, it does not pile up certificates of its own."""
    first = opened(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(first.bundle))
    whole = first.bundle.read_bytes()
    assert opened(tmp_path).bundle.read_bytes() == whole
    rotated = opened(tmp_path, rotate=True)
    assert len(x509.load_pem_x509_certificates(rotated.bundle.read_bytes())) == 2


def test_the_systems_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SSL_CERT_FILE the bundle holds the roots of the system, all of them."""
    monkeypatch.delenv("SSL_CERT_FILE")
    roots = set(ssl.create_default_context().get_ca_certs(binary_form=True))
    bundle = ssl.create_default_context(cafile=str(opened(tmp_path).bundle))
    found = set(bundle.get_ca_certs(binary_form=True))
    assert len(roots) > 50
    assert len(found - roots) == 1
    assert roots < found

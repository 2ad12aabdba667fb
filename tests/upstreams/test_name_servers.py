"""Which name servers are asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.config.addresses import Address
from sidecar.upstreams.name_servers import NameServers, SystemServers, fixed, parse_resolv_conf

LOCAL = Address("127.0.0.1", 53)


@pytest.mark.parametrize(
    ("text", "servers", "search"),
    [
        ("nameserver 10.0.0.2\n", ["10.0.0.2"], []),
        ("nameserver 10.0.0.2\nnameserver fd00::2\n", ["10.0.0.2", "fd00::2"], []),
        ("nameserver 1.1.1.1\n" * 5, ["1.1.1.1"] * 3, []),
        ("# nameserver 10.0.0.9\n; x\n\nnameserver\tfe80::1%eth0\n", ["fe80::1%eth0"], []),
        ("nameserver nonsense\nnameserver\nwhatever 1\n", [], []),
        ("search ns.svc.local svc.local. .\noptions ndots:5\n", [], ["ns.svc.local", "svc.local"]),
        ("domain A.example\n", [], ["a.example"]),
        ("search a.example\ndomain b.example\n", [], ["b.example"]),
        ("", [], []),
    ],
)
def test_resolv_conf(text: str, servers: list[str], search: list[str]) -> None:
    """Three servers at most, the last list of domains; what is not understood is passed over."""
    found = parse_resolv_conf(text)
    assert found == NameServers(tuple(Address(server, 53) for server in servers), tuple(search))


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """And only then; while it is gone, what it said last counts."""
    file = tmp_path / "resolv.conf"
    servers = SystemServers(file)
    assert servers().servers == (LOCAL,)
    file.write_text("nameserver 10.0.0.2\n")
    assert servers().servers == (Address("10.0.0.2", 53),)
    stamp = file.stat().st_mtime_ns
    file.write_text("nameserver 10.0.0.3\n")
    os.utime(file, ns=(stamp + 10**9, stamp + 10**9))
    assert servers().servers == (Address("10.0.0.3", 53),)
    file.unlink()
    assert servers().servers == (Address("10.0.0.3", 53),)


@pytest.mark.parametrize("named", ["127.0.0.53", "127.0.0.54"])
def test_past_systemd_resolved(tmp_path: Path, named: str) -> None:
    """It answers from the hosts file, so those are asked whom it asks; the search domains stay."""
    file, behind = tmp_path / "resolv.conf", tmp_path / "behind"
    file.write_text(f"nameserver {named}\nsearch a.example\n")
    stub = NameServers((Address(named, 53),), ("a.example",))
    assert SystemServers(file, behind)() == stub
    behind.write_text("nameserver 192.168.1.1\n")
    assert SystemServers(file, behind)() == NameServers((Address("192.168.1.1", 53),), ("a.example",))
    behind.write_text("# none\n")
    assert SystemServers(file, behind)() == stub


def test_no_server_is_named(tmp_path: Path) -> None:
    """Then there is one on this machine (resolv.conf(5))."""
    file = tmp_path / "resolv.conf"
    file.write_text("search a.example\n")
    assert SystemServers(file)() == NameServers((LOCAL,), ("a.example",))


def test_configured_servers() -> None:
    """Nothing is put behind names that they are asked for."""
    servers = (Address("10.0.0.2", 5353),)
    assert fixed(servers)() == NameServers(servers, ())

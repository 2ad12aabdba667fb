"""By whom names are resolved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config.addresses import Address
from sidecar.config.load import load
from sidecar.errors import NameNotFound, NameNotResolved
from sidecar.upstreams.names import Names
from tests.support.dns import DnsServer, records
from tests.support.egress import Egress, get
from tests.support.origin import Origin

WRITTEN = ["bridge", "bridge.example", "eu.provider.example", "api.provider.example"]
LISTED = ["api.provider.example", "api"]


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("bridge", "system"),
        ("bridge.example", "dns"),
        ("eu.provider.example", "dns"),
        ("api.provider.example", "dns"),
        ("api", "dns"),
        ("www.example", "dns"),
        ("redis", "dns"),
    ],
)
async def test_who_is_asked(host: str, asked: str) -> None:
    """The system, with its hosts file, only for a name of the operator's own that has no dot."""
    asking: list[str] = []

    async def dns(address: Address) -> list[Address]:
        asking.append("dns")
        return [address]

    async def system(address: Address) -> list[Address]:
        asking.append("system")
        return [address]

    names = Names(dns, written=WRITTEN, listed=LISTED, system=system)
    assert await names(Address(host, 80)) == [Address(host, 80)]
    assert asking == [asked]


@pytest.mark.parametrize(
    ("host", "error", "asked"),
    [
        ("bridge.example", NameNotFound, ["dns", "system"]),
        ("bridge.example", NameNotResolved, ["dns"]),
        ("api.provider.example", NameNotFound, ["dns"]),
        ("www.example", NameNotFound, ["dns"]),
    ],
)
async def test_what_the_dns_does_not_know(host: str, error: type[NameNotResolved], asked: list[str]) -> None:
    """The system may know it if the operator wrote it; never a host that a hosts file may lead here."""
    asking: list[str] = []

    async def dns(_: Address) -> list[Address]:
        asking.append("dns")
        raise error

    async def system(address: Address) -> list[Address]:
        asking.append("system")
        return [address]

    names = Names(dns, written=WRITTEN, listed=LISTED, system=system)
    if asked[-1] == "system":
        assert await names(Address(host, 80)) == [Address(host, 80)]
    else:
        with pytest.raises(error):
            await names(Address(host, 80))
    assert asking == asked


async def test_a_host_of_the_app_is_looked_up_past_the_hosts_file(tmp_path: Path) -> None:
    """By `dns.servers`: the hosts file says nothing of it, and if it did, that would not be seen."""
    reply = records("api.provider.example A 127.0.0.1", "www.provider.example A 127.0.0.1", negative=5)
    async with Origin() as origin, DnsServer(reply) as server:
        policy = {
            "hosts": ["api.provider.example"],
            "upstream": f"http://api.provider.example:{origin.address.port}",
        }
        async with Egress(
            tmp_path, policy=policy, dns={"servers": [str(server.address)]}, names=None
        ) as egress:
            answer = await (await egress.connect()).ask(get(str(egress.address), "/provider/"))
            assert (answer.status, answer.body) == (200, b"ok")
            assert server.asked
            lookups = egress.metrics.dns.lookups
    assert lookups == {"asked": 1}


async def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    """502, with an error of its own that says so."""
    async with DnsServer(records(negative=5)) as server:
        policy = {"hosts": ["api.provider.example"], "upstream": "http://api.provider.example"}
        async with Egress(tmp_path, policy=policy, dns={"servers": [str(server.address)]}) as egress:
            answer = await (await egress.connect()).ask(get(str(egress.address), "/provider/"))
            assert (answer.status, answer.problem["code"]) == (502, "name_not_resolved")
            assert answer.problem["detail"] == "the DNS knows no address of api.provider.example"


async def test_names_of_the_operators_own_are_known(tmp_path: Path) -> None:
    """`upstream`, `connect_to` and those of a fallback; not what `hosts` lists."""
    policies: dict[str, dict[str, Any]] = {
        "a": {"hosts": ["a.example"], "upstream": "https://a.example"},
        "b": {"hosts": ["b.example"], "upstream": "http://bridge:5053"},
        "c": {"hosts": ["c.example"], "connect_to": "pinned:443"},
        "d": {
            "hosts": ["d.example"],
            "routes": [{"name": "d", "fallback": [{"upstream": "http://spare:80"}]}],
        },
    }
    for name, policy in policies.items():
        whole = {"name": name, "direction": "egress", "routes": [{"name": f"all-{name}"}], **policy}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    settings = {"listen": {"egress": "127.0.0.1:0"}, "policies": [f"{name}.yaml" for name in policies]}
    (tmp_path / "sidecar.yaml").write_text(yaml.safe_dump(settings))
    async with Egress(tmp_path, loaded=load(tmp_path / "sidecar.yaml", {})) as egress:
        assert isinstance(egress.resolving, Names)
        assert egress.resolving._own == {"bridge", "pinned", "spare"}

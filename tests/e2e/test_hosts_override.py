"""A hosts file that leads the app's hosts to the sidecar: the sidecar itself does not follow it.

The process gets a hosts file of its own, by a mount namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from sidecar.config.addresses import Address
from tests.support.dns import DnsServer, records
from tests.support.origin import Origin
from tests.support.processes import Sidecar, free_port, until_connects

HOST: Final = "api.provider.example"
HOSTS: Final = f"127.0.0.1 localhost\n127.0.0.1 {HOST}\n127.0.0.3 bridge\n"
MOUNTED: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'


def namespaced(hosts: Path) -> list[str]:
    """How a command is started with that hosts file; skips the test where that may not be done."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare (util-linux)")
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    prefix = [unshare, *as_root, "--mount", "sh", "-c", MOUNTED, str(hosts)]
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace here: {tried.stderr.decode().strip()}")
    script = f"import socket; print(socket.gethostbyname('{HOST}'))"
    seen = subprocess.run([*prefix, sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert seen.stdout.strip() == "127.0.0.1", "the override works"
    return prefix


async def ask(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        return reply.status, await reply.text()


async def test_past_the_hosts_file(tmp_path: Path) -> None:
    """A listed host is found by the DNS, and a name of the operator's own by the hosts file."""
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    prefix = namespaced(hosts)

    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nprovider"
    bridge = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbridge"
    egress = free_port()
    async with (
        Origin(answer, address=Address("127.0.0.2")) as provider,
        Origin(bridge, address=Address("127.0.0.3", provider.address.port)),
        DnsServer(records(f"{HOST} A 127.0.0.2", negative=5)) as server,
    ):
        port = provider.address.port
        policy = {
            "name": "provider",
            "direction": "egress",
            "hosts": [f"{HOST}:{port}"],
            "upstream": f"http://{HOST}:{port}",
            "routes": [
                {
                    "name": "bridge",
                    "match": {"path": "/bridge"},
                    "fallback": [{"upstream": f"http://bridge:{port}"}],
                },
                {"name": "all"},
            ],
        }
        sidecar = Sidecar(
            tmp_path,
            free_port(),
            policy,
            egress={"allow_private": ["127.0.0.2", "127.0.0.3"]},
            dns={"servers": [str(server.address)]},
            ca={"dir": "ca"},
        )
        config = (tmp_path / "sidecar.yaml").read_text()
        (tmp_path / "sidecar.yaml").write_text(
            config.replace("listen:\n", f"listen:\n  egress: 127.0.0.1:{egress}\n")
        )
        sidecar.command = [*prefix, *sidecar.command]
        await sidecar.start()
        try:
            await until_connects(egress)
            base = f"http://127.0.0.1:{egress}/provider"
            assert await ask(f"{base}/x") == (200, "provider")
            assert (HOST, "A") in server.asked
            await provider.close()
            assert await ask(f"{base}/bridge") == (200, "bridge")
            assert not [name for name, _ in server.asked if name.startswith("bridge")]
        finally:
            await sidecar.end()

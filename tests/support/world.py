"""Apps that call Google Maps and OpenAI, unchanged, under `sidecar run`: the fakes, and where they run."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml

from sidecar import private_namespace
from tests.support.origin import Certificate, self_signed
from tests.support.processes import ROOT, Program, Sidecar, free_port, until_connects

GOOGLE = "maps.googleapis.com"
OPENAI = "api.openai.com"


class Providers(Program):
    """The fakes of Google Maps and OpenAI over TLS, as one of the two."""

    def __init__(self, folder: Path, host: str) -> None:
        self.port = free_port()
        self.certificate: Certificate = self_signed(folder, host)
        files = ("--cert", str(self.certificate.path), "--key", str(self.certificate.key))
        script = str(ROOT / "examples" / "providers.py")
        super().__init__([sys.executable, script, "--port", str(self.port), *files], folder / f"{host}.out")

    async def start(self) -> None:
        await super().start()
        await until_connects(self.port)

    async def switch(self, **modes: dict[str, object]) -> None:
        """How they behave from now on, as `POST /_switch` takes it."""
        url = f"https://127.0.0.1:{self.port}/_switch"
        async with aiohttp.ClientSession() as http, http.post(url, json=modes, ssl=False) as reply:
            assert reply.status == 200, await reply.text()


class World:
    """Both providers, and a folder to run sidecars in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.providers = {host: Providers(folder, host) for host in (GOOGLE, OPENAI)}
        for name, host in (("google-maps", GOOGLE), ("openai", OPENAI)):
            provider = self.providers[host]
            policy = (ROOT / "policies" / f"{name}.yaml").read_text()
            at = f"connect_to: 127.0.0.1:{provider.port}\ntls: {{ca: {provider.certificate.path}}}\n"
            (folder / f"{name}.yaml").write_text(policy + "\n" + at)

    def sidecar(self, *command: str, policies: tuple[str, ...] = ("google-maps", "openai")) -> Sidecar:
        listen = {name: f"127.0.0.1:{free_port()}" for name in ("ingress", "admin", "egress")}
        made = Sidecar(self.folder, free_port(), None, *command, listen=listen, ca={"dir": "ca"})
        made.port = int(listen["egress"].rpartition(":")[2])
        file = self.folder / "sidecar.yaml"
        settings = yaml.safe_load(file.read_text())
        settings["policies"] = [f"{name}.yaml" for name in policies]
        file.write_text(yaml.safe_dump(settings))
        # The roots are the system's, not those that a test run may have been given.
        made.environment.pop("SSL_CERT_FILE", None)
        return made

    async def run(self, *command: str, **environment: str) -> Sidecar:
        """Runs a command to its end under a sidecar; its exit code must be 0."""
        sidecar = self.sidecar(*command)
        sidecar.environment |= environment
        assert await finished(sidecar) == 0, sidecar.output.read_text()[-4000:]
        return sidecar


async def finished(program: Program) -> int:
    await Program.start(program)
    assert program.process is not None
    try:
        return await asyncio.wait_for(program.process.wait(), 45)
    except TimeoutError:
        await program.end(signal.SIGKILL)
        raise


def no_namespaces(folder: Path) -> str | None:
    """Why a hosts override for a child alone cannot be had here; None: it can."""
    ca = folder / "probe.pem"
    ca.write_text("")
    arguments = ["--address", "127.66.0.1", "--host", "x.example", "--ca", str(ca), "--probe"]
    probe = subprocess.run(
        [sys.executable, "-I", private_namespace.__file__, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        return f"no mount namespaces here: {probe.stderr.strip()}"
    with socket.socket() as listener:
        try:
            listener.bind(("127.66.0.200", 443))
        except OSError as error:
            return f"port 443 cannot be bound here: {error}"
    return None


def need_namespaces(folder: Path) -> None:
    """Skips where nobody may make a namespace or bind port 443."""
    reason = no_namespaces(folder)
    if reason is not None:
        pytest.skip(reason)

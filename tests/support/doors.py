"""A sidecar process in front of a provider over TLS, with a door for every kind of client."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.origin import self_signed
from tests.support.processes import Program, Sidecar, free_port, until_connects

HOST = "api.provider.example"


class Provider(Program):
    """The tiny app over TLS, as `HOST` and as `localhost`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.certificate = self_signed(folder, HOST)
        files = [str(self.certificate.path), str(self.certificate.key)]
        super().__init__(
            [sys.executable, str(Path(__file__).with_name("tiny_app.py")), str(self.port), *files],
            folder / "provider.out",
        )

    async def start(self) -> None:
        await super().start()
        await until_connects(self.port)


@asynccontextmanager
async def running(*programs: Program) -> AsyncIterator[None]:
    try:
        for program in programs:
            await program.start()
        yield
    finally:
        for program in programs:
            if program.process is not None and program.process.returncode is None:
                await program.end(signal.SIGKILL)


@dataclass
class Doors:
    """A sidecar in front of a provider over TLS."""

    sidecar: Sidecar
    provider: Provider
    egress: int
    intercept: int

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self.egress}"

    @property
    def bundle(self) -> str:
        return str(self.sidecar.folder / "ca" / "bundle.pem")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Doors]:
    provider = Provider(folder)
    egress, intercept, admin = free_port(), free_port(), free_port()
    policy = {
        "name": "provider",
        "direction": "egress",
        # A client that is led here by its hosts file comes to the port of its URL.
        "hosts": [HOST, f"{HOST}:{intercept}"],
        "upstream": f"https://{HOST}",
        "connect_to": f"127.0.0.1:{provider.port}",
        "tls": {"ca": str(provider.certificate.path)},
        "defaults": {"deadline": "10s", "attempt_timeout": "5s"},
        "routes": [
            {"name": "shared", "match": {"path": "/shared/*"}, "cache": {"stale_if_error": "1h"}},
            {"name": "rest", "match": {"path": "/*"}},
        ],
    }
    sidecar = Sidecar(
        folder,
        free_port(),
        policy,
        listen={
            "ingress": f"127.0.0.1:{free_port()}",
            "admin": f"127.0.0.1:{admin}",
            "egress": f"127.0.0.1:{egress}",
            "intercept": f"127.0.0.1:{intercept}",
        },
        egress={"allow_private": ["127.0.0.1"]},
        ca={"dir": "ca"},
    )
    sidecar.port, sidecar.admin_port = egress, admin
    async with running(provider, sidecar):
        await until_connects(intercept)
        yield Doors(sidecar, provider, egress, intercept)

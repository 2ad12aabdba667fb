"""The egress half of the product in the test's own loop: its real listeners, authority and pools."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import structlog.testing
import yaml

from sidecar.caching.cache import Caching
from sidecar.clock import Clock, Ids, SystemClock, SystemRandom
from sidecar.config.addresses import Address
from sidecar.config.load import Loaded, load
from sidecar.egress_plane import EgressPlane
from sidecar.errors import ClientError
from sidecar.listeners.ingress import Limits
from sidecar.listeners.intercept import Interceptor
from sidecar.overlap import Overlaps
from sidecar.pipeline import Services
from sidecar.state import State
from sidecar.stores.memory import Memory
from sidecar.stores.tiered import Tiered
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.sink import Make, Sink
from tests.support.harness import Client, eventually
from tests.support.origin import LARGEST_READ

HOST = "api.provider.example"
"""A host that the policy file of these tests owns."""
OTHER = "www.provider.example"


class Lines(Sink):
    """Access log lines, kept."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.read: list[dict[str, Any]] = []

    def write(self, data: bytes, lines: int = 1) -> None:
        self.read += [json.loads(line) for line in data.splitlines()]

    def write_made(self, make: Make, lines: int) -> None:
        self.write(make(), lines)


class Egress:
    """An egress plane with one policy file, `provider`, for `HOST` and `OTHER`. Used with `async with`.

    Names of hosts lead to loopback: those that a test means by `names`, others nowhere. With `dns`, as in
    sidecar.yaml, they are resolved as the product does it.
    """

    def __init__(
        self,
        directory: Path,
        upstream: str | None = None,
        *,
        policy: Mapping[str, Any] | None = None,
        route: Mapping[str, Any] | None = None,
        egress: Mapping[str, Any] | None = None,
        intercept: Sequence[str] | str = "127.0.0.1:0",
        names: Mapping[str, str] | None = None,
        dns: Mapping[str, Any] | None = None,
        loaded: Loaded | None = None,
        clock: Clock | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        file: dict[str, Any] = {
            "name": "provider",
            "direction": "egress",
            "hosts": [HOST, OTHER],
            "routes": [{"name": "all", "match": {"path": "/*"}, **(route or {})}],
            **({"upstream": upstream} if upstream is not None else {}),
            **(policy or {}),
        }
        main = {
            "policies": ["provider.yaml"],
            "listen": {"egress": "127.0.0.1:0", "intercept": intercept},
            "egress": {"allow_private": ["127.0.0.0/8"], **(egress or {})},
            "dns": dict(dns or {}),
        }
        if loaded is None:
            (directory / "provider.yaml").write_text(yaml.safe_dump(file))
            (directory / "sidecar.yaml").write_text(yaml.safe_dump(main))
            loaded = load(directory / "sidecar.yaml", {})
        self.loaded = loaded
        self.clock: Clock = clock or SystemClock()
        self.metrics = Metrics()
        self.names = {"localhost": "127.0.0.1", **(names or {})}
        self.refused: list[ClientError] = []
        self.log: list[Any] = []
        """What the plane said, as structlog has it."""
        self.access = Lines()
        self.access_log = AccessLog(self.access, self.clock)
        services = Services(
            clock=self.clock,
            overlaps=Overlaps(self.clock),
            random=SystemRandom(),
            state=State(self.metrics, self.clock),
            metrics=self.metrics,
            access_log=self.access_log,
            caching=Caching(Tiered(Memory(1 << 20, self.clock), None, self.clock), self.clock, in_use=True),
        )
        settings = {
            "head": 32 * 1024,
            "body": None,
            "connections": 1024,
            "header_timeout": 10.0,
            "idle": 75.0,
            "drain": 30.0,
            **(limits or {}),
        }
        self._capture = structlog.testing.capture_logs()
        self.plane = EgressPlane(
            self.loaded,
            services,
            Ids(),
            Limits(**settings),
            on_refused=lambda _, error: self.refused.append(error),
        )
        self.resolving = self.plane._dial._resolve
        if dns is None:
            self.plane._dial._resolve = self._resolve
        self._caching = services.caching
        self.clients: list[Client] = []

    async def _resolve(self, address: Address) -> list[Address]:
        host = self.names.get(address.host, address.host)
        if not Address(host, 1).literal:
            raise OSError(f"no such name: {host}")
        return [Address(host, address.port)]

    async def __aenter__(self) -> Self:
        self.log = self._capture.__enter__()
        await self.plane.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        for listener in self.plane.listeners:
            for connection in tuple(listener._connections):
                connection.abort()
        await self.plane.close()
        await eventually(lambda: not self.plane.connections, "a connection is left")
        await self._caching.close()
        self.access_log.close()
        self._capture.__exit__(None, None, None)

    # -- where it is -------------------------------------------------------------------------------

    @property
    def proxy(self) -> str:
        return f"http://{self.plane.shown['egress']}"

    @property
    def address(self) -> Address:
        """The egress listener's."""
        host, _, port = self.plane.shown["egress"].rpartition(":")
        return Address(host, int(port))

    @property
    def intercept(self) -> Address:
        return self.intercepts[0]

    @property
    def intercepts(self) -> list[Address]:
        found = [it.rpartition(":") for it in self.plane.shown["intercept"].split(", ")]
        return [Address(host, int(port)) for host, _, port in found]

    @property
    def taken_over(self) -> Address:
        host, _, port = self.plane.shown["takeover_of_provider"].split(",")[0].rpartition(":")
        return Address(host, int(port))

    @property
    def bundle(self) -> str:
        assert self.plane.authority is not None
        return str(self.plane.authority.bundle)

    def trusting(self) -> ssl.SSLContext:
        """TLS of a client that trusts nobody but the local authority."""
        assert self.plane.authority is not None
        return ssl.create_default_context(cafile=str(self.plane.authority.file))

    def listener(self, name: str) -> Interceptor:
        """`egress` or `intercept`."""
        for listener in self.plane.listeners:
            if listener._cells.name == name:
                assert isinstance(listener, Interceptor)
                return listener
        raise AssertionError(name)

    def requests(self) -> list[dict[str, Any]]:
        """The access log."""
        self.access_log.flush()
        return self.access.read

    def said(self) -> list[str]:
        """The reasons of TLS that came to nothing."""
        return [line["reason"] for line in self.log if line["event"] == "no tls"]

    # -- clients -----------------------------------------------------------------------------------

    async def connect(self, to: Address | None = None) -> Client:
        """A raw connection, to the egress listener by default."""
        at = to or self.address
        client = Client(*await asyncio.open_connection(at.host, at.port, limit=LARGEST_READ))
        self.clients.append(client)
        return client

    async def tunnel(self, authority: str) -> Client:
        """A connection on which a CONNECT was answered with 200."""
        client = await self.connect()
        await client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        answer = await client.head()
        assert (answer.status, answer.reason) == (200, "Connection established")
        return client

    async def secure(self, name: str = HOST, to: Address | None = None, **settings: Any) -> Client:
        """A TLS connection to the intercept listener, for `name`."""
        at = to or self.intercept
        reader, writer = await asyncio.open_connection(
            at.host,
            at.port,
            ssl=settings.pop("tls", None) or self.trusting(),
            server_hostname=name,
            **settings,
        )
        client = Client(reader, writer)
        self.clients.append(client)
        return client


def get(host: str = HOST, path: str = "/", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode()

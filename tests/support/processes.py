"""The product as its user runs it: `python -m sidecar run` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
_POLL = 0.02


def free_port() -> int:
    """A port nobody listens on, below the range that connections take theirs from (32768 on Linux)."""
    start = 11000 + int.from_bytes(os.urandom(2), "big") % 20000
    for port in range(start, start + 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


class Program:
    """A process that a test starts and ends."""

    def __init__(self, command: list[str], output: Path, **environment: str) -> None:
        self.command = command
        self.output = output
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.output.open("ab") as file:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and waits; returns the exit code."""
        assert self.process is not None
        self.send(number)
        try:
            return await asyncio.wait_for(self.process.wait(), 15)
        except TimeoutError:
            self.process.kill()
            raise AssertionError(f"it did not end: {self.output.read_text()[-2000:]}") from None


class TinyApp(Program):
    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        script = str(Path(__file__).with_name("tiny_app.py"))
        super().__init__([sys.executable, script, str(self.port)], folder / "app.out")

    async def start(self) -> None:
        await super().start()
        await until_connects(self.port)


class Sidecar(Program):
    """`policies` and `settings` are YAML as values; ports are chosen."""

    def __init__(
        self,
        folder: Path,
        app_port: int,
        policies: dict[str, Any] | None = None,
        *command: str,
        **settings: Any,
    ) -> None:
        self.port = free_port()
        self.admin_port = free_port()
        self.folder = folder
        config = {
            "app": {"url": f"http://127.0.0.1:{app_port}"},
            "listen": {"ingress": f"127.0.0.1:{self.port}", "admin": f"127.0.0.1:{self.admin_port}"},
            "policies": ["policy.yaml"] if policies else [],
            **settings,
        }
        (folder / "sidecar.yaml").write_text(yaml.safe_dump(config))
        if policies:
            (folder / "policy.yaml").write_text(yaml.safe_dump(policies))
        arguments = [sys.executable, "-m", "sidecar", "run", "-c", str(folder / "sidecar.yaml")]
        super().__init__(arguments + (["--", *command] if command else []), folder / "sidecar.out")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    async def start(self) -> None:
        await super().start()
        try:
            await until_connects(self.port)
            # It is bound last; and a test may have moved it.
            if f":{self.admin_port}" in (self.folder / "sidecar.yaml").read_text():
                await until_connects(self.admin_port)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.output.read_text()[-3000:]}") from None

    async def page(self) -> str:
        """`/metrics`, as it is."""
        async with aiohttp.ClientSession() as http, http.get(self.admin + "/metrics") as reply:
            return await reply.text()

    async def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, by its name with labels as it stands on the page."""
        text = await self.page()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def log(self) -> list[dict[str, Any]]:
        """All lines so far, the sidecar's own and those of requests."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.log() if line["logger"] == "sidecar.access"]


async def until_connects(port: int) -> None:
    """Returns once something listens on the port. Raises AssertionError."""
    for _ in range(int(START_SECONDS / _POLL)):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(_POLL)
            continue
        writer.close()
        return
    raise AssertionError(f"nothing listens on {port}")


def total(metrics: dict[str, float], name: str, **labels: str) -> float:
    """The sum of the samples of `name` that carry these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    pattern = re.compile(rf"{re.escape(name)}(\{{.*\}})?")
    return sum(
        value
        for sample, value in metrics.items()
        if pattern.fullmatch(sample) and all(label in sample for label in wanted)
    )

"""The processes of the demo: the fake providers, the sample app twice, the sidecar before one of them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import aiohttp
import yaml

from sidecar.clock import SystemClock, SystemRandom

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
"""Where the package is, so that `python -m sidecar` finds it in a clone too."""
START_SECONDS = 30.0
STOP_SECONDS = 10.0
NOT_INHERITED = ("NEXTVISION_ENV", "LOG_LEVEL", "OPENAI_API_BASE", "NEXTVISION_MAPS_BASE")
"""What the caller's environment may say, and what is not meant for the demo."""


class DemoError(Exception):
    """The demo cannot go on; the message is for its user."""


def examples() -> Path:
    """The folder with the sample app: in the wheel, or beside the package in a clone."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_examples", package.parent / "examples"):
        if (folder / "nextvision_app.py").is_file():
            return folder
    raise DemoError("the sample app is missing: reinstall the package, or run this in a clone")


def policies() -> Path:
    """The folder with the shipped policies: in the wheel, or beside the package in a clone."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_policies", package.parent / "policies"):
        if (folder / "google-maps.yaml").is_file():
            return folder
    raise DemoError("the policies are missing: reinstall the package, or run this in a clone")


def free_ports(wanted: int, random: SystemRandom) -> list[int]:
    """Ports nobody listens on, under the range from which connections take theirs (32768 on Linux).

    An app's port in that range could be taken while the app restarts: a client that tries to connect
    may be given that very port for its own end, and is then connected to itself.
    """
    found: list[int] = []
    for _ in range(1000):
        port = 12000 + int(random.random() * 20000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
        if len(found) == wanted:
            return found
    raise DemoError("no free port on loopback")


class Process:
    """A program of the demo, started and stopped as a user would."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], health: str, output: Path
    ) -> None:
        self.name = name
        self.command = command
        self.environment = environment
        self.health = health
        """URL that answers 200 once the program serves."""
        self.output = output
        self.process: asyncio.subprocess.Process | None = None
        self._file: IO[bytes] | None = None

    async def start(
        self,
        http: aiohttp.ClientSession,
        clock: SystemClock,
        born: Callable[[asyncio.subprocess.Process], None] = lambda _: None,
    ) -> None:
        """Starts it; returns when it serves. `born` hears of it at once. Raises `DemoError` if it fails."""
        self._file = self.output.open("ab")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            env=self.environment,
            cwd=ROOT,
            # Ctrl-C is for the demo, which then stops the others in order.
            start_new_session=True,
        )
        born(self.process)
        give_up = clock.now() + START_SECONDS
        while self.process.returncode is None and clock.now() < give_up:
            try:
                async with http.get(self.health, timeout=aiohttp.ClientTimeout(1)) as reply:
                    if reply.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await clock.sleep(0.02)
        raise DemoError(f"{self.name} did not start" + (f":\n{self.tail()}" if self.running else ""))

    async def kill(self) -> None:
        """Ends it without warning, as a crash does."""
        self.kill_now()
        if self.process is not None:
            await self.process.wait()
        self._close()

    def kill_now(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    async def stop(self, clock: SystemClock) -> str | None:
        """Ends it with SIGTERM; says what was wrong with its end, None when nothing was."""
        if self.process is None:
            return None
        ended_before = self.process.returncode is not None
        if not ended_before:
            self.process.send_signal(signal.SIGTERM)
        give_up = clock.now() + STOP_SECONDS
        while self.process.returncode is None and clock.now() < give_up:
            await clock.sleep(0.02)
        code = self.process.returncode
        await self.kill()
        if ended_before:
            return f"{self.name} ended before it was told to, with {code}:\n{self.tail()}"
        if code is None:
            return f"{self.name} did not end within {STOP_SECONDS:.0f} s of SIGTERM:\n{self.tail()}"
        # uvicorn shuts down in order, then ends by the signal it was sent.
        if code not in {0, -signal.SIGTERM}:
            return f"{self.name} ended with {code}:\n{self.tail()}"
        return None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def tail(self) -> str:
        lines = self.output.read_text("utf-8", "replace").splitlines()[-15:] if self.output.exists() else []
        return "\n".join(f"    {line}" for line in lines)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Stage:
    """All the processes, where they listen, and what they have counted."""

    def __init__(self, directory: Path, sample: Path, policy: Path | None = None) -> None:
        """`policy` is a policy file for the app, in the place of the demo's own."""
        self.clock = SystemClock()
        self.directory = directory
        providers, bare, beside, ingress, admin, egress = free_ports(6, SystemRandom())
        self.providers_url = f"http://{HOST}:{providers}"
        self.bare_url = f"http://{HOST}:{bare}"
        """The app that clients reach without the sidecar."""
        self.beside_url = f"http://{HOST}:{beside}"
        """The app that the sidecar stands beside."""
        self.sidecar_url = f"http://{HOST}:{ingress}"
        self.admin_url = f"http://{HOST}:{admin}"
        self.egress_url = f"http://{HOST}:{egress}"
        """Where the app beside the sidecar makes its own calls."""
        calls = [self._policy(name) for name in ("google-maps", "openai")]
        self.configuration = directory / "sidecar.yaml"
        self.configuration.write_text(
            yaml.safe_dump(
                {
                    "app": {"url": self.beside_url},
                    "listen": {
                        "ingress": f"{HOST}:{ingress}",
                        "egress": f"{HOST}:{egress}",
                        "admin": f"{HOST}:{admin}",
                    },
                    "policies": [str((policy or sample / "demo-policies.yaml").resolve()), *calls],
                    "logging": {"format": "json", "level": "info"},
                    "limits": {"drain": "5s"},
                }
            ),
            "utf-8",
        )
        environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        environment["NO_PROXY"] = environment["no_proxy"] = HOST
        providers_of = {
            "without": (self.providers_url, self.providers_url),
            "with": (f"{self.egress_url}/google-maps", f"{self.egress_url}/openai"),
        }
        self.providers = Process(
            "the fake providers",
            [str(sample / "providers.py"), "--host", HOST, "--port", str(providers)],
            environment,
            f"{self.providers_url}/_calls",
            directory / "providers.log",
        )
        self.bare, self.beside = (
            Process(
                f"the app {name} the sidecar",
                [
                    *(str(sample / "nextvision_app.py"), "--host", HOST, "--port", str(port)),
                    *("--count-file", str(self._count_file(name))),
                ],
                {
                    **environment,
                    "NEXTVISION_MAPS_BASE": f"{providers_of[name][0]}/maps/api",
                    "OPENAI_API_BASE": f"{providers_of[name][1]}/v1",
                },
                f"http://{HOST}:{port}/health",
                directory / f"app-{name}.log",
            )
            for name, port in (("without", bare), ("with", beside))
        )
        self.sidecar = Process(
            "the sidecar",
            ["-m", "sidecar", "run", "-c", str(self.configuration)],
            environment,
            f"{self.admin_url}/health/ready",
            directory / "sidecar.log",
        )
        self.http: aiohttp.ClientSession | None = None

    def _policy(self, name: str) -> str:
        """The shipped policy of a provider, for the fake one; its breaker probes soon after an act."""
        text = (policies() / f"{name}.yaml").read_text("utf-8")
        # As text: PyYAML takes the key `on` for a truth value.
        text = re.sub(r"(?m)^upstream: .*$", f"upstream: {self.providers_url}", text)
        text = re.sub(r"(?m)^    (open_for|open_max): .*$", r"    \1: 1s", text)
        path = self.directory / f"{name}.yaml"
        path.write_text(text, "utf-8")
        return str(path)

    @property
    def processes(self) -> tuple[Process, ...]:
        return (self.sidecar, self.bare, self.beside, self.providers)

    async def start(self) -> None:
        self.http = aiohttp.ClientSession()
        await _all(process.start(self.http, self.clock) for process in self.processes)

    async def stop(self) -> list[str]:
        """Stops all; returns what went wrong."""
        if self.http is not None:
            await self.http.close()
        try:
            problems = [await process.stop(self.clock) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill_now()
        return [problem for problem in problems if problem is not None]

    async def crash_apps(self) -> float:
        """Kills both apps and starts them again; returns how many seconds the slower one was away."""
        if self.http is None:
            raise DemoError("the stage is not set")
        since = self.clock.now()
        await _all(app.kill() for app in (self.bare, self.beside))
        await _all(app.start(self.http, self.clock) for app in (self.bare, self.beside))
        return self.clock.now() - since

    async def break_apps(self, fault: dict[str, object]) -> None:
        for url in (self.bare_url, self.beside_url):
            await self.post(f"{url}/_fault", fault)

    async def break_providers(self, switch: dict[str, object]) -> None:
        await self.post(f"{self.providers_url}/_switch", switch)

    async def post(self, url: str, body: dict[str, object]) -> None:
        await self._ask("POST", url, body)

    async def metrics(self) -> str:
        return await self._ask("GET", f"{self.admin_url}/metrics")

    async def _ask(self, method: str, url: str, body: dict[str, object] | None = None) -> str:
        if self.http is None:
            raise DemoError("the stage is not set")
        try:
            async with self.http.request(method, url, json=body) as reply:
                reply.raise_for_status()
                return await reply.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoError(f"{method} {url}: {error}") from error

    def received(self) -> tuple[int, int]:
        """Requests that the apps without and with the sidecar received, since the start."""
        return self._count("without"), self._count("with")

    def _count(self, name: str) -> int:
        (count,) = struct.unpack("=q", self._count_file(name).read_bytes())
        return int(count)

    def _count_file(self, name: str) -> Path:
        return self.directory / f"calls-{name}"


async def _all(awaitables: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs them at once; the first error, after all have ended."""
    for outcome in await asyncio.gather(*awaitables, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome

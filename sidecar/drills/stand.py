"""What a scenario is run against: sample app, fake providers and sidecar, or a target of the user's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar.clock import SystemClock, SystemRandom
from sidecar.demo.processes import (
    HOST,
    NOT_INHERITED,
    ROOT,
    DemoError,
    Process,
    examples,
    free_ports,
    policies,
)
from sidecar.drills.errors import StandError
from sidecar.drills.figures import Held, Metrics, held, idle_upstreams
from sidecar.drills.names import NAME, Certificates, NameServer
from sidecar.drills.reading import Found
from sidecar.drills.redis_server import Redis

RESTART_SECONDS: Final = 90.0
"""Seconds in which all workers have to be replaced."""


class Guard:
    """Ends what was started, should this process die without doing so, and removes its folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar.drills.guard", str(self._directory)),
            stdin=asyncio.subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )

    def started(self, process: asyncio.subprocess.Process) -> None:
        self._tell(f"+{process.pid}")

    def ended(self, process: asyncio.subprocess.Process | None) -> None:
        """Before it is waited for its number may not be given to another process."""
        if process is not None:
            self._tell(f"-{process.pid}")

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode())

    async def stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()


class Target:
    """Something of the user's: it is only loaded, and faults can be set where `admin` is known."""

    def __init__(self, url: str, admin: str | None = None, token: str | None = None) -> None:
        self.url = url
        self.admin = admin
        self.clock = SystemClock()
        self.verified = True
        """Whether certificates are checked."""
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Raises StandError."""
        # The providers' certificate may be one that nobody should take; all else here speaks plain HTTP.
        connector = aiohttp.TCPConnector(ssl=self.verified)
        self.http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5))

    async def stop(self) -> list[str]:
        """Returns what went wrong."""
        if self.http is not None:
            await self.http.close()
        return []

    async def metrics(self) -> Metrics:
        """The sidecar's own figures; none where it cannot be asked."""
        if self.http is None or self.admin is None:
            return {}
        try:
            async with self.http.get(f"{self.admin}/metrics", headers=self._headers) as reply:
                if reply.status != 200:
                    return {}
                text = await reply.text()
        except (aiohttp.ClientError, TimeoutError):
            return {}
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def set_fault(self, order: Mapping[str, object]) -> None:
        """Raises StandError."""
        if self.admin is None:
            raise StandError("faults are set through the admin listener: say where it is with --admin URL")
        await self.post(f"{self.admin}/admin/faults", order)

    async def post(self, url: str, body: Mapping[str, object]) -> None:
        assert self.http is not None
        try:
            async with self.http.post(url, json=dict(body), headers=self._headers) as reply:
                if reply.status != 200:
                    raise StandError(f"POST {url}: {reply.status}: {(await reply.text())[:300]}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StandError(f"POST {url}: {error!r}") from error

    def app_requests(self) -> int | None:
        """Requests that reached the app; None: not known."""
        return None

    async def provider_calls(self) -> int | None:
        return None

    def memory(self, metrics: Metrics) -> int | None:
        """Resident bytes of the sidecar; None: not known."""
        found = held(metrics)
        return found.memory if found is not None else None

    async def held(self) -> Held | None:
        """What the sidecar holds now; None: not known."""
        return held(await self.metrics())


class Stand(Target):
    """All of it on loopback, each a process of its own."""

    def __init__(self, found: Found, directory: Path, settings: Mapping[str, str]) -> None:
        """`settings` go before the scenario's. Raises StandError."""
        stand = found.scenario.stand
        breaks = found.scenario.faults
        providers, app, ingress, admin, egress, redis, relay, naming = free_ports(8, SystemRandom())
        super().__init__(f"http://{HOST}:{ingress}", f"http://{HOST}:{admin}")
        self.app_url = f"http://{HOST}:{app}"
        # What is called by name is found, and proves who it is, on every connection: each is for one call.
        self.certificates = Certificates(directory) if any(it.certificate for it in breaks) else None
        self.verified = self.certificates is None
        by_name = self.certificates is not None or any(it.dns for it in breaks)
        self.name_server = NameServer() if by_name else None
        self._naming_port = naming
        scheme = "https" if self.certificates is not None else "http"
        self.providers_url = f"{scheme}://{HOST}:{providers}"
        self._upstream = f"{scheme}://{NAME if by_name else HOST}:{providers}"
        self._directory = directory
        self._count_file = directory / "calls"
        self._guard = Guard(directory)
        try:
            sample = examples()
            names = [self._policy(found, name) for name in stand.policies]
        except DemoError as error:
            raise StandError(str(error)) from error
        slow = any(it.redis == "slow" for it in breaks)
        self.redis = (
            Redis(directory, redis, self.clock, relay_port=relay if slow else None)
            if stand.redis == "own"
            else None
        )
        configuration = directory / "sidecar.yaml"
        content: dict[str, object] = {
            "app": {"url": self.app_url},
            "listen": {
                "ingress": f"{HOST}:{ingress}",
                "admin": f"{HOST}:{admin}",
                "egress": f"{HOST}:{egress}",
            },
            "policies": names,
            "logging": {"format": "json", "level": "warning", "access": "false"},
            "limits": {"drain": "2s"},
        }
        if self.redis is not None:
            content["cache"] = {"redis": self.redis.url}
        if self.name_server is not None:
            content["dns"] = {"servers": [f"{HOST}:{naming}"]}
            content["egress"] = {"allow_private": [HOST]}
        configuration.write_text(yaml.safe_dump(content), "utf-8")
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in NOT_INHERITED and not name.startswith(("SIDECAR_", "FEATURE_", "REDIS_"))
        }
        environment["NO_PROXY"] = environment["no_proxy"] = HOST
        # Where a scenario has no policy for a provider the app calls it directly.
        has = {name: any(Path(file).stem == name for file in names) for name in ("google-maps", "openai")}
        base = {
            name: f"http://{HOST}:{egress}/{name}" if there else self.providers_url
            for name, there in has.items()
        }
        options = ["--close"] if by_name else []
        if self.certificates is not None:
            options += ["--cert", str(self.certificates.file)]
        self.providers = Process(
            "the fake providers",
            [str(sample / "providers.py"), "--host", HOST, "--port", str(providers), *options],
            environment,
            f"{self.providers_url}/_calls",
            directory / "providers.log",
        )
        self.app = Process(
            "the sample app",
            [
                *(str(sample / "nextvision_app.py"), "--host", HOST, "--port", str(app)),
                *("--count-file", str(self._count_file)),
            ],
            {
                **environment,
                "NEXTVISION_MAPS_BASE": f"{base['google-maps']}/maps/api",
                "OPENAI_API_BASE": f"{base['openai']}/v1",
            },
            f"{self.app_url}/health",
            directory / "app.log",
        )
        sets = [
            part for key, it in {**stand.settings, **settings}.items() for part in ("--set", f"{key}={it}")
        ]
        self._sidecar = Process(
            "the sidecar",
            ["-m", "sidecar", "run", "-c", str(configuration), *sets],
            environment | ({"SSL_CERT_FILE": str(self.certificates.trusted)} if self.certificates else {}),
            f"{self.admin_url}/health/ready",
            directory / "sidecar.log",
        )

    @property
    def admin_url(self) -> str:
        assert self.admin is not None
        return self.admin

    def _policy(self, found: Found, name: str) -> str:
        """The policy file; one for the app's own calls leads to the fake providers."""
        file = found.beside(name)
        if not file.is_file():
            file = policies() / f"{name}.yaml"
        if not file.is_file():
            raise StandError(f"{found.file}: stand.policies: {name} is neither shipped nor a file beside it")
        text = re.sub(r"(?m)^upstream: .*$", f"upstream: {self._upstream}", file.read_text("utf-8"))
        path = self._directory / f"{file.stem}.yaml"
        path.write_text(text, "utf-8")
        return str(path)

    async def start(self) -> None:
        await super().start()
        await self._guard.start()
        if self.name_server is not None:
            await self.name_server.start(self._naming_port)
        if self.redis is not None:
            await self.start_redis()
        # The sidecar is ready once the app answers.
        for process in (self.providers, self.app, self._sidecar):
            await self._start(process)

    async def _start(self, process: Process) -> None:
        assert self.http is not None
        try:
            await process.start(self.http, self.clock, self._guard.started)
        except DemoError as error:
            raise StandError(f"{error}\n{process.tail()}") from error

    async def stop(self) -> list[str]:
        problems = await super().stop()
        processes = (self._sidecar, self.app, self.providers)
        try:
            for process in processes:
                if problem := await process.stop(self.clock):
                    problems.append(problem)
        finally:
            for process in processes:
                process.kill_now()
                self._guard.ended(process.process)
            await self.kill_redis()
            if self.redis is not None:
                await self.redis.close()
            if self.name_server is not None:
                self.name_server.close()
            await self._guard.stop()
        return problems

    async def kill_app(self) -> None:
        self._guard.ended(self.app.process)
        await self.app.kill()

    async def start_app(self) -> None:
        await self._start(self.app)

    async def restart_sidecar(self) -> None:
        """One worker after the other; where it has no workers, stopped and started. Raises StandError."""
        assert self.http is not None
        before = await self._workers()
        if not before:
            self._guard.ended(self._sidecar.process)
            if problem := await self._sidecar.stop(self.clock):
                raise StandError(problem)
            await self._start(self._sidecar)
            return
        try:
            async with self.http.post(f"{self.admin_url}/admin/workers", json={"action": "restart"}) as reply:
                if reply.status != 202:
                    raise StandError(f"POST /admin/workers: {reply.status}: {(await reply.text())[:300]}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StandError(f"POST /admin/workers: {error!r}") from error
        give_up = self.clock.now() + RESTART_SECONDS
        while self.clock.now() < give_up:
            now = await self._workers()
            if len(now) == len(before) and not now & before:
                return
            await self.clock.sleep(0.1)
        raise StandError("not all workers were replaced")

    async def _workers(self) -> set[int]:
        """Their process ids; empty where there are none."""
        assert self.http is not None
        try:
            async with self.http.get(f"{self.admin_url}/admin/workers") as reply:
                if reply.status == 404:
                    return set()
                return {worker["pid"] for worker in (await reply.json())["workers"]}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StandError(f"GET /admin/workers: {error!r}") from error

    async def kill_redis(self) -> None:
        if self.redis is not None:
            self._guard.ended(self.redis.process)
            await self.redis.kill()

    async def start_redis(self) -> None:
        assert self.redis is not None
        await self.redis.start(self._guard.started)

    def app_requests(self) -> int | None:
        (count,) = struct.unpack("=q", self._count_file.read_bytes())
        return int(count)

    async def provider_calls(self) -> int | None:
        assert self.http is not None
        try:
            async with self.http.get(f"{self.providers_url}/_calls") as reply:
                told = await reply.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StandError(f"the fake providers do not answer: {error!r}") from error
        whole: int = sum(
            count for calls in told.values() for name, count in calls.items() if name != "refused"
        )
        return whole

    def memory(self, metrics: Metrics) -> int | None:
        process = self._sidecar.process
        if process is None or process.returncode is not None:
            return None
        taken = _taken(process.pid)
        return None if taken is None else taken[0]

    async def held(self) -> Held | None:
        metrics = await self.metrics()
        found, process = held(metrics), self._sidecar.process
        # The sidecar looks at itself every few seconds only.
        taken = None if process is None else _taken(process.pid)
        if found is None or taken is None:
            return found
        memory, files = taken
        return found._replace(fds=files - idle_upstreams(metrics), memory=memory)


def _taken(pid: int) -> tuple[int, int] | None:
    """Resident bytes and open files of a sidecar, with its workers; None where it is no more."""
    try:
        first = psutil.Process(pid)
        memory, files = int(first.memory_info().rss), first.num_fds()
        for worker in first.children():
            with contextlib.suppress(psutil.Error):  # one that ends just now
                memory += int(worker.memory_info().rss)
                files += worker.num_fds()
    except psutil.Error:
        return None
    return memory, files

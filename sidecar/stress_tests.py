"""Stress tests of this sidecar, started through the admin listener: `sidecar stress` as a child process.

The load never runs in this process: it would be a part of what it measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sidecar.config.addresses import Address

KEPT: Final = 20
"""Runs that are remembered, the last ones."""
LINES: Final = 10
"""Of its progress."""
_END: Final = 10.0
"""Seconds for a child to end in order."""


class Busy(Exception):
    """Another one is running; the message is its id."""


class Unavailable(Exception):
    """It cannot be done here; the message is the mend."""


class UnknownScenario(Exception):
    """There is no load of that name; the message lists them."""


@dataclass(slots=True)
class StressTest:
    id: str
    scenario: str
    status: str = "running"
    """running, then passed, failed or aborted."""
    progress: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    result: dict[str, Any] | None = None
    """The report, as `--json` has it."""

    @property
    def shown(self) -> dict[str, object]:
        row: dict[str, object] = {"id": self.id, "scenario": self.scenario, "status": self.status}
        if self.result is None:
            return {**row, "progress": list(self.progress)}
        return {**row, "result": self.result}


class StressTests:
    """One at a time."""

    def __init__(self, token: Callable[[], str | None]) -> None:
        """`token` is what acting through the admin listener takes."""
        self._token = token
        self._ingress = self._admin = Address()
        self._runs: dict[str, StressTest] = {}
        self._running: StressTest | None = None
        self._task: asyncio.Task[None] | None = None
        self._names: list[str] | None = None

    def at(self, ingress: Address, admin: Address) -> None:
        """Says where this sidecar listens."""
        self._ingress, self._admin = ingress.reached, admin.reached

    async def start(self, scenario: str) -> StressTest:
        """Raises Busy, Unavailable, UnknownScenario."""
        if find_spec("hdrh") is None:
            raise Unavailable("pip install 'nextvision-sidecar[stress]'")
        if not (self._ingress.port and self._admin.port):
            raise Unavailable("ingress and admin have to listen on TCP")
        if self._names is None:
            self._names = await asyncio.to_thread(_loads)
        if scenario not in self._names:
            raise UnknownScenario(", ".join(self._names))
        if self._running is not None:
            raise Busy(self._running.id)
        run = StressTest(secrets.token_hex(8), scenario)
        self._running = run
        self._runs[run.id] = run
        while len(self._runs) > KEPT:
            del self._runs[next(iter(self._runs))]
        self._task = asyncio.get_running_loop().create_task(self._run(run), name=f"stress test {run.id}")
        return run

    def get(self, number: str) -> StressTest | None:
        return self._runs.get(number)

    @property
    def runs(self) -> list[StressTest]:
        """The newest first."""
        return list(reversed(self._runs.values()))

    async def _run(self, run: StressTest) -> None:
        folder: Path | None = None
        process: asyncio.subprocess.Process | None = None
        environment = {name: it for name, it in os.environ.items() if name != "SIDECAR_ADMIN_TOKEN"}
        if token := self._token():
            environment["SIDECAR_ADMIN_TOKEN"] = token
        hosts = {self._ingress.host, self._admin.host}
        try:
            folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="sidecar-stress-"))
            file = folder / "report.json"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sidecar", "stress", run.scenario, "--json", str(file)),
                *("--target", f"http://{self._ingress}", "--admin", f"http://{self._admin}"),
                # It is this machine, by whatever address; and others may use it meanwhile.
                *(part for host in sorted(hosts) for part in ("--allow-host", host)),
                *("--leave-out", "leaks"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            assert process.stdout is not None
            async for line in process.stdout:
                run.progress.append(line.decode(errors="replace").rstrip())
            code = await process.wait()
            run.result = await asyncio.to_thread(_report, file)
            told = run.result["scenarios"][0]["status"] if run.result else "aborted"
            run.status = "passed" if code == 0 else str(told)
        except (OSError, ValueError) as error:  # ValueError: a line without end
            run.progress.append(str(error))
        finally:
            if run.status == "running":
                run.status = "aborted"
            self._running = None
            if process is not None and process.returncode is None:
                await _ended(process)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        """Ends the one that is running."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Told to end, so that it mends what it broke; killed when it does not."""
    process.terminate()
    _, late = await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=_END)
    if late:
        process.kill()
        await process.wait()


def _loads() -> list[str]:
    """The shipped scenarios that only load: a drill needs processes of its own to break."""
    from sidecar.drills import reading

    found = [reading.find(name).scenario for name in reading.shipped()]
    return [it.name for it in found if not (it.drill or it.faults or it.suite)]


def _report(file: Path) -> dict[str, Any] | None:
    try:
        report: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return report

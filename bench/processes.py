"""Processes under measurement: pinned to a CPU, with the CPU time and memory of their whole tree."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
CPUS = sorted(os.sched_getaffinity(0))
LOAD_CPU = CPUS[0]
PROXY_CPU = CPUS[1 % len(CPUS)]
START_TIMEOUT = 15.0


class StartError(Exception):
    """A program did not start; the message has what it wrote to stderr."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one program lives: its folder and its ports on loopback."""

    folder: Path
    port: int
    admin: int
    origin: int

    def fill(self, template: str, **more: str) -> Path:
        """Writes `conf/template` to the folder with each `@NAME@` replaced."""
        values = {"FOLDER": str(self.folder), "PORT": str(self.port), "ADMIN": str(self.admin), **more}
        values.setdefault("ORIGIN", str(self.origin))
        text = (Path(__file__).parent / "conf" / template).read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        written = self.folder / template
        written.write_text(text)
        return written

    @property
    def log(self) -> Path:
        return self.folder / "access.log"


class Running:
    """A started program."""

    def __init__(self, name: str, place: Place, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.place = place
        self.process = process
        self.root = psutil.Process(process.pid)

    def tree(self) -> list[psutil.Process]:
        return [self.root, *self.root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far; of children already reaped too."""
        times = [process.cpu_times() for process in self.tree()]
        return sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system

    def rss(self) -> int:
        """Resident bytes, summed over the tree."""
        return sum(process.memory_info().rss for process in self.tree())

    def take_log(self) -> int:
        """Bytes of access log since the last call, in whole pages. Empties the file: it lives in memory."""
        if not self.place.log.exists():
            return 0
        # Not st_size: HAProxy takes O_APPEND off its standard output, so a hole stays before its next line.
        size = self.place.log.stat().st_blocks * 512
        os.truncate(self.place.log, 0)
        return size

    def stderr(self) -> str:
        return (self.place.folder / "stderr.log").read_text(errors="replace")

    def wait_until_ready(self, path: str) -> None:
        """Raises `StartError` when `path` is not answered with 200 in time."""
        end = time.monotonic() + START_TIMEOUT
        reason = "no answer"
        while time.monotonic() < end:
            if self.process.poll() is not None:
                reason = f"exit code {self.process.returncode}"
                break
            try:
                status = fetch(self.place.port, path)[0]
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            if status == http.HTTPStatus.OK:
                return
            reason = f"status {status}"
            time.sleep(0.05)
        msg = f"{self.name} did not start ({reason})\n{self.stderr()[-2000:]}"
        raise StartError(msg)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        # What is left of the session that `started` made for it, and nothing else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def pinned(cpu: int, command: Sequence[str]) -> list[str]:
    """The command on one CPU. `taskset` execs, so that the process id is the program's own."""
    return ["taskset", "-c", str(cpu), *command]


@contextlib.contextmanager
def started(name: str, place: Place, command: Sequence[str], cpu: int, ready: str) -> Iterator[Running]:
    """Runs a program until the block ends. Raises `StartError`."""
    with place.log.open("ab") as out, (place.folder / "stderr.log").open("ab") as err:
        process = subprocess.Popen(
            pinned(cpu, command),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    running = Running(name, place, process)
    try:
        running.wait_until_ready(ready)
        yield running
    finally:
        running.stop()


def fetch(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of one GET to loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def busy_seconds(cpu: int) -> float:
    """Time this CPU has not been idle, by whomever (proc(5), /proc/stat)."""
    times = psutil.cpu_times(percpu=True)[cpu]
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)

"""Limits in front of a server whose capacity is halved and restored: what clients get with each kind.

A server of its own (`bench.limited_server`), a sidecar before it, and clients that come at a rate which does
not care how either is (an open model). An answer is good when it is a 200 within `PATIENCE` of the moment
at which its request was due.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.processes import LOAD_CPU, PROXY_CPU, Place, free_ports, started
from bench.report import machine, table

WORKERS = 16
SERVICE = 0.1
"""Seconds that a request takes, on average."""
PATIENCE = 2.0
RATES = (1.2, 0.9)
"""Shares of the full capacity at which clients come."""
SETTLING = 3.0
"""Seconds between two runs, for what is still under way."""
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
"""What stands between these in a document is replaced."""


@dataclass(frozen=True, slots=True)
class Kind:
    title: str
    limit: Mapping[str, object] | None


KINDS = (
    Kind("adaptive, 2 to 64", {"adaptive": {"initial": 8, "min": 2, "max": 64}, "queue": "1s"}),
    Kind("fixed, 20: about right", {"max": 20, "queue": "1s"}),
    Kind("fixed, 8: too low", {"max": 8, "queue": "1s"}),
    Kind("fixed, 200: too high", {"max": 200, "queue": "1s"}),
    Kind("none", None),
)


@dataclass
class Phase:
    title: str
    rate: float
    workers: int
    seconds: float
    due: int = 0
    good: int = 0
    refused: int = 0
    times: list[float] = field(default_factory=list)
    """Seconds to each 200."""

    @property
    def share(self) -> float:
        """Of the good answers that a perfect limit would have given."""
        return self.good / min(self.due, self.seconds * self.workers / SERVICE)

    @property
    def p99(self) -> float:
        ranked = sorted(self.times)
        return ranked[int(0.99 * len(ranked))] if ranked else float("nan")


def phases(load: float, seconds: float) -> list[Phase]:
    """Below capacity the clients follow it; above they do not."""
    full = load * WORKERS / SERVICE
    return [
        Phase("full capacity", full, WORKERS, seconds),
        Phase("half of it", full if load > 1 else full / 2, WORKERS // 2, seconds),
        Phase("restored", full, WORKERS, seconds),
    ]


class Clients:
    """Requests at a Poisson rate, each on its own."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url
        self._tasks: set[asyncio.Task[None]] = set()
        self._chance = random.Random(7)

    async def come(self, phase: Phase) -> None:
        start = due = time.monotonic()
        while (due := due + self._chance.expovariate(phase.rate)) < start + phase.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            phase.due += 1
            task = asyncio.create_task(self._ask(phase, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(max(0.0, start + phase.seconds - time.monotonic()))

    async def leave(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _ask(self, phase: Phase, due: float) -> None:
        try:
            async with asyncio.timeout(PATIENCE), self._http.get(self._url) as reply:
                await reply.read()
        except (TimeoutError, aiohttp.ClientError):
            return
        took = time.monotonic() - due
        if reply.status == 200:
            phase.times.append(took)
            phase.good += took <= PATIENCE
        else:
            phase.refused += 1


@contextlib.contextmanager
def running(kind: Kind) -> Iterator[tuple[int, int]]:
    """A server and a sidecar before it: their ports."""
    port, admin, origin, unused = free_ports(4)
    route: dict[str, object] = {"name": "all", "deadline": f"{PATIENCE:g}s"}
    if kind.limit is not None:
        route["concurrency_limit"] = kind.limit
    with tempfile.TemporaryDirectory() as folder:
        for name in ("server", "sidecar"):
            (Path(folder) / name).mkdir()
        server = Place(Path(folder) / "server", origin, unused, unused)
        sidecar = Place(Path(folder) / "sidecar", port, admin, origin)
        policy = json.dumps({"name": "origin", "routes": [route]})  # JSON is YAML
        (sidecar.folder / "policy.yaml").write_text(policy)
        config = str(sidecar.fill("sidecar.yaml", POLICIES="[policy.yaml]"))
        serve = [sys.executable, "-m", "bench.limited_server", str(origin), str(WORKERS), str(SERVICE)]
        proxy = [sys.executable, "-m", "sidecar", "run", "-c", config]
        with (
            started("server", server, serve, LOAD_CPU, "/ready"),
            started("sidecar", sidecar, proxy, PROXY_CPU, "/ready"),
        ):
            yield port, origin


async def measure(kind: Kind, load: float, seconds: float) -> list[Phase]:
    """One run through all phases."""
    run = phases(load, seconds)
    with running(kind) as (port, origin):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            clients = Clients(http, f"http://127.0.0.1:{port}/work")
            for phase in run:
                change = f"http://127.0.0.1:{origin}/capacity?workers={phase.workers}"
                async with http.post(change) as reply:
                    reply.raise_for_status()
                await clients.come(phase)
            await clients.leave()
    return run


def measured(seconds: float, progress: Callable[[str], None]) -> str:
    """The Markdown of all runs."""
    rows = []
    for load in RATES:
        for kind in KINDS:
            progress(f"{kind.title} at {load:.0%}")
            run = asyncio.run(measure(kind, load, seconds))
            cells = [f"{phase.share:.0%}, {phase.p99:.2f} s" for phase in run]
            rows.append([f"{load:.0%}", kind.title, *(cell.replace("nan s", "–") for cell in cells)])
            time.sleep(SETTLING)
    progress("")
    titles = [phase.title for phase in phases(1, 1)]
    text = (
        f"Written by `python -m bench limits --seconds {seconds:g}`, on {machine()}\n\n"
        f"A server of {WORKERS} workers, {SERVICE:g} s a request on average, goes down to {WORKERS // 2} and "
        f"back, {seconds:g} s each. Clients wait {PATIENCE:g} s.\n\n"
    )
    return text + table(["clients come at", "limit", *titles], rows)


def put(text: str, file: Path) -> None:
    """Into the place of the table in a document, or as a document of its own."""
    if file.exists():
        before, begin, rest = file.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if begin and end:
            file.write_text(before + begin + "\n" + text + "\n" + end + after)
            return
    file.write_text(text)

"""Batches beside clients of a fixed concurrency, against servers whose capacity the sidecar is not told.

Some servers only queue what is too much: there more in flight never harms, and the question is how soon a
batch gets to enough. Others get slower by what waits, as most do: there a concurrency that was set too high
costs throughput. All go through the same sidecar, one after the other, in rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.processes import LOAD_CPU, PROXY_CPU, Place, free_ports, started
from bench.report import machine, table

SERVICE = 0.1
"""Seconds that a request takes of a server that is not burdened, on average."""
FIXED = (1, 2, 4, 8, 16, 32, 64)
SETTLING = 1.0
"""Seconds between two runs, for what is still under way."""
POLL = 0.1
PATIENCE = 300.0
"""Seconds that a batch may take."""
COMING = 20.0
"""Interactive requests a second."""
LEARNING = 15.0
"""Seconds that a batch runs beside interactive requests before these are measured."""


@dataclass(frozen=True, slots=True)
class Server:
    title: str
    workers: int
    burden: float = 0.0
    """Share by which each request that waits makes the others slower."""

    @property
    def capacity(self) -> float:
        """Requests a second, at best."""
        return self.workers / SERVICE


SERVERS = (
    Server("6 at a time, the rest queues", 6),
    Server("24 at a time, the rest queues", 24),
    Server("40 at a time, the rest queues", 40),
    Server("12 at a time, each that waits makes it 2 % slower", 12, 0.02),
    Server("24 at a time, each that waits makes it 2 % slower", 24, 0.02),
)
QUEUE, THRASH = SERVERS[1], SERVERS[4]
LIMITED = {"concurrency_limit": {"max": 24, "queue": "5s"}}
BESIDE: tuple[tuple[str, Server, Mapping[str, object]], ...] = (
    ("", QUEUE, {}),
    (", `concurrency_limit: {max: 24}`", QUEUE, LIMITED),
    ("", THRASH, {}),
    (", `concurrency_limit: {max: 24}`", THRASH, LIMITED),
    ("", Server("200 at a time", 200), {}),
)


@dataclass
class Rates:
    """Requests a second of one server, one a round."""

    fixed: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in FIXED})
    batch: list[float] = field(default_factory=list)

    def medians(self) -> tuple[dict[int, float], float]:
        fixed = {count: statistics.median(rates) for count, rates in self.fixed.items()}
        return fixed, statistics.median(self.batch)


@contextlib.contextmanager
def running(server: Server, **route: object) -> Iterator[tuple[int, int]]:
    """A server and a sidecar before it: ingress and admin port.

    All is as by default, but for the CPU: what else the machine does is not to hold the batch up.
    """
    port, admin, origin, unused = free_ports(4)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("server", "sidecar"):
            (Path(folder) / name).mkdir()
        upstream = Place(Path(folder) / "server", origin, unused, unused)
        sidecar = Place(Path(folder) / "sidecar", port, admin, origin)
        policy = json.dumps({"name": "origin", "routes": [{"name": "all", **route}]})  # JSON is YAML
        (sidecar.folder / "policy.yaml").write_text(policy)
        config = sidecar.fill("sidecar.yaml", POLICIES="[policy.yaml]")
        config.write_text(config.read_text() + "batch: {cpu: 100%}\n")
        serve = [sys.executable, "-m", "bench.limited_server", str(origin)]
        serve += [str(server.workers), str(SERVICE), str(server.burden)]
        proxy = [sys.executable, "-m", "sidecar", "run", "-c", str(config)]
        with (
            started("server", upstream, serve, LOAD_CPU, "/ready"),
            started("sidecar", sidecar, proxy, PROXY_CPU, "/ready"),
        ):
            yield port, admin


async def fixed(port: int, count: int, seconds: float) -> float:
    """Requests a second of a client that has always `count` in flight."""
    done = 0
    began = time.monotonic()

    async def work(http: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.monotonic() < began + seconds:
            async with http.get(f"http://127.0.0.1:{port}/work") as reply:
                reply.raise_for_status()
                await reply.read()
            done += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(work(http) for _ in range(count)))
    return done / (time.monotonic() - began)


def ndjson(lines: int) -> bytes:
    return b"".join(b'{"custom_id":"%d","method":"GET","url":"/work"}\n' % number for number in range(lines))


async def batch(admin: int, lines: int) -> float:
    """Requests a second of a batch, from the moment in which its submission began. Raises RuntimeError."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{admin}") as http:
        async with http.post("/batches", data=ndjson(lines)) as reply:
            reply.raise_for_status()
            name = (await reply.json())["id"]
        async with asyncio.timeout(PATIENCE):
            while True:
                async with http.get(f"/batches/{name}") as reply:
                    shown = await reply.json()
                if "finished" in shown:
                    break
                await asyncio.sleep(POLL)
    if shown["counts"]["completed"] != lines:
        raise RuntimeError(f"the batch is not what it should be: {shown}")
    return lines / float(shown["finished"] - shown["created"])


async def interactive(port: int, seconds: float) -> list[float]:
    """Seconds that requests take which come by chance, `COMING` a second, each from when it was due."""
    chance = random.Random(5)
    times: list[float] = []

    async def ask(http: aiohttp.ClientSession, due: float) -> None:
        async with http.get(f"http://127.0.0.1:{port}/work") as reply:
            reply.raise_for_status()
            await reply.read()
        times.append(time.monotonic() - due)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        due = began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while (due := due + chance.expovariate(COMING)) < began + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.create_task(ask(http, due))
    return times


async def beside(server: Server, port: int, admin: int, seconds: float) -> tuple[float, float, float]:
    """95th percentile of interactive requests, alone and beside a batch; and the batch's rate meanwhile."""

    def p95(times: list[float]) -> float:
        return statistics.quantiles(times, n=20)[-1]

    alone = p95(await interactive(port, seconds))
    lines = int(server.capacity * (seconds + 2 * LEARNING))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{admin}") as http:
        async with http.post("/batches", data=ndjson(lines)) as reply:
            reply.raise_for_status()
            name = (await reply.json())["id"]
        await interactive(port, LEARNING)
        async with http.get(f"/batches/{name}") as reply:
            before = (await reply.json())["counts"]["completed"]
        began = time.monotonic()
        together = p95(await interactive(port, seconds))
        async with http.get(f"/batches/{name}") as reply:
            shown = await reply.json()
        took = time.monotonic() - began
        async with http.delete(f"/batches/{name}") as reply:
            reply.raise_for_status()
    if shown["status"] != "running":
        raise RuntimeError(f"the batch did not run all the time: {shown}")
    return alone, together, (shown["counts"]["completed"] - before) / took


def measured(rounds: int, seconds: float, progress: Callable[[str], None]) -> str:
    """The Markdown of all runs."""
    rows = []
    for server in SERVERS:
        rates = Rates()
        with running(server) as (port, admin):
            for number in range(1, rounds + 1):
                for count in FIXED:
                    progress(f"{server.title}: round {number}, {count} in flight")
                    rates.fixed[count].append(asyncio.run(fixed(port, count, seconds)))
                    time.sleep(SETTLING)
                progress(f"{server.title}: round {number}, batch")
                rates.batch.append(asyncio.run(batch(admin, int(server.capacity * seconds))))
                time.sleep(SETTLING)
        rows.append(row(server, rates))
    progress("")
    titles = ["server", *(f"{count}" for count in FIXED), "batch", "of the best fixed", "of one by one"]
    text = (
        f"Written by `python -m bench batch --rounds {rounds} --seconds {seconds:g}`, on {machine()}\n\n"
        f"A request takes {SERVICE:g} s on average. Requests a second, medians of {rounds} rounds of"
        f" {seconds:g} s each: with so many always in flight, and of a batch, which begins with 10, from its"
        " submission to its end.\n\n"
    )
    return text + table(titles, rows) + "\n" + courtesy(2 * seconds, progress)


def courtesy(seconds: float, progress: Callable[[str], None]) -> str:
    """The Markdown about interactive requests."""
    rows = []
    for settings, server, route in BESIDE:
        title = server.title + settings
        progress(f"{title}: interactive requests")
        with running(server, **route) as (port, admin):
            alone, together, rate = asyncio.run(beside(server, port, admin, seconds))
        rise = f"{together / alone - 1:+.0%}"
        rows.append([title, f"{alone * 1000:.0f} ms", f"{together * 1000:.0f} ms", rise, f"{rate:.0f}"])
    progress("")
    titles = ["server", "alone", "beside a batch", "", "lines of the batch a second"]
    return (
        f"{COMING:g} interactive requests a second, at random: their 95th percentile, {seconds:g} s each,"
        f" after the batch has run for {LEARNING:g} s.\n\n" + table(titles, rows)
    )


def row(server: Server, rates: Rates) -> list[str]:
    clients, batched = rates.medians()
    best = max(clients.values())
    figures = [f"{rate:.0f}" if rate < best else f"**{rate:.0f}**" for rate in clients.values()]
    return [server.title, *figures, f"{batched:.0f}", f"{batched / best:.2f}", f"{batched / clients[1]:.1f}"]

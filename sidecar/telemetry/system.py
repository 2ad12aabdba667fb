"""The state of the machine, the container, the process and the event loop, sampled beside the traffic.

A scrape and a health report only read what the last sample found: psutil walks /proc, a file system may
keep one waiting, and a percentage of CPU is a difference between two readings, which several scrapers
would spoil for each other. Samples are taken in a thread; the lag of the loop is measured on it.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from sidecar.telemetry.cgroup import Cgroup, CgroupFigures
from sidecar.telemetry.garbage import Garbage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.clock import Clock

BEAT = 0.5
"""Seconds between two looks at the event loop's lag."""
BEATS_PER_SAMPLE = 10
"""Beats between two samples."""
BEATS_REMEMBERED = 120
"""One minute of lag."""


class Disk(NamedTuple):
    """The file system that a folder of ours is on; bytes. A `total` of 0: it could not be looked at."""

    total: int
    free: int
    """For us: what is reserved for root is not in it."""
    writable: bool
    written: bool = True
    """Whether we write there while serving."""

    @property
    def percent(self) -> float:
        """In use, 0 to 100."""
        return 100.0 * (1.0 - self.free / self.total) if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look found. Bytes, seconds, percentages of 0 to 100."""

    cpu_percent: float
    """Of the container's CPU limit where it has one below the machine's, else of the machine."""
    cpu_count: int
    load_average: tuple[float, float, float]
    """Of 1, 5 and 15 minutes."""
    memory_percent: float
    """Of the container's limit where it has one below the machine's, else of the machine."""
    memory_total: int
    memory_available: int
    process_cpu_seconds: float
    process_resident: int
    process_threads: int
    process_files: int
    container: CgroupFigures
    disks: Mapping[str, Disk] = field(default_factory=dict)
    """By the use that a folder has."""


class System:
    """Samples by itself between `start` and `close`."""

    def __init__(self, clock: Clock, cgroup: Cgroup | None = None) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._cgroup = cgroup if cgroup is not None else Cgroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lags: deque[float] = deque([0.0], maxlen=BEATS_REMEMBERED)
        self._folders: dict[str, tuple[Path, bool]] = {}
        self._counted: tuple[float, float] | None = None
        """When the CPU time of the container was read, and what it was."""
        self.started = self._process.create_time()
        """Unix seconds."""
        self.garbage = Garbage(clock)
        psutil.cpu_percent(None)  # the first reading has nothing to be compared with
        self.last = self._read()
        """The last sample."""
        self.sampled = clock.now()
        """When it was taken, in monotonic seconds."""

    @property
    def lag(self) -> float:
        """Seconds by which the event loop was late at the last beat."""
        return self._lags[-1]

    @property
    def lag_max(self) -> float:
        """The largest lag of the last minute, in seconds."""
        return max(self._lags)

    @property
    def tasks(self) -> int:
        """Tasks of the event loop that are not done."""
        return len(asyncio.all_tasks(self._loop)) if self._loop is not None else 0

    def watch_folder(self, use: str, folder: Path, *, written: bool = True) -> None:
        """Samples the space where `folder` is, or is to be, from now on; `use` is its name in reports.

        `written` is false of what is only read while serving.
        """
        self._folders[use] = (folder, written)

    async def sample(self) -> None:
        """Looks once, in a thread. What cannot be read leaves the last sample as it is."""
        # No file descriptor left, for one.
        with suppress(OSError, psutil.Error):
            self.last = await asyncio.to_thread(self._read)
            self.sampled = self._clock.now()

    def start(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.garbage.start()
        self._tasks = [
            loop.create_task(self._beat(), name="event-loop lag"),
            loop.create_task(self._run(), name="system sampler"),
        ]

    async def close(self) -> None:
        self.garbage.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self) -> None:
        clock = self._clock
        while True:
            before = clock.now()
            await clock.sleep(BEAT)
            self._lags.append(max(0.0, clock.now() - before - BEAT))

    async def _run(self) -> None:
        while True:
            await self.sample()
            await self._clock.sleep(BEAT * BEATS_PER_SAMPLE)

    def _read(self) -> Sample:
        process = self._process
        with process.oneshot():
            times = process.cpu_times()
            resident = process.memory_info().rss
            threads = process.num_threads()
        memory = psutil.virtual_memory()
        container = self._cgroup.read()
        count = psutil.cpu_count() or 1
        cpu_percent = psutil.cpu_percent(None)
        memory_percent = memory.percent
        if container.cpu_limit is not None and container.cpu_limit < count:
            cpu_percent = self._share(container.cpu_limit, container.cpu_seconds, cpu_percent)
        limit = container.memory_limit
        if limit and limit < memory.total and container.memory_used is not None:
            memory_percent = min(100.0 * container.memory_used / limit, 100.0)
        return Sample(
            cpu_percent=cpu_percent,
            cpu_count=count,
            load_average=psutil.getloadavg(),
            memory_percent=memory_percent,
            memory_total=memory.total,
            memory_available=memory.available,
            process_cpu_seconds=times.user + times.system,
            process_resident=resident,
            process_threads=threads,
            process_files=process.num_fds(),
            container=container,
            disks={
                use: _disk(folder, written=written) for use, (folder, written) in tuple(self._folders.items())
            },
        )

    def _share(self, limit: float, used: float | None, otherwise: float) -> float:
        """Per cent of the container's `limit` in cores that it used since the last look."""
        if used is None:
            return otherwise
        now = self._clock.now()
        last, self._counted = self._counted, (now, used)
        if last is None or now <= last[0]:
            return 0.0
        return min(100.0 * max(used - last[1], 0.0) / (now - last[0]) / limit, 100.0)


def _disk(folder: Path, *, written: bool) -> Disk:
    """Of the folder, or of the nearest one above it that is there already."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        space = os.statvfs(folder)
    except OSError:  # one above it may not be searched, for one
        return Disk(0, 0, writable=False, written=written)
    writable = os.access(folder, os.W_OK)
    return Disk(space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize, writable, written)

"""The state of the machine, the process and the event loop, sampled beside the traffic.

A scrape and a health report only read what the last sample found: psutil walks /proc, and a percentage
of CPU is a difference between two readings, which several scrapers would spoil for each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from sidecar.clock import Clock

BEAT = 0.5
"""Seconds between two looks at the event loop's lag."""
BEATS_PER_SAMPLE = 10
"""Beats between two readings of psutil, a fraction of a millisecond each."""
BEATS_REMEMBERED = 120
"""One minute of lag."""


class System:
    """Samples by itself between `start` and `close`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._task: asyncio.Task[None] | None = None
        self._lags: deque[float] = deque([0.0], maxlen=BEATS_REMEMBERED)
        self.started = self._process.create_time()
        """Unix seconds."""
        psutil.cpu_percent(None)  # the first reading has nothing to be compared with
        self.sample()

    @property
    def lag(self) -> float:
        """Seconds by which the event loop was late at the last beat."""
        return self._lags[-1]

    @property
    def lag_max(self) -> float:
        """The largest lag of the last minute, in seconds."""
        return max(self._lags)

    def sample(self) -> None:
        """Reads machine and process once."""
        self.cpu_percent = psutil.cpu_percent(None)
        memory = psutil.virtual_memory()
        self.memory_percent = memory.percent
        self.memory_total = memory.total
        process = self._process
        with process.oneshot():
            times = process.cpu_times()
            self.process_cpu_seconds = times.user + times.system
            self.process_resident = process.memory_info().rss
            self.process_threads = process.num_threads()
        self.process_files = process.num_fds()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="system sampler")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        clock = self._clock
        while True:
            for _ in range(BEATS_PER_SAMPLE):
                before = clock.now()
                await clock.sleep(BEAT)
                self._lags.append(max(0.0, clock.now() - before - BEAT))
            # No file descriptor left, for one: then the last figures stand.
            with suppress(OSError, psutil.Error):
                self.sample()

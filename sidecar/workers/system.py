"""What all processes of the sidecar take of the machine, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil

from sidecar.telemetry.system import Sample, System

if TYPE_CHECKING:
    from sidecar.clock import Clock


class CrewSystem(System):
    """Samples this process and its workers: memory, CPU time, threads and files are added up."""

    def __init__(self, clock: Clock, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._seconds: dict[int, float] = {}
        """CPU time of the workers that live, as last read."""
        self._gone = 0.0
        """CPU time of those that are no more."""
        super().__init__(clock)

    def _read(self) -> Sample:
        sample = super()._read()
        seconds: dict[int, float] = {}
        resident, threads, files = sample.process_resident, sample.process_threads, sample.process_files
        for pid in tuple(self._pids()):
            with suppress(psutil.Error):  # it has ended meanwhile
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    seconds[pid] = times.user + times.system
                    resident += process.memory_info().rss
                    threads += process.num_threads()
                    files += process.num_fds()
        self._gone += sum(spent for pid, spent in self._seconds.items() if pid not in seconds)
        self._seconds = seconds
        return replace(
            sample,
            process_cpu_seconds=sample.process_cpu_seconds + sum(seconds.values()) + self._gone,
            process_resident=resident,
            process_threads=threads,
            process_files=files,
        )

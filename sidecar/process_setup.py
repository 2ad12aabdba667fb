"""What a process sets up for itself before it serves: its log, its garbage collector."""

from __future__ import annotations

import gc
import math
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from sidecar.clock import Clock, SystemRandom
from sidecar.config.workers import MOST
from sidecar.listeners.binding import CannotStart
from sidecar.telemetry.access_log import AccessLog, Sampling
from sidecar.telemetry.cgroup import Cgroup
from sidecar.telemetry.correlation import Fields
from sidecar.telemetry.sink import Sink, file_sink, standard_output

if TYPE_CHECKING:
    from sidecar.config.load import Loaded
    from sidecar.config.schema import Config, Logging


def tune_collector() -> None:
    """The request path makes no cycles; looking for them at CPython's default pace took 9 % of the CPU.

    What was made at start is not looked at again, and new objects are looked at less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def log_sink(loaded: Loaded) -> Sink:
    """Where all lines go. Raises `CannotStart`."""
    path, rotate = loaded.log_file, loaded.config.logging.rotate
    if path is None:
        return standard_output()
    try:
        return file_sink(path, None if rotate is None else rotate.size, 1 if rotate is None else rotate.keep)
    except OSError as error:
        raise CannotStart(f"logging.file: {path}: {error.strerror}; may this user write there?") from error


def access_log(settings: Logging, sink: Sink, clock: Clock) -> AccessLog:
    return AccessLog(
        sink if settings.access else None,
        clock,
        format=settings.format,
        sampling=Sampling(settings.sample, settings.slow),
        random=SystemRandom(),
        fields=Fields(settings.fields) if settings.fields else None,
    )


def worker_count(config: Config) -> int:
    """How many processes are to serve. `auto`: one for each CPU that this one may use."""
    if config.workers != "auto":
        return config.workers
    cpus: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Cgroup().read().cpu_limit
    if limit is not None:
        cpus = min(cpus, limit)
    return min(max(math.ceil(cpus), 1), MOST)


def version_here() -> str:
    """Of this package; `0` where it is not installed."""
    try:
        return version("nextvision-sidecar")
    except PackageNotFoundError:
        return "0"

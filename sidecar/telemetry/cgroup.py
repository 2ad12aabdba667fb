"""What the control group of this process may use, and uses: in a container that is what counts.

Version 2 (kernel's admin-guide/cgroup-v2.rst) and version 1 (admin-guide/cgroup-v1/memory.rst, and
scheduler/sched-bwc.rst for CPU quotas). A limit may stand on any level from our own group up to the root:
the tightest one holds. In a container with a namespace of its own the path in /proc/self/cgroup may name a
folder that is not to be seen; then the root of the mount is our group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_NO_LIMIT: Final = 1 << 60
"""Bytes: version 1 says "none" by the largest multiple of a page that a signed 64-bit number holds."""


class CgroupFigures(NamedTuple):
    """None: not limited, or not known."""

    memory_limit: int | None = None
    """Bytes."""
    memory_used: int | None = None
    """Bytes of the group that `memory_limit` is of, without cached files that the kernel would give up
    first (inactive): what Kubernetes calls the working set."""
    cpu_limit: float | None = None
    """Cores."""
    cpu_seconds: float | None = None
    """CPU time that the group which `cpu_limit` is of has used."""
    throttled_periods: int | None = None
    """Periods in which the group had to wait as its quota was used up."""
    throttled_seconds: float | None = None


class Cgroup:
    """The groups of this process, as far as they can be read."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root`: where /proc and /sys are."""
        self._mount = root / "sys/fs/cgroup"
        self._paths: dict[str, str] = {}
        """By controller; the empty name is version 2."""
        with suppress(OSError):
            for line in (root / "proc/self/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                for controller in controllers.split(","):
                    self._paths[controller] = path

    def read(self) -> CgroupFigures:
        """The figures of now. Never raises: what cannot be read is not known."""
        if "memory" in self._paths or "cpu" in self._paths:
            return self._version1()
        return self._version2()

    def _levels(self, mount: Path, path: str) -> Iterator[Path]:
        """The folders of our group and of those above it, innermost first."""
        folder = mount / path.strip("/")
        if not folder.is_dir():
            folder = mount
        yield folder
        while folder != mount:
            folder = folder.parent
            yield folder

    def _version2(self) -> CgroupFigures:
        levels = tuple(self._levels(self._mount, self._paths.get("", "/")))
        memory = _tightest((_number(level / "memory.max"), level) for level in levels)
        cpu = _tightest((_quota(level / "cpu.max"), level) for level in levels)
        found = CgroupFigures()
        if memory is not None:
            limit, level = memory
            used = _used(
                _number(level / "memory.current"), _table(level / "memory.stat").get("inactive_file")
            )
            found = found._replace(memory_limit=int(limit), memory_used=used)
        if cpu is not None:
            cores, level = cpu
            stat = _table(level / "cpu.stat")
            found = found._replace(
                cpu_limit=cores,
                cpu_seconds=_scaled(stat.get("usage_usec"), 1e-6),
                throttled_periods=stat.get("nr_throttled"),
                throttled_seconds=_scaled(stat.get("throttled_usec"), 1e-6),
            )
        return found

    def _version1(self) -> CgroupFigures:
        levels = tuple(self._levels(self._mount / "memory", self._paths.get("memory", "/")))
        memory = _tightest((_number(level / "memory.limit_in_bytes"), level) for level in levels)
        found = CgroupFigures()
        if memory is not None:
            limit, level = memory
            inactive = _table(level / "memory.stat").get("total_inactive_file")
            used = _used(_number(level / "memory.usage_in_bytes"), inactive)
            found = found._replace(memory_limit=int(limit), memory_used=used)
        path = self._paths.get("cpu", "/")
        mounts = [self._mount / name for name in ("cpu,cpuacct", "cpu")]
        mount = next((folder for folder in mounts if folder.is_dir()), mounts[0])
        cpu = _tightest((_quota1(level), level) for level in self._levels(mount, path))
        if cpu is not None:
            cores, level = cpu
            stat = _table(level / "cpu.stat")
            used = _number(level / "cpuacct.usage")
            if used is None:  # the accounting is mounted beside it
                *_, used = (
                    _number(group / "cpuacct.usage")
                    for group in reversed(tuple(self._levels(self._mount / "cpuacct", path)))
                )
            found = found._replace(
                cpu_limit=cores,
                cpu_seconds=_scaled(used, 1e-9),
                throttled_periods=stat.get("nr_throttled"),
                throttled_seconds=_scaled(stat.get("throttled_time"), 1e-9),
            )
        return found


def _tightest(levels: Iterator[tuple[float | None, Path]]) -> tuple[float, Path] | None:
    limited = [(limit, level) for limit, level in levels if limit is not None and limit < _NO_LIMIT]
    return min(limited, key=lambda found: found[0], default=None)


def _number(file: Path) -> int | None:
    """None for a file that is not there, and for `max`."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _quota(file: Path) -> float | None:
    """Cores by `cpu.max`: a quota and a period in microseconds, or `max`."""
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota1(folder: Path) -> float | None:
    """The same of version 1, where -1 is no quota."""
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _table(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            found[name] = int(number)
    return found


def _used(usage: int | None, inactive: int | None) -> int | None:
    return None if usage is None else max(usage - (inactive or 0), 0)


def _scaled(number: int | None, unit: float) -> float | None:
    return None if number is None else number * unit

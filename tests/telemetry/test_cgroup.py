"""Limits of control groups, from trees of files as kernels show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.telemetry.cgroup import Cgroup, CgroupFigures

MIB = 1 << 20


def tree(root: Path, membership: str, files: dict[str, str]) -> Cgroup:
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Cgroup(root)


def test_version_2_in_a_container(tmp_path: Path) -> None:
    """With a namespace of its own the group is the root of the mount; cached files are not counted."""
    group = tree(
        tmp_path,
        "0::/\n",
        {
            "sys/fs/cgroup/memory.max": f"{512 * MIB}\n",
            "sys/fs/cgroup/memory.current": f"{300 * MIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 2500000\nnr_throttled 7\nthrottled_usec 1500000\n",
        },
    )
    assert group.read() == CgroupFigures(512 * MIB, 200 * MIB, 0.5, 2.5, 7, 1.5)


def test_the_tightest_level_holds(tmp_path: Path) -> None:
    """A pod's limit above the container's own group counts, with what the pod uses."""
    group = tree(
        tmp_path,
        "0::/pod/container\n",
        {
            "sys/fs/cgroup/pod/memory.max": f"{256 * MIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{64 * MIB}\n",
            "sys/fs/cgroup/pod/container/memory.max": "max\n",
            "sys/fs/cgroup/pod/container/memory.current": f"{32 * MIB}\n",
            "sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
        },
    )
    assert group.read() == CgroupFigures(memory_limit=256 * MIB, memory_used=64 * MIB)


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_version_1(tmp_path: Path, mount: str) -> None:
    """Each controller has a mount; a path that is not to be seen from inside is the mount's root."""
    accounting = "cpuacct" if mount == "cpu" else mount
    group = tree(
        tmp_path,
        "9:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{128 * MIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{100 * MIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"cache 5\ntotal_inactive_file {20 * MIB}\n",
            f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": "150000\n",
            f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
            f"sys/fs/cgroup/{mount}/cpu.stat": "nr_periods 10\nnr_throttled 3\nthrottled_time 2000000000\n",
            f"sys/fs/cgroup/{accounting}/cpuacct.usage": "4000000000\n",
        },
    )
    assert group.read() == CgroupFigures(128 * MIB, 80 * MIB, 1.5, 4.0, 3, 2.0)


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("", {}),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"}),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense\n", "sys/fs/cgroup/memory.max": "nonsense\n"}),
        (
            "4:memory:/\n1:cpu:/\n",
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
    ],
)
def test_no_limit(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    """A bare machine, or files that say nothing: nothing is limited, and nothing is raised."""
    assert tree(tmp_path, membership, files).read() == CgroupFigures()


def test_this_machine_can_be_read() -> None:
    """Whatever kernel the tests run on."""
    found = Cgroup().read()
    assert found.memory_limit is None or found.memory_limit > MIB
    assert found.cpu_limit is None or found.cpu_limit > 0

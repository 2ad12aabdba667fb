"""`python -m bench.profile`: where the sidecar spends its CPU under load, sampled by py-spy."""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import threading
from pathlib import Path

from bench.load import CASES, drive
from bench.processes import LOAD_CPU, Running, pinned
from bench.proxies import PROXIES, find_program, origin

RATE = 250
"""Samples a second."""


def sampled(py_spy: str, running: Running, seconds: int, *, native: bool, lines: bool, stops: bool) -> Path:
    """Records collapsed stacks: `outer;…;inner count` a line.

    Where it `stops` the process for each sample, which `native` must, system calls look larger than they are;
    where it does not, stacks that change while they are read are lost, and those are Python's.
    """
    out = running.place.folder / "stacks"
    options = ["--format", "raw", "--threads", "--output", str(out)]
    options += ["--rate", str(RATE), "--duration", str(seconds)]
    options += ["--native"] if native else []
    options += [] if stops or native else ["--nonblocking"]
    options += [] if lines else ["--function"]
    record = [py_spy, "record", "--pid", str(running.process.pid), *options]
    subprocess.run(pinned(LOAD_CPU, record), check=True, capture_output=True)
    return out


def self_time(stacks: Path) -> collections.Counter[str]:
    """Samples by innermost function. The event loop's thread only: py-spy takes waiting writers for busy."""
    counts: collections.Counter[str] = collections.Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        thread, _, frames = stack.partition(";")
        if "MainThread" in thread and frames:
            counts[frames.rsplit(";", 1)[-1]] += int(count)
    return counts


def main() -> int:
    python = [proxy.name for proxy in PROXIES if proxy.find() == sys.executable]
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("--case", default="get1k", choices=[case.name for case in CASES])
    parser.add_argument("--proxy", default=python[0], choices=python)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--top", type=int, default=30, help="functions to print; default: 30")
    parser.add_argument(
        "--native", action="store_true", help="see into C too; system calls look larger than they are"
    )
    parser.add_argument("--lines", action="store_true", help="by line, not by function")
    given = parser.parse_args()
    tools = found_tools()
    if tools is None:
        return 1
    nginx, wrk, py_spy = tools
    case = next(case for case in CASES if case.name == given.case)
    proxy = next(proxy for proxy in PROXIES if proxy.name == given.proxy)
    with origin(nginx) as bench, bench.run(proxy) as running:
        load = threading.Thread(
            target=drive, args=(wrk, running.place.port, case, given.connections, given.seconds + 3)
        )
        load.start()
        stacks = sampled(
            py_spy, running, given.seconds, native=given.native, lines=given.lines, stops=given.native
        )
        counts = self_time(stacks)
        load.join()
    total = sum(counts.values())
    print(f"{proxy.title}, {case.title}, {given.connections} connections: {total} samples, self time\n")
    for where, count in counts.most_common(given.top):
        print(f"{count / total:7.1%}  {where}")
    return 0


def found_tools() -> tuple[str, str, str] | None:
    """nginx, wrk and py-spy; None where one is missing, which is said on stderr."""
    tools = {"nginx": "apt install nginx", "wrk": "apt install wrk", "py-spy": "pip install '.[bench]'"}
    found = {name: find_program(name)() or find_beside(name) for name in tools}
    for name, get in tools.items():
        if found[name] is None:
            print(f"{name} is missing: {get}", file=sys.stderr)
    nginx, wrk, py_spy = found.values()
    return None if nginx is None or wrk is None or py_spy is None else (nginx, wrk, py_spy)


def find_beside(name: str) -> str | None:
    """A program installed with this Python, whose folder need not be on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else None


if __name__ == "__main__":
    sys.exit(main())

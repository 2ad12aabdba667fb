"""`python -m bench.where`: where each microsecond of a request goes, as a table.

The CPU of a run is the kernel's own account, by thread. How it divides among the files of the request path is
sampled by py-spy in a second run: each sample counts for the innermost frame that is the sidecar's; one that
has none is the event loop's.
"""

from __future__ import annotations

import argparse
import collections
import shlex
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from bench.load import CASES, Case, drive
from bench.processes import Running
from bench.profile import found_tools, sampled
from bench.proxies import PROXIES, Bench, origin
from bench.report import machine, table

CASE_NAMES = ("get1k", "hit")
LOOP = "event loop: waiting, reading"
LEAST = 0.1
"""Microseconds below which a file has no row of its own."""
ROOMS = {
    "listeners": "the client's side: reading, answering",
    "layers": "the layers",
    "decisions": "what they decide by",
    "caching": "the cache",
    "stores": "its store",
    "upstreams": "the upstream's side",
    "telemetry": "counting, and what the log will say",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of CPU for a request."""

    loop_user: float
    loop_system: float
    others: float
    """Of all other threads: they write the access log."""


def threads(running: Running) -> dict[int, tuple[float, float]]:
    """User and system seconds by thread."""
    return {it.id: (it.user_time, it.system_time) for it in running.root.threads()}


def measured(wrk: str, running: Running, case: Case, connections: int, seconds: int) -> Cost:
    before = threads(running)
    outcome = drive(wrk, running.place.port, case, connections, seconds)
    grown = {
        thread: tuple(now - then for now, then in zip(times, before.get(thread, (0.0, 0.0)), strict=True))
        for thread, times in threads(running).items()
    }
    user, system = grown.pop(running.process.pid)
    others = sum(sum(times) for times in grown.values())
    return Cost(*(each / outcome.requests * 1e6 for each in (user, system, others)))


def by_file(stacks: Path) -> collections.Counter[str]:
    """Samples of the event loop's thread by the file of the innermost frame that is ours."""
    counts: collections.Counter[str] = collections.Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        thread, _, frames = stack.partition(";")
        if "MainThread" not in thread:
            continue
        ours = [frame for frame in frames.split(";") if "(sidecar/" in frame]
        # The process' own start is below every sample.
        ours = [
            frame for frame in ours if not any(it in frame for it in ("serving.py", "cli.py", "__main__.py"))
        ]
        counts[ours[-1].partition("(")[2].partition(":")[0].rstrip(")") if ours else LOOP] += int(count)
    return counts


def rows(cost: Cost, counts: collections.Counter[str]) -> list[tuple[str, str]]:
    """In the order of the request path: room, microseconds; below it the files that have enough."""
    whole = cost.loop_user + cost.loop_system
    total = counts.total()
    micros = {file: count / total * whole for file, count in counts.items()}
    found = [(f"**{LOOP}**", f"**{micros.pop(LOOP, 0.0):.1f}**")]
    rooms: dict[str, dict[str, float]] = {title: {} for title in (*ROOMS.values(), "what they share")}
    for file, each in micros.items():
        parts = file.removeprefix("sidecar/").split("/")
        title = ROOMS.get(parts[0], "what they share") if len(parts) > 1 else "what they share"
        rooms[title]["/".join(parts)] = each
    for title, files in rooms.items():
        if sum(files.values()) < LEAST:
            continue
        found.append((f"**{title}**", f"**{sum(files.values()):.1f}**"))
        shown = sorted(files.items(), key=lambda item: -item[1])
        found += [(f"`{file}`", f"{each:.1f}") for file, each in shown if each >= LEAST]
    found.append(("**access log, written by a thread of its own**", f"**{cost.others:.1f}**"))
    found.append(("**all**", f"**{whole + cost.others:.1f}**"))
    return found


def section(
    bench: Bench, case: Case, tools: tuple[str, str], connections: int, seconds: int
) -> tuple[str, ...]:
    wrk, py_spy = tools
    proxy = PROXIES[0]
    with bench.run(proxy) as running:
        drive(wrk, running.place.port, case, connections, 2)
        cost = measured(wrk, running, case, connections, seconds)
        load = threading.Thread(target=drive, args=(wrk, running.place.port, case, connections, seconds + 3))
        load.start()
        counts = by_file(sampled(py_spy, running, seconds, native=False, lines=False, stops=True))
        load.join()
    return (
        f"## {case.title}, {connections} connections",
        "",
        f"Of the loop's thread {cost.loop_user:.1f} µs are its own and {cost.loop_system:.1f} the kernel's.",
        f"Samples: {counts.total()}.",
        "",
        table(("where", "µs"), rows(cost, counts)),
        "",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.where", description="Where each microsecond goes.")
    parser.add_argument("--seconds", type=int, default=10, help="of each run; default: 10")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report there")
    given = parser.parse_args()
    tools = found_tools()
    if tools is None:
        return 1
    nginx, wrk, py_spy = tools
    words = [word for word in sys.argv[1:] if not word.startswith("--markdown")]
    words = [word for word in words if word != str(given.markdown)]
    parts = [
        "# Where each microsecond goes",
        "",
        f"Written by `{shlex.join(['python', '-m', 'bench.where', *words])}`; do not edit. {machine()}",
        "",
        "CPU of the sidecar's process for a request, µs, with observe, deadline, retry, circuit breaker,",
        "concurrency limit, attempt timeout and the JSON access log. The path is in",
        "[request-path.md](request-path.md). A file's figure has the system calls that it makes:",
        "`protocol.py` writes to the client, `connection.py` to the upstream. An estimate from samples,",
        "which weigh system calls a little too much.",
        "",
    ]
    with origin(nginx) as bench:
        for case in CASES:
            if case.name in CASE_NAMES:
                parts += section(bench, case, (wrk, py_spy), given.connections, given.seconds)
    text = "\n".join(parts)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The Markdown of a measurement: no date, path or host name, so that reruns differ in figures alone."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.load import Case
from bench.measure import FOREIGN, Plan, Sample
from bench.memory import Footprint
from bench.processes import CPUS, LOAD_CPU, PROXY_CPU
from bench.proxies import Proxy

REFERENCES = ("envoy", "nginx", "aiohttp")
CACHES = ("nginx", "varnish", "haproxy")
"""What hits are compared with."""
SUBJECTS = ("sidecar", "bare")
MISSING = "–"
MIB = 1024 * 1024

CPU_TEXT = """\
User and system time of the proxy's processes, divided by the requests completed. Medians over the rounds
({rounds}, each run of {seconds} s); ± is half the distance from the lowest round to the highest. ✗ marks a
cell that failed a check, see below.
"""
THROUGHPUT_TEXT = """\
In brackets the share of its CPU that the proxy used: well below 100 %, the load or the origin was the limit,
and the proxy could do more.
"""
LATENCY_TEXT = """\
As wrk saw it, each connection waiting for its answer before it sends again: at full load, latency is little
more than connections ÷ throughput.
"""
MEMORY_TEXT = """\
Resident memory, MiB: of a fresh process, then while {clients} clients read {each} MiB each, slowly, then
after they have read all. A proxy that does not pause the origin grows by what the clients have not read,
up to {all} MiB. Summed over processes; shared pages count in each.
"""

Row = tuple[Case, int]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, figures: bool = True) -> str:
    """A Markdown table; `figures` aligns all columns but the first to the right."""
    lines = [head, ["---", *["--:" if figures else "---"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine() -> str:
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    pinned = (
        "The proxy has a CPU of its own; the load and the origin share another."
        if LOAD_CPU != PROXY_CPU
        else "There is one CPU only: the proxy, the load and the origin share it."
    )
    return f"{model}, {len(CPUS)} cores, Linux {platform.release().split('-')[0]}. {pinned}"


def setup(command: str, programs: Sequence[tuple[str, str, str]], missing: Sequence[tuple[str, str]]) -> str:
    """The head of the page. `programs`: title, version, what it does; `missing`: title, how to get it."""
    parts = [
        "# Side by side\n",
        f"Written by `{command}`; do not edit.\n",
        machine() + "\n",
        table(("program", "version", "does"), programs, figures=False),
    ]
    parts += [f"Missing, so not measured: {title} ({get}).\n" for title, get in missing]
    return "\n".join(parts)


class Speed:
    """Medians over the rounds of one measurement."""

    def __init__(self, plan: Plan, samples: Sequence[Sample]) -> None:
        self.plan = plan
        self.samples = samples
        measured = {sample.proxy for sample in samples}
        self.proxies = [proxy for proxy in plan.proxies if proxy.name in measured]
        self.rows: list[Row] = [(case, count) for case in plan.cases for count in plan.connections]

    def of(self, proxy: str, row: Row) -> list[Sample]:
        """The samples of one cell, by round."""
        case, connections = row
        return [
            sample
            for sample in self.samples
            if (sample.proxy, sample.case, sample.connections) == (proxy, case.name, connections)
        ]

    def grid(self, cell: Callable[[list[Sample]], str]) -> str:
        """A table with a row for each case and number of connections, a column for each proxy."""
        head = ("case", "connections", *(proxy.title for proxy in self.proxies))
        return table(
            head,
            (
                (row[0].title, str(row[1]), *(cell(self.of(proxy.name, row)) for proxy in self.proxies))
                for row in self.rows
            ),
        )

    def ratios(self) -> str:
        """CPU per request over that of a reference in the same round; then the median over rounds."""
        parts = [self.ratios_to(REFERENCES, cached=False), self.ratios_to(CACHES, cached=True)]
        found = [part for part in parts if part]
        return (
            "\n".join(("## CPU per request: ratios\n\nPer round, then the median.\n", *found))
            if found
            else ""
        )

    def ratios_to(self, references: Sequence[str], *, cached: bool) -> str:
        """Of the cases that are cache hits, or of the others."""
        rows = [row for row in self.rows if row[0].cached == cached]
        names = [
            proxy.name for proxy in self.proxies if any(self.plan.takes(proxy, case) for case, _ in rows)
        ]
        subjects = [name for name in SUBJECTS if name in names] or names
        titles = {proxy.name: proxy.title for proxy in self.proxies}
        pairs = [(name, by) for name in subjects for by in references if by in names and by != name]
        if not pairs:
            return ""
        return table(
            ("case", "connections", *(f"{titles[name]} ÷ {titles[by]}" for name, by in pairs)),
            ((row[0].title, str(row[1]), *(self.ratio(name, by, row) for name, by in pairs)) for row in rows),
        )

    def ratio(self, name: str, by: str, row: Row) -> str:
        theirs = {sample.round: sample.cpu_per_request for sample in self.of(by, row)}
        mine = {sample.round: sample.cpu_per_request for sample in self.of(name, row)}
        shares = [mine[nth] / theirs[nth] for nth in mine if theirs.get(nth)]
        return f"{statistics.median(shares):.2f}" if shares else MISSING

    def checks(self) -> str:
        lines = [
            f"- ✗ {proxy.title} did not start, so it is not measured."
            for proxy in self.plan.proxies
            if proxy not in self.proxies
        ]
        titles = {proxy.name: proxy.title for proxy in self.proxies}
        for sample in self.samples:
            lines += [
                f"- ✗ {titles[sample.proxy]}, {sample.case}, {sample.connections} connections, "
                f"round {sample.round + 1}: {fault}."
                for fault in sample.faults
            ]
        if not lines:
            lines.append("- All answers were 2xx and whole; no socket errors.")
        counted = [sample for sample in self.samples if sample.missed is not None]
        if counted:
            wrk = sum(sample.outcome.requests for sample in counted)
            own = wrk - sum(sample.missed or 0 for sample in counted)
            lines.append(
                f"- wrk completed {wrk} requests through the sidecar; its `/metrics` counted {own}. "
                "A run may differ by what was in flight when wrk stopped: at most its connections."
            )
        logged = [f"{titles[proxy.name]} {self.log_bytes(proxy)}" for proxy in self.proxies]
        lines.append(f"- Access log, bytes per request: {', '.join(logged)}.")
        highest = [f"{titles[proxy.name]} {self.highest_rss(proxy) / MIB:.0f}" for proxy in self.proxies]
        lines.append(f"- Resident memory after a run, the highest, MiB: {', '.join(highest)}.")
        foreign = [sample.foreign for sample in self.samples]
        lines.append(
            f"- Other work on the proxy's CPU: {statistics.median(foreign):.1%} in the median run, "
            f"{max(foreign):.1%} in the worst; {sum(sample.repeats for sample in self.samples)} runs were "
            f"thrown away and repeated because it was above {FOREIGN:.0%}."
        )
        return "\n".join(lines) + "\n"

    def log_bytes(self, proxy: Proxy) -> int:
        mine = [sample for sample in self.samples if sample.proxy == proxy.name]
        return round(sum(s.logged for s in mine) / max(sum(s.outcome.requests for s in mine), 1))

    def highest_rss(self, proxy: Proxy) -> int:
        return max(sample.rss for sample in self.samples if sample.proxy == proxy.name)

    def markdown(self) -> str:
        plan = self.plan
        return "\n".join(
            (
                "## CPU per request, µs\n",
                CPU_TEXT.format(rounds=plan.rounds, seconds=plan.seconds),
                self.grid(cpu),
                self.ratios(),
                "## Throughput, requests per second\n",
                THROUGHPUT_TEXT,
                self.grid(throughput),
                "## Latency, p50 / p99, ms\n",
                LATENCY_TEXT,
                self.grid(latency),
                "## Checks\n",
                self.checks(),
            )
        )


def cpu(cell: list[Sample]) -> str:
    if not cell:
        return MISSING
    values = [sample.cpu_per_request for sample in cell]
    spread = f" ±{(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    mark = " ✗" if any(sample.faults for sample in cell) else ""
    return f"{statistics.median(values):.1f}{spread}{mark}"


def throughput(cell: list[Sample]) -> str:
    if not cell:
        return MISSING
    busy = statistics.median(sample.busy for sample in cell)
    return f"{statistics.median(sample.throughput for sample in cell):.0f} ({busy:.0%})"


def latency(cell: list[Sample]) -> str:
    if not cell:
        return MISSING
    p50, p99 = (
        statistics.median(getattr(sample.outcome, name) for sample in cell) for name in ("p50", "p99")
    )
    return f"{p50 * 1e3:.2f} / {p99 * 1e3:.2f}"


def memory(footprints: Sequence[Footprint], clients: int, size: int) -> str:
    """The section on memory."""
    rows = (
        (
            each.title,
            f"{each.idle / MIB:.1f}",
            f"{each.peak / MIB:.1f}",
            f"{(each.peak - each.idle) / MIB:.1f}",
            f"{each.after / MIB:.1f}",
            "yes" if each.whole else "✗ no",
        )
        for each in footprints
    )
    text = MEMORY_TEXT.format(clients=clients, each=size // MIB, all=clients * size // MIB)
    head = ("proxy", "idle", "slow readers", "growth", "after", "bodies whole")
    return "\n".join(("## Memory\n", text, table(head, rows)))

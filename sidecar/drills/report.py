"""What is told of a run: in the terminal, in JSON, in Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from sidecar.config.units import format_size
from sidecar.drills.judging import Point, Readiness
from sidecar.drills.runner import Outcome

_SHARES: Final = ("availability", "hit_ratio", "degraded", "wrong", "success", "failover")
_BESIDES: Final = ("p50", "p95", "p99", "amplification", "provider_calls", "hit_ratio", "degraded")
"""Told also where there is no limit on them."""
_TIMES: Final = ("p50", "p95", "p99", "recovery")


def shown(name: str, value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return "not measured"
    if name in _SHARES:
        # Rounded down: 99.99 % is not all.
        return f"{math.floor(value * 1e4) / 100:g} %"
    if name in _TIMES:
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
    if name == "throughput":
        return f"{value:.1f}/s"
    if name in ("memory", "leaked_memory"):
        return format_size(round(value / 2**20) * 2**20) if value >= 2**20 else f"{value / 1024:.0f}KiB"
    return f"{value:.3g}" if name == "amplification" else f"{value:g}"


def lines(outcome: Outcome) -> list[str]:
    """The verdict on one scenario."""
    load = outcome.load
    told = [f"{outcome.name}: {outcome.status.upper()}" + (f": {outcome.reason}" if outcome.reason else "")]
    told += [f"  {_point(point)}" for point in outcome.points]
    causes = ", ".join(f"{count} × {cause}" for cause, count in load["causes"].items())
    told.append(f"  {load['requests']} requests, {load['failed']} failed" + (f": {causes}" if causes else ""))
    limited = {point.name for point in outcome.points}
    besides = [
        f"{name} {shown(name, value)}"
        for name in _BESIDES
        if name not in limited and (value := getattr(outcome.measured, name)) is not None
    ]
    told.append(f"  besides: {', '.join(besides)}")
    slip = load["slip"]["p99"] * 1000
    if load["kept_up"]:
        told.append(f"  the load kept to its schedule: 99 % of it was sent within {slip:.1f} ms")
    else:
        told.append(
            f"  the load could not keep up: 1 % was sent {slip:.1f} ms late or more; that is in the times"
        )
    if (machine := outcome.machine) is not None:
        shortened = f"; {100 * outcome.share:g} % of the scenario's time" if outcome.share < 1 else ""
        told.append(
            f"  on {machine.cpus} CPUs for all of it; load average before {machine.busy:.1f}{shortened}"
        )
    if outcome.held is not None:
        before, after = outcome.held
        told.append(
            "  held by the sidecar before and after: "
            + ", ".join(
                f"{kind} {shown(kind, then)} and {shown(kind, now)}"
                for kind, then, now in zip(before._fields, before, after, strict=True)
            )
        )
    if outcome.against is not None:
        told += ["  beside the other:"] + [
            f"    {name:<14}{ours:>14}{theirs:>14}" for name, ours, theirs in compared(outcome)
        ]
    return told


def compared(outcome: Outcome) -> list[tuple[str, str, str]]:
    """The same load here and at `--against`."""
    assert outcome.against is not None
    rows = [("", "sidecar", "against")]
    for name in ("p50", "p95", "p99"):
        here, there = (load["percentiles"][name] for load in (outcome.load, outcome.against))
        rows.append((name, shown(name, here), shown(name, there)))
    rows.append(("failed", str(outcome.load["failed"]), str(outcome.against["failed"])))
    return rows


def _point(point: Point) -> str:
    limit, value = (shown(point.name, it) for it in (point.limit, point.measured))
    state = "ok " if point.held else "NOT"
    mend = f"  ({point.mend})" if point.mend else ""
    return f"{state} {point.name:<18}{value:>14}   limit {limit}{mend}"


def readiness_lines(readiness: Readiness) -> list[str]:
    return [
        f"tests: {readiness.tests}",
        f"readiness: {readiness.verdict}, {readiness.score:g} of 100",
        *(f"  {_point(point)}" for point in readiness.points),
    ]


def as_json(outcomes: Sequence[Outcome], readiness: Readiness) -> str:
    content: dict[str, Any] = {
        "scenarios": [
            asdict(outcome) | {"held": outcome.held and [held._asdict() for held in outcome.held]}
            for outcome in outcomes
        ],
        "readiness": asdict(readiness),
    }
    return json.dumps(content, indent=2) + "\n"


def as_markdown(outcomes: Sequence[Outcome], readiness: Readiness) -> str:
    parts = [f"# Readiness: {readiness.verdict} ({readiness.score:g} of 100), tests {readiness.tests}", ""]
    parts += _table(readiness.points)
    for outcome in outcomes:
        parts += [f"## {outcome.name}: {outcome.status}", ""]
        parts += [f"{text}." for text in (outcome.title, outcome.reason) if text] + [""]
        parts += _table(outcome.points)
        parts += [line.strip() for line in lines(outcome)[1 + len(outcome.points) :]] + [""]
        for began, ended, what in outcome.windows:
            parts.append(f"- {began:.1f} s to {ended:.1f} s: {what}")
        parts.append("")
    return "\n".join(parts)


def _table(points: Sequence[Point]) -> list[str]:
    if not points:
        return []
    rows = ["| point | measured | limit | held | mend |", "|---|---|---|---|---|"]
    for point in points:
        value, limit = shown(point.name, point.measured), shown(point.name, point.limit)
        rows.append(f"| {point.name} | {value} | {limit} | {'yes' if point.held else 'no'} | {point.mend} |")
    return [*rows, ""]

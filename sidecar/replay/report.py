"""What is told of a replay: in the terminal, and in JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from sidecar.config.units import format_duration
from sidecar.replay.figures import HITS, Figures, RouteFigures, share_of_hits
from sidecar.replay.log import Line, Log

UNKNOWN: Final = "-"
_OF_BOTH: Final = (
    "the headers of requests: a client's own no-cache, its Authorization, what answers vary by",
    "Retry-After and what a provider says of its quota: `pace` learns nothing from the log",
    "what another upstream of a `fallback` would answer: it is taken for 200",
    "what one plane does to the other: the app's calls stay those of the log, however many it is asked",
)
_OF_COMMON: Final = (
    "how long anything took: every attempt is taken for {latency} (--latency)",
    "what the origin said of freshness: only the `ttl` of policies counts",
    "bodies: no two requests but GET and HEAD are taken for the same, and verdicts are by status alone",
    "what was cached or tried again in front of the app: each line is taken for one answer of it",
)
_OF_JSON: Final = (
    "bodies, but for the digest `cache_key`: rules of `classify` for them count as they did then",
    "how long an attempt took that was not the last of its request: as long as the last, if there was time",
)


def quantile(seconds: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile; None of nothing."""
    ranked = sorted(seconds)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)] if ranked else None


def heading(log: Log) -> list[str]:
    span = log.lines[-1].at - log.lines[0].at
    told = [f"{log.name}: {len(log.lines)} requests in {format_duration(round(span, 1))} ({log.format})"]
    if log.others:
        told.append(f"  {log.others} other lines: of the sidecar itself, tunnels, upgrades, PURGE")
    if log.unusable:
        told.append(f"  {log.unusable} lines are no use, the first of them:")
        told += [f"    {it}" for it in log.told]
    return told


def rows(all_figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """A table: what is counted, then a column for each."""
    totals = [figures.total for figures in all_figures]
    codes = sorted({code for total in totals for code in total.rejected})
    table: list[tuple[str, ...]] = [("", *(figures.name for figures in all_figures))]

    def row(name: str, values: list[str]) -> None:
        table.append((name, *values))

    row("requests", [str(it.requests) for it in totals])
    row("hit ratio", [_ratio(it) for it in totals])
    row("upstream calls", [str(it.calls) for it in totals])
    row("calls saved", [str(it.saved) for it in totals])
    if any(figures.money is not None for figures in all_figures):
        row("money saved", [UNKNOWN if it.money is None else f"{it.money:.2f}" for it in all_figures])
    row("retries", [str(it.retries) for it in totals])
    row("fallbacks", [str(it.fallbacks) for it in totals])
    row("rejected", [str(it.rejected.total()) for it in totals])
    for code in codes:
        row(f"  {code}", [str(it.rejected[code]) for it in totals])
    for layer in sorted({layer for total in totals for layer in total.shadow}):
        row(f"  would: {layer}", [str(it.shadow[layer]) for it in totals])
    row("answers of 5xx", [str(it.failed) for it in totals])
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        row(name, [_time(quantile(it.seconds, share)) for it in totals])
    return table


def route_rows(all_figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """A table of the routes of the last: hit ratio and calls, of each in which there is such a route."""
    names = [figures.name for figures in all_figures]
    table = [("route", "requests", *(f"hits: {it}" for it in names), *(f"calls: {it}" for it in names))]
    routes = dict.fromkeys(name for figures in reversed(all_figures) for name in figures.routes)
    for name in sorted(routes):
        found = [figures.routes.get(name) for figures in all_figures]
        count = max(it.requests for it in found if it is not None)
        table.append(
            (
                name,
                str(count),
                *(UNKNOWN if it is None else _ratio(it) for it in found),
                *(UNKNOWN if it is None else str(it.calls) for it in found),
            )
        )
    return table


def _ratio(route: RouteFigures) -> str:
    ratio = share_of_hits(route)
    return UNKNOWN if ratio is None else f"{ratio * 100:.1f} %"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines of a table, its first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def unknowns(log: Log, latency: float) -> list[str]:
    """What the prediction leaves out, and why."""
    told = [*(_OF_COMMON if log.format == "common" else _OF_JSON), *_OF_BOTH]
    warm = stored_before(log.lines)
    if warm:
        told.insert(
            0,
            f"{warm} answers were in the cache when the log began: here it begins empty, and they are misses",
        )
    return [it.format(latency=format_duration(latency)) for it in told]


def stored_before(lines: Sequence[Line]) -> int:
    """Keys whose first request in the log was answered from the cache."""
    seen: set[str] = set()
    stored = 0
    for line in lines:
        if line.key and line.key not in seen:
            seen.add(line.key)
            stored += line.cache in HITS
    return stored


def text(log: Log, all_figures: Sequence[Figures], latency: float) -> list[str]:
    """All of it, for a terminal."""
    told = [*heading(log), "", *aligned(rows(all_figures)), "", *aligned(route_rows(all_figures)), ""]
    told.append("What the log does not tell:")
    return [*told, *(f"  - {it}" for it in unknowns(log, latency))]


def as_json(log: Log, all_figures: Sequence[Figures], latency: float) -> str:
    content = {
        "log": {
            "name": log.name,
            "format": log.format,
            "requests": len(log.lines),
            "other_lines": log.others,
            "unusable_lines": log.unusable,
            "began": log.lines[0].at,
            "seconds": round(log.lines[-1].at - log.lines[0].at, 3),
        },
        "results": [_plain(figures) for figures in all_figures],
        "not_known": unknowns(log, latency),
    }
    return json.dumps(content, indent=2) + "\n"


def _plain(figures: Figures) -> dict[str, Any]:
    return {
        "name": figures.name,
        "total": {**_members(figures.total), "money_saved": figures.money},
        "routes": {name: _members(route) for name, route in sorted(figures.routes.items())},
        "over_time": {"hits": figures.hits, "looked_up": figures.looked, "upstream_calls": figures.calls},
    }


def _members(route: RouteFigures) -> dict[str, Any]:
    return {
        "requests": route.requests,
        "hit_ratio": share_of_hits(route),
        "upstream_calls": route.calls,
        "calls_saved": route.saved,
        "cache": dict(sorted(route.outcomes.items())),
        "retries": route.retries,
        "fallbacks": route.fallbacks,
        "rejected": dict(sorted(route.rejected.items())),
        "would_be_rejected": dict(sorted(route.shadow.items())),
        "failed": route.failed,
        "p50": quantile(route.seconds, 0.5),
        "p95": quantile(route.seconds, 0.95),
        "price": route.price or None,
    }

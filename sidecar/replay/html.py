"""The same as one HTML file, with plots over the time of the log."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from sidecar.drills.page import END, head, plot
from sidecar.replay.figures import BUCKETS, Figures
from sidecar.replay.log import Log
from sidecar.replay.report import heading, route_rows, rows, unknowns

_COLOURS: Final = ("#8c959f", "#0969da", "#bf8700")
_SMOOTH: Final = 6
"""Buckets around one that its hit ratio is over: a bucket alone may hold few requests."""


def as_html(log: Log, all_figures: Sequence[Figures], latency: float) -> str:
    notes = "".join(f"<li>{html.escape(it)}</li>" for it in unknowns(log, latency))
    parts = [
        head("Replay of an access log"),
        f"<p>{html.escape(' '.join(it.strip() for it in heading(log)))}</p>",
        _table(rows(all_figures)),
        _plots(all_figures),
        "<h2>By route</h2>",
        _table(route_rows(all_figures)),
        f"<h2>What the log does not tell</h2><ul>{notes}</ul>",
    ]
    return "\n".join([*parts, END])


def _table(table: Sequence[tuple[str, ...]]) -> str:
    first, *rest = table
    shown = ["".join(f"<th>{html.escape(cell)}</th>" for cell in first)]
    for name, *cells in rest:
        numbers = "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in cells)
        shown.append(f"<td>{html.escape(name)}</td>{numbers}")
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in shown)}</table>"


def _plots(all_figures: Sequence[Figures]) -> str:
    span = all_figures[0].ended - all_figures[0].began
    unit, seconds = (
        ("hours", 3600.0) if span > 10_800 else ("minutes", 60.0) if span > 300 else ("seconds", 1.0)
    )
    at = [(place + 0.5) * span / BUCKETS / seconds for place in range(BUCKETS)]

    def draw(figure: Figure) -> None:
        ratios, calls, sums = figure.subplots(3, 1, sharex=True)
        for figures, colour in zip(all_figures, _COLOURS, strict=False):
            moments = list(zip(at, _ratios(figures), strict=True))
            ratios.plot(
                [it for it, ratio in moments if ratio is not None],
                [ratio for _, ratio in moments if ratio is not None],
                label=figures.name,
                color=colour,
            )
            calls.step(at, figures.calls, where="mid", label=figures.name, color=colour)
            total, running = 0, []
            for count in figures.calls:
                total += count
                running.append(total)
            sums.plot(at, running, label=figures.name, color=colour)
        ratios.set_ylim(0, 1.02)
        width = f"{span / BUCKETS:.3g} s"
        titles = ("hit ratio", f"upstream calls in {width}", "upstream calls so far")
        for axes, title in zip((ratios, calls, sums), titles, strict=True):
            axes.set_title(title, loc="left", fontsize=9)
            axes.grid(visible=True, alpha=0.3)
            axes.set_ylim(bottom=0)
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        sums.set_xlabel(unit)

    return plot(draw, "Hit ratio and upstream calls over time", height=7, salt="replay")


def _ratios(figures: Figures) -> list[float | None]:
    found: list[float | None] = []
    for place in range(BUCKETS):
        near = slice(max(place - _SMOOTH // 2, 0), place + _SMOOTH // 2 + 1)
        looked = sum(figures.looked[near])
        found.append(sum(figures.hits[near]) / looked if looked else None)
    return found

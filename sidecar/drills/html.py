"""The report as one HTML file: verdict, figures, plots as SVG. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure

from sidecar.drills.judging import Point, Readiness
from sidecar.drills.page import END, head, plot
from sidecar.drills.report import lines, shown
from sidecar.drills.runner import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES: Final = ("requests a second", "latency, ms", "failed a second", "open breakers, cache hits")
_SHADE: Final = "#ffb000"


def as_html(outcomes: Sequence[Outcome], readiness: Readiness) -> str:
    parts = [head("Stress tests and drills")]
    if len(outcomes) > 1:
        parts.append(
            f"<p>Readiness: <strong>{html.escape(readiness.verdict)}</strong>, {readiness.score:g} of 100. "
            f"Tests: {html.escape(readiness.tests)}.</p>{_table(readiness.points)}"
        )
    for index, outcome in enumerate(outcomes):
        parts += [
            f"<h2>{html.escape(outcome.name)}: {_status(outcome)}</h2>",
            f"<p>{html.escape(' '.join(it for it in (outcome.title, outcome.reason) if it))}</p>",
            _table(outcome.points),
            f"<pre>{html.escape(chr(10).join(lines(outcome)[1 + len(outcome.points) :]))}</pre>",
            _plots(outcome, index),
        ]
    return "\n".join([*parts, END])


def _status(outcome: Outcome) -> str:
    return f'<span class="{outcome.status}">{outcome.status}</span>'


def _table(points: Sequence[Point]) -> str:
    if not points:
        return ""
    rows = [
        f"<tr><td>{point.name}</td>"
        f'<td class="number">{shown(point.name, point.measured)}</td>'
        f'<td class="number">{shown(point.name, point.limit)}</td>'
        f'<td class="{"held" if point.held else "missed"}">{"held" if point.held else "missed"}</td>'
        f"<td>{html.escape(point.mend)}</td></tr>"
        for point in points
    ]
    head = "<tr><th>point</th><th>measured</th><th>limit</th><th></th><th>what to do</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _plots(outcome: Outcome, index: int) -> str:
    """Four plots over the same time, with what was broken shaded."""
    timeline: list[dict[str, Any]] = outcome.load["timeline"]

    def draw(figure: Figure) -> None:
        rates, times, errors, inside = figure.subplots(4, 1, sharex=True)
        at = [second + 0.5 for second in range(len(timeline))]
        rates.plot(at, [it["due"] for it in timeline], label="due", color="#8c959f")
        rates.plot(at, [it["fine"] for it in timeline], label="answered as expected", color="#1a7f37")
        for name, colour in (("p50", "#54aeff"), ("p95", "#0969da"), ("p99", "#8250df")):
            # A second without an answer has no time, and leaves a gap.
            took = [it[name] * 1000 or math.nan for it in timeline]
            times.plot(at, took, label=name, color=colour)
        times.set_yscale("log")
        errors.plot(at, [it["failed"] for it in timeline], label="failed", color="#cf222e")
        errors.plot(at, [it["degraded"] for it in timeline], label="degraded", color="#bf8700")
        moments = [it.at for it in outcome.samples]
        inside.step(
            moments, [len(it.open_breakers) for it in outcome.samples], where="post", label="open breakers"
        )
        ratios = [(it.at, it.hit_ratio) for it in outcome.samples if it.hit_ratio is not None]
        inside.plot(
            [it for it, _ in ratios], [it for _, it in ratios], label="hit ratio so far", color="#1a7f37"
        )
        for axes, title in zip((rates, times, errors, inside), _TITLES, strict=True):
            _dress(axes, title, outcome)
        for axes in (errors, inside):
            axes.set_ylim(top=max(1.0, axes.get_ylim()[1]))
        inside.set_xlabel("seconds")

    return plot(draw, f"{outcome.name} over time", height=9, salt=str(index))


def _dress(axes: Axes, title: str, outcome: Outcome) -> None:
    for number, (began, ended, what) in enumerate(outcome.windows):
        label = what if title == _TITLES[0] else None
        axes.axvspan(began, ended, alpha=0.15 + 0.1 * (number % 2), color=_SHADE, label=label)
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(visible=True, alpha=0.3)
    if title != _TITLES[1]:
        axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

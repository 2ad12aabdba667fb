"""The report as one HTML file: verdict, figures, plots as SVG. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from sidecar.drills.judging import Point, Readiness
from sidecar.drills.report import lines, shown
from sidecar.drills.runner import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 3rem; border-top: 1px solid #d0d7de; padding-top: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.passed, .held { color: #1a7f37; } .failed, .aborted, .missed { color: #cf222e; font-weight: 600; }
svg { width: 100%; height: auto; } pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; }
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_TITLES: Final = ("requests a second", "latency, ms", "failed a second", "open breakers, cache hits")
_SHADE: Final = "#ffb000"


def as_html(outcomes: Sequence[Outcome], readiness: Readiness) -> str:
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        # Without it a browser asks the server of the file for an icon.
        '<link rel="icon" href="data:,"><title>Stress tests and drills</title>',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>Stress tests and drills</h1>",
    ]
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
    return "\n".join([*parts, "</body></html>\n"])


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
    # The same name for the same thing each time, and another one in each SVG: they share a document.
    with mpl.rc_context({"svg.hashsalt": f"sidecar-{index}", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(10, 9), layout="constrained")
        rates, times, errors, inside = figure.subplots(4, 1, sharex=True)
        at = [second + 0.5 for second in range(len(timeline))]
        rates.plot(at, [it["due"] for it in timeline], label="due", color="#8c959f")
        rates.plot(at, [it["fine"] for it in timeline], label="answered as expected", color="#1a7f37")
        for name, colour in (("p50", "#54aeff"), ("p95", "#0969da"), ("p99", "#8250df")):
            times.plot(at, [max(it[name] * 1000, 0.1) for it in timeline], label=name, color=colour)
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
        inside.set_ylim(top=max(1.0, inside.get_ylim()[1]))
        inside.set_xlabel("seconds")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    # From <svg on: a declaration and a document type have no place inside HTML.
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return f'<figure role="img" aria-label="{html.escape(outcome.name)} over time">{svg}</figure>'


def _dress(axes: Axes, title: str, outcome: Outcome) -> None:
    for number, (began, ended, what) in enumerate(outcome.windows):
        label = what if title == _TITLES[0] else None
        axes.axvspan(began, ended, alpha=0.15 + 0.1 * (number % 2), color=_SHADE, label=label)
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(visible=True, alpha=0.3)
    if title != _TITLES[1]:
        axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

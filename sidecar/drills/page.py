"""What reports in HTML have in common: one file each, with plots as SVG. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 3rem; border-top: 1px solid #d0d7de; padding-top: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.passed, .held { color: #1a7f37; } .failed, .aborted, .missed { color: #cf222e; font-weight: 600; }
svg { width: 100%; height: auto; } pre { background: #f6f8fa; padding: .8rem; white-space: pre-wrap; }
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def head(title: str) -> str:
    """The beginning of a page, up to its heading; ended by `END`."""
    shown = html.escape(title)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            # Without it a browser asks the server of the file for an icon.
            f'<link rel="icon" href="data:,"><title>{shown}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{shown}</h1>",
        ]
    )


END: Final = "</body></html>\n"


def plot(draw: Callable[[Figure], None], label: str, *, height: float, salt: str) -> str:
    """A figure that `draw` fills, `height` inches high, as SVG for a page.

    `salt`: the same name for the same thing each time, and another one in each SVG of a document.
    """
    with mpl.rc_context({"svg.hashsalt": f"sidecar-{salt}", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(10, height), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    # From <svg on: a declaration and a document type have no place inside HTML.
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return f'<figure role="img" aria-label="{html.escape(label)}">{svg}</figure>'

"""docs/metrics.md, which is generated."""

from __future__ import annotations

from scripts.metrics_page import page
from tests.support.processes import ROOT


async def test_the_page_of_metrics_is_current() -> None:
    """Every family that the sidecar shows is there, with type, labels and meaning.

    Make it again with `python scripts/metrics_page.py > docs/metrics.md`.
    """
    assert (ROOT / "docs" / "metrics.md").read_text() == await page()

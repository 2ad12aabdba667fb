"""The HTML report in a real Chromium: plots, no complaint of the console, nothing from elsewhere."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.browser import Page

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


async def test_the_report_stands_alone(tmp_path: Path) -> None:
    """A drill's report shows its verdict, four plots, and what was broken; nothing else is asked for."""
    file = tmp_path / "report.html"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "drill", "retry-storm", "--html", str(file)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    page = Page(tmp_path)
    await page.start()
    try:
        await page.go(file.as_uri())
        await page.until("document.readyState === 'complete'")
        assert await page.run("document.querySelector('h2').textContent") == "retry-storm: passed"
        told = await page.run("document.querySelector('svg').textContent")
        for title in ("requests a second", "latency, ms", "failed a second", "open breakers", "app burst503"):
            assert title in told
        assert await page.run("document.querySelectorAll('svg path').length") > 20
        box = await page.run(
            "(() => { const b = document.querySelector('svg').getBoundingClientRect();"
            " return [b.width, b.height]; })()"
        )
        assert min(box) > 300
        assert page.complaints == []
        assert page.hosts == set()
        # Picture first, so that a failure below can be looked at.
        (tmp_path / "report.png").write_bytes(await page.picture(whole=True))
        assert await page.run("performance.getEntriesByType('resource').length") == 0
    finally:
        await page.close()

"""What docs/ say of the public suite, as values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from tests.conformance.suite import KEPT, Results

PAGE: Final = KEPT.with_name("cache-conformance.md")


def failing(page: Path = PAGE) -> dict[str, str]:
    """Kind by id: the rows of the page's tables that begin with ids in back quotes, then a kind."""
    rows = re.findall(r"^\| (`[^|]+) \| (required|optimal|check) \|", page.read_text(), re.MULTILINE)
    return {name: kind for names, kind in rows for name in re.findall(r"`([^`]+)`", names)}


def kept() -> Results:
    """The results of the last run that was kept."""
    results: Results = json.loads(KEPT.read_text())
    return results

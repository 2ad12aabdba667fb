"""The dashboards and rules of the shipped policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config.load import Loaded, load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shipped() -> Loaded:
    """The configuration as it is shipped, in production, with nothing from outside."""
    return load(ROOT / "sidecar.yaml", {"NEXTVISION_ENV": "production"})

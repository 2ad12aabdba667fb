"""The dashboards and rules of the shipped policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config.load import Loaded, load

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"NEXTVISION_ENV": "production", "REDIS_URL": "redis://valkey"}


@pytest.fixture
def shipped() -> Loaded:
    """The configuration as it is shipped, in production, with a Redis."""
    return load(ROOT / "sidecar.yaml", ENVIRONMENT)

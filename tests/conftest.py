"""What every test has: nothing of the developer's machine."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no setting of the caller's environment reaches a test or a process it starts."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("SIDECAR_", "NEXTVISION_")):
            monkeypatch.delenv(name)

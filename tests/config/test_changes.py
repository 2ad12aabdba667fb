"""What differs between two configurations."""

from __future__ import annotations

import pytest

from sidecar.config.changes import at_start


@pytest.mark.parametrize(
    ("key", "needed"),
    [
        ("listen.ingress", True),
        ("cache.memory", True),
        ("cache.redis", True),
        ("policies.bridge.takeover", True),
        ("policies.bridge.takeover.0", True),
        ("policies.site.routes.takeover-page.deadline", False),
        ("policies.site.routes.all.cache.ttl", False),
        ("limits.body", False),
        ("listener", False),
    ],
)
def test_what_takes_a_restart(key: str, needed: bool) -> None:
    """Listeners and what is made once; a name that only looks like one of these does not."""
    assert at_start(key) is needed

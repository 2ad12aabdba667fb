"""Who may act through the admin listener."""

from __future__ import annotations

import pytest

from sidecar.admin.token import may_act


@pytest.mark.parametrize(
    ("authorization", "token", "allowed"),
    [
        ("", None, True),
        ("Bearer x", None, True),
        ("Bearer s3cret", "s3cret", True),
        ("bearer s3cret", "s3cret", True),
        ("Bearer  s3cret ", "s3cret", True),
        ("", "s3cret", False),
        ("Bearer", "s3cret", False),
        ("Bearer s3cre", "s3cret", False),
        ("Bearer s3crett", "s3cret", False),
        ("Basic s3cret", "s3cret", False),
        ("s3cret", "s3cret", False),
        ("Bearer \udcff", "s3cret", False),
        ("Bearer é", "é", True),
    ],
)
def test_the_bearer_token_decides(authorization: str, token: str | None, allowed: bool) -> None:
    """Exactly the configured token, as a bearer's (RFC 6750)."""
    assert may_act(authorization, token) == allowed

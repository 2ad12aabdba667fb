"""The hosts file that an app in a namespace of its own sees."""

from __future__ import annotations

import pytest

from sidecar.private_namespace import hosts_file


@pytest.mark.parametrize(("original", "expected"), [
    ("", "127.66.0.1 a.example\n127.66.0.1 b.example\n"),
    ("127.0.0.1 localhost", "127.0.0.1 localhost\n127.66.0.1 a.example\n127.66.0.1 b.example\n"),
    ("10.0.0.1 A.example", "127.66.0.1 a.example\n127.66.0.1 b.example\n"),
    ("10.0.0.1 a.example db # c", "10.0.0.1 db\n127.66.0.1 a.example\n127.66.0.1 b.example\n"),
    ("# a.example\n", "# a.example\n127.66.0.1 a.example\n127.66.0.1 b.example\n"),
])  # fmt: skip
def test_hosts_file(original: str, expected: str) -> None:
    """Each host is at our address and nowhere else; all other lines stay as they are."""
    assert hosts_file(original, "127.66.0.1", ["a.example", "b.example"]) == expected

"""What docs/ say of the public suite agrees with the results that are kept, and its lock with our rules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conformance.documented import PAGE, failing, kept
from tests.conformance.suite import Results, Test, score

HERE = Path(__file__).parent


def test_the_page_names_what_fails() -> None:
    """Each test that fails in the kept results stands on the page, and no other."""
    assert sorted(failing()) == sorted(name for name, result in kept().items() if result is not True)


def test_the_figures_follow_from_the_lists() -> None:
    """The page's count of failing tests is what its tables list."""
    text, listed = PAGE.read_text(), list(failing().values())
    row = re.search(r"^\| `distrust_age: true` \| (\d+) of (\d+) .*?\| (\d+) of (\d+) ", text, re.MULTILINE)
    assert row is not None
    required, of_required, optimal, of_optimal = map(int, row.groups())
    assert of_required - required == listed.count("required")
    assert of_optimal - optimal == listed.count("optimal")


def test_the_lock_names_no_registry() -> None:
    """Which registry is npm's choice; what comes is pinned by its digest."""
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    installed = {name: package for name, package in packages.items() if name}
    assert packages[""]["dependencies"] == {"http-cache-tests": "0.4.5"}
    assert [name for name, package in installed.items() if "resolved" in package] == []
    assert [
        name for name, package in installed.items() if not package["integrity"].startswith("sha512-")
    ] == []
    assert "://" not in (HERE / "package.json").read_text() + (HERE / "package-lock.json").read_text()


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({"a": True, "b": True, "c": True}, {}),
        ({"a": True, "b": True, "c": ["Assertion", "no"]}, {"c": "optimal"}),
        ({"a": True, "b": ["Setup", "no"], "c": True}, {"b": "required", "c": "optimal"}),
        ({"a": ["Assertion", "no"], "b": True, "c": True}, {"a": "check", "b": "required", "c": "optimal"}),
        ({"a": True, "b": True}, {"c": "optimal"}),
    ],
)
def test_score(results: Results, expected: dict[str, str]) -> None:
    """A test counts as failing when it failed, was not run, or needs one that counts as failing."""
    tests = [Test("a", "check", ()), Test("b", "required", ("a",)), Test("c", "optimal", ("b",))]
    found = score(tests, results)
    assert found.failing == expected
    assert found.total == {"check": 1, "required": 1, "optimal": 1}
    assert found.passed.total() == 3 - len(expected)

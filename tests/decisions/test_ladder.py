"""What a fallback stands in for, and when another upstream may be asked."""

from __future__ import annotations

import pytest

from sidecar.decisions.ladder import FALLING, is_answer, skipped
from sidecar.decisions.verdict import Verdict

SAFE = frozenset({"GET", "PUT"})


def test_each_verdict_is_an_answer_or_may_fall() -> None:
    """`auth` alone is neither: no answer of another upstream, and no reason to fall unless listed."""
    assert {verdict for verdict in Verdict if is_answer(verdict)} == {
        Verdict.OK,
        Verdict.NEGATIVE,
        Verdict.CLIENT,
    }
    assert {Verdict.TRANSIENT, Verdict.RATE_LIMITED, Verdict.QUOTA} == FALLING
    assert is_answer(None)


@pytest.mark.parametrize(
    ("method", "nothing_sent", "replayable", "why"),
    [
        ("GET", False, True, ""),
        ("PUT", False, True, ""),
        ("POST", False, True, "method"),
        ("POST", True, True, ""),
        ("POST", True, False, "body-too-large"),
        ("PUT", False, False, "body-too-large"),
        ("POST", False, False, "method"),
    ],
)
def test_another_upstream(method: str, nothing_sent: bool, replayable: bool, why: str) -> None:
    """Only if the first cannot have acted on the request, or if that does not matter."""
    assert skipped(method, SAFE, nothing_sent=nothing_sent, replayable=replayable) == why

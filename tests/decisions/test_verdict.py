from __future__ import annotations

import pytest

from sidecar.decisions.verdict import BY_STATUS, OUTCOMES, Outcome, Verdict, by_status


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (101, Verdict.OK),
        (200, Verdict.OK),
        (204, Verdict.OK),
        (206, Verdict.OK),
        (301, Verdict.OK),
        (304, Verdict.OK),
        (399, Verdict.OK),
        (400, Verdict.CLIENT),
        (401, Verdict.AUTH),
        (402, Verdict.CLIENT),
        (403, Verdict.AUTH),
        (404, Verdict.CLIENT),
        (407, Verdict.AUTH),
        (408, Verdict.TRANSIENT),
        (409, Verdict.CLIENT),
        (422, Verdict.CLIENT),
        (425, Verdict.TRANSIENT),
        (429, Verdict.RATE_LIMITED),
        (499, Verdict.CLIENT),
        (500, Verdict.TRANSIENT),
        (501, Verdict.TRANSIENT),
        (502, Verdict.TRANSIENT),
        (503, Verdict.TRANSIENT),
        (504, Verdict.TRANSIENT),
        (505, Verdict.TRANSIENT),
        (599, Verdict.TRANSIENT),
        (999, Verdict.TRANSIENT),
    ],
)
def test_by_status(status: int, verdict: Verdict) -> None:
    """Without rules the status alone gives the verdict."""
    assert by_status(status) is verdict


def test_the_table_holds_every_status() -> None:
    """The request path indexes a table: every three-digit status is in it, as the function says."""
    assert len(BY_STATUS) == 1000
    assert all(BY_STATUS[status] is by_status(status) for status in range(1000))


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.OK, Outcome.SUCCESS),
        (Verdict.NEGATIVE, Outcome.SUCCESS),
        (Verdict.CLIENT, Outcome.SUCCESS),
        (Verdict.TRANSIENT, Outcome.FAILURE),
        (Verdict.RATE_LIMITED, Outcome.IGNORE),
        (Verdict.QUOTA, Outcome.IGNORE),
        (Verdict.AUTH, Outcome.IGNORE),
    ],
)
def test_outcomes(verdict: Verdict, outcome: Outcome) -> None:
    """Only a transient failure counts against an upstream; asking for patience is neutral."""
    assert OUTCOMES[verdict] is outcome


def test_every_verdict_has_an_outcome() -> None:
    """No verdict is unknown to the breaker."""
    assert set(OUTCOMES) == set(Verdict)


def test_verdicts_are_the_words_of_the_configuration() -> None:
    """The values are what policies, logs and metrics write."""
    assert [verdict.value for verdict in Verdict] == [
        "ok",
        "negative",
        "transient",
        "rate_limited",
        "quota",
        "auth",
        "client",
    ]

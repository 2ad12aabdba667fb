from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.replay import IDEMPOTENT, Replay, RetryRule, wait_before
from sidecar.decisions.verdict import Verdict

RESET = {"reason": "reset"}
CONNECT = {"reason": "connect", "nothing_sent": True}
TIMEOUT = {"reason": "timeout"}
UNAVAILABLE = {"verdict": Verdict.TRANSIENT, "status": 503}
TOO_MANY = {"verdict": Verdict.RATE_LIMITED, "status": 429}


def judge(rule: RetryRule, **facts: Any) -> Replay:
    """The judgement of the first of several attempts at a GET, unless `facts` say otherwise."""
    usual: dict[str, Any] = {
        "method": "GET",
        "reason": None,
        "verdict": None,
        "status": 0,
        "attempts": 1,
        "nothing_sent": False,
        "replayable": True,
        "delay": 0.1,
        "retry_after": None,
        "time_left": None,
    }
    return rule.judge(**(usual | facts))


@pytest.mark.parametrize(
    ("facts", "replay"),
    [
        # what failed
        (RESET, Replay.GO),
        (CONNECT, Replay.GO),
        (TIMEOUT, Replay.GO),
        (UNAVAILABLE, Replay.GO),
        (TOO_MANY, Replay.GO),
        ({"verdict": Verdict.TRANSIENT, "status": 200}, Replay.GO),
        ({"verdict": Verdict.OK, "status": 200}, Replay.NOT_LISTED),
        ({"verdict": Verdict.NEGATIVE, "status": 200}, Replay.NOT_LISTED),
        ({"verdict": Verdict.CLIENT, "status": 404}, Replay.NOT_LISTED),
        ({"verdict": Verdict.AUTH, "status": 401}, Replay.NOT_LISTED),
        ({"verdict": Verdict.QUOTA, "status": 429}, Replay.NOT_LISTED),
        ({"reason": "something new"}, Replay.NOT_LISTED),
        ({}, Replay.NOT_LISTED),
        # attempts
        (RESET | {"attempts": 2}, Replay.GO),
        (RESET | {"attempts": 3}, Replay.ATTEMPTS),
        (RESET | {"attempts": 4}, Replay.ATTEMPTS),
        # methods
        (RESET | {"method": "HEAD"}, Replay.GO),
        (RESET | {"method": "OPTIONS"}, Replay.GO),
        (RESET | {"method": "TRACE"}, Replay.GO),
        (RESET | {"method": "PUT"}, Replay.GO),
        (RESET | {"method": "DELETE"}, Replay.GO),
        (RESET | {"method": "POST"}, Replay.METHOD),
        (RESET | {"method": "PATCH"}, Replay.METHOD),
        (RESET | {"method": "get"}, Replay.METHOD),
        (UNAVAILABLE | {"method": "POST"}, Replay.METHOD),
        (TIMEOUT | {"method": "POST"}, Replay.METHOD),
        (CONNECT | {"method": "POST"}, Replay.GO),
        (CONNECT | {"method": "PATCH"}, Replay.GO),
        (RESET | {"method": "POST", "nothing_sent": True}, Replay.GO),
        (RESET | {"method": "POST", "keyed": True}, Replay.GO),
        (UNAVAILABLE | {"method": "POST", "keyed": True}, Replay.GO),
        (RESET | {"method": "POST", "keyed": True, "attempts": 3}, Replay.ATTEMPTS),
        # who else retries
        (UNAVAILABLE | {"client_retries": True}, Replay.CLIENT_RETRIES),
        (CONNECT | {"client_retries": True}, Replay.CLIENT_RETRIES),
        ({"verdict": Verdict.OK, "status": 200, "client_retries": True}, Replay.NOT_LISTED),
        # the body
        (RESET | {"replayable": False}, Replay.BODY_TOO_LARGE),
        (RESET | {"method": "PUT", "replayable": False}, Replay.BODY_TOO_LARGE),
        (CONNECT | {"replayable": False}, Replay.BODY_TOO_LARGE),
        # Retry-After
        (TOO_MANY | {"retry_after": 0.0}, Replay.GO),
        (TOO_MANY | {"retry_after": 20.0}, Replay.GO),
        (TOO_MANY | {"retry_after": 20.1}, Replay.RETRY_AFTER),
        (UNAVAILABLE | {"retry_after": 3600.0}, Replay.RETRY_AFTER),
        (TOO_MANY | {"advised_against": True}, Replay.ADVISED_AGAINST),
        (UNAVAILABLE | {"advised_against": True, "retry_after": 0.0}, Replay.ADVISED_AGAINST),
        # the deadline
        (RESET | {"time_left": 0.2}, Replay.GO),
        (RESET | {"time_left": 0.1}, Replay.DEADLINE),
        (RESET | {"time_left": -1.0}, Replay.DEADLINE),
        (TOO_MANY | {"retry_after": 5.0, "time_left": 6.0}, Replay.GO),
        (TOO_MANY | {"retry_after": 5.0, "time_left": 4.0}, Replay.DEADLINE),
        (TOO_MANY | {"retry_after": 0.05, "time_left": 0.08}, Replay.DEADLINE),
        # and the attempt after the wait
        (RESET | {"time_left": 1.1, "typical": 0.5}, Replay.GO),
        (RESET | {"time_left": 1.1, "typical": 1.1}, Replay.DEADLINE),
        (RESET | {"time_left": 2.0, "typical": 0.5, "retry_after": 1.5}, Replay.GO),
        (RESET | {"time_left": 2.0, "typical": 0.5, "retry_after": 1.6}, Replay.DEADLINE),
        (RESET | {"typical": 3600.0}, Replay.GO),
    ],
)
def test_the_rule_with_its_defaults(facts: dict[str, Any], replay: Replay) -> None:
    """Three attempts, idempotent methods, transient and rate-limited answers, all errors, 20 s patience."""
    assert judge(RetryRule(3), **facts) is replay


@pytest.mark.parametrize(
    ("facts", "replay"),
    [
        ({"verdict": Verdict.OK, "attempts": 9, "method": "POST"}, Replay.NOT_LISTED),
        (RESET | {"attempts": 9, "method": "POST", "replayable": False}, Replay.ATTEMPTS),
        (RESET | {"method": "POST", "replayable": False, "retry_after": 99.0}, Replay.METHOD),
        (RESET | {"replayable": False, "retry_after": 99.0, "time_left": 0.0}, Replay.BODY_TOO_LARGE),
        (RESET | {"retry_after": 99.0, "time_left": 0.0}, Replay.RETRY_AFTER),
        (RESET | {"client_retries": True, "attempts": 9, "method": "POST"}, Replay.CLIENT_RETRIES),
        (TOO_MANY | {"advised_against": True, "retry_after": 99.0}, Replay.ADVISED_AGAINST),
        (TOO_MANY | {"replayable": False, "advised_against": True}, Replay.BODY_TOO_LARGE),
    ],
)
def test_the_first_obstacle_is_named(facts: dict[str, Any], replay: Replay) -> None:
    """When several things forbid a retry, the trail shows the one nearest to the failure."""
    assert judge(RetryRule(3), **facts) is replay


def test_given_methods_replace_the_default() -> None:
    """A route that lists POST vouches for it, and for nothing it does not list."""
    rule = RetryRule(3, methods=["POST"])
    assert judge(rule, method="POST", **RESET) is Replay.GO
    assert judge(rule, method="GET", **RESET) is Replay.METHOD


def test_given_errors_replace_the_default() -> None:
    """`on: {errors: [connect]}` retries nothing else that fails on the way."""
    rule = RetryRule(2, errors=["connect"])
    assert judge(rule, **CONNECT) is Replay.GO
    assert judge(rule, **RESET) is Replay.NOT_LISTED
    assert judge(rule, **TIMEOUT) is Replay.NOT_LISTED


def test_given_verdicts_replace_the_default() -> None:
    """A route may leave rate-limited answers alone."""
    rule = RetryRule(2, verdicts=[Verdict.TRANSIENT])
    assert judge(rule, **UNAVAILABLE) is Replay.GO
    assert judge(rule, **TOO_MANY) is Replay.NOT_LISTED


def test_a_listed_status_is_retried_where_no_rule_knows_better() -> None:
    """`statuses: [404]` is for the upstream that is eventually consistent: `classify` calls it transient."""
    rule = RetryRule(2, verdicts=[], statuses=[404])
    assert judge(rule, verdict=Verdict.TRANSIENT, status=404) is Replay.GO
    assert judge(rule, verdict=Verdict.NEGATIVE, status=404) is Replay.NOT_LISTED
    assert judge(rule, verdict=Verdict.TRANSIENT, status=503) is Replay.NOT_LISTED


def test_a_spent_quota_is_never_retried() -> None:
    """Not even when its verdict or its status is listed."""
    rule = RetryRule(2, verdicts=list(Verdict), statuses=[429])
    assert judge(rule, verdict=Verdict.QUOTA, status=429) is Replay.NOT_LISTED


def test_one_attempt_means_no_retry() -> None:
    """`attempts` counts the first one."""
    assert judge(RetryRule(1), **CONNECT) is Replay.ATTEMPTS


def test_idempotent_methods_are_those_of_the_rfc() -> None:
    """RFC 9110, 9.2.2: the safe methods, PUT and DELETE."""
    assert frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}) == IDEMPOTENT


@pytest.mark.parametrize(
    ("delay", "retry_after", "wait"),
    [(0.5, None, 0.5), (0.5, 0.0, 0.5), (0.5, 0.2, 0.5), (0.5, 3.0, 3.0), (0.0, 1.0, 1.0)],
)
def test_retry_after_is_a_floor(delay: float, retry_after: float | None, wait: float) -> None:
    """The upstream's wish lengthens the back-off and never shortens it."""
    assert wait_before(delay, retry_after) == wait

"""A route's `classify` as the decisions take it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.config.classify_policy import ClassifyRule
from sidecar.decisions.classify import STATUS_CLASSES, Rule, Rules
from sidecar.decisions.verdict import Verdict


def compiled(written: Iterable[ClassifyRule], by_status: Sequence[Verdict]) -> Rules:
    """The rules; `by_status` is the verdict for each status where none of them has a say."""
    return Rules((_rule(each) for each in written), by_status)


def _rule(written: ClassifyRule) -> Rule:
    return Rule(
        Verdict(written.verdict),
        statuses=statuses_of(written),
        headers=written.header,
        json=written.json if written.json.conditions else None,
        degraded=written.degraded or "",
    )


def statuses_of(written: ClassifyRule) -> frozenset[int] | None:
    """The statuses that the rule is for; None: all."""
    if not written.status:
        return None
    return frozenset(status for word in written.status for status in STATUS_CLASSES.get(word) or (int(word),))

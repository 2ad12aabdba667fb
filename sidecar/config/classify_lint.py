"""Rules of `classify` that are valid one by one and make no sense together, or where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sidecar.config.classify_policy import ClassifyRule
from sidecar.config.classify_rules import statuses_of
from sidecar.config.place import Place
from sidecar.config.policy import PolicyFile, Route
from sidecar.config.problems import Problem
from sidecar.decisions.globs import glob_covers
from sidecar.decisions.json_match import covers

_BODILESS: Final = frozenset({*range(100, 200), 204, 304})
"""RFC 9112, 6.3."""


def file(policy: PolicyFile, place: Place) -> Iterator[Problem]:
    """Findings about the rules that routes have from their file, or from its `defaults`."""
    if place.written("classify") and place.written("defaults.classify"):
        yield place.error(
            "classify", "defaults.classify takes its place in every route (remove one of the two)"
        )
    found = {place.origin(key): key for key in ("classify", "defaults.classify") if place.written(key)}
    for route in policy.routes:
        own = Place(place.origins, f"{place.prefix}.routes.{route.name}")
        key = found.pop(own.origin("classify"), None) if own.written("classify") else None
        if key is not None and route.classify is not None:
            yield from _rules(route.classify, place, key)


def route(route: Route, place: Place) -> Iterator[Problem]:
    """Findings about the rules of a route."""
    rules = route.classify or ()
    if not _inherited(place):
        yield from _rules(rules, place, "classify")
    if route.retry is not None:
        yield from _retried(rules, route.retry.on.statuses, place)
    if (
        route.cache is not None
        and route.cache.negative_ttl is not None
        and not any(rule.verdict == "negative" for rule in rules)
    ):
        yield place.warning(
            "cache.negative_ttl",
            "no answer has the verdict negative (add a rule to classify, for example "
            "{status: 404, verdict: negative})",
        )


def _inherited(place: Place) -> bool:
    """Whether the route has its rules from the file, or from `defaults`."""
    file = Place(place.origins, place.prefix.split(".routes.")[0])
    origin = place.origin("classify")
    return any(file.written(key) and file.origin(key) == origin for key in ("classify", "defaults.classify"))


def _conditional(rule: ClassifyRule) -> bool:
    return bool(rule.status or rule.header or rule.json.conditions)


def _rules(rules: Sequence[ClassifyRule], place: Place, key: str) -> Iterator[Problem]:
    for number, rule in enumerate(rules):
        at = f"{key}.{number}"
        statuses = statuses_of(rule)
        if not _conditional(rule):
            yield place.error(at, "matches every answer (write status, header or json)")
        elif rule.json.conditions and statuses is not None and statuses <= _BODILESS:
            yield place.error(f"{at}.json", "answers with that status have no body (remove the rule)")
        else:
            yield from _unreachable(rules[:number], rule, place, key)
        if rule.degraded is not None and rule.verdict != "ok":
            yield place.error(
                f"{at}.degraded",
                f"the verdict {rule.verdict} says enough (write degraded with verdict: ok only)",
            )


def _unreachable(
    earlier: Sequence[ClassifyRule], rule: ClassifyRule, place: Place, key: str
) -> Iterator[Problem]:
    hiding: list[int] = []
    for status in statuses_of(rule) or (None,):
        first = next((at for at, other in enumerate(earlier) if _hides(other, rule, status)), None)
        if first is None:
            return
        if first not in hiding:
            hiding.append(first)
    where = " and ".join(place.origin(f"{key}.{first}").short for first in sorted(hiding))
    yield place.error(
        f"{key}.{len(earlier)}",
        f"never matches: {'those' if len(hiding) > 1 else 'the one'} at {where} "
        f"{'take' if len(hiding) > 1 else 'takes'} all of its answers before (move it up)",
    )


def _hides(earlier: ClassifyRule, rule: ClassifyRule, status: int | None) -> bool:
    """Whether `earlier` matches all answers with that status that `rule` does."""
    taken = statuses_of(earlier)
    if not _conditional(earlier):
        return False  # that is a finding of its own
    if taken is not None and status not in taken:
        return False
    headers = all(
        any(name == other and glob_covers(glob, theirs) for other, theirs in rule.header)
        for name, glob in earlier.header
    )
    return headers and covers(earlier.json, rule.json)


def _retried(rules: Sequence[ClassifyRule], statuses: Sequence[int], place: Place) -> Iterator[Problem]:
    """A status in `retry.on.statuses` counts as transient where no rule has said otherwise before."""
    for index, status in enumerate(statuses):
        for number, rule in enumerate(rules):
            taken = statuses_of(rule)
            if taken is None or status not in taken or rule.header or rule.json.conditions:
                continue
            if rule.verdict != "transient":
                where = place.origin(f"classify.{number}").short
                yield place.error(
                    f"retry.on.statuses.{index}",
                    f"never retried: the rule at {where} gives {status} the verdict {rule.verdict} "
                    "(remove one of the two)",
                )
            break

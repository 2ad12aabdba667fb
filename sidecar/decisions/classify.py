"""Rules that give an answer its verdict: the first that matches does, else the status does.

A rule may look at the status, at header fields and at the body as JSON. What depends on the status
alone is settled when the rules are compiled, so that a status for which there is no rule costs a
look-up, and the body is asked for only where a rule that needs it may still be the first to match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sidecar.decisions.globs import glob_pattern
from sidecar.decisions.json_match import All, Pattern
from sidecar.decisions.skim import ABSENT, UNCLEAR, Skim, obscure, top_member
from sidecar.decisions.verdict import BY_STATUS, Verdict

if TYPE_CHECKING:
    from sidecar.headers import Line

HeaderTest = tuple[bytes, re.Pattern[bytes]]
"""Name in lower case, and what one of its fields must be."""


class Judgement(NamedTuple):
    """What is found of an answer."""

    verdict: Verdict
    degraded: str = ""
    """What the answer was made without; nothing where it is whole."""


class Rule:
    """One rule. What is not given matches all; what is given must all match."""

    __slots__ = ("degraded", "headers", "pattern", "statuses", "verdict")

    def __init__(
        self,
        verdict: Verdict,
        *,
        statuses: Iterable[int] | None = None,
        headers: Iterable[tuple[str, str]] = (),
        json: All | None = None,
        degraded: str = "",
    ) -> None:
        """`headers`: names with globs. Raises ValueError where a path of `json` is none."""
        self.verdict = verdict
        self.statuses = None if statuses is None else frozenset(statuses)
        self.headers: tuple[HeaderTest, ...] = tuple(
            (name.lower().encode("latin-1"), re.compile(glob_pattern(glob).encode(), re.DOTALL))
            for name, glob in headers
        )
        self.pattern = None if json is None else Pattern(json)
        self.degraded = degraded

    def takes(self, headers: Sequence[Line]) -> bool:
        """Whether the header fields are what it wants."""
        return all(
            any(line.name == name and glob.fullmatch(line.value) for line in headers)
            for name, glob in self.headers
        )


class Plan:
    """What is left to find out once status and headers are known."""

    __slots__ = ("_tops", "otherwise", "pending")

    def __init__(self, pending: tuple[tuple[Pattern, Judgement], ...], otherwise: Judgement) -> None:
        self.pending = pending
        """Rules that need the body, in order, of those before the first that does not and matches."""
        self.otherwise = otherwise
        """What holds where none of them matches, or the body is not looked at."""
        tops = frozenset[str | None]().union(*(pattern.tops for pattern, _ in pending))
        self._tops = None if None in tops else tuple(sorted(name for name in tops if name is not None))

    def settle(self, body: Any) -> Judgement:
        """For the body as a JSON parser gives it."""
        for pattern, judgement in self.pending:
            if pattern.holds(body):
                return judgement
        return self.otherwise

    def undecided(self, text: bytes) -> bool:
        """Whether the JSON text may come to something else than `otherwise`; else it need not be parsed."""
        skim = Skim(text)
        return skim.obscure or any(
            judgement != self.otherwise and pattern.may_hold(skim) for pattern, judgement in self.pending
        )

    def pick(self, text: bytes) -> Any:
        """As much of what the JSON text holds as `settle` looks at; `UNCLEAR` where that takes a parser."""
        if self._tops is None or obscure(text):
            return UNCLEAR
        found: dict[str, Any] = {}
        for name in self._tops:
            value = top_member(text, name)
            if value is UNCLEAR:
                return UNCLEAR
            if value is not ABSENT:
                found[name] = value
        return found


class Rules:
    """The rules of a route, compiled."""

    __slots__ = ("_asked", "_plans", "_standard")

    def __init__(self, rules: Iterable[Rule], by_status: Sequence[Verdict] = BY_STATUS) -> None:
        """`by_status`: the verdict for each status where no rule has a say."""
        listed = tuple(rules)
        self._standard = by_status
        named = frozenset(status for rule in listed for status in rule.statuses or ())
        unnamed = tuple(rule for rule in listed if rule.statuses is None)
        self._plans: list[Plan | None] = []
        """By status; None where it depends on the headers."""
        self._asked: dict[int, tuple[Rule, ...]] = {}
        """By status, for those."""
        # A thousand statuses have a handful of plans: one for each would be most of what a generation weighs.
        made: dict[tuple[tuple[Rule, ...], Verdict], Plan] = {}
        for status, verdict in enumerate(by_status):
            fitting = (
                tuple(rule for rule in listed if rule.statuses is None or status in rule.statuses)
                if status in named
                else unnamed
            )
            if any(rule.headers for rule in fitting):
                self._asked[status] = fitting
                self._plans.append(None)
            else:
                plan = made.get((fitting, verdict))
                if plan is None:
                    plan = made[fitting, verdict] = _plan(fitting, verdict)
                self._plans.append(plan)

    def plan(self, status: int, headers: Sequence[Line]) -> Plan:
        plan = self._plans[status]
        if plan is not None:
            return plan
        fitting = (rule for rule in self._asked[status] if rule.takes(headers))
        return _plan(fitting, self._standard[status])


def _plan(rules: Iterable[Rule], standard: Verdict) -> Plan:
    """`rules`: those that fit status and headers; `standard`: the verdict that goes with the status."""
    pending: list[tuple[Pattern, Judgement]] = []
    for rule in rules:
        judgement = Judgement(rule.verdict, rule.degraded)
        if rule.pattern is None:
            return Plan(tuple(pending), judgement)
        pending.append((rule.pattern, judgement))
    return Plan(tuple(pending), Judgement(standard))


STATUS_CLASSES: Final = {f"{first}xx": range(first * 100, first * 100 + 100) for first in range(1, 6)}
"""RFC 9110, 15."""

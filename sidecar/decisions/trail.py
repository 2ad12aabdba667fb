"""The decision trail: what every layer decided about one request, as a List (RFC 9651, 3.1).

    cache;miss, circuit_breaker;closed, upstream;status=503, classify;transient, retry;transient, …

One member for each decision, in the order in which they were made: a layer's name, and what it decided as
parameters. A layer notes what is out of the ordinary while the request passes (`Exchange.note`); what it says
when all is well follows from the exchange when it is over, so that the usual request costs nothing.

Notes are made in one order: a request goes down through its layers, attempt by attempt, and the answer comes
back up. What ends a descent is a refusal, a timeout, or the outcome of an attempt at the upstream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sidecar.decisions.structured_fields import Bare, Token, parse_members, string

Note = tuple[str, str]
"""A layer, and what it decided: parameters as RFC 9651 writes them, without the first semicolon."""

UPSTREAM: Final = "upstream"
"""What stands below all layers."""
RESPOND: Final = "respond"
"""What stands there on a route that is answered by the sidecar itself."""

_GONE: Final = 499
"""Status of a request whose client left before its answer: for the log only."""
_ON_THE_WAY_UP: Final = frozenset({"fallback", "retry", "classify"})
"""Layers that decide about an answer; all others decide about a request."""
_QUIET: Final = frozenset({"fault", "overlap"})
"""Layers that are there for the case only."""
HEDGE: Final = ";hedge"
"""At the end of what was decided about an attempt beside another: it counts once `retry` says so."""
ALTERNATE: Final = ";alternate"
"""At the end of what was decided about another upstream's attempt; `fallback` says what came of it."""
_HEDGING: Final = "hedge"
"""How all begins that `retry` says of an attempt beside another: none of it begins the way down anew."""
_FROM_STORE: Final = frozenset({"hit", "updating", "collapsed"})
"""Outcomes of the cache that end the way down."""
_AFTER_ASKING: Final = frozenset({"stale", "revalidated"})
"""Outcomes that are known when the origin was asked; a stale answer may also be given without asking."""
_MODIFIED: Final = "not_modified"
"""The cache made a 304 of the upstream's 200."""
_ENDS: Final = frozenset({"rejected", "expired", "status", "purged"})
"""First parameters of a note after which a request goes no further down; so does any error."""

_PLAIN: Final = re.compile(
    r"[a-z*][a-z0-9_\-.*]*(?:=(?:[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*|-?\d{1,12}))?"
)
_FRACTION: Final = re.compile(r"-?\d{1,12}\.\d{1,3}")
_NO_KEY: Final = re.compile(r"[^a-z0-9_\-.*]")


class Member(NamedTuple):
    """One decision."""

    layer: str
    parameters: Mapping[str, Bare]


class Facts(NamedTuple):
    """What is known of an exchange that is over, or whose answer is about to go out."""

    status: int
    how: str = "done"
    """How the answer ended: `done`, `client_gone`, `broken` or `aborted`."""
    attempts: int = 0
    verdict: str = ""
    cache: str = ""
    error: str = ""
    """Code of the error that the client got."""
    rung: str = ""
    """Which step of the ladder answered."""


def compose(layers: Sequence[str], facts: Facts, notes: Sequence[Note] = ()) -> str:
    """The trail of a request through `layers` (outermost first, `observe` left out).

    Whatever the notes hold, the result is a valid List in ASCII.
    """
    walk = _Walk(layers, facts, notes)
    for layer, decision in notes:
        walk.noted(layer, decision)
    walk.finish()
    return ", ".join(walk.members)


def parse(value: bytes) -> list[Member] | None:
    """The decisions in a trail; None where it is none."""
    members = parse_members(value)
    if members is None or not all(isinstance(item, Token) for item, _ in members):
        return None
    return [Member(str(item), parameters) for item, parameters in members]


class _Walk:
    """The way of one request."""

    def __init__(self, layers: Sequence[str], facts: Facts, notes: Sequence[Note]) -> None:
        self.members: list[str] = []
        self._facts = facts
        self._layers = (*layers, UPSTREAM)
        self._depth = 0
        """The next layer on the way down."""
        self._going = True
        """Down, that is: nothing has ended it."""
        self._well = True
        """What last came back was no failure."""
        self._repeats = 0
        self._hedge_came = False
        """The last hedge that was told of came to something out of the ordinary."""
        self._judged: set[str] = set()
        """Layers that have said what they think of the answer."""
        cache = self._at("cache")
        self._asked = facts.attempts > 0 or any(self._at(layer) > cache for layer, _ in notes)
        """What stands below the cache was reached."""
        self._modified = any(first == _MODIFIED for _, first in notes)

    @property
    def _bottom(self) -> int:
        return len(self._layers) - 1

    def _at(self, layer: str) -> int:
        if layer == RESPOND:  # in the upstream's place
            return self._bottom
        return self._layers.index(layer) if layer in self._layers else -1

    def _add(self, layer: str, decision: str) -> None:
        self.members.append(f"{_token(layer)};{';'.join(map(_parameter, decision.split(';')))}")

    # -- what was noted ------------------------------------------------------------------------

    def noted(self, layer: str, decision: str) -> None:
        first = decision.partition(";")[0].partition("=")[0]
        if decision.endswith((HEDGE, ALTERNATE)):
            self._add(layer, decision)
            self._hedge_came = self._hedge_came or layer == UPSTREAM
            return
        if layer == "retry" and first.startswith(_HEDGING):
            self._hedged(first, decision)
            return
        at = self._at(layer)
        if first == _MODIFIED or layer == "overlap":
            self._go_down()
            self._pass_retry()
        elif at >= self._depth:
            self._descend(at)
            self._depth = at + 1
        if layer == "fallback":
            self._pass_retry()
            if first == "rung":
                decision = f"{decision};status={self._facts.status}"
        self._add(layer, decision)
        if layer == "retry" and first != "skipped":
            self._depth, self._going, self._well = at + 1, True, True
            self._repeats += 1
        elif layer in _ON_THE_WAY_UP:
            self._going = False
            self._judged.add(layer)
            self._well = first in ("ok", "negative", "rung")
        elif first in _ENDS or "error=" in decision:
            self._going = self._well = False

    def _hedged(self, first: str, decision: str) -> None:
        """A second attempt was begun beside the first, which is at the upstream then; or it ended."""
        if first in ("hedge", "hedge-skipped"):
            self._descend(self._bottom)
        self._add("retry", decision)
        if first == "hedge-won":
            self._well, self._depth, self._going = True, self._bottom, not self._hedge_came
        self._hedge_came = False

    # -- what was not --------------------------------------------------------------------------

    def _descend(self, to: int) -> None:
        """Says for the layers down to `to`, itself excluded, that they let the request pass."""
        while self._depth < to and self._going:
            layer = self._layers[self._depth]
            self._depth += 1
            if layer == "cache":
                self._pass_cache()
            elif layer == "circuit_breaker":
                self._add(layer, "closed")
            elif layer not in _ON_THE_WAY_UP and layer not in _QUIET:
                self._add(layer, "ok")

    def _pass_cache(self) -> None:
        outcome = self._facts.cache
        if outcome in _AFTER_ASKING and self._asked:
            return
        if outcome in _FROM_STORE or outcome in _AFTER_ASKING:
            self._from_cache()
            self._going = False
        elif outcome:
            self._add("cache", outcome)

    def _from_cache(self) -> None:
        facts = self._facts
        rung = ";rung=stale" if facts.rung == facts.cache == "stale" else ""
        self._add("cache", f"{facts.cache}{rung};status={facts.status}")

    def finish(self) -> None:
        """Tells the rest: the way down that no note ended, and the way back up."""
        facts = self._facts
        if facts.attempts > self._repeats or not (facts.error or facts.status == _GONE):
            self._go_down()
        if facts.status != _GONE:
            self._come_up()
            if self._going and facts.error:
                self._add("observe", f"error={facts.error}")
        if facts.how != "done":
            self._add("observe", facts.how if facts.status == _GONE else f"cut={facts.how}")

    def _go_down(self) -> None:
        """To the upstream, unless something ends the way before."""
        facts = self._facts
        self._descend(self._bottom)
        if not self._going or facts.status == _GONE:
            return
        self._going = False
        if facts.error:
            self._well = False
            self._add(UPSTREAM, f"error={facts.error}")
            return
        if facts.cache != "stale":  # else its status was not that of the answer, and was not noted
            status = 304 if facts.cache == "revalidated" else 200 if self._modified else facts.status
            self._add(UPSTREAM, f"status={status}")
        if "classify" in self._layers:
            self._add("classify", facts.verdict or "ok")

    def _pass_retry(self) -> None:
        if 0 <= self._at("retry") < self._depth and "retry" not in self._judged:
            self._judged.add("retry")
            self._add("retry", "ok" if self._well else "declined")

    def _come_up(self) -> None:
        """What judges an answer, and said nothing of this one."""
        facts = self._facts
        cache, fallback = self._at("cache"), self._at("fallback")
        self._pass_retry()
        if 0 <= cache < self._depth and facts.cache in _AFTER_ASKING and self._asked and not facts.error:
            self._from_cache()
            self._well = True
        if 0 <= fallback < self._depth and "fallback" not in self._judged:
            self._add("fallback", "ok" if self._well else "declined")


def _token(layer: str) -> str:
    return layer if _NO_KEY.search(layer) is None and layer[:1].isalpha() else f"x{_NO_KEY.sub('_', layer)}"


def _parameter(text: str) -> str:
    """A parameter, as RFC 9651, 4.1.1.2 writes it: what it cannot hold becomes `_` or `?`."""
    if _PLAIN.fullmatch(text) is not None:
        return text
    key, equals, value = text.partition("=")
    key = _NO_KEY.sub("_", key)
    key = key if key[:1].isalpha() or key[:1] == "*" else f"x{key}"
    if not equals:
        return key
    if _FRACTION.fullmatch(value) is None and _PLAIN.fullmatch(f"x={value}") is None:
        value = string(value).decode("ascii")
    return f"{key}={value}"

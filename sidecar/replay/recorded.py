"""What the log tells of the upstreams: what an attempt came to, or would have come to.

The attempts of a request that reached its upstream are in its line. An attempt that was not made then (the
request was answered from the cache, or refused, or not repeated) or that has no line (in the background)
comes to what the one came to that is nearest in time: of the same route, or, where that is not `NEAR`, of the
same upstream, as an outage is an outage for all. If that one went well, status, size and freshness are those
of the last good answer to the same request. A stale answer in place of an error tells of an outage, though
nobody was asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sidecar.config.policy import Route
from sidecar.decisions.verdict import BY_STATUS
from sidecar.replay.log import Line

FORBIDDEN: Final = -1
"""As `Said.lasts`: it must not be stored."""
NEAR: Final = 1.0
"""Seconds within which another attempt of the same route tells most."""
_FAILED: Final = frozenset({"transient", "rate_limited", "quota", "auth"})
_STORABLE: Final = frozenset({"ok", "negative"})


class Said(NamedTuple):
    """What an attempt comes to."""

    status: int
    verdict: str
    """Empty: what its status gives."""
    error: str
    """Code of the error instead of an answer; empty: none."""
    seconds: float
    lasts: int | None
    """Seconds of freshness that the origin states; `FORBIDDEN`; None: it states none."""
    size: int

    @property
    def failed(self) -> bool:
        verdict = self.verdict or BY_STATUS[self.status].value
        return bool(self.error) or verdict in _FAILED


class _Timeline:
    """Attempts in the order of time, with the numbers of their lines."""

    def __init__(self, attempts: list[tuple[float, int, Said]]) -> None:
        attempts.sort(key=lambda it: it[0])
        self.times = [at for at, _, _ in attempts]
        self.said = [(number, said) for _, number, said in attempts]

    def nearest(self, at: float, number: int) -> tuple[float, Said] | None:
        """Seconds to the nearest attempt, and what it came to; those of line `number` itself do not count."""
        after = bisect_left(self.times, at)
        before = after - 1
        while before >= 0 and self.said[before][0] == number:
            before -= 1
        while after < len(self.said) and self.said[after][0] == number:
            after += 1
        found = [(abs(self.times[it] - at), self.said[it][1]) for it in (before, after) if self._has(it)]
        return min(found, key=lambda it: it[0], default=None)

    def _has(self, place: int) -> bool:
        return 0 <= place < len(self.said)


class Recorded:
    """The upstreams, as a log tells of them."""

    def __init__(
        self, lines: Sequence[Line], routes: Mapping[str, Route], homes: Mapping[str, str], latency: float
    ) -> None:
        """`routes` are those that the log was written under, by name, and `homes` their policy files.

        `latency`: seconds that an attempt takes where the log does not say.
        """
        self._homes = homes
        self._latency = latency
        self._usual = Said(200, "", "", latency, None, 0)
        self._outage = Said(503, "", "", latency, None, 0)
        self._own: list[tuple[Said, ...]] = []
        routed: dict[str, list[tuple[float, int, Said]]] = defaultdict(list)
        placed: dict[str, list[tuple[float, int, Said]]] = defaultdict(list)
        self._answers: dict[object, list[tuple[float, Said]]] = defaultdict(list)
        for number, line in enumerate(lines):
            said = tuple(self._attempts(line, routes.get(line.route)))
            self._own.append(said)
            told = said or ((self._outage,) if line.rung == "stale" else ())
            for place, it in enumerate(told):
                attempt = _moment(line, place, len(told)), number, it
                routed[line.route].append(attempt)
                placed[self._upstream(line)].append(attempt)
            if said and not said[-1].failed:
                self._answers[identity(line)].append((line.at, said[-1]))
        self._routes = {name: _Timeline(attempts) for name, attempts in routed.items()}
        self._upstreams = {name: _Timeline(attempts) for name, attempts in placed.items()}

    def _attempts(self, line: Line, route: Route | None) -> Iterator[Said]:
        seconds = self._latency if line.upstream_seconds is None else line.upstream_seconds
        # Those before the last, with the waits after them, took what is left of the request's time.
        left = seconds if line.seconds is None else max(line.seconds - seconds, 0.0)
        earlier = min(seconds, left / max(len(line.attempts) - 1, 1))
        for number, (status, verdict, error) in enumerate(line.attempts, 1):
            last = number == len(line.attempts)
            if status == 304:  # the content that was there is as good as new
                status = 200  # noqa: PLW2901 - what follows speaks of the content
            if not 200 <= status < 600:
                status = 502 if error else 200  # noqa: PLW2901 - likewise
            plain = verdict == BY_STATUS[status].value
            yield Said(
                status,
                "" if plain else verdict,
                error,
                seconds if last else earlier,
                _lasts(line, route, status, verdict) if last else None,
                line.sent if last else 0,
            )

    def attempt(self, number: int, attempt: int, line: Line, at: float) -> Said:
        """What an attempt comes to: `attempt` counts those of line `number` from 0, `at` is Unix seconds."""
        own = self._own[number]
        if attempt < len(own):
            return own[attempt]
        near = self._near(number, line, at)
        if near.failed:
            return near
        answer = _latest(self._answers.get(identity(line), ()), at) or near
        return answer._replace(seconds=near.seconds)

    def _upstream(self, line: Line) -> str:
        return self._homes.get(line.route) or f"{line.plane} {line.route.partition('/')[0]}"

    def _near(self, number: int, line: Line, at: float) -> Said:
        own = self._own[number]
        # Where a request's own attempts are all there is, they tell of one more, too.
        distance, said = float("inf"), own[-1] if own else self._usual
        route = self._routes.get(line.route)
        if route is not None:
            distance, said = route.nearest(at, number) or (distance, said)
        upstream = self._upstreams.get(self._upstream(line))
        if distance > NEAR and upstream is not None:
            other = upstream.nearest(at, number)
            if other is not None and other[0] < distance and other[1].failed:
                return other[1]
        return said


def _moment(line: Line, place: int, count: int) -> float:
    """Unix seconds of an attempt: the first at once, the last as the answer's end tells, others between."""
    if place == 0 or line.seconds is None:
        return line.at
    last = max(line.seconds - (line.upstream_seconds or 0.0), 0.0)
    return line.at + last * place / (count - 1)


def identity(line: Line) -> object:
    """Equal for two lines that asked for the same."""
    return line.key or (line.method, line.target)


def _latest(answers: Sequence[tuple[float, Said]], at: float) -> Said | None:
    """The last at that time; the first, where all came later."""
    if not answers:
        return None
    return answers[max(bisect_right(answers, at, key=lambda it: it[0]) - 1, 0)][1]


def _lasts(line: Line, route: Route | None, status: int, verdict: str) -> int | None:
    """What the origin said of freshness, as far as the answer's in the log tells it from the policy's."""
    if not line.key or route is None or route.cache is None or line.cache == "bypass":
        return None
    if line.cut:
        return FORBIDDEN
    cache = route.cache
    verdict = verdict or BY_STATUS[status].value
    by_policy = cache.negative_ttl if verdict == "negative" and cache.negative_ttl else cache.ttl
    if line.ttl is None:
        # Without a ttl an origin that says nothing looks like one that forbids.
        storable = verdict in _STORABLE and by_policy is not None
        return FORBIDDEN if storable else None
    if cache.adaptive_ttl is not None or line.ttl < 0:
        return None
    # A second less may be left when the answer is given.
    if by_policy is not None and int(by_policy) - 1 <= line.ttl <= by_policy:
        return None
    return line.ttl

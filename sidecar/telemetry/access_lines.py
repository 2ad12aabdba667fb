"""Lines of the access log, made of records: as JSON, or as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

# ASCII only, so that nothing that a client sends makes a line that is not UTF-8.
from json.encoder import encode_basestring_ascii as quote
from typing import Final, Literal

from sidecar.decisions import trail
from sidecar.telemetry.redact import redact_target
from sidecar.telemetry.stamp import Stamp

LONGEST_TARGET = 4096
"""Bytes of path and query that are logged."""

MOST_KNOWN = 1024
"""Sets of facts whose part of a line is remembered; all are forgotten when there are more."""
LONGEST_KNOWN = 512
"""Bytes of a target in a set that is remembered."""

MOST_TIMES = 20_000
"""Microseconds up to which the text of a time is remembered: about 2 MB of texts at most."""

LOGGER = "sidecar.access"


class Stack:
    """The layers of a route, outermost first, `observe` left out. Compared by identity: that is quick."""

    __slots__ = ("layers", "off", "plane")

    def __init__(
        self, layers: tuple[str, ...] = (), plane: str = "ingress", off: tuple[str, ...] = ()
    ) -> None:
        """`off` are the features that the route would have, if flags let it."""
        self.layers = layers
        self.plane = plane
        self.off = off

    def trail(self, facts: trail.Facts, notes: Sequence[tuple[str, str]] = ()) -> str:
        """What was decided about a request, up to where `facts` were known."""
        told = trail.compose(self.layers, facts, notes)
        if not self.off:
            return told
        return ", ".join([*([told] if told else []), *(f"{name};off" for name in self.off)])


NO_LAYERS: Final = Stack()

Facts = tuple[int, str, str, str, str, str, int, str, str, str, str | None, str, Stack]
"""What many lines have in common: status, end, method, client, route, upstream, attempts, verdict, breaker,
cache, error, rung, layers."""
STATUS: Final = 0
END: Final = 1
ATTEMPTS: Final = 6
CACHE: Final = 9
RUNG: Final = 11
"""Where these are among the facts."""

Record = tuple[
    float,  # Clock.now() at the end
    Facts,
    bytes,  # target
    str,  # request id
    str,  # correlation id, empty: the request id
    str,  # further members
    tuple[bytes, bytes] | None,  # trace id and flags
    float,  # Clock.now() at the start
    float,  # Clock.now() at the first byte, or 0
    float,  # upstream seconds
    list[tuple[str, str]] | None,  # notes
    tuple[bytes, int | None] | None,  # cache key and seconds of freshness left
    int,  # bytes in
    int,  # bytes out
]
NOTES: Final = 10
"""Where the notes are in a record."""


def degraded(notes: Sequence[tuple[str, str]] | None) -> bool:
    """Whether it was noted that the answer was made without something it needs."""
    return notes is not None and any("degraded=" in decision for _, decision in notes)


_TRACE = '"%s"'


class _Milliseconds(dict[int, str]):
    """Microseconds as milliseconds with three places, each made once: a third of what formatting costs."""

    __slots__ = ()

    def __missing__(self, microseconds: int) -> str:
        made = f"{microseconds / 1000:.3f}"
        if 0 <= microseconds < MOST_TIMES:
            self[microseconds] = made
        return made


_COLOURS = {"INFO": "\x1b[32m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m"}
_PLAIN = "\x1b[0m"


def _or_null(text: str | None) -> str:
    return quote(text) if text else "null"


def level_of(status: int, how: str = "done") -> str:
    """The level of a line: by the answer's status, and an answer cut short is an error whatever it was."""
    if how in ("aborted", "broken"):
        return "ERROR"
    if status < 400:
        return "INFO"
    return "WARNING" if status < 500 else "ERROR"


class Lines:
    """Makes lines, and remembers what many have in common. For one thread."""

    def __init__(self, format: Literal["json", "console"] = "json", *, colour: bool = False) -> None:  # noqa: A002
        self._stamp = Stamp()
        self._times = _Milliseconds()
        self._cached = _CacheMembers()
        self._paths: dict[bytes, str] = {}
        self._shared: dict[tuple[Facts, bytes], tuple[str, str]] = {}
        self._known: dict[Facts, tuple[str, str, str, str]] = {}
        self._trails: dict[tuple[object, ...], str] = {}
        self._colour = colour
        self._for_people = format == "console"

    def all(self, records: Sequence[Record], epoch: float) -> bytes:
        """A line for each. `epoch` is what makes Unix time of `Clock.now()`."""
        line = self._console if self._for_people else self.json
        return "".join([line(record, epoch) for record in records]).encode("utf-8", "backslashreplace")

    def json(self, record: Record, epoch: float) -> str:
        """One line of JSON, its end included."""
        (
            ended, facts, target, request_id, correlated, more, trace,
            started, first, seconds, notes, cached, received, sent,
        ) = record  # fmt: skip
        shared, usual = self._shared.get((facts, target)) or self._share(facts, target)
        request_id = quote(request_id)
        times = self._times
        return (
            f'{{"timestamp":"{self._stamp(epoch + ended)}",{shared}'
            f'"request_id":{request_id},"correlation_id":{correlated or request_id},'
            f'"trace_id":{_TRACE % trace[0].decode() if trace else "null"},'
            f'"duration_ms":{times[int((ended - started) * 1e6 + 0.5)]},'
            f'"first_byte_ms":{times[int((first - started) * 1e6 + 0.5)] if first else "null"},'
            f'"upstream_ms":{times[int(seconds * 1e6 + 0.5)] if facts[ATTEMPTS] else "null"},'
            f'"trail":{self._trail(facts, notes) if notes else usual},'
            f'{self._cached[cached] if cached else ""}{more}"bytes_in":{received},"bytes_out":{sent}}}\n'
        )

    def _share(self, facts: Facts, target: bytes) -> tuple[str, str]:
        """What a line has in common with all of the same facts and target, and its usual trail."""
        before, message, after, usual = self._known.get(facts) or self._learn(facts)
        if b"?" in target or len(target) > LONGEST_KNOWN:
            path = self._paths.get(target) or self._path(target)
        else:  # which costs less than to remember it
            path = quote(target.decode("latin-1"))[1:-1]
        both = (f"{before}{path}{message}{path}{after}", usual)
        if len(target) <= LONGEST_KNOWN:
            if len(self._shared) >= MOST_KNOWN:
                self._shared.clear()
            self._shared[facts, target] = both
        return both

    def _learn(self, facts: Facts) -> tuple[str, str, str, str]:
        """The members that many lines share, around their paths, and the trail where nothing was noted."""
        status, how, method, client, route, upstream, attempts, verdict, *_ = facts
        breaker, cache, error, rung, stack = facts[8:]
        came_to = trail.Facts(status, how, attempts, verdict, cache, error or "", rung)
        before = f'"level":"{level_of(status, how)}","logger":"{LOGGER}","message":"{method} '
        message = (
            f' {status}","component":"{stack.plane}","operation":"{method} {route}",'
            f'"client":{quote(client)},"method":"{method}","path":"'
        )
        after = (
            f'","route":"{route}","status":{status},"upstream":{_or_null(upstream)},"attempts":{attempts},'
            f'"verdict":{_or_null(verdict)},"breaker":{_or_null(breaker)},"cache":{_or_null(cache)},'
            f'"error":{_or_null(error)},"rung":{_or_null(rung)},"end":"{how}",'
        )
        known = (before, message, after, quote(stack.trail(came_to)))
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[facts] = known
        return known

    def _path(self, target: bytes) -> str:
        """A target as it is shown, for the inside of a JSON string."""
        path = quote(_shown(target))[1:-1]
        if len(target) <= LONGEST_KNOWN:
            if len(self._paths) >= MOST_KNOWN:
                self._paths.clear()
            self._paths[target] = path
        return path

    def _trail(self, facts: Facts, notes: list[tuple[str, str]]) -> str:
        """The trail of a request that something was noted of: of the same, most of the time."""
        status, how, _, _, _, _, attempts, verdict, _, cache, error, rung, stack = facts
        key = (stack, status, how, attempts, verdict, cache, error, rung, *notes)
        known = self._trails.get(key)
        if known is None:
            came_to = trail.Facts(status, how, attempts, verdict, cache, error or "", rung)
            known = quote(stack.trail(came_to, notes))
            if len(self._trails) >= MOST_KNOWN:
                self._trails.clear()
            self._trails[key] = known
        return known

    def _console(self, record: Record, epoch: float) -> str:
        ended, facts, target, request_id, correlated, _, _, started, _, _, notes, _, _, sent = record
        status, how, method, _, route, upstream, attempts, verdict, *_ = facts
        breaker, cache, error, rung, _ = facts[8:]
        level = level_of(status, how)
        time = self._stamp(epoch + ended)[11:-1]
        rest = [
            f"{time} {level:7} {method} {_shown(target)} {status} {_milliseconds(ended - started)}ms",
            f"{sent}B route={route}",
        ]
        if upstream:
            rest.append(f"upstream={upstream} attempts={attempts}")
        if verdict:
            rest.append(f"verdict={verdict}")
        if cache:
            rest.append(f"cache={cache}")
        if breaker and breaker != "closed":
            rest.append(f"breaker={breaker}")
        if error is not None:
            rest.append(f"error={error}")
        if rung:
            rest.append(f"rung={rung}")
        if how != "done":
            rest.append(f"end={how}")
        rest.extend(f"{layer};{decision}" for layer, decision in notes or ())
        rest.append(f"id={request_id}")
        if correlated:
            rest.append(f"correlation={correlated[1:-1]}")
        text = " ".join(rest)
        if not text.isprintable():  # what a client sends must not steer a terminal
            text = text.encode("unicode_escape").decode("ascii")
        if self._colour:
            text = f"{_COLOURS[level]}{text}{_PLAIN}"
        return text + "\n"


def _shown(target: bytes) -> str:
    # Cut after the secrets are hidden: a cut name would not be known for one.
    if b"?" in target or b";" in target:
        target = redact_target(target)
    if len(target) > LONGEST_TARGET:
        target = target[:LONGEST_TARGET]
    return target.decode("latin-1")


class _CacheMembers(dict[tuple[bytes, int | None], str]):
    """What a line says of the cache, by key and freshness left: to remember it is cheaper than a digest for
    each hit.
    """

    __slots__ = ()

    def __missing__(self, cached: tuple[bytes, int | None]) -> str:
        if len(self) >= MOST_KNOWN:
            self.clear()
        key, left = cached
        digest = blake2b(key, digest_size=8).hexdigest()
        made = self[cached] = f'"cache_key":"{digest}","ttl":{"null" if left is None else left},'
        return made


def _milliseconds(seconds: float) -> float:
    return int(seconds * 1_000_000 + 0.5) / 1000  # a third of what `round` costs

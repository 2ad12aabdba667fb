"""Reads an access log: the sidecar's own JSON lines, or NCSA common and combined."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import orjson

from sidecar.decisions.trail import parse
from sidecar.telemetry.access_lines import LOGGER

Format = Literal["json", "common"]

_COMMON: Final = re.compile(
    r"(?P<client>\S+) \S+ .+? \[(?P<time>[^\]]+)\] "
    r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<size>\d+|-)(?: .*)?'
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TIME: Final = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d\d)(\d\d)")
_METHOD: Final = re.compile(r"[A-Z][A-Z-]*")
MOST_TOLD: Final = 3
"""Lines that are no use, of which it is said why."""
_LONGEST_JOINED: Final = 1024
"""Trails whose attempts are remembered."""


class LogError(Exception):
    """The log cannot be replayed; the message is for the user."""


class Attempt(NamedTuple):
    """What an attempt at the upstream came to, as the log tells."""

    status: int
    verdict: str
    """Empty: the log does not say."""
    error: str
    """Code of what went wrong instead of an answer; empty: there was an answer."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request."""

    at: float
    """Unix seconds, when it came."""
    method: str
    target: bytes
    status: int
    client: str
    sent: int
    """Bytes of the answer's body."""
    attempts: tuple[Attempt, ...]
    plane: str = "ingress"
    route: str = ""
    """As it was then; empty: the log does not say."""
    seconds: float | None = None
    """To the end of the answer; None: the log does not say."""
    upstream_seconds: float | None = None
    """Of the last attempt."""
    received: int = 0
    """Bytes of the request's body."""
    cache: str = ""
    """What the cache did; empty: nothing, or the log does not say."""
    key: str = ""
    """Digest of the cache key; two with the same asked for the same."""
    ttl: int | None = None
    """Seconds of freshness that the answer had left; None: it was not for the cache, or has no `key`."""
    calls: int = 1
    """Attempts, those of hedges and of other upstreams included."""
    error: str = ""
    """Code of the sidecar's own error that the client got."""
    rung: str = ""
    """Which step of the ladder answered."""
    cut: bool = False
    """The answer was not sent to its end."""
    shadow: frozenset[str] = frozenset()
    """Layers in shadow mode that would have refused it."""


@dataclass(slots=True)
class Log:
    """What was read."""

    name: str
    format: Format
    lines: list[Line] = field(default_factory=list)
    """In the order in which the requests came."""
    unusable: int = 0
    told: list[str] = field(default_factory=list)
    """Of the first unusable lines, what is wrong with them."""
    others: int = 0
    """Lines of the sidecar itself, and requests that no policy speaks of: tunnels, upgrades, PURGE."""


class _UnusableError(Exception):
    pass


def read_log(path: Path) -> Log:
    """Reads a log, one that ends in .gz unpacked. Raises LogError where nothing in it is of use."""
    try:
        with _opened(path) as file:
            log = _read(str(path), file)
    except (OSError, EOFError) as error:
        raise LogError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not log.lines:
        why = log.told[0] if log.told else f"{path}: there is no request in it"
        mend = "write the sidecar's log with logging.format: json, or a log in the common format"
        raise LogError(f"{why} ({mend})")
    log.lines.sort(key=lambda line: line.at)
    if log.format == "common":
        log.lines = list(_spread(log.lines))
    return log


def _opened(path: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _read(name: str, file: Iterable[bytes]) -> Log:
    log = Log(name, "json")
    known = False
    """Whether a line has told the format."""
    reader = _Json()
    for number, raw in enumerate(file, 1):
        text = raw.strip()
        if not text:
            continue
        try:
            # What stands before the first request, such as the sidecar's warnings on stderr, is of no format.
            form = log.format if known else "json" if text.startswith(b"{") else "common"
            line = reader.line(text) if form == "json" else _common(text)
            log.format, known = form, True
        except _UnusableError as error:
            log.unusable += 1
            if len(log.told) < MOST_TOLD:
                log.told.append(f"{name}:{number}: {error}")
            continue
        if line is None:
            log.others += 1
        else:
            log.lines.append(line)
    return log


def _target(text: str) -> bytes:
    """The origin form of a target. Raises _UnusableError."""
    if not text.startswith("/"):
        url = urlsplit(text)
        if not url.netloc:
            raise _UnusableError(f"{text[:40]!r} is not the target of a request")
        text = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return text.encode("latin-1", "replace")


class _Json:
    """The sidecar's own lines (docs/logs.md)."""

    def __init__(self) -> None:
        self._trails: dict[str, tuple[tuple[Attempt, ...], frozenset[str]]] = {}

    def line(self, text: bytes) -> Line | None:
        """None for what is no request. Raises _UnusableError."""
        try:
            said = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise _UnusableError(f"not JSON: {error}") from None
        if not isinstance(said, dict):
            raise _UnusableError("not a JSON object")
        if said.get("logger") != LOGGER:
            if "logger" in said:
                return None
            raise _UnusableError("no line of the sidecar: it has no member logger")
        try:
            return self._request(said)
        except (KeyError, TypeError, ValueError) as error:
            raise _UnusableError(f"a member is missing or wrong: {error}") from None

    def _request(self, said: dict[str, Any]) -> Line | None:
        method, status = str(said["method"]), int(said["status"])
        if method in {"CONNECT", "PURGE"} or status == 101:
            return None
        seconds = float(said["duration_ms"]) / 1000
        upstream_ms, ttl = said.get("upstream_ms"), said.get("ttl")
        attempts, shadow = self._told(str(said.get("trail") or ""))
        return Line(
            at=datetime.fromisoformat(said["timestamp"]).timestamp() - seconds,
            method=method,
            target=_target(said["path"]),
            status=status,
            client=str(said.get("client") or ""),
            sent=int(said.get("bytes_out") or 0),
            attempts=attempts,
            plane=str(said.get("component") or "ingress"),
            route=str(said.get("route") or ""),
            seconds=seconds,
            upstream_seconds=None if upstream_ms is None else float(upstream_ms) / 1000,
            received=int(said.get("bytes_in") or 0),
            cache=str(said.get("cache") or ""),
            key=str(said.get("cache_key") or ""),
            ttl=None if ttl is None else int(ttl),
            calls=int(said.get("attempts") or 0),
            error=str(said.get("error") or ""),
            rung=str(said.get("rung") or ""),
            cut=said.get("end") not in (None, "done"),
            shadow=shadow,
        )

    def _told(self, trail: str) -> tuple[tuple[Attempt, ...], frozenset[str]]:
        known = self._trails.get(trail)
        if known is None:
            if len(self._trails) >= _LONGEST_JOINED:
                self._trails.clear()
            known = self._trails[trail] = attempts_of(trail), shadow_of(trail)
        return known


def attempts_of(trail: str) -> tuple[Attempt, ...]:
    """The attempts at the route's own upstream that a decision trail tells of, hedges left out."""
    found: list[Attempt] = []
    for layer, said in parse(trail.encode("ascii", "replace")) or ():
        if "alternate" in said or "hedge" in said:
            continue
        if layer == "upstream":
            status, error = said.get("status", 0), said.get("error", "")
            found.append(Attempt(status if isinstance(status, int) else 0, "", str(error)))
        elif layer == "attempt_timeout" and "expired" in said:
            found.append(Attempt(0, "", "attempt_timeout"))
        elif layer == "classify" and found:
            found[-1] = found[-1]._replace(verdict=next(iter(said), ""))
    return tuple(found)


def shadow_of(trail: str) -> frozenset[str]:
    """The layers in shadow mode that, by a decision trail, would have refused the request."""
    said = parse(trail.encode("ascii", "replace")) or ()
    return frozenset(layer for layer, decision in said if "would-reject" in decision)


def _common(text: bytes) -> Line | None:
    """A line of the common or combined format. Raises _UnusableError."""
    found = _COMMON.fullmatch(text.decode("utf-8", "replace"))
    if found is None:
        raise _UnusableError("not a line of the common log format")
    method, _, rest = found["request"].partition(" ")
    if not _METHOD.fullmatch(method) or not rest:
        raise _UnusableError("the request in it cannot be read")
    status = int(found["status"])
    if method in {"CONNECT", "PURGE"} or status == 101:
        return None
    size = found["size"]
    return Line(
        at=_moment(found["time"]),
        method=method,
        target=_target(rest.rpartition(" HTTP/")[0] or rest),
        status=status,
        client=found["client"],
        sent=0 if size == "-" else int(size),
        attempts=(Attempt(status, "", ""),),
    )


def _moment(text: str) -> float:
    """Unix seconds of `10/Oct/2000:13:55:36 -0700`; for `strptime` the month is in the user's language."""
    found = _TIME.fullmatch(text)
    if found is None or found[2] not in _MONTHS:
        raise _UnusableError(f"{text!r} is not a time of the common log format")
    day, month, year, clock, hours, minutes = found.groups()
    number = _MONTHS.index(month) + 1
    try:
        return datetime.fromisoformat(f"{year}-{number:02}-{day}T{clock}{hours}:{minutes}").timestamp()
    except ValueError as error:
        raise _UnusableError(str(error)) from None


def _spread(lines: list[Line]) -> Iterator[Line]:
    """Requests of the same second, evenly over it: that they all came at once is unlikely."""
    for _, group in groupby(lines, lambda line: line.at):
        same = list(group)
        for place, line in enumerate(same):
            yield replace(line, at=line.at + place / len(same))

"""What a load is told to do, as it goes from the runner's process to the load's."""

from __future__ import annotations

import ipaddress
import random
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from sidecar.drills.shape import Segment

SLOT: Final = re.compile(r"\{\{ *([a-z_][a-z0-9_]*) *\}\}")
"""Where a variable's value goes: `{{name}}`."""
LONGEST: Final = 3600.0
"""Seconds that a load may take."""
MOST: Final = 2_000_000
"""Requests that a load may make."""


class ForeignTarget(Exception):
    """The target is neither on this machine nor one that was listed; the message is for the user."""


class Request(BaseModel):
    """A kind of request, with slots for variables in its path, headers and body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float
    method: str
    path: str
    headers: Mapping[str, str]
    body: str
    """Sent as UTF-8."""
    padding: int
    """Bytes of `x` that follow the body."""
    expect: tuple[int, ...]
    """Statuses that are as they should be; empty: all from 200 to 399."""
    wrong_if: str
    """A pattern that a wrong body matches; empty: bodies are not looked at."""


class Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    """`http://host:port` or `https://host:port`."""
    hosts: tuple[str, ...]
    """Where a load may go besides this machine."""
    segments: tuple[Segment, ...]
    arrivals: Literal["poisson", "even"]
    seed: int
    patience: float
    """Seconds after which a client gives up."""
    most: int
    """Requests, and then it ends."""
    connections: int
    requests: tuple[Request, ...]
    variables: Mapping[str, tuple[str, ...] | tuple[int, int]]
    """Values to draw from: texts, or whole numbers from the first to the second."""


class Aim(NamedTuple):
    """Where a load goes."""

    address: str
    port: int
    tls: str | None
    """The name that the server's certificate has to be for; None: no TLS is spoken."""


def allowed(plan: Plan) -> Aim:
    """Of several addresses, the first that takes a connection. Raises ForeignTarget, OSError."""
    parts = urlsplit(plan.target)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    found = [str(it[4][0]) for it in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    local = all(ipaddress.ip_address(it.partition("%")[0]).is_loopback for it in found)
    if not local and host not in plan.hosts:
        mend = "list it under blast_radius.hosts, or with --allow-host, if it is yours to load"
        raise ForeignTarget(f"{host} is not on this machine ({mend})")
    address = found[0]
    if len(found) > 1:
        address = next((it for it in found if _takes(it, port)), address)
    return Aim(address, port, host if tls else None)


def _takes(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


class Rendered:
    """Requests of one kind, as bytes."""

    def __init__(self, request: Request, host: str, draws: Mapping[str, Callable[[], str]]) -> None:
        """Raises KeyError for a variable that there is not."""
        self.request = request
        self.wrong = re.compile(request.wrong_if.encode()) if request.wrong_if else None
        self._path = _pieces(request.path, draws)
        self._body = _pieces(request.body, draws)
        self._headers = _pieces("".join(f"{name}: {it}\r\n" for name, it in request.headers.items()), draws)
        self._host = host
        self._padding = b"x" * request.padding

    def make(self) -> bytes:
        path, headers, body = (
            "".join(piece if isinstance(piece, str) else piece() for piece in pieces)
            for pieces in (self._path, self._headers, self._body)
        )
        content = body.encode() + self._padding
        head = f"{self.request.method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{headers}"
        if content or self.request.method not in {"GET", "DELETE"}:
            head += f"Content-Length: {len(content)}\r\n"
        return head.encode() + b"\r\n" + content


def rendered(plan: Plan, chance: random.Random) -> tuple[list[Rendered], list[float]]:
    """What to send, and the weights to choose by."""
    draws: dict[str, Callable[[], str]] = {"n": _counter()}
    for name, values in plan.variables.items():
        draws[name] = _drawing(values, chance)
    host = urlsplit(plan.target).netloc
    return [Rendered(it, host, draws) for it in plan.requests], [it.weight for it in plan.requests]


def _pieces(text: str, draws: Mapping[str, Callable[[], str]]) -> Sequence[str | Callable[[], str]]:
    return [draws[it] if index % 2 else it for index, it in enumerate(SLOT.split(text))]


def _counter() -> Callable[[], str]:
    count = 0

    def following() -> str:
        nonlocal count
        count += 1
        return str(count)

    return following


def _drawing(values: tuple[str, ...] | tuple[int, int], chance: random.Random) -> Callable[[], str]:
    first, last = values[0], values[-1]
    if isinstance(first, int) and isinstance(last, int):
        return lambda: str(chance.randint(first, last))
    return lambda: str(chance.choice(values))

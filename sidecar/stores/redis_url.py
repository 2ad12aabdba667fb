"""Where the shared cache is, as one URL says it.

    redis://[user:password@]host[:6379][/database]            rediss:// for TLS
    unix:///run/valkey.sock[?db=0]
    redis+sentinel://[user:password@]host[:26379],…/service[/database]
    redis+cluster://[user:password@]host[:6379],…

`valkey` may stand for `redis` everywhere, and `rediss` for `redis` before `+`. Query options, in
redis-py's names: `db`, `username`, `password`, `sentinel_username`, `sentinel_password`,
`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` (`required` or `none`).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
_OPTIONS: Final = frozenset(
    {
        "db",
        "password",
        "sentinel_password",
        "sentinel_username",
        "ssl_ca_certs",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_keyfile",
        "username",
    }
)


class Topology(Enum):
    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Place:
    """One server: a host and a port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL. Prints without its secrets."""

    topology: Topology
    places: tuple[Place, ...]
    """The server; the Sentinels; or some nodes of the cluster."""
    login: Login = Login()
    database: int = 0
    service: str = ""
    """What the Sentinels call the primary."""
    sentinel_login: Login = Login()
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        places = ",".join(str(place) for place in self.places)
        return f"{self.topology.value} {places}{f' {self.service}' if self.service else ''}"


def parse(url: str) -> Target:
    """Raises ValueError, with what is wrong and never with a secret, for what is no such URL."""
    scheme, found, rest = url.partition("://")
    if not found:
        raise ValueError("it has no scheme: redis://host:6379 is one")
    base, _, topology = scheme.lower().partition("+")
    base = base.replace("valkey", "redis")
    if base not in {"redis", "rediss", "unix"} or topology not in {"", "sentinel", "cluster"}:
        raise ValueError("its scheme is none of redis, rediss, unix, redis+sentinel, redis+cluster")
    parts = urlsplit(f"//{rest}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _OPTIONS):
        raise ValueError(f"unknown option {unknown[0]}; known are {', '.join(sorted(_OPTIONS))}")
    credentials, at, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":") if at else ("", "", "")
    login = Login(
        unquote(username) or options.get("username", ""), unquote(password) or options.get("password", "")
    )
    path = [unquote(part) for part in parts.path.split("/") if part]
    if base == "unix":
        if topology or hosts or not path:
            raise ValueError("a Unix socket is written unix:///path/of/the.sock")
        place = Place("", 0, unquote(parts.path))
        return Target(Topology.SINGLE, (place,), login, _database([], options))
    places = tuple(
        _place(host, SENTINEL_PORT if topology == "sentinel" else PORT) for host in hosts.split(",")
    )
    tls = _context(options) if base == "rediss" else None
    if topology == "sentinel":
        if not path:
            raise ValueError("it names no service: redis+sentinel://host:26379/mymaster")
        sentinel = Login(options.get("sentinel_username", ""), options.get("sentinel_password", ""))
        return Target(Topology.SENTINEL, places, login, _database(path[1:], options), path[0], sentinel, tls)
    if topology == "cluster":
        if _database(path, options):
            raise ValueError("a cluster has only database 0")
        return Target(Topology.CLUSTER, places, login, tls=tls)
    if len(places) != 1:
        raise ValueError("it names several hosts: say redis+cluster:// or redis+sentinel://")
    return Target(Topology.SINGLE, places, login, _database(path, options), tls=tls)


def _place(text: str, port: int) -> Place:
    try:
        parts = urlsplit(f"//{text}")
        host, given = parts.hostname, parts.port
    except ValueError:
        raise ValueError("a host or a port in it is malformed") from None
    if not host:
        raise ValueError("it names no host")
    return Place(host, port if given is None else given)


def _database(path: list[str], options: dict[str, str]) -> int:
    text = path[0] if path else options.get("db", "0")
    if len(path) > 1 or not (text.isascii() and text.isdigit()):
        raise ValueError("the database is a number, 0 or above")
    return int(text)


def _context(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs") or None)
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile") or None)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"a certificate file cannot be used: {error.strerror or error}") from None
    match options.get("ssl_cert_reqs", "required"):
        case "required":
            pass
        case "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        case _:
            raise ValueError("ssl_cert_reqs is required or none")
    return context

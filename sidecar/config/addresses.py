"""Addresses and URLs as they stand in a configuration."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema

from sidecar.config.units import wrong

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_LONGEST_SOCKET_PATH: Final = 107
"""Bytes: `sun_path` of Linux (unix(7)), without its closing zero."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, or the path of a Unix socket."""

    host: str = ""
    """A name or an IP address, without brackets; empty for a Unix socket."""
    port: int = 0
    unix: str | None = None

    def __str__(self) -> str:
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Reachable from this machine only."""
        if self.unix is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def literal(self) -> bool:
        """Says where it is by itself: no look-up of a name can lead elsewhere."""
        return self.loopback or is_ip(self.host)

    @property
    def wildcard(self) -> bool:
        """Stands for every address of the machine."""
        return self.host in ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to

    @property
    def reached(self) -> Address:
        """What a client on this machine calls."""
        return Address("::1" if ":" in self.host else "127.0.0.1", self.port) if self.wildcard else self


@dataclass(frozen=True, slots=True)
class Url:
    """Where an HTTP server is: no path, no query. Over a Unix socket it is plain HTTP to `localhost`."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    unix: str | None = None

    def __str__(self) -> str:
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """What `Host` says (RFC 9110, 7.2): the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def address(self) -> Address:
        return Address(self.host, self.port, self.unix) if self.unix is None else Address(unix=self.unix)


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def within(address: str, networks: Iterable[Network]) -> bool:
    """Whether `address` lies in one of `networks`; what is no IP address lies in none."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(ip in network for network in networks)


def _unix(value: str) -> str:
    path = value.removeprefix("unix:")
    if not path.startswith("/"):
        raise wrong('"{given}" names no absolute path', value, "write for example unix:/run/app.sock")
    if len(path.encode()) > _LONGEST_SOCKET_PATH:
        raise wrong(f"a socket's path has at most {_LONGEST_SOCKET_PATH} bytes", value)
    return path


def _host(host: str, value: object) -> str:
    """A host without brackets. Raises PydanticCustomError."""
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise wrong('"{given}" has no valid IPv6 address within [ and ]', value) from None
    if not _HOST.fullmatch(host):
        raise wrong('"{given}" has no valid host', value)
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise wrong('"{given}" has no valid IPv4 address', value) from None
    return host.lower()


def _port(port: str, value: object, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", port):
        raise wrong('"{given}" has no valid port', value)
    if not least <= int(port) <= 65535:
        raise wrong(f'"{{given}}": a port is a number of {least} to 65535', value)
    return int(port)


def _tcp(value: object, least: int, example: str) -> Address:
    mend = f"write for example {example}"
    if not isinstance(value, str):
        raise wrong('"{given}" is not host:port', value, mend)
    if "://" in value:
        raise wrong('"{given}" is a URL, expected host:port', value, mend)
    host, colon, port = value.rpartition(":")
    if not colon or not host:
        if value.lstrip(":").isdigit():
            raise wrong('"{given}" has no host', value, f"write 127.0.0.1:{value.lstrip(':')}")
        raise wrong('"{given}" has no port', value, mend)
    if ":" in host and not host.startswith("["):
        raise wrong('"{given}" is ambiguous', value, 'an IPv6 address stands in brackets: "[::1]:8080"')
    return Address(_host(host, value), _port(port, value, least))


def parse_listener(value: object) -> Address:
    """`host:port` (port 0: any free one), `[ipv6]:port` or `unix:/path`. Raises PydanticCustomError."""
    if isinstance(value, Address):
        return value
    if isinstance(value, str) and value.startswith("unix:"):
        return Address(unix=_unix(value))
    return _tcp(value, 0, "127.0.0.1:8080")


def parse_target(value: object) -> Address:
    """`host:port` of a server. Raises PydanticCustomError."""
    return value if isinstance(value, Address) else _tcp(value, 1, "10.0.0.7:443")


def parse_url(value: object) -> Url:
    """`http://…`, `https://…` or `unix:/path`. Raises PydanticCustomError."""
    if isinstance(value, Url):
        return value
    if not isinstance(value, str):
        raise wrong('"{given}" is not a URL', value, "write for example http://127.0.0.1:8000")
    if value.startswith("unix:"):
        return Url("http", "localhost", 80, _unix(value))
    scheme, separator, rest = value.partition("://")
    if not separator:
        mend = (
            f"write http://{value}"
            if re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", value)
            else ("write for example http://127.0.0.1:8000")
        )
        raise wrong('"{given}" is not a URL', value, mend)
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise wrong('"{given}" has an unknown scheme', value, "http, https or unix")
    if re.search(r"[\s\\]|[^\x21-\x7e]", rest):
        raise wrong('"{given}" has characters that a URL cannot have', value)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        # Not shown: it may hold a password.
        raise wrong("a user or password cannot be part of the URL", value)
    if rest[len(authority) :] not in ("", "/"):
        raise wrong('"{given}" has a path or query', value, f"write {scheme}://{authority}")
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, "443" if scheme == "https" else "80"
    return Url("https" if scheme == "https" else "http", _host(host, value), _port(port, value, 1))


def parse_network(value: object) -> Network:
    """A network in CIDR notation, or one address. Raises PydanticCustomError."""
    if isinstance(value, Network):
        return value
    if not isinstance(value, str):
        raise wrong('"{given}" is not a network', value, "write for example 10.0.0.0/8")
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        try:
            whole = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise wrong(
                '"{given}" is not a network', value, "write for example 10.0.0.0/8 or ::1/128"
            ) from None
        raise wrong('"{given}" has bits set behind its prefix', value, f"write {whole}") from None


Listener = Annotated[
    Address,
    PlainValidator(parse_listener),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(.+:[0-9]{1,5}|unix:/.+)$",
            "examples": ["127.0.0.1:8080", "[::1]:8080", "unix:/run/sidecar.sock"],
        }
    ),
]
Listeners = Annotated[
    tuple[Listener, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, (str, Address)) else value),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "examples": ["127.0.0.1:443", ["127.0.0.1:443", "[::1]:443"]],
        }
    ),
]
Target = Annotated[
    Address,
    PlainValidator(parse_target),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^.+:[0-9]{1,5}$", "examples": ["10.0.0.7:443"]}),
]
Server = Annotated[
    Url,
    PlainValidator(parse_url),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(https?://[^/?#]+/?|unix:/.+)$",
            "examples": ["http://127.0.0.1:8000", "https://api.example.com", "unix:/run/app.sock"],
        }
    ),
]
Cidr = Annotated[
    Network,
    PlainValidator(parse_network),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["10.0.0.0/8", "::1/128"]}),
]

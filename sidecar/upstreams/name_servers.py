"""Which name servers are asked: those of `dns.servers`, or the system's (resolv.conf(5))."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sidecar.config.addresses import Address, is_ip

RESOLV_CONF: Final = Path("/etc/resolv.conf")
BEHIND_RESOLVED: Final = Path("/run/systemd/resolve/resolv.conf")
"""The servers that systemd-resolved asks."""
_RESOLVED: Final = frozenset({"127.0.0.53", "127.0.0.54"})
"""systemd-resolved's own addresses: what listens there answers from the hosts file, too."""
_PORT: Final = 53
_MOST: Final = 3
"""Servers of a file that are used, as in glibc (MAXNS)."""


@dataclass(frozen=True, slots=True)
class NameServers:
    """Whom to ask, and what may be put behind a name."""

    servers: tuple[Address, ...]
    search: tuple[str, ...] = ()
    """Domains, for names that are not complete."""


def parse_resolv_conf(text: str) -> NameServers:
    """What a resolv.conf says. What is not understood is passed over, as the system does."""
    servers: list[Address] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and is_ip(words[1].partition("%")[0]):
            servers.append(Address(words[1], _PORT))
        elif words[0] in ("search", "domain"):  # the last one counts
            search = tuple(word.strip(".").lower() for word in words[1:] if word.strip("."))
    return NameServers(tuple(servers[:_MOST]), search)


def fixed(servers: Sequence[Address]) -> Callable[[], NameServers]:
    """Those that are configured: names are complete then."""
    configured = NameServers(tuple(servers))
    return lambda: configured


class SystemServers:
    """Those of the system. The file is read again when it changes: a machine may move."""

    def __init__(self, file: Path = RESOLV_CONF, behind: Path = BEHIND_RESOLVED) -> None:
        self._file = file
        self._behind = behind
        self._stamp: tuple[int, int] | None = None
        self._known = _or_local(NameServers(()))

    def __call__(self) -> NameServers:
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._known = self._read()
                self._stamp = stamp
        except OSError:
            pass  # gone for a moment, or for good: what was known is the best there is
        return self._known

    def _read(self) -> NameServers:
        found = parse_resolv_conf(self._file.read_text(errors="replace"))
        if found.servers and all(server.host in _RESOLVED for server in found.servers):
            try:
                behind = parse_resolv_conf(self._behind.read_text(errors="replace"))
            except OSError:
                behind = NameServers(())
            if behind.servers:
                return NameServers(behind.servers, found.search)
        return _or_local(found)


def _or_local(found: NameServers) -> NameServers:
    """Where no server is named, there is one on this machine (resolv.conf(5))."""
    return found if found.servers else NameServers((Address("127.0.0.1", _PORT),), found.search)

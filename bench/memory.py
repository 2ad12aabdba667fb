"""Memory: a fresh proxy at rest, then with clients that read a large body slowly."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.processes import Running, StartError
from bench.proxies import BODIES, Bench, Proxy

CLIENTS = 20
SIZE = BODIES["10m"]
READS = 24
"""Slow reads of each client; then the rest is read as fast as it comes."""
PAUSE = 0.25
"""Seconds between two slow reads."""
CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes resident."""

    title: str
    idle: int
    peak: int
    after: int
    whole: bool
    """Every client got its body in full."""


def client(port: int) -> socket.socket:
    """Has asked for the large body. A small receive buffer, or the kernel would read ahead for it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
    made.settimeout(10)
    made.connect(("127.0.0.1", port))
    made.sendall(b"GET /10m HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    return made


def slow_readers(running: Running) -> tuple[int, bool]:
    """The highest resident size seen, and whether each client got all."""
    peak = 0
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(running.place.port)) for _ in range(CLIENTS)]
        got = dict.fromkeys(clients, 0)
        for _ in range(READS):
            for each in clients:
                got[each] += len(each.recv(CHUNK))
            time.sleep(PAUSE)
            peak = max(peak, running.rss())
        for each in clients:
            while chunk := each.recv(CHUNK):
                got[each] += len(chunk)
    return peak, all(SIZE < size < SIZE + CHUNK for size in got.values())


def footprints(bench: Bench, proxies: Sequence[Proxy]) -> Iterator[Footprint]:
    """One after the other, each in a fresh process."""
    for proxy in proxies:
        try:
            with bench.run(proxy) as running:
                time.sleep(1)
                idle = running.rss()
                peak, whole = slow_readers(running)
                time.sleep(1)
                yield Footprint(proxy.title, idle, peak, running.rss(), whole)
        except (OSError, StartError) as error:
            print(f"{proxy.name}: {error}", file=sys.stderr)

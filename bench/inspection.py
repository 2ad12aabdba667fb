"""What a look at the body adds to the time of a request: the same route with and without rules, in turns."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import LOAD_CPU, PROXY_CPU, Place, started
from bench.proxies import Bench
from bench.report import machine, table

SIZES = {"1k": 1024, "16k": 16 * 1024, "64k": 64 * 1024}
SAMPLE = Path(__file__).parent.parent / "examples" / "payloads" / "google_directions_driving_reply.json"
LIMIT_MS = 0.3
"""What a look may add at the median."""


def body(size: int, status: str = "OK") -> bytes:
    """JSON of exactly `size` bytes in the manner of Google's directions: small objects, many of them."""
    steps: list[object] = []
    reply = {"routes": [{"legs": [{"steps": steps}]}], "status": status}
    sample = json.loads(SAMPLE.read_text("utf-8"))["routes"][0]["legs"][0]
    parts = [{name: sample[name]} for name in ("distance", "duration", "start_location", "end_location")]
    for part in itertools.cycle(parts):
        steps.append(part)
        if len(json.dumps(reply, ensure_ascii=False).encode()) > size:
            steps.pop()
            break
    text = json.dumps(reply, ensure_ascii=False).encode()
    return text + b" " * (size - len(text))


def bodies() -> Mapping[str, bytes]:
    """What the origin serves, by path."""
    plain = {f"{name}.json": body(size) for name, size in SIZES.items()}
    first = b'data: {"object": "chat.completion.chunk", "choices": []}\n\n'
    return {
        **plain,
        "64k.json.gz": gzip.compress(plain["64k.json"], 6),
        "64k-none.json": body(SIZES["64k"], "ZERO_RESULTS"),
        "64k.events": first * (SIZES["64k"] // len(first)),
    }


TITLES = {
    "1k.json": "JSON, 1 KiB",
    "16k.json": "JSON, 16 KiB",
    "64k.json": "JSON, 64 KiB",
    "64k.json.gz": "JSON, 64 KiB, gzip",
    "64k-none.json": "JSON, 64 KiB, another verdict",
    "64k.events": "event stream, 64 KiB",
}


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of single requests, by round."""

    without: list[list[float]] = field(default_factory=list)
    looked: list[list[float]] = field(default_factory=list)

    def added(self) -> list[float]:
        """What the look adds at the median, for each round."""
        rounds = zip(self.without, self.looked, strict=True)
        return [statistics.median(looked) - statistics.median(without) for without, looked in rounds]


class Asker:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def ask(self, path: str, *, look: bool, size: int) -> float:
        """Milliseconds from the request to the last byte of its answer, which has `size` bytes of body."""
        head = f"GET /{path} HTTP/1.1\r\nHost: bench\r\nX-Look: {int(look)}\r\n\r\n".encode()
        start = time.perf_counter()
        self._socket.sendall(head)
        got = b""
        while (at := got.find(b"\r\n\r\n")) < 0:
            got += self._socket.recv(1 << 17)
        left = size - (len(got) - at - 4)
        while left > 0:
            left -= len(self._socket.recv(1 << 17))
        taken = time.perf_counter() - start
        if not got.startswith(b"HTTP/1.1 200") or left:
            raise RuntimeError(got[:200])
        return taken * 1e3


def measure(bench: Bench, rounds: int, requests: int) -> Iterator[tuple[str, Times]]:
    """Each body in turn: one request with a look, one without, and so on."""
    place = bench.place("inspect")
    served = bodies()
    with started("sidecar", place, command(place), PROXY_CPU, "/1k"), closing(Asker(place.port)) as asker:
        for path, text in served.items():
            times = Times()
            for number in range(rounds + 1):
                taken: tuple[list[float], list[float]] = ([], [])
                for turn in range(requests):
                    for look in (turn % 2 == 0, turn % 2 == 1):
                        taken[look].append(asker.ask(path, look=look, size=len(text)))
                if number:  # the first round warms up
                    times.without.append(taken[False])
                    times.looked.append(taken[True])
            yield path, times


def command(place: Place) -> list[str]:
    policy = place.fill("inspect.yaml")
    return [
        sys.executable,
        "-m",
        "sidecar",
        "run",
        "-c",
        str(place.fill("sidecar.yaml", POLICIES=f"[{policy.name}]")),
    ]


def report(measured: Mapping[str, Times], rounds: int, requests: int) -> str:
    rows = []
    for path, times in measured.items():
        added = times.added()
        without, looked = (
            statistics.median([each for part in kind for each in part])
            for kind in (times.without, times.looked)
        )
        rows.append(
            (
                TITLES[path],
                f"{without:.3f}",
                f"{looked:.3f}",
                f"{statistics.median(added):+.3f} ({min(added):+.3f} to {max(added):+.3f})",
                "yes" if statistics.median(added) < LIMIT_MS else "✗ no",
            )
        )
    head = ("body", "without rules", "with", "added", f"less than {LIMIT_MS} ms")
    text = (
        f"Milliseconds to the last byte, medians of {rounds} rounds of {requests} requests each way, one "
        "connection, with and without in turns.\n"
    )
    where = "" if LOAD_CPU != PROXY_CPU else "The client shares the proxy's CPU.\n"
    return "\n".join(("# A look at the body\n", machine() + "\n", where + text, table(head, rows)))

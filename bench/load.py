"""The load: wrk, the cases, and the check that answers were right."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.processes import LOAD_CPU, fetch, pinned
from bench.proxies import BODIES, KIB

SCRIPT = Path(__file__).parent / "conf" / "load.lua"


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    title: str
    path: str
    method: str = "GET"
    sends: int = 0
    """Bytes of request body."""
    varying: bool = False
    """A new traceparent and X-Request-ID on each request."""
    cached: bool = False
    """The proxy has the answer, and asks nobody."""

    @property
    def receives(self) -> int:
        """Bytes of response body."""
        return BODIES.get(self.path.removeprefix("/"), KIB)


CASES = (
    Case("get1k", "GET 1 KiB", "/1k"),
    Case("get1k-varying", "GET 1 KiB, varying head", "/1k", varying=True),
    Case("post1k", "POST 1 KiB", "/post", "POST", KIB),
    Case("get64k", "GET 64 KiB", "/64k"),
    Case("get1m", "GET 1 MiB", "/1m"),
    Case("get10m", "GET 10 MiB", "/10m"),
    Case("hit", "cache hit, 1 KiB", "/hit", cached=True),
    Case("hit-varying", "cache hit, 1 KiB, varying head", "/hit", varying=True, cached=True),
)
CONNECTIONS = (1, 16, 64)
LOOKED_AT = 20
"""Answers that are checked byte for byte after each run."""
STOOD_STILL = 0.2
"""Share of the connections' time without an answered request above which a run is at fault."""


@dataclass(frozen=True, slots=True)
class Outcome:
    requests: int
    seconds: float
    p50: float
    """Seconds, as p99."""
    p99: float
    faults: tuple[str, ...]
    """What was wrong with the answers."""


def drive(
    wrk: str, port: int, case: Case, connections: int, seconds: int, base: str = "http://127.0.0.1"
) -> Outcome:
    """Keeps `connections` busy for some seconds: each sends its next request after its answer."""
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(SCRIPT)]
    command += [f"{base}:{port}", "--", case.method, case.path, str(case.sends)]
    command.append("varying" if case.varying else "same")
    ran = subprocess.run(pinned(LOAD_CPU, command), capture_output=True, text=True, check=True)
    line = re.search(r"^BENCH (.+)$", ran.stdout, re.MULTILINE)
    if line is None:
        raise RuntimeError(ran.stdout + ran.stderr)
    requests, micros, received, bad, broken, p50, p99, mean = map(int, line[1].split())
    faults = []
    if bad:
        faults.append(f"{bad} answers not 2xx")
    if broken:
        faults.append(f"{broken} socket errors or timeouts")
    if received < requests * case.receives:
        faults.append(f"{received} bytes are too few for {requests} bodies")
    # wrk counts no timeout once part of an answer has come. But a closed loop is always in some request
    # (Little's law); what is missing from that was spent in requests that never ended.
    lost = 1 - requests * mean / (connections * micros)
    if lost > STOOD_STILL:
        faults.append(f"the connections stood still for {lost:.0%} of the time")
    return Outcome(requests, micros / 1e6, p50 / 1e6, p99 / 1e6, tuple(faults))


def right(port: int, case: Case) -> bool:
    """Some requests on one connection, each answer looked at whole; of a cached one there is a single one."""
    origins = set()
    body = b"x" * case.sends if case.sends else None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        for _ in range(LOOKED_AT):
            try:
                connection.request(case.method, case.path, body)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException):
                return False
            if response.status != 200 or answer != b"x" * case.receives:
                return False
            origins.add(response.getheader("X-Origin-Answer"))
    return not case.cached or (len(origins) == 1 and None not in origins)


def counted(admin: int) -> int:
    """Requests the sidecar says it has served, by its own /metrics."""
    text = fetch(admin, "/metrics")[1].decode()
    values = re.findall(r"^nextvision_api_requests_total(?:\{.*\})? (\S+)", text, re.MULTILINE)
    return int(sum(map(float, values)))

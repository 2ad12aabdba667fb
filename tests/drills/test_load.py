"""The load is on time, and honest about what it measured and about itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import ssl
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from sidecar.drills.plan import ForeignTarget, Plan, Request, allowed, rendered
from sidecar.drills.shape import Segment, due_times, ramp, shortened
from tests.support.certificates import Signer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(**other: Any) -> Request:
    plain = {"weight": 1, "method": "GET", "path": "/", "headers": {}, "body": "", "padding": 0}
    return Request.model_validate({**plain, "expect": (), "wrong_if": "", **other})


def plan(port: int, *segments: Segment, **other: Any) -> Plan:
    plain = {
        "target": f"http://127.0.0.1:{port}",
        "hosts": (),
        "segments": segments,
        "arrivals": "even",
        "seed": 1,
        "patience": 5.0,
        "most": 100_000,
        "connections": 2000,
        "requests": (request(),),
        "variables": {},
    }
    return Plan.model_validate({**plain, **other})


async def run(plan: Plan) -> dict[str, Any]:
    """The result that the load's own process gives."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar.drills.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(plan.model_dump_json().encode() + b"\n")
    lines = (await process.stdout.read()).splitlines()
    process.stdin.close()
    await process.wait()
    last: dict[str, Any] = json.loads(lines[-1])
    return last


class Server:
    """Answers `OK`; while `standing` is set, what comes is answered once it is cleared."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.going = asyncio.Event()
        self.going.set()
        self.asked = asyncio.Event()
        """Somebody has come."""
        self.requests = 0
        self.hang = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                self.asked.set()
                if self.hang:
                    await asyncio.Event().wait()
                await self.going.wait()
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


def test_even_arrivals_follow_the_rate() -> None:
    """A constant rate is one request in each of its intervals, from the first moment on."""
    assert list(due_times([Segment(2.0, 2.0, 2.0)])) == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_a_ramp_makes_as_many_requests_as_its_users_would() -> None:
    """5 users × 10 requests over 10 s are 50 arrivals, a quarter of them in the first half."""
    due = list(due_times([ramp(5, 10, 10.0)]))
    assert len(due) == 50
    assert sum(1 for it in due if it < 5.0) == pytest.approx(50 / 4, abs=1)
    assert due == sorted(due)


def test_segments_follow_each_other() -> None:
    """What is due does not jump where the rate does, and a falling rate ends in time."""
    due = list(due_times([Segment(1, 10, 10), Segment(1, 10, 0), Segment(1, 100, 100)]))
    assert [sum(1 for it in due if second <= it < second + 1) for second in range(3)] == [10, 5, 100]
    assert next(due_times([Segment(1, 0, 0), Segment(1, 2, 2)])) == pytest.approx(1.0)


def test_poisson_arrivals_have_the_mean_and_the_spread() -> None:
    """Gaps are exponential: mean and deviation are both 1 / rate."""
    due = list(due_times([Segment(200.0, 50.0, 50.0)], random.Random(3).random))
    gaps = [b - a for a, b in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert deviation == pytest.approx(1 / 50, rel=0.05)


def test_shortened_keeps_the_rates() -> None:
    """A shorter run has the same rates."""
    assert shortened([Segment(10, 0, 20)], 0.5) == (Segment(5, 0, 20),)


def test_slots_are_filled() -> None:
    """Variables go into path, headers and body, and the length fits."""
    kind = request(
        method="POST", path="/c{{n}}", headers={"X-A": "{{who}}"}, body='{"é": "{{who}}"}', padding=3
    )
    made = plan(1, requests=(kind,), variables={"who": ("Ann",)})
    [template], _ = rendered(made, random.Random(1))
    assert template.make().endswith('\r\n\r\n{"é": "Ann"}xxx'.encode())
    second = template.make().decode()
    assert second.startswith("POST /c2 HTTP/1.1\r\nHost: 127.0.0.1:1\r\nX-A: Ann\r\nContent-Length: 16\r\n")


def test_no_load_on_strangers() -> None:
    """A host that is not this machine is refused unless it is listed."""
    with pytest.raises(ForeignTarget, match="not on this machine"):
        allowed(plan(1, target="http://192.0.2.1:80"))
    listed = plan(1, target="http://192.0.2.1:80", hosts=("192.0.2.1",))
    assert allowed(listed) == ("192.0.2.1", 80, None)


async def test_a_name_is_loaded_where_it_takes_connections() -> None:
    """`localhost` stands for two addresses, and a server may listen on one of them."""
    async with Server() as server:
        aim = await asyncio.to_thread(allowed, plan(1, target=f"http://localhost:{server.port}"))
    assert aim == ("127.0.0.1", server.port, None)


@pytest.mark.parametrize(("name", "causes"), [("localhost", {}), ("other.example", {"tls": 10})])
async def test_a_certificate_is_for_the_name_of_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, causes: dict[str, int]
) -> None:
    """Over TLS the server has to prove that it is who the URL says; else all is told as failed by that."""
    signer = Signer(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(signer.path))
    made = signer.issue(name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.path, made.key)
    async with Server(context) as server:
        target = f"https://localhost:{server.port}"
        result = (await run(plan(server.port, Segment(0.5, 20, 20), target=target)))["result"]
    assert result["causes"] == causes
    assert result["fine"] + sum(causes.values()) == 10


async def test_a_server_that_stalls_is_charged_for_it() -> None:
    """It stands still 1 s of each 2: percentiles are those of all who came, within 10 % of the analytic ones.

    With even arrivals those of the standing half wait between 0 and 1 s, all equally likely: a share q above
    one half waits 2 q - 1 seconds. A closed loop would see one slow request in each 2 s.
    """
    async with Server() as server:
        load = asyncio.create_task(run(plan(server.port, Segment(4.0, 100.0, 100.0))))
        await server.asked.wait()
        for _ in range(2):
            server.going.clear()
            await asyncio.sleep(1.0)
            server.going.set()
            await asyncio.sleep(1.0)
        result = (await load)["result"]
    assert result["requests"] == result["fine"] == 400
    for name, share in (("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert result["percentiles"][name] == pytest.approx(2 * share - 1, rel=0.1)


async def test_what_is_never_answered_counts_with_its_time() -> None:
    """Requests that hang fail as timeouts, and their patience is in the percentiles."""
    async with Server() as server:
        server.hang = True
        result = (await run(plan(server.port, Segment(0.5, 40, 40), patience=0.5)))["result"]
    assert result["causes"] == {"timeout": 20}
    assert result["percentiles"]["p50"] >= 0.5


async def test_a_refused_connection_is_a_failure() -> None:
    """Where nobody listens all requests are told as refused."""
    async with Server() as server:
        pass
    result = (await run(plan(server.port, Segment(0.2, 50, 50))))["result"]
    assert result["causes"] == {"refused": 10}


async def test_it_ends_with_its_count() -> None:
    """`most` is a bound, whatever the rate and the time say."""
    async with Server() as server:
        result = (await run(plan(server.port, Segment(30, 200, 200), most=7)))["result"]
    assert result["requests"] == server.requests == 7


async def test_it_ends_with_who_started_it() -> None:
    """When its input ends, so does the load, and it reports what there was."""
    async with Server() as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar.drills.load"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(plan(server.port, Segment(60, 50, 50)).model_dump_json().encode() + b"\n")
        await server.asked.wait()
        process.stdin.close()
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert json.loads(output.splitlines()[-1])["result"]["requests"] >= 1
    assert process.returncode == 0

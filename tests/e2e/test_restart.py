"""The app is killed and started again under load: what clients, metrics and the log say of it."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.processes import Sidecar, TinyApp, total

RATE = 300
SECONDS = 5
KILLED_AT = 1.0
DOWN_FOR = 1.0
PATIENT = {"strategy": "full_jitter", "base": "200ms", "max": "1s"}
POLICIES = {
    "name": "tiny",
    "routes": [
        {
            "name": "patient",
            "match": {"path": "/patient"},
            "deadline": "10s",
            "retry": {"attempts": 12, "backoff": PATIENT, "budget": "off", "methods": ["GET", "POST"]},
        },
        {
            "name": "guarded",
            "match": {"path": "/guarded"},
            "deadline": "5s",
            "retry": {"attempts": 2},
            "circuit_breaker": {"consecutive": 5, "open_for": "300ms", "open_max": "600ms"},
        },
    ],
}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[TinyApp, Sidecar]]:
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, POLICIES)
    await app.start()
    await sidecar.start()
    yield app, sidecar
    for program in (sidecar, app):
        if program.process is not None and program.process.returncode is None:
            await program.end(signal.SIGKILL)


async def drive(url: str, methods: tuple[str, ...]) -> list[tuple[float, str]]:
    """RATE requests a second for SECONDS, on schedule; when each was sent, and its status or error."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    seen: list[tuple[float, str]] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def send(number: int) -> None:
            at = loop.time() - start
            try:
                async with http.request(methods[number % len(methods)], url, data=b"x" * 100) as reply:
                    await reply.read()
                    seen.append((at, str(reply.status)))
            except aiohttp.ClientError as error:
                seen.append((at, type(error).__name__))

        async with asyncio.TaskGroup() as group:
            for number in range(RATE * SECONDS):
                await asyncio.sleep(max(0.0, start + number / RATE - loop.time()))
                group.create_task(send(number))
    return seen


async def kill_and_restart(app: TinyApp) -> None:
    await asyncio.sleep(KILLED_AT)
    await app.end(signal.SIGKILL)
    await asyncio.sleep(DOWN_FOR)
    await app.start()


async def test_a_patient_route_hides_the_restart(pair: tuple[TinyApp, Sidecar]) -> None:
    """With retries that outlast the restart no client sees a failure, and each retry is counted."""
    app, sidecar = pair
    seen, _ = await asyncio.gather(drive(sidecar.url + "/patient", ("GET", "POST")), kill_and_restart(app))
    assert Counter(status for _, status in seen) == {"200": RATE * SECONDS}
    metrics = await sidecar.metrics()
    assert total(metrics, "nextvision_api_requests_total", route="patient", status="200") == RATE * SECONDS
    assert total(metrics, "nextvision_retries_total", route="patient") > 50
    await sidecar.end()
    lines = sidecar.requests()
    assert len(lines) == RATE * SECONDS
    retries = sum(len(re.findall("retry;(?:connect|reset|transient)", line["trail"])) for line in lines)
    assert retries == total(metrics, "nextvision_retries_total", route="patient")


async def test_a_guarded_route_fails_fast_and_comes_back(pair: tuple[TinyApp, Sidecar]) -> None:
    """The breaker opens, probes and closes; clients fail only meanwhile; metrics and log tell the same."""
    app, sidecar = pair
    seen, _ = await asyncio.gather(drive(sidecar.url + "/guarded", ("GET",)), kill_and_restart(app))
    failed = [(at, status) for at, status in seen if status != "200"]
    assert failed
    assert {status for _, status in failed} <= {"502", "503"}
    assert min(at for at, _ in failed) > KILLED_AT - 0.1
    # Down for DOWN_FOR, and however long the app takes to start; then one open time.
    assert max(at for at, _ in failed) < SECONDS - 0.5
    assert sum(status == "502" for _, status in failed) < 30

    metrics = await sidecar.metrics()
    name = "nextvision_circuit_breaker_transitions_total"
    assert total(metrics, name, to="open") >= 1
    assert total(metrics, name, to="half_open") >= 1
    assert total(metrics, name, to="closed") >= 1
    assert total(metrics, "nextvision_circuit_breaker_state", upstream="app") == 0
    by_status = Counter(status for _, status in seen)
    for status, count in by_status.items():
        shown = total(metrics, "nextvision_api_requests_total", route="guarded", status=status)
        assert shown == count
    await sidecar.end()
    lines = sidecar.requests()
    assert Counter(str(line["status"]) for line in lines) == by_status
    rejected = [line for line in lines if line["error"] == "circuit_open"]
    assert len(rejected) == total(metrics, "nextvision_circuit_breaker_rejections_total", route="guarded")
    states = [line["state"] for line in sidecar.log() if line["message"] == "circuit breaker"]
    assert states[0] == "open"
    assert states[-1] == "closed"

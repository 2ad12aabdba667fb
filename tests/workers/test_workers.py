"""`workers: 2`: two real processes on one port, shown and ordered as one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
import yaml

from tests.support.keepalive import Clients
from tests.support.processes import Program, Sidecar, TinyApp, free_port, total

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PROVIDER = {
    "name": "provider",
    "direction": "egress",
    "hosts": ["provider.test"],
    "routes": [{"name": "call", "deadline": "2s"}],
}
POLICY: dict[str, Any] = {
    "name": "tiny",
    "routes": [
        {"name": "shared", "match": {"path": "/shared/*"}, "cache": {"ttl": "10m", "namespace": "shared"}},
        {"name": "limited", "match": {"path": "/limited/*"}, "rate_limit": {"rate": "1/m", "burst": 10}},
        {
            "name": "broken",
            "match": {"path": "/broken/*"},
            "circuit_breaker": {"consecutive": 3, "open_for": "1m", "scope": "route"},
        },
        {"name": "rest", "circuit_breaker": {}},
    ],
}


class Two(Sidecar):
    """With an egress listener."""

    def __init__(self, folder: Path, app_port: int) -> None:
        settings = {"workers": 2, "limits": {"drain": "10s"}, "expose": ["/health/ready"]}
        super().__init__(folder, app_port, POLICY, **settings)
        port = free_port()
        self.egress = f"http://127.0.0.1:{port}"
        file = folder / "sidecar.yaml"
        config = yaml.safe_load(file.read_text())
        config["listen"]["egress"] = f"127.0.0.1:{port}"
        config["policies"].append("provider.yaml")
        file.write_text(yaml.safe_dump(config))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sidecar(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    folder = tmp_path_factory.mktemp("workers")
    app = TinyApp(folder)
    dead = f"http://127.0.0.1:{free_port()}"
    (folder / "provider.yaml").write_text(yaml.safe_dump({**PROVIDER, "upstream": dead}))
    running = Two(folder, app.port)
    await app.start()
    await running.start()
    yield running
    await running.end()
    await app.end()


async def get(url: str, **options: Any) -> tuple[int, str]:
    """On a connection of its own, which either worker may get."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http, http.get(url, **options) as reply:
        return reply.status, await reply.text()


async def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as reply:
        return reply.status, await reply.json()


async def admin(sidecar: Sidecar, path: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(sidecar.admin + path) as reply:
        page: dict[str, Any] = await reply.json()
        return page


async def until(told: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What it gives once that is true."""
    by = time.monotonic() + seconds
    while time.monotonic() < by:
        if found := await told():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it never was so")


async def test_counts_are_exact(sidecar: Two) -> None:
    """Both workers serve; `/metrics` has as many requests as were sent, at once."""
    before = total(await sidecar.metrics(), "nextvision_api_requests_total")
    assert {(await get(f"{sidecar.url}/count/{n}"))[0] for n in range(60)} == {200}
    assert total(await sidecar.metrics(), "nextvision_api_requests_total") == before + 60
    workers = (await admin(sidecar, "/admin/workers"))["workers"]
    assert len({it["pid"] for it in workers}) == 2
    assert all(it["requests"] > 0 for it in workers)


async def test_health_is_of_all(sidecar: Two) -> None:
    """`/health/detailed` tells of the workers; a page of the admin listener is on ingress too."""
    assert (await admin(sidecar, "/health/detailed"))["checks"]["workers"]["serving"] == 2
    status, text = await get(f"{sidecar.url}/health/ready")
    assert (status, '"ready":true' in text) == (200, True)


async def test_a_purge_reaches_all(sidecar: Two) -> None:
    """What both workers have stored is gone from both, and one PURGE does as much."""

    async def answers() -> set[str]:
        return {(await get(f"{sidecar.url}/shared/purged"))[1] for _ in range(12)}

    await answers()  # each worker has fetched it by then
    first = await answers()
    assert await until(lambda: _stored(sidecar)) >= len(first)
    assert (await post(f"{sidecar.admin}/admin/cache/purge", {"url": "/shared/purged"}))[0] == 200
    second = await answers()
    assert not first & second
    async with aiohttp.ClientSession() as http:
        assert (await http.request("PURGE", f"{sidecar.url}/shared/purged")).status == 200
    await asyncio.sleep(0.2)  # the hint is on its way
    assert not second & await answers()


async def _stored(sidecar: Two) -> int:
    stats = await admin(sidecar, "/admin/cache/stats")
    return int(stats["namespaces"].get("shared", {}).get("memory_entries", 0))


async def test_a_fault_reaches_all(sidecar: Two) -> None:
    """An injected fault hits requests to either worker, is counted as one, and ends in both."""
    order = {"route": "broken", "fault": {"respond": {"status": 503}}, "expires": "1m"}
    assert (await post(f"{sidecar.admin}/admin/faults", order))[0] == 200
    assert {(await get(f"{sidecar.url}/broken/{n}"))[0] for n in range(12)} == {503}
    row = await until(lambda: _injected(sidecar, 3))
    assert row["injected"] <= 12
    assert (await post(f"{sidecar.admin}/admin/faults", {"route": "broken", "fault": "off"}))[0] == 200


async def _injected(sidecar: Two, least: int) -> Any:
    (row,) = (await admin(sidecar, "/admin/faults"))["faults"]
    return row if row["injected"] >= least else None


async def test_an_open_breaker_is_told(sidecar: Two) -> None:
    """Three failures in a row in one worker, and all requests are refused; a reset is for all as well."""
    name = "app/broken"
    assert (await get(f"{sidecar.url}/broken/after"))[0] == 503  # the test before has opened it
    await asyncio.sleep(0.2)
    answers = [await get(f"{sidecar.url}/broken/{n}") for n in range(12)]
    assert {status for status, _ in answers} == {503}
    metrics = await sidecar.metrics()
    assert metrics[f'nextvision_circuit_breaker_state{{upstream="{name}"}}'] == 2
    order = {"breaker": name, "action": "reset", "reason": "test"}
    assert (await post(f"{sidecar.admin}/admin/breakers", order))[0] == 200
    await asyncio.sleep(0.2)
    assert {(await get(f"{sidecar.url}/broken/{n}"))[0] for n in range(12)} == {200}


async def test_a_rate_limit_counts_all(sidecar: Two) -> None:
    """A client gets its burst from both together, but for what is on its way between them."""
    passed = 0
    for _ in range(30):
        passed += (await get(f"{sidecar.url}/limited/a"))[0] == 200
        await asyncio.sleep(0.06)  # a message each 50 ms
    assert 10 <= passed <= 12


async def test_a_flag_reaches_all(sidecar: Two) -> None:
    """A feature that is switched off is off in both, until it is switched on again."""

    async def outcomes() -> set[bool]:
        return {
            (await get(f"{sidecar.url}/limited/a"))[0] == 200  # its burst is used up
            for _ in range(12)
        }

    order = {"feature": "rate_limit", "on": False, "reason": "test", "expires": "1m"}
    assert (await post(f"{sidecar.admin}/admin/features", order))[0] == 200
    await until(lambda: _is(outcomes, {True}))
    back = {"feature": "rate_limit", "on": "configured", "reason": "test"}
    assert (await post(f"{sidecar.admin}/admin/features", back))[0] == 200
    await until(lambda: _is(outcomes, {False}))


async def _is(told: Callable[[], Any], wanted: set[bool]) -> bool:
    return bool(await told() == wanted)


async def test_answers_are_marked_whoever_saw_the_failure(sidecar: Two) -> None:
    """A call that failed in one worker marks an answer that passes the other."""
    marked = []
    async with aiohttp.ClientSession() as http:
        for number in range(8):
            gate = f"{sidecar.url}/gated/{number}"
            waiting = asyncio.create_task(_head(gate))
            await until(partial(_asked, sidecar, gate))
            assert (await get(f"{sidecar.egress}/provider/x"))[0] == 502
            assert (await http.post(gate)).status == 204
            marked.append(await waiting)
    assert marked == ["upstream=provider"] * 8


async def _head(url: str) -> str:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http, http.get(url) as reply:
        return reply.headers.get("Sidecar-Degraded", "")


async def _asked(sidecar: Two, url: str) -> bool:
    _, text = await get(f"{sidecar.url}/calls")
    return url.removeprefix(sidecar.url) in text


async def test_a_reload_reaches_all(sidecar: Two) -> None:
    """When POST /admin/reload has answered, both workers serve the new generation."""
    file = sidecar.folder / "policy.yaml"
    policy = yaml.safe_load(file.read_text())
    policy["routes"].insert(0, {"name": "newer", "match": {"path": "/newer"}, "deadline": "1s"})
    file.write_text(yaml.safe_dump(policy))
    status, told = await post(f"{sidecar.admin}/admin/reload", {})
    assert (status, told["result"]) == (200, "applied")
    before = total(await sidecar.metrics(), "nextvision_api_requests_total", route="newer")
    for _ in range(12):
        await get(f"{sidecar.url}/newer")
    assert total(await sidecar.metrics(), "nextvision_api_requests_total", route="newer") == before + 12
    await until(lambda: _generations(sidecar, {told["generation"]}))


async def _generations(sidecar: Two, wanted: set[int]) -> bool:
    return {it["generation"] for it in (await admin(sidecar, "/admin/workers"))["workers"]} == wanted


async def _served(sidecar: Two, but: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
    """The pids of the two workers, once there are two and none of `but`."""
    workers = (await admin(sidecar, "/admin/workers"))["workers"]
    pids = [it["pid"] for it in workers]
    done = len(pids) == 2 and {it["status"] for it in workers} == {"serving"} and not but & set(pids)
    return pids if done else []


async def test_a_rolling_restart_loses_nothing(sidecar: Two) -> None:
    """SIGUSR2 under load: both processes are others then, each request was answered, and each is counted."""
    before = total(await sidecar.metrics(), "nextvision_api_requests_total", route="rest")
    pids = set(await _served(sidecar))
    clients = Clients(sidecar.port, 16, pause=0.01)
    await clients.until(50)
    sidecar.send(signal.SIGUSR2)
    await until(lambda: _served(sidecar, pids), 60)
    await clients.until(50)
    sent = await clients.stop()
    assert clients.lost == []
    after = total(await sidecar.metrics(), "nextvision_api_requests_total", route="rest")
    assert after == before + len(sent)


async def test_a_killed_worker_is_replaced(sidecar: Two) -> None:
    """SIGKILL under load: only requests in its hands fail, and soon another serves in its place."""
    pids = await _served(sidecar)
    clients = Clients(sidecar.port, 16, pause=0.005)
    await clients.until(200)
    killed = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: _served(sidecar, {pids[0]}), 60)
    await clients.until(200)
    await clients.stop()
    lost = clients.lost
    # A client has one request in flight at a time; each that was lost had begun before the death was seen.
    assert len(lost) <= 16
    assert all(it.started <= killed + 0.5 for it in lost)
    assert pids[1] in await _served(sidecar)
    died = [line for line in sidecar.log() if line["message"] == "worker died"]
    assert (died[-1]["pid"], died[-1]["how"]) == (pids[0], "killed by SIGKILL")


async def test_nobody_waits_for_a_dead_worker(sidecar: Two) -> None:
    """While nobody is started in the place of a worker that died young again, its neighbour accepts there."""
    alone = 0
    for _ in range(2):
        (row,) = [it for it in await _rows(sidecar) if it["worker"] == 1]
        os.kill(row["pid"], signal.SIGKILL)
        await until(partial(_died, sidecar, row["pid"]))
        while not (whole := await _served(sidecar, {row["pid"]})):
            # A connection in its hands is lost; new ones are not.
            assert (await get(f"{sidecar.url}/alone"))[0] == 200
            alone += 1
        assert len(whole) == 2
    assert alone


async def _rows(sidecar: Two) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await admin(sidecar, "/admin/workers"))["workers"]
    return rows


async def _died(sidecar: Two, pid: int) -> bool:
    return all(it["pid"] != pid for it in await _rows(sidecar))


async def test_stopping_loses_nothing(sidecar: Two) -> None:
    """SIGTERM: what is in flight in either worker is answered, no process is left, and the exit code is 0."""
    pids = await _served(sidecar)
    slow = [asyncio.create_task(get(f"{sidecar.url}/slow?{n}")) for n in range(8)]
    await asyncio.sleep(0.2)
    assert await sidecar.end() == 0
    assert {status for status, _ in await asyncio.gather(*slow)} == {200}
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_unix_socket_a_log_file_and_a_child(tmp_path: Path) -> None:
    """Workers share a socket in the file system and a log file; the app that was started sets the code."""
    app = TinyApp(tmp_path)
    await app.start()
    one = Sidecar(
        tmp_path,
        app.port,
        POLICY,
        *("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"),
        workers=2,
        logging={"file": "sidecar.log", "format": "json"},
    )
    file = tmp_path / "sidecar.yaml"
    config = yaml.safe_load(file.read_text())
    config["listen"]["ingress"] = f"unix:{tmp_path}/in.sock"
    file.write_text(yaml.safe_dump(config))
    await Program.start(one)
    try:
        await until(partial(_reached, one))
        connector = aiohttp.UnixConnector(str(tmp_path / "in.sock"), force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http:
            for number in range(20):
                async with http.get(f"http://a/file/{number}") as reply:
                    assert reply.status == 200
    finally:
        assert await one.end() == 7
        await app.end()
    lines = [json.loads(line) for line in (tmp_path / "sidecar.log").read_text().splitlines()]
    paths = [line["path"] for line in lines if line["logger"] == "sidecar.access"]
    assert sorted(paths) == sorted(f"/file/{number}" for number in range(20))


async def _reached(sidecar: Sidecar) -> bool:
    try:
        return (await get(f"{sidecar.admin}/health/ready"))[0] == 200
    except aiohttp.ClientError:
        return False


async def test_workers_end_with_their_lead(tmp_path: Path) -> None:
    """The lead is killed with SIGKILL: what its workers have in hand is answered, then they are gone, too."""
    app = TinyApp(tmp_path)
    await app.start()
    one = Sidecar(tmp_path, app.port, POLICY, workers=2, limits={"drain": "10s"})
    await one.start()
    pids = [it["pid"] for it in (await admin(one, "/admin/workers"))["workers"]]
    slow = [asyncio.create_task(get(f"{one.url}/slow?{n}")) for n in range(6)]
    await asyncio.sleep(0.2)
    await one.end(signal.SIGKILL)
    assert {status for status, _ in await asyncio.gather(*slow)} == {200}
    await until(partial(_gone, pids))
    await app.end()


async def _gone(pids: list[int]) -> bool:
    """Nobody may wait for orphans: as zombies they are gone, too."""
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)

"""Each drill passes, and fails when what it guards is off: with real processes, at its real rates.

A drill takes about 10 s. One of them is always run; `DRILLS=1` runs all.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from sidecar.demo.processes import policies
from sidecar.drills import reading
from tests.support.processes import Sidecar, TinyApp

QUICK = ("retry-storm",)
ALL = bool(os.environ.get("DRILLS"))
GUARDS = {
    # What each drill guards, turned off, and the point that then does not hold.
    "app-outage": (["--without", "retry"], "availability"),
    "big-bodies": (["--set", "limits.body=off"], "amplification"),
    "maps-quota": (["--without", "pace"], "provider_calls"),
    "provider-resets": (["--without", "retry"], "degraded"),
    "openai-slow": (["--without", "circuit_breaker", "--without", "concurrency_limit"], "p50"),
    "redis-outage": (["--set", "cache.memory=4KiB"], "hit_ratio"),
    "retry-storm": (["--without", "circuit_breaker"], "amplification"),
    "rolling-restart": (["--set", "workers=1"], "availability"),
    "slow-clients": (["--set", "limits.header_timeout=10m"], "availability"),
    "thundering-herd": (["--without", "cache"], "amplification"),
}
DRILLS = sorted({*GUARDS, "dns-outage", "expired-certificate", "provider-lies"})

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def quick(name: str) -> Any:
    marks = [] if ALL or name in QUICK else [pytest.mark.skip(reason="DRILLS=1 runs it")]
    return pytest.param(name, marks=marks)


async def drill(scenario: str, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the report on the one scenario; empty where there is none."""
    file = folder / "report.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "drill", scenario, "--json", str(file), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    sys.stdout.write(output.decode())
    report = json.loads(file.read_text())["scenarios"][0] if file.exists() else {}
    assert process.returncode is not None
    return process.returncode, report


def missed(report: dict[str, Any]) -> list[str]:
    return [point["name"] for point in report["points"] if not point["held"]]


def test_every_drill_is_tested() -> None:
    """No shipped drill is left out here."""
    suite = [reading.find(name).scenario for name in reading.find("full_suite").scenario.suite]
    assert sorted(it.name for it in suite if it.drill or it.faults) == DRILLS


@pytest.mark.parametrize("name", [quick(it) for it in DRILLS])
async def test_it_passes(name: str, tmp_path: Path) -> None:
    """All that must hold does."""
    code, report = await drill(name, tmp_path)
    assert (code, missed(report)) == (0, [])


@pytest.mark.parametrize("name", [quick(it) for it in GUARDS])
async def test_it_fails_without_its_guard(name: str, tmp_path: Path) -> None:
    """The verdict flips, by the point that the guard is there for."""
    options, point = GUARDS[name]
    code, report = await drill(name, tmp_path, *options)
    assert code == 1
    assert report["status"] == "failed"
    assert point in missed(report)


@pytest.mark.skipif(not ALL, reason="DRILLS=1 runs it")
async def test_lies_are_found_where_no_policy_knows_them(tmp_path: Path) -> None:
    """provider-lies without the policies that mark what the app makes up: the answers are wrong."""
    folder = tmp_path / "drills"
    shutil.copytree(reading.SHIPPED, folder)
    file = folder / "provider-lies.yaml"
    file.write_text(file.read_text() + "stand: {policies: [policies/small-bodies.yaml]}\n")
    code, report = await drill(str(file), tmp_path)
    assert (code, missed(report)) == (1, ["wrong"])


@pytest.mark.skipif(not ALL, reason="DRILLS=1 runs it")
async def test_an_address_that_nobody_remembers_is_missed(tmp_path: Path) -> None:
    """dns-outage with the name servers silent from the start: there is no address to go on with."""
    folder = tmp_path / "drills"
    shutil.copytree(reading.SHIPPED, folder)
    file = folder / "dns-outage.yaml"
    file.write_text(file.read_text().replace("at: 2s", "at: 0s"))
    code, report = await drill(str(file), tmp_path)
    assert code == 1
    assert "degraded" in missed(report)


@pytest.mark.skipif(not ALL, reason="DRILLS=1 runs it")
async def test_a_certificate_that_nobody_checks_is_no_guard(tmp_path: Path) -> None:
    """expired-certificate with `tls.verify: false`: calls, with their key, go to whoever is there."""
    folder = tmp_path / "drills"
    shutil.copytree(reading.SHIPPED, folder)
    policy = (policies() / "google-maps.yaml").read_text()
    (folder / "google-maps.yaml").write_text(policy + "\ntls: {verify: false}\n")
    file = folder / "expired-certificate.yaml"
    file.write_text(file.read_text() + "stand: {policies: [nextvision, google-maps.yaml, openai]}\n")
    code, report = await drill(str(file), tmp_path)
    assert code == 1
    assert "provider_calls" in missed(report)


async def test_what_is_still_held_afterwards_is_told(tmp_path: Path) -> None:
    """A client that stays connected is one connection too many; without it nothing is held."""
    file = tmp_path / "short.yaml"
    file.write_text(
        "name: short\nload: {steps: [{rate: 20/s, duration: 1500ms}]}\ntraffic: [{path: /}]\n"
        "assert: {leaks: {fds: 5, within: 1s}}\n"
    )
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, {"name": "tiny", "routes": [{"name": "all", "deadline": "5s"}]})
    await app.start()
    await sidecar.start()
    target = ["--target", sidecar.url, "--admin", sidecar.admin]
    try:
        code, report = await drill(str(file), tmp_path, *target)
        assert (code, missed(report)) == (0, [])
        before, after = report["held"]
        assert (before["connections"], after["connections"]) == (0, 0)
        assert min(before["tasks"], after["tasks"], before["fds"], before["memory"]) > 0

        running = asyncio.create_task(drill(str(file), tmp_path, *target))
        await started(sidecar)
        _, writer = await asyncio.open_connection("127.0.0.1", int(sidecar.url.rpartition(":")[2]))
        code, report = await running
        writer.close()
        assert code == 1
        assert "leaked_connections" in missed(report)
        assert report["held"][1]["connections"] == 1
    finally:
        await sidecar.end()
        await app.end()


async def started(sidecar: Sidecar) -> None:
    """Waits until there is a client."""
    async with aiohttp.ClientSession() as http:
        for _ in range(1000):
            async with http.get(f"{sidecar.admin}/metrics") as reply:
                found = re.search(r'connections_active\{listener="ingress"\} (\d+)', await reply.text())
            if found is not None and int(found[1]):
                return
            await asyncio.sleep(0.02)
    raise AssertionError("no client came")


async def test_it_aborts_soon(tmp_path: Path) -> None:
    """Within 2 s of more failing than is allowed the load ends, the fault too, and the exit code is 1."""
    file = tmp_path / "down.yaml"
    file.write_text(
        "name: down\nload: {steps: [{rate: 50/s, duration: 60s}]}\ntraffic: [{path: /}]\n"
        "faults: [{duration: 60s, inject: {upstream: app, fault: {respond: {status: 503}}}}]\n"
        "abort: {failed: 50%, after: 20}\n"
    )
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, {"name": "tiny", "routes": [{"name": "all", "deadline": "5s"}]})
    await app.start()
    await sidecar.start()
    try:
        code, report = await drill(str(file), tmp_path, "--target", sidecar.url, "--admin", sidecar.admin)
        assert (code, report["status"]) == (1, "aborted")
        assert "more than abort.failed allows" in report["reason"]
        # 20 requests at 50 a second, a look each second, and 2 s.
        assert report["load"]["seconds"] <= 0.4 + 1.0 + 2.0
        assert await faults(sidecar) == []
    finally:
        await sidecar.end()
        await app.end()


async def faults(sidecar: Sidecar) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.get(f"{sidecar.admin}/admin/faults") as reply:
        found: list[dict[str, Any]] = (await reply.json())["faults"]
        return found


async def test_a_fault_ends_though_its_runner_is_dead(tmp_path: Path) -> None:
    """The runner is killed with SIGKILL: what it injected ends by itself, and its load has ended."""
    file = tmp_path / "down.yaml"
    file.write_text(
        "name: down\nload: {steps: [{rate: 20/s, duration: 60s}]}\ntraffic: [{path: /}]\n"
        "faults: [{duration: 500ms, inject: {upstream: app, fault: {respond: {status: 503}}}}]\n"
    )
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, {"name": "tiny", "routes": [{"name": "all", "deadline": "5s"}]})
    await app.start()
    await sidecar.start()
    command = ["drill", str(file), "--target", sidecar.url, "--admin", sidecar.admin]
    runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", *command), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        for _ in range(1000):
            if await faults(sidecar):
                break
            await asyncio.sleep(0.02)
        children = psutil.Process(runner.pid).children(recursive=True)
        runner.kill()
        await runner.wait()
        [fault] = await faults(sidecar)
        assert fault["expires_in_seconds"] <= 5.5
        until = time.monotonic() + fault["expires_in_seconds"] + 2
        while await faults(sidecar):
            assert time.monotonic() < until
            await asyncio.sleep(0.1)
        assert children
        assert not [it for it in children if it.is_running() and it.status() != psutil.STATUS_ZOMBIE]
    finally:
        await sidecar.end()
        await app.end()


async def test_nothing_of_its_own_outlives_the_runner(tmp_path: Path) -> None:
    """App, providers and sidecar end when the runner is killed with SIGKILL, and its folder is removed."""
    runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "drill", "retry-storm"), stdout=asyncio.subprocess.PIPE
    )
    assert runner.stdout is not None
    while b" done " not in await runner.stdout.readline():
        pass
    children = psutil.Process(runner.pid).children(recursive=True)
    assert len(children) >= 4
    [configuration] = {part for it in children for part in it.cmdline() if part.endswith("/sidecar.yaml")}
    runner.send_signal(signal.SIGKILL)
    await runner.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 15)
    assert [it for it in alive if it.status() != psutil.STATUS_ZOMBIE] == []
    assert gone or alive
    for _ in range(500):
        if not Path(configuration).parent.exists():
            break
        await asyncio.sleep(0.02)
    assert not Path(configuration).parent.exists()


@pytest.mark.skipif(not ALL, reason="DRILLS=1 runs it")
async def test_it_can_be_ended() -> None:
    """SIGTERM in the middle of a drill: exit code 1, no traceback, nothing is left."""
    runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "drill", "app-outage"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert runner.stdout is not None
    while b"broken: app killed" not in await runner.stdout.readline():
        pass
    children = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(signal.SIGTERM)
    _, errors = await runner.communicate()
    assert (runner.returncode, errors) == (1, b"")
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 15)
    assert alive == []


async def test_both_are_shown(tmp_path: Path) -> None:
    """`--against`: the same load at both, each with its own failures."""
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nload: {steps: [{rate: 50/s, duration: 1s}]}\ntraffic: [{path: /}]\n")
    app = TinyApp(tmp_path)
    await app.start()
    url = f"http://127.0.0.1:{app.port}"
    try:
        code, report = await drill(str(file), tmp_path, "--target", url, "--against", "http://127.0.0.1:1")
    finally:
        await app.end()
    assert (code, report["load"]["failed"]) == (0, 0)
    assert report["against"]["requests"] == report["load"]["requests"] == report["against"]["failed"]


async def test_a_stranger_is_not_loaded(tmp_path: Path) -> None:
    """A target that is not this machine and not listed gets no request, and the exit code is 1."""
    code, report = await drill("light_load", tmp_path, "--target", "http://192.0.2.1:80")
    assert (code, report) == (1, {})

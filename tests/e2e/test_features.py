"""Feature flags and rollouts as their user sees them: a process, its commands, its log."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.e2e.test_reload import json_of, policies, said, until, write
from tests.support.processes import Sidecar, TinyApp, total, until_connects

TOKEN = "a-token-of-quite-some-length"  # a test's


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[TinyApp]:
    program = TinyApp(tmp_path)
    await program.start()
    yield program
    await program.end()


async def started(tmp_path: Path, app: TinyApp, policy: dict[str, Any], **settings: Any) -> Sidecar:
    settings = {"logging": {"format": "json"}, **settings}
    sidecar = Sidecar(tmp_path, app.port, policy, **settings)
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    return sidecar


async def command(sidecar: Sidecar, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", *arguments, "-c", str(sidecar.folder / "sidecar.yaml"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=sidecar.environment,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def asked(sidecar: Sidecar, path: str, **headers: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.get(sidecar.url + path, headers=headers) as reply:
        await reply.read()
        return reply.status, reply.headers


async def test_a_feature_is_switched_off_and_comes_back_by_itself(tmp_path: Path, app: TinyApp) -> None:
    """The cache is out of the pipeline, the trail and health say so, and after its time it is back."""
    policy = policies(cache={"ttl": "10m"})
    sidecar = await started(tmp_path, app, policy, admin={"token": TOKEN})
    try:
        await asked(sidecar, "/x")
        assert "hit" in (await asked(sidecar, "/x"))[1]["Cache-Status"]
        code, output = await command(
            sidecar, "features", "set", "cache", "off", "--reason", "stale answers", "--for", "4s"
        )
        assert code == 0, output
        assert "cache                 off  for 4s more, then on: stale answers" in output
        _, headers = await asked(sidecar, "/x", **{"X-Sidecar-Debug": "1"})
        assert "Cache-Status" not in headers
        assert "cache;off" in headers["Sidecar-Decision"]
        _, health = await json_of(sidecar, "/health/detailed")
        assert health["checks"]["features"]["switched"][0]["reason"] == "stale answers"
        await until(lambda: len(said(sidecar, "feature switched")) >= 3)  # the audit line, off, back on
        assert "hit" in (await asked(sidecar, "/x"))[1]["Cache-Status"]
        lines = [line for line in sidecar.requests() if "cache;off" in line["trail"]]
        assert len(lines) == 1
        code, output = await command(
            sidecar, "features", "set", "cahce", "off", "--reason", "x", "--for", "1s"
        )
        assert code == 1
        assert "did you mean cache?" in output
    finally:
        await sidecar.end()


async def test_batches_are_not_taken_while_that_is_switched_off(tmp_path: Path, app: TinyApp) -> None:
    """409 with the reason; switched on again they are."""
    sidecar = await started(tmp_path, app, policies(), features={"batch": False})
    line = '{"custom_id": "a", "method": "GET", "url": "/x"}\n'
    kind = {"Content-Type": "application/x-ndjson"}
    try:
        async with aiohttp.ClientSession() as http:
            async with http.post(sidecar.admin + "/batches", data=line, headers=kind) as reply:
                assert reply.status == 409
                assert "batch is switched off" in await reply.text()
            order = {"feature": "batch", "on": True, "reason": "tonight's run", "expires": "1m"}
            async with http.post(sidecar.admin + "/admin/features", json=order) as reply:
                assert reply.status == 200
            async with http.post(sidecar.admin + "/batches", data=line, headers=kind) as reply:
                assert reply.status == 202
    finally:
        await sidecar.end()


async def test_a_configured_feature_is_off_from_the_start(tmp_path: Path, app: TinyApp) -> None:
    """By the guide's variable, too, which goes before the file."""
    sidecar = Sidecar(tmp_path, app.port, policies(cache={"ttl": "10m"}), logging={"format": "json"})
    sidecar.environment["FEATURE_CACHING"] = "false"
    await sidecar.start()
    try:
        for _ in range(2):
            assert "Cache-Status" not in (await asked(sidecar, "/x"))[1]
    finally:
        await sidecar.end()


def with_rollout(sidecar: Sidecar, window: str) -> None:
    file = sidecar.folder / "sidecar.yaml"
    settings = yaml.safe_load(file.read_text())
    guard = {"error_rate": "2%", "p95": "5s"}
    settings["rollout"] = {"percent": "50%", "guard": guard, "window": window, "minimum_requests": 10}
    settings["trusted"] = {"proxies": ["127.0.0.1/32"]}
    write(file, settings)


async def traffic(sidecar: Sidecar, http: aiohttp.ClientSession, number: int) -> int:
    """One request of one of many clients, as a proxy in front would tell of it."""
    headers = {"X-Forwarded-For": f"198.51.100.{number % 200}"}
    async with http.get(sidecar.url + "/x", headers=headers) as reply:
        await reply.read()
        return reply.status


async def test_a_generation_that_fails_is_rolled_back_and_a_good_one_promoted(
    tmp_path: Path, app: TinyApp
) -> None:
    """A tenth of its answers are 5xx: within ten seconds the one before serves all; the log says why."""
    sidecar = await started(tmp_path, app, policies())
    file = sidecar.folder / "policy.yaml"
    try:
        with_rollout(sidecar, "60s")
        bad = {"percent": "10%", "respond": {"status": 500}, "expires": "1h"}
        write(file, policies(attempts=1, fault=bad))
        _, answer = await json_of(sidecar, "/admin/reload", "POST")
        assert (answer["result"], answer["generation"]) == ("started", 2)
        begun = asyncio.get_running_loop().time()
        async with aiohttp.ClientSession() as http:
            number = 0
            while not said(sidecar, "rollout rolled back"):
                await asyncio.gather(*(traffic(sidecar, http, number + it) for it in range(8)))
                number += 8
                assert asyncio.get_running_loop().time() - begun < 10
            [line] = said(sidecar, "rollout rolled back")
            assert "guard.error_rate" in line["why"]
            assert {await traffic(sidecar, http, it) for it in range(100)} == {200}
            _, health = await json_of(sidecar, "/health/detailed")
            check = health["checks"]["configuration"]
            assert (check["status"], check["generation"]) == ("degraded", 1)

            with_rollout(sidecar, "2s")
            write(file, policies(attempts=5))
            _, answer = await json_of(sidecar, "/admin/reload", "POST")
            assert answer["result"] == "started"
            number = 0
            while not said(sidecar, "rollout promoted"):
                statuses = await asyncio.gather(*(traffic(sidecar, http, number + it) for it in range(8)))
                assert set(statuses) == {200}
                number += 8
                assert number < 20_000
        [line] = said(sidecar, "rollout promoted")
        assert "0 of" in line["why"]
        metrics = await sidecar.metrics()
        assert metrics["nextvision_config_generation"] == 3
        assert metrics["nextvision_config_candidate_generation"] == 0
        assert total(metrics, "nextvision_config_rollouts_total", outcome="rolled_back") == 1
    finally:
        await sidecar.end()

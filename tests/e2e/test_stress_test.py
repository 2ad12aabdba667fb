"""`POST /admin/stress-test` as its user sees it: real processes, a real load, at this very sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.support.processes import Sidecar, TinyApp

TOKEN = "a-token-of-quite-some-length"  # a test's
POLICY = {"name": "tiny", "routes": [{"name": "all", "deadline": "5s"}]}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[TinyApp]:
    program = TinyApp(tmp_path)
    await program.start()
    yield program
    await program.end()


async def ask(
    sidecar: Sidecar, method: str, path: str, token: str | None = TOKEN
) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{sidecar.admin}/admin/stress-test{path}"
    async with aiohttp.ClientSession() as http, http.request(method, url, headers=headers) as reply:
        return reply.status, await reply.json(content_type=None)


async def test_one_at_a_time_in_the_background(tmp_path: Path, app: TinyApp) -> None:
    """It answers 202 at once, refuses a second, tells of progress, and ends with the sidecar."""
    sidecar = Sidecar(tmp_path, app.port, POLICY, admin={"token": TOKEN})
    await sidecar.start()
    try:
        assert (await ask(sidecar, "POST", "?scenario=light_load", token=None))[0] == 401
        status, told = await ask(sidecar, "POST", "?scenario=app-outage")
        assert status == 404
        assert "light_load" in told["detail"]
        assert (await ask(sidecar, "GET", "/nothing"))[0] == 404

        status, run = await ask(sidecar, "POST", "?scenario=light_load")
        assert (status, run["status"]) == (202, "running")
        status, told = await ask(sidecar, "POST", "?scenario=medium_load")
        assert status == 409
        assert run["id"] in told["detail"]
        for _ in range(300):
            status, now = await ask(sidecar, "GET", f"/{run['id']}")
            if any(" done " in line for line in now["progress"]):
                break
            await asyncio.sleep(0.1)
        assert (status, now["status"]) == (200, "running")
        assert " done " in now["progress"][-1]
        assert [it["id"] for it in (await ask(sidecar, "GET", ""))[1]["stress_tests"]] == [run["id"]]
        children = psutil.Process(sidecar.pid).children(recursive=True)
        assert children
    finally:
        await sidecar.end()
        await app.end()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 15)
    assert alive == []


async def test_its_result_is_that_of_the_command(tmp_path: Path, app: TinyApp) -> None:
    """The app is gone: the test is aborted soon, with the report, and another may be started."""
    sidecar = Sidecar(tmp_path, app.port, POLICY, admin={"token": TOKEN})
    await sidecar.start()
    try:
        _, run = await ask(sidecar, "POST", "?scenario=sustained_load")
        await app.end()  # every request fails now
        for _ in range(400):
            _, now = await ask(sidecar, "GET", f"/{run['id']}")
            if now["status"] != "running":
                break
            await asyncio.sleep(0.1)
        assert now["status"] == "aborted"
        [scenario] = now["result"]["scenarios"]
        assert scenario["load"]["failed"] > 0.5 * scenario["load"]["requests"]
        assert "more than abort.failed allows" in scenario["reason"]
        assert (await ask(sidecar, "POST", "?scenario=light_load"))[0] == 202
    finally:
        await sidecar.end()


@pytest.mark.parametrize(
    ("environment", "features", "variables", "status"),
    [
        ("production", {}, {}, 403),
        ("production", {"stress_test": "true"}, {}, 202),
        ("production", {}, {"FEATURE_STRESS_TEST": "true"}, 202),
        ("staging", {"stress_test": "true"}, {"FEATURE_STRESS_TEST": "false"}, 403),
    ],
)
async def test_production_must_have_asked_for_it(
    tmp_path: Path,
    app: TinyApp,
    environment: str,
    features: dict[str, str],
    variables: dict[str, str],
    status: int,
) -> None:
    """In production it is refused unless the feature is switched on in so many words; elsewhere if off."""
    settings = {"environment": environment, "features": features}
    sidecar = Sidecar(tmp_path, app.port, POLICY, admin={"token": TOKEN}, **settings)
    sidecar.environment |= variables
    await sidecar.start()
    try:
        assert (await ask(sidecar, "POST", "?scenario=light_load"))[0] == status
    finally:
        await sidecar.end()

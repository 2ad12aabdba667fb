"""Batches through a real sidecar: accepted means durable, and each line has one result, whatever dies."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.batches import (
    BatchClient,
    CountingApp,
    batch_sidecar,
    jobs,
    ndjson,
    serving,
    started,
)
from tests.support.harness import eventually
from tests.support.processes import Sidecar


@pytest.fixture
async def app() -> AsyncIterator[CountingApp]:
    async with CountingApp() as app:
        yield app


@pytest.fixture
async def sidecar(tmp_path: Path, app: CountingApp) -> AsyncIterator[Sidecar]:
    made = batch_sidecar(tmp_path, app, logging={"access": False})
    async with serving(made):
        yield made


@pytest.fixture
async def client(sidecar: Sidecar) -> AsyncIterator[BatchClient]:
    async with BatchClient(sidecar) as made:
        yield made


async def test_each_line_has_one_result(client: BatchClient, app: CountingApp) -> None:
    """1,000 lines: one answer of the app and one result each, in the shape that was promised."""
    batch = await client.accepted(jobs(1000, "GET", "POST"), name="thousand")
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(1000)}
    assert set(app.calls.values()) == {1}
    one = next(it for it in results if it["custom_id"] == "7")
    assert (one["status"], one["body"]) == (200, {"id": "7"})
    assert one["headers"]["content-type"].startswith("application/json")
    shown = await client.show(batch)
    assert (shown["status"], shown["name"], shown["counts"]["completed"]) == ("completed", "thousand", 1000)
    assert all(keys == {None} for name, keys in app.keys.items() if int(name) % 2 == 0)
    assert all(keys == {f'"{batch}-{int(name) + 1}"'} for name, keys in app.keys.items() if int(name) % 2)


async def test_results_stream_while_it_runs(client: BatchClient, app: CountingApp) -> None:
    """The first results come long before the last line is done; events tell of the progress."""
    app.seconds = 0.05
    batch = await client.accepted(jobs(400, "GET"), max_concurrency="5")

    async def progress() -> list[dict[str, Any]]:
        async with client.http.get(f"/batches/{batch}/events") as reply:
            assert reply.headers["Content-Type"] == "text/event-stream"
            return [json.loads(line[6:]) async for line in reply.content if line.startswith(b"data: ")]

    watching = asyncio.ensure_future(progress())
    async with client.http.get(f"/batches/{batch}/results") as reply:
        await reply.content.readline()
        counts = (await client.show(batch))["counts"]
        assert 0 < counts["completed"] < 400
        assert len((await reply.content.read()).splitlines()) == 399
    events = await asyncio.wait_for(watching, 20)
    done = [event["counts"]["completed"] for event in events]
    assert len(done) >= 3
    assert done == sorted(done)
    assert events[-1]["status"] == "completed"
    assert app.most <= 5


async def test_the_app_is_down_for_a_while(client: BatchClient, app: CountingApp) -> None:
    """Nothing is lost, it is hardly asked meanwhile, and the batch goes on by itself."""
    app.seconds = 0.01
    batch = await client.accepted(jobs(600, "GET"))
    await eventually(lambda: len(app.calls) > 100)
    await app.stop()
    await asyncio.sleep(3.0)
    shown = await client.show(batch)
    assert shown["status"] == "paused"
    assert "jobs" in shown["reason"]
    await app.start()
    results = await client.results(batch)
    assert Counter(it["status"] for it in results) == {200: 600}
    async with client.http.get("/admin/batch/stats") as reply:
        assert (await reply.json())["refusals"] < 100


async def test_cancelled_lines_are_not_sent(client: BatchClient, app: CountingApp) -> None:
    """After a cancel what is in flight ends, the rest has the result that it was not sent."""
    app.seconds = 0.1
    batch = await client.accepted(jobs(500, "POST"), max_concurrency="4")
    await eventually(lambda: len(app.calls) > 4)
    async with client.http.post(f"/batches/{batch}/cancel") as reply:
        assert reply.status == 202
        assert (await reply.json())["status"] == "cancelled"
    results = await client.results(batch)
    assert len({it["custom_id"] for it in results}) == len(results) == 500
    sent = [it for it in results if "status" in it]
    assert len(sent) == len(app.calls) < 400
    assert {it["error"]["code"] for it in results if "error" in it} == {"batch_cancelled"}
    async with client.http.post(f"/batches/{batch}/cancel") as reply:
        assert reply.status == 409
    async with client.http.delete(f"/batches/{batch}") as reply:
        assert reply.status == 200
    async with client.http.get(f"/batches/{batch}/results") as reply:
        assert reply.status == 404


async def test_bad_lines_are_named(client: BatchClient, app: CountingApp) -> None:
    """All bad lines are told with their numbers and nothing is accepted; or they are left out, as asked."""
    good = jobs(3, "GET")
    bad = b'{"custom_id": "x"\n' + ndjson(
        [
            {"custom_id": "1", "method": "GET", "url": "/jobs/1"},
            {"custom_id": "n", "method": "GET", "url": "/nowhere"},
            {"custom_id": "h", "method": "GET", "url": "https://elsewhere.example/"},
        ]
    )
    status, answer = await client.submit(good + bad)
    assert status == 400
    assert [error["line"] for error in answer["errors"]] == [4, 5, 6, 7]
    assert "not JSON" in answer["errors"][0]["detail"]
    assert "line 2" in answer["errors"][1]["detail"]
    assert "sidecar routes" in answer["errors"][2]["detail"]
    assert not app.calls
    status, answer = await client.submit(good + bad, on_error="skip")
    assert (status, answer["skipped"], answer["counts"]["total"]) == (202, 4, 3)
    assert len(await client.results(answer["id"])) == 3
    for empty in (b"", b"\n\n"):
        status, answer = await client.submit(empty)
        assert (status, answer["errors"][0]["line"]) == (400, 1)
    status, answer = await client.submit(b"x" * (5 << 20))
    assert (status, answer["errors"][0]["line"]) == (400, 1)
    assert "4 MiB" in answer["errors"][0]["detail"]
    status, answer = await client.submit(good, priority="highest")
    assert (status, answer["detail"]) == (400, 'priority: "highest" is not one of high, normal, low')


async def test_a_store_that_is_full(tmp_path: Path, app: CountingApp) -> None:
    """A batch that does not fit is refused with 507 and leaves nothing; what was accepted goes on."""
    sidecar = batch_sidecar(tmp_path, app, batch={"max_store": "1MiB"}, logging={"access": False})
    await started(sidecar)
    app.seconds = 0.05
    try:
        async with BatchClient(sidecar) as client:
            batch = await client.accepted(jobs(200, "GET"))
            line = {"custom_id": "", "method": "POST", "url": "/jobs/large", "body": "x" * 5000}
            status, answer = await client.submit(ndjson({**line, "custom_id": f"{n}"} for n in range(500)))
            assert status == 507
            assert "no room" in answer["detail"]
            assert len(await client.results(batch)) == 200
            async with client.http.get("/batches") as reply:
                assert [it["id"] for it in (await reply.json())["batches"]] == [batch]
    finally:
        await sidecar.end()


async def test_a_store_that_fills_up_while_it_runs(tmp_path: Path, app: CountingApp) -> None:
    """Results that do not fit pause the batch, and health says so; with room it goes on, nothing lost."""
    sidecar = batch_sidecar(tmp_path, app, batch={"max_store": "1MiB"}, logging={"access": False})
    await started(sidecar)
    app.padding = 1000  # three results a page of SQLite's
    try:
        async with BatchClient(sidecar) as client:
            old = await client.accepted(jobs(500, "GET"))
            assert len(await client.results(old)) == 500
            app.calls.clear()
            batch = await client.accepted(jobs(500, "GET"))
            shown = await client.until(batch, lambda shown: shown["status"] == "paused")
            assert "no room" in shown["reason"]
            assert 0 < shown["counts"]["completed"] < 500
            async with client.http.get("/health/detailed") as reply:
                check = (await reply.json())["checks"]["batch"]
            assert (check["status"], check["required"]) == ("degraded", False)
            async with client.http.delete(f"/batches/{old}") as reply:
                assert reply.status == 200
            results = await client.results(batch)
        assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(500)}
        assert {it["status"] for it in results} == {200}
        assert set(app.calls.values()) == {1}
    finally:
        await sidecar.end()


async def test_stopped_while_its_store_is_full(tmp_path: Path, app: CountingApp) -> None:
    """SIGTERM ends a sidecar whose batch is paused well before its drain time is over; with room, the next
    start ends the batch: one result a line.
    """
    settings = {"limits": {"drain": "10s"}, "logging": {"access": False}}
    sidecar = batch_sidecar(tmp_path, app, batch={"max_store": "1MiB"}, **settings)
    await started(sidecar)
    app.padding = 4000
    async with BatchClient(sidecar) as client:
        batch = await client.accepted(jobs(500, "GET"))
        await client.until(batch, lambda shown: shown["status"] == "paused")
    began = time.monotonic()
    assert await sidecar.end() == 0
    assert time.monotonic() - began < 8
    sidecar = batch_sidecar(tmp_path, app, batch={"max_store": "20MiB"}, **settings)
    await started(sidecar)
    async with BatchClient(sidecar) as client:
        results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(500)}
    assert {it["status"] for it in results} == {200}
    assert await sidecar.end() == 0


async def test_a_reload_loses_nothing(sidecar: Sidecar, client: BatchClient, app: CountingApp) -> None:
    """POST /admin/reload, again and again while a batch runs: each line is sent once and has one result, and
    the new configuration is in force.
    """
    app.seconds = 0.02
    batch = await client.accepted(jobs(1200, "GET", "POST"), max_concurrency="10")
    policy = sidecar.folder / "policy.yaml"
    written = yaml.safe_load(policy.read_text())
    for attempts in range(2, 5):
        written["routes"][0]["retry"] = {"attempts": attempts}
        policy.write_text(yaml.safe_dump(written))
        async with client.http.post("/admin/reload") as reply:
            assert (await reply.json())["result"] == "applied"
        enough = 60 * attempts
        await client.until(batch, lambda shown, enough=enough: shown["counts"]["completed"] > enough)  # type: ignore[misc]
    assert (await client.show(batch))["counts"]["pending"] > 0
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(1200)}
    assert {it["status"] for it in results} == {200}
    assert set(app.calls.values()) == {1}

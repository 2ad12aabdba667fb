"""What outlives a request, or leaves the process, has no key: batches, traces, reports, history, crashes."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

from tests.support.batches import BatchClient, ndjson
from tests.support.collector import Collector
from tests.support.doors import running as programs
from tests.support.harness import eventually
from tests.support.marked import DEAD, HEADERS, HOST, INJECTED, QUERY, SENT, MarkedSidecar, found
from tests.support.processes import TinyApp, free_port, until_connects
from tests.support.valkey import Valkey, running

SENT_HEADERS = {name: value for name, value in HEADERS.items() if not name.startswith(("X-Sidecar", "trace"))}
LINES: list[dict[str, Any]] = [
    {"url": f"http://{HOST}/shared/line?{QUERY}"},
    {"url": f"http://{HOST}/shared/other?{QUERY}"},
    {"url": f"http://{DEAD}/shared/line?{QUERY}"},
    {
        "url": f"http://{HOST}/shared/big",
        "method": "POST",
        "body": {"api_key": SENT, "padding": "x" * 30_000},
    },
    {"url": f"http://{DEAD}/shared/", "method": "POST", "body": {"api_key": SENT}},
]


def file_of(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return ndjson(
        {"custom_id": str(number), "method": "GET", "headers": SENT_HEADERS, **line}
        for number, line in enumerate(lines)
    )


def held(store: Path | Valkey) -> str:
    """All that a store of batches has, as bytes on the disk or in the server."""
    if isinstance(store, Path):
        files = list(store.parent.glob(f"{store.name}*"))
        assert files
        return "\n".join(file.read_text("latin-1") for file in files)
    parts: list[object] = []
    for key in store.stored():
        parts += [key, store.ask("DUMP", key)]
    return "\n".join(it.decode("latin-1") if isinstance(it, bytes) else repr(it) for it in parts)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
async def test_a_batch_that_is_over(tmp_path: Path, kind: str) -> None:
    """Lines with keys, to providers that get one of ours, answered and failed: the store has none of them,
    nor have results, events, pages and the log; a line that is refused is told without.
    """
    app = TinyApp(tmp_path)
    with ExitStack() as stack:
        store: Path | Valkey = tmp_path / "batch.db"
        batch: dict[str, str] = {"store": "sqlite:batch.db"}
        if kind == "valkey":
            store = server = stack.enter_context(running(port=free_port()))
            server.ask("ACL", "SETUSER", "sidecar", "on", f">{INJECTED}", "~*", "&*", "+@all")
            batch = {"store": server.url.replace("//", "//sidecar@"), "password": "${MARK}"}
        sidecar = MarkedSidecar(tmp_path, app, batch=batch)
        async with programs(app, sidecar):
            async with BatchClient(sidecar) as client:
                name = await client.accepted(file_of(LINES), deadline="2s")
                results = await client.results(name)
                seen = [str(results), str(await client.show(name))]
                assert sorted(it["custom_id"] for it in results if it.get("status") == 200) == ["0", "1", "3"]
                assert sorted(it["custom_id"] for it in results if "error" in it) == ["2", "4"]
                status, told = await client.submit(
                    file_of([{"url": f"http://{HOST}/x?key={SENT}#"}, {"url": f"ftp://x/?key={SENT}"}])
                )
                assert status == 400
                seen.append(str(told))
                for page in ("/batches", f"/batches/{name}", f"/batches/{name}/events", "/admin/batch/stats"):
                    async with client.http.get(page) as reply:
                        seen.append(await reply.text())
            kept = held(store)
            assert name in kept
            places = {"store": kept, "answers and pages": "\n".join(seen)}
            assert found(places) == []
            assert await sidecar.end() == 0
        assert found({"log": sidecar.output.read_text(), "store": held(store)}) == []


@pytest.mark.timeout(90)
async def test_traces(tmp_path: Path) -> None:
    """Spans of calls that were answered, failed and refused, as a collector gets them."""
    app = TinyApp(tmp_path)
    async with Collector() as collector:
        tracing = {"otlp": collector.url, "ratio": "100%", "headers": {"x-token": "${MARK}"}}
        sidecar = MarkedSidecar(tmp_path, app, tracing=tracing)
        async with programs(app, sidecar):
            await until_connects(sidecar.egress)
            base = f"http://127.0.0.1:{sidecar.egress}"
            async with aiohttp.ClientSession(headers=HEADERS) as http:
                for url in (
                    f"{base}/provider/shared/x?{QUERY}",
                    f"{base}/dead/x?{QUERY}",
                    f"{base}/provider/a;key={SENT}/b?{QUERY}&%6Bey={SENT}",
                    f"{base}/unknown?{QUERY}",
                    f"{sidecar.url}/hello?{QUERY}",
                ):
                    async with http.get(url) as reply:
                        await reply.read()
                for target in (f"http://{HOST}/shared/y?{QUERY}", f"http://unlisted.invalid/?{QUERY}"):
                    async with http.get(target, proxy=base) as reply:
                        await reply.read()
            await collector.until(11)
            assert await sidecar.end() == 0
        assert {"x-token": INJECTED}.items() <= collector.headers[0].items(), "the collector is asked with it"
        assert found({"spans": repr(collector.spans)}) == []


@pytest.mark.timeout(90)
async def test_reports_of_a_stress_test(tmp_path: Path) -> None:
    """Its requests carry keys, and so does what it asks the sidecar: no report and no output has one."""
    app = TinyApp(tmp_path)
    sidecar = MarkedSidecar(tmp_path, app, admin={"token": "${MARK}"})
    paths = [f"/shared/x?{QUERY}", f"/hello?{QUERY}", f"/status/500?{QUERY}", f"/nothing/{{{{n}}}}?{QUERY}"]
    fault = {"percent": "50%", "respond": {"status": 503}}
    scenario = {
        "name": "marked",
        "title": "calls with keys",
        "load": {"steps": [{"rate": "20/s", "duration": "1s"}]},
        "traffic": [{"path": path, "headers": {"Authorization": f"Bearer {SENT}"}} for path in paths]
        + [{"method": "POST", "path": "/echo", "body": f"key={SENT}", "wrong_if": "key="}],
        "faults": [{"at": "200ms", "duration": "300ms", "inject": {"upstream": "app", "fault": fault}}],
        "assert": {"availability": "99.99%", "wrong": "0%"},
    }
    (tmp_path / "marked.yaml").write_text(yaml.safe_dump(scenario))
    async with programs(app, sidecar):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "stress", "marked.yaml", "--target", sidecar.url),
            *("--admin", sidecar.admin, "--json", "r.json", "--markdown", "r.md", "--html", "r.html"),
            env={**sidecar.environment, "SIDECAR_ADMIN_TOKEN": INJECTED},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        shown = (await process.communicate())[0].decode()
        assert process.returncode == 1, shown
    places = {name: (tmp_path / name).read_text() for name in ("r.json", "r.md", "r.html")}
    assert json.loads(places["r.json"])["scenarios"][0]["load"]["failed"] > 0
    assert found({**places, "output": shown, "log": sidecar.output.read_text()}) == []


@pytest.mark.timeout(90)
async def test_a_crash_with_calls_in_flight(tmp_path: Path) -> None:
    """No key is in what it says, in the list of processes, in history; and it may leave no core file, while
    the app that it started may as before.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    given = hard if hard != 0 else soft
    app = TinyApp(tmp_path)
    sidecar = MarkedSidecar(tmp_path, app)
    sidecar.command += ["--", sys.executable, "-c", "import time; time.sleep(60)"]
    raise_it = "import os, resource, sys; r = resource.RLIMIT_CORE; h = resource.getrlimit(r)[1]; "
    raise_it += "resource.setrlimit(r, (h, h)); os.execv(sys.argv[1], sys.argv[1:])"
    sidecar.command = [sys.executable, "-c", raise_it, *sidecar.command]
    sidecar.environment["PYTHONFAULTHANDLER"] = "1"
    async with programs(app, sidecar):
        process = psutil.Process(sidecar.pid)
        await eventually(lambda: _started(sidecar) is not None, "the app was started")
        child = psutil.Process(_started(sidecar))
        try:
            async with aiohttp.ClientSession(headers=HEADERS) as http:
                calls = [
                    asyncio.create_task(_gone(http, f"{sidecar.url}/slow?{QUERY}")),
                    asyncio.create_task(
                        _gone(http, f"http://127.0.0.1:{sidecar.egress}/provider/slow?{QUERY}")
                    ),
                ]
                await asyncio.sleep(0.2)
                listed = "\n".join(" ".join(it.cmdline()) for it in (process, child))
                assert process.rlimit(psutil.RLIMIT_CORE) == (0, hard)
                assert child.rlimit(psutil.RLIMIT_CORE) == (given, hard)
                assert await sidecar.end(signal.SIGABRT) == -signal.SIGABRT
                assert await asyncio.gather(*calls) == [True, True]
        finally:
            child.kill()
    said = sidecar.output.read_text()
    assert "Fatal Python error" in said
    history = [file.read_text() for file in (tmp_path / ".sidecar" / "history").iterdir()]
    assert len(history) == 1
    assert found({"output": said, "processes": listed, "history": history[0]}) == []


def _started(sidecar: MarkedSidecar) -> int | None:
    """The app's process, once there is one."""
    return next((it["pid"] for it in sidecar.log() if it["message"] == "started the app"), None)


async def _gone(http: aiohttp.ClientSession, url: str) -> bool:
    """Whether the call broke off."""
    try:
        async with http.get(url) as reply:
            await reply.read()
    except aiohttp.ClientError:
        return True
    return False

"""The ladder as its user runs it: real sockets, a real process, an app that is killed."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.origin import self_signed
from tests.support.processes import ROOT, Program, Sidecar, TinyApp, free_port, total

RATE = 150
SECONDS = 7
KILLED_AT = 1.5
DOWN_FOR = 2.0
INTERVAL = 0.5
"""Of probes; the breaker is open for no longer."""
WARM = 20
LATER = {"status": "later", "item": "{item}"}
POLICIES = {
    "name": "tiny",
    "routes": [
        {
            "name": "items",
            "match": {"method": "GET", "path": "/items/{item}"},
            "deadline": "4s",
            "attempt_timeout": "2s",
            "retry": {"attempts": 2, "backoff": {"base": "100ms", "max": "200ms"}},
            "circuit_breaker": {
                "consecutive": 3,
                "open_for": "250ms",
                "open_max": "500ms",
                "half_open_probes": 1,
            },
            "cache": {
                "ttl": "300ms",
                "stale_while_revalidate": "200ms",
                "stale_if_error": "1m",
                "probe_interval": "500ms",
            },
            "fallback": [{"respond": {"json": LATER}}],
        }
    ],
}


@dataclass(frozen=True)
class Seen:
    """An answer as the client got it."""

    at: float
    """Seconds after the start when it was asked for."""
    warm: bool
    status: int
    rung: str
    """By the wire: `normal` where nothing says that it is degraded."""
    body: dict[str, Any]
    seconds: float


@pytest.fixture
async def programs() -> AsyncIterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        if program.process is not None and program.process.returncode is None:
            await program.end(signal.SIGKILL)


async def drive(url: str) -> list[Seen]:
    """RATE requests a second, on schedule: three for warm keys, then one for a key that nobody has."""
    loop = asyncio.get_running_loop()
    seen: list[Seen] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        for number in range(WARM):
            async with http.get(f"{url}/items/{number}") as reply:
                assert reply.status == 200
        start = loop.time()

        async def send(number: int) -> None:
            at = loop.time() - start
            warm = number % 4 != 3
            key = number % WARM if warm else f"cold-{number}"
            async with http.get(f"{url}/items/{key}") as reply:
                degraded = reply.headers.get("Sidecar-Degraded")
                rung = degraded.removeprefix("fallback;rung=") if degraded is not None else "normal"
                body = await reply.json(content_type=None)
                seen.append(Seen(at, warm, reply.status, rung, body, loop.time() - start - at))

        async with asyncio.TaskGroup() as group:
            for number in range(RATE * SECONDS):
                await asyncio.sleep(max(0.0, start + number / RATE - loop.time()))
                group.create_task(send(number))
    return seen


@pytest.mark.slow
async def test_an_upstream_that_is_killed(tmp_path: Path, programs: list[Program]) -> None:
    """Warm keys are answered throughout, cold ones by the template; then all is as before. The sums agree."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, POLICIES)
    programs += [sidecar, app]
    await app.start()
    await sidecar.start()
    loop = asyncio.get_running_loop()
    back = 0.0

    async def kill_and_restart() -> None:
        nonlocal back
        start = loop.time()
        await asyncio.sleep(KILLED_AT)
        await app.end(signal.SIGKILL)
        await asyncio.sleep(DOWN_FOR)
        await app.start()
        back = loop.time() - start

    seen, _ = await asyncio.gather(drive(sidecar.url), kill_and_restart())
    assert len(seen) == RATE * SECONDS
    assert back < SECONDS - 1

    # Nobody saw an error: warm keys kept their own content, cold ones got the template, and it said so.
    assert {one.status for one in seen} == {200}
    for one in seen:
        if one.rung == "respond":
            assert not one.warm
            assert one.body["status"] == "later"
            assert one.body["item"].startswith("cold-")
        else:
            assert one.body["path"].startswith("/items/")
    outage = [one for one in seen if KILLED_AT + 0.7 < one.at < KILLED_AT + DOWN_FOR]
    assert {one.rung for one in outage if one.warm} == {"stale"}
    assert {one.rung for one in outage if not one.warm} == {"respond"}

    # No warm key waited for attempts and back-off once the outage was known.
    waits = sorted(one.seconds for one in outage if one.warm)
    assert waits[len(waits) * 95 // 100] < 0.05

    # One probe interval after the app was back (and the breaker let a probe pass) all is normal.
    after = [one for one in seen if one.at > back + 2 * INTERVAL + 0.3]
    assert after
    assert {one.rung for one in after} == {"normal"}

    # By rung, and with the normal answers: what metrics and log say is what the clients saw.
    by_rung = Counter(one.rung for one in seen)
    metrics = await sidecar.metrics()
    for rung in ("stale", "respond"):
        assert total(metrics, "nextvision_fallbacks_total", route="items", rung=rung) == by_rung[rung]
    requests = total(metrics, "nextvision_api_requests_total", route="items")
    fallbacks = total(metrics, "nextvision_fallbacks_total", route="items")
    assert fallbacks + by_rung["normal"] + WARM == requests
    await sidecar.end()
    logged = Counter(line["rung"] or "normal" for line in sidecar.requests())
    assert logged - Counter({"normal": WARM}) == by_rung


async def test_another_upstream_over_tls(tmp_path: Path, programs: list[Program]) -> None:
    """It is reached at its own address with its own certificate, and asked for its own Host."""
    certificate = self_signed(tmp_path)
    port = free_port()
    script = str(Path(__file__).parents[1] / "support" / "tiny_app.py")
    backup = TinyApp(tmp_path, port)
    backup.command = [backup.command[0], script, str(port), str(certificate.path), str(certificate.key)]
    ladder = [
        {
            "upstream": f"https://localhost:{port}",
            "connect_to": f"127.0.0.1:{port}",
            "tls": {"ca": str(certificate.path)},
            "deadline": "3s",
            "methods": ["GET", "POST"],
        },
        {"respond": {"status": 503, "text": "nobody"}},
    ]
    policies = {"name": "tiny", "routes": [{"name": "all", "deadline": "2s", "fallback": ladder}]}
    sidecar = Sidecar(tmp_path, free_port(), policies)  # nobody listens where the app should be
    programs += [sidecar, backup]
    await backup.start()
    await sidecar.start()
    async with aiohttp.ClientSession(sidecar.url) as http:
        async with http.post("/echo?a=b", data=b"x" * 200_000, headers={"X-Key": "k"}) as reply:
            told = await reply.json()
            assert (reply.status, reply.headers["Sidecar-Degraded"]) == (200, "fallback;rung=upstream")
            assert reply.headers["Cache-Control"] == "no-store"
        assert (told["method"], told["target"], told["length"]) == ("POST", "/echo?a=b", 200_000)
        assert told["headers"]["host"] == f"localhost:{port}"
        assert told["headers"]["x-forwarded-host"] == f"127.0.0.1:{sidecar.port}"
        assert told["headers"]["x-key"] == "k"
        await backup.end(signal.SIGKILL)
        async with http.get("/echo") as reply:
            assert (reply.status, await reply.text()) == (503, "nobody")
            assert reply.headers["Sidecar-Degraded"] == "fallback;rung=respond"
        async with http.head("/echo") as reply:
            assert (reply.status, reply.headers["Content-Length"]) == (503, "6")
    metrics = await sidecar.metrics()
    name = f"https://localhost:{port}"
    assert total(metrics, "nextvision_upstream_attempts_total", upstream=name, verdict="ok") == 1
    assert total(metrics, "nextvision_fallbacks_total", route="all", rung="upstream") == 1
    assert total(metrics, "nextvision_fallbacks_total", route="all", rung="respond") == 2
    assert total(metrics, "nextvision_route_info", route="all", upstream="app") == 1


async def test_a_route_that_the_sidecar_answers(tmp_path: Path, programs: list[Program]) -> None:
    """Without an app; the connection is of use for the next request, whatever came with the first."""
    respond = {"status": 503, "headers": {"Retry-After": 60}, "json": {"detail": "{part} is not here"}}
    route = {"name": "parsers", "match": {"path": "/api/{part}/parse"}, "respond": respond}
    sidecar = Sidecar(tmp_path, free_port(), {"name": "tiny", "routes": [route]})
    programs.append(sidecar)
    await sidecar.start()
    async with aiohttp.ClientSession(sidecar.url) as http:
        for body in (b"", b"x" * 1000, b"y" * 300_000):
            async with http.post("/api/cv%22/parse", data=body) as reply:
                assert (reply.status, reply.headers["Retry-After"]) == (503, "60")
                assert reply.headers["Content-Type"] == "application/json"
                assert await reply.json() == {"detail": 'cv" is not here'}
    await sidecar.end()
    assert [line["trail"] for line in sidecar.requests()] == ["respond;status=503"] * 3


async def test_a_quota_that_is_used_up(tmp_path: Path, programs: list[Program]) -> None:
    """The shipped rules and ladder for OpenAI: one call, then a hold, and answers within 50 ms."""
    calls = 0
    error = {"type": "insufficient_quota", "code": "insufficient_quota", "message": "no credit"}

    async def refuse(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        await request.read()
        return web.json_response({"error": error}, status=429)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", refuse)
    policy = (ROOT / "policies/openai.yaml").read_text()
    async with TestServer(application) as provider:
        for there, here in (
            ("direction: egress", "direction: ingress"),
            ("hosts: [api.openai.com]\n", ""),
            ("https://api.openai.com", f"http://127.0.0.1:{provider.port}"),
        ):
            assert there in policy
            policy = policy.replace(there, here)
        sidecar = Sidecar(tmp_path, free_port(), POLICIES)
        (tmp_path / "policy.yaml").write_text(policy)
        programs.append(sidecar)
        await sidecar.start()
        async with aiohttp.ClientSession(sidecar.url) as http:
            for _ in range(20):
                async with http.post("/v1/chat/completions", json={"model": "m"}) as reply:
                    assert (reply.status, reply.headers["x-should-retry"]) == (429, "false")
                    assert (await reply.json())["error"]["code"] == "insufficient_quota"
                    assert reply.headers["Sidecar-Degraded"] == "fallback;rung=respond"
        assert calls == 1
        await sidecar.end()
        took = sorted(line["duration_ms"] for line in sidecar.requests())
        assert took[len(took) // 2] < 50, took
        first, *held = [line["trail"].count("upstream;") for line in sidecar.requests()]
        assert (first, set(held)) == (1, {0})

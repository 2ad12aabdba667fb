"""The admin listener over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import psutil
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar.admin.api import AdminServer, start
from sidecar.admin.breaker_pages import BreakerPages, Breakers
from sidecar.admin.cache_pages import CacheControl, CachePages
from sidecar.admin.fault_pages import FaultControl, FaultPages
from sidecar.admin.health_pages import HealthPages, MetricsPages
from sidecar.admin.route import Subject
from sidecar.clock import SystemClock
from sidecar.config.addresses import Address
from sidecar.decisions.breaker import Breaker, State
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.collector import Collector
from sidecar.telemetry.health import Health
from sidecar.telemetry.history import History
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.probes import Finding, Sign
from sidecar.telemetry.system import System
from sidecar.telemetry.upstream_checks import UpstreamChecks

parse_openmetrics: Callable[[str], Iterator[Metric]] = openmetrics_parser.text_string_to_metric_families
LOOPBACK = Address("127.0.0.1", 0)


class Switch:
    """A probe that finds what it was last told to."""

    def __init__(self) -> None:
        self.finding = Finding(Sign.PASSED)

    async def __call__(self) -> Finding:
        return self.finding

    async def close(self) -> None: ...


class Admin:
    """A sidecar without its data plane."""

    def __init__(self) -> None:
        self.clock = clock = SystemClock()
        system = System(clock)
        self.metrics = Metrics()
        self.probe = Switch()
        self.health = Health(clock, system=system, probe=self.probe, version="1.2.3")
        self.history = History(self.metrics, clock.now())
        self.health.add_all(UpstreamChecks(self.metrics, self.history, clock))
        self.collector = Collector(
            self.metrics, clock=clock, system=system, access_log=AccessLog(None, clock), version="1.2.3"
        )
        self.breakers = Breakers(self.metrics, clock)
        self.server: AdminServer

    async def start(
        self,
        address: Address,
        cache: CacheControl | None = None,
        token: str | None = None,
        faults: FaultControl | None = None,
        *,
        production: bool = False,
        subjects: Sequence[Subject] = (),
    ) -> None:
        usual: list[Subject] = [
            HealthPages(self.health),
            MetricsPages(self.collector),
            CachePages(lambda: cache),
            FaultPages(faults, production=production),
            BreakerPages(self.breakers),
        ]
        self.server = await start(address, [*usual, *subjects], version="1.2.3", token=lambda: token)

    def find(self, sign: Sign, times: int = 1) -> None:
        for _ in range(times):
            self.health._app.judge(Finding(sign, sign.value), flowing=False)


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    """Listening, its app healthy."""
    admin = Admin()
    await admin.start(LOOPBACK)
    admin.find(Sign.PASSED)
    admin.health.open()
    yield admin
    await admin.health.close()
    await admin.server.close()


@pytest.fixture
async def client(admin: Admin) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{admin.server.address}") as session:
        yield session


async def test_health_is_200_while_serving(admin: Admin, client: aiohttp.ClientSession) -> None:
    """Whatever the status says: restarting the sidecar would not mend the app."""
    async with client.get("/health") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert (await response.json())["status"] == "healthy"
    admin.find(Sign.DEAD, 3)
    async with client.get("/health") as response:
        assert response.status == 200
        assert (await response.json())["status"] == "unhealthy"
    admin.health.drain()
    async with client.get("/health") as response:
        assert response.status == 503


async def test_ready_follows_the_app(admin: Admin, client: aiohttp.ClientSession) -> None:
    """Degraded is ready; a dead app is not, with the reason; recovered is."""
    for sign, times, status, ready in [
        (Sign.BUSY, 5, "degraded", True),
        (Sign.DEAD, 3, "unhealthy", False),
        (Sign.PASSED, 1, "healthy", True),
    ]:
        admin.find(sign, times)
        async with client.get("/health/ready") as response:
            body = await response.json()
            assert response.status == (200 if ready else 503)
            assert (body["status"], body["ready"]) == (status, ready)
            assert ready or body["reason"] == "the app: dead"


async def test_an_open_breaker_is_degraded_and_ready(admin: Admin, client: aiohttp.ClientSession) -> None:
    """An optional upstream that fails takes nobody out of service."""
    breaker = Breaker()
    breaker.force(State.OPEN, None, 0.0)
    admin.metrics.watch_breaker("maps", breaker)
    async with client.get("/health/ready") as response:
        assert response.status == 200
        assert (await response.json())["status"] == "degraded"
    async with client.get("/health/detailed") as response:
        checks = (await response.json())["checks"]
    assert checks["upstream:maps"]["circuit_breaker"] == "open"
    assert checks["app"]["status"] == "healthy"


async def test_live_is_always_200(admin: Admin, client: aiohttp.ClientSession) -> None:
    """A dead app and a drain are no reason to kill the sidecar."""
    admin.find(Sign.DEAD, 3)
    admin.health.drain()
    async with client.get("/health/live") as response:
        assert response.status == 200
        assert (await response.json())["status"] == "healthy"


async def test_metrics_in_both_formats(admin: Admin, client: aiohttp.ClientSession) -> None:
    """Text by default, OpenMetrics on request, both strictly valid."""
    admin.metrics.route("things", "app").record("GET", 200, 0.01)
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        names = {family.name for family in parse_text(await response.text())}
    assert "nextvision_api_requests" in names
    async with client.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert response.content_type == "application/openmetrics-text"
        names = {family.name for family in parse_openmetrics(await response.text())}
    assert "nextvision_api_requests" in names


async def test_the_openapi_document_tells_the_truth(admin: Admin, client: aiohttp.ClientSession) -> None:
    """Every path is there, and every JSON answer, healthy or not, is as its schema says."""
    async with client.get("/openapi.json") as response:
        document: dict[str, Any] = await response.json()
    assert document["openapi"] == "3.1.0"
    assert {path for path, item in document["paths"].items() if "get" in item} == set(
        admin.server.pages.paths
    )
    for unwell in (False, True):
        if unwell:
            admin.find(Sign.DEAD, 3)
            admin.health.drain()
        for path in admin.server.pages.paths:
            async with client.get(path) as response:
                described = document["paths"][path]["get"]["responses"][str(response.status)]["content"]
                assert response.content_type in described
                if response.content_type == "application/json":
                    schema = described["application/json"]["schema"]
                    jsonschema.Draft202012Validator(schema).validate(await response.json())


@pytest.mark.parametrize("path", ["/nothing", "/health/", "/metrics/x", "/%2e%2e/etc"])
async def test_an_unknown_path_is_a_json_404(client: aiohttp.ClientSession, path: str) -> None:
    """RFC 9457, with the paths that there are."""
    async with client.get(path) as response:
        assert response.status == 404
        assert response.content_type == "application/problem+json"
        body = await response.json(content_type=None)
    assert body["status"] == 404
    assert "/health/ready" in body["detail"]
    assert "/admin/cache/purge" in body["detail"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_reading_paths_take_no_other_method(client: aiohttp.ClientSession, method: str) -> None:
    """405 with Allow, in JSON."""
    async with client.request(method, "/health") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD"
        assert response.content_type == "application/problem+json"


async def test_head_is_answered(client: aiohttp.ClientSession) -> None:
    """Some load balancers probe with HEAD."""
    async with client.head("/health/ready") as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_answers_are_not_stored(client: aiohttp.ClientSession) -> None:
    """A cached health is a wrong one."""
    async with client.get("/health") as response:
        assert response.headers["Cache-Control"] == "no-store"


async def test_a_bug_is_a_json_500(admin: Admin, client: aiohttp.ClientSession) -> None:
    """Nothing of it is told to the client."""

    class Bad(Breaker):
        def state(self, now: float) -> State:
            raise RuntimeError("the secret")

    admin.metrics.watch_breaker("bad", Bad())
    async with client.get("/health") as response:
        assert response.status == 500
        assert "secret" not in await response.text()


async def test_an_address_in_use_is_an_error_at_once(admin: Admin) -> None:
    """The start fails with the operating system's error, and leaves nothing behind."""
    with pytest.raises(OSError, match="in use"):
        await start(admin.server.address, [HealthPages(admin.health)], version="")


async def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    """`unix:` addresses work as well."""
    admin = Admin()
    await admin.start(Address(unix=str(tmp_path / "admin.sock")))
    connector = aiohttp.UnixConnector(str(tmp_path / "admin.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://localhost/health/live") as response,
    ):
        assert response.status == 200
    await admin.server.close()


async def test_close_ends_the_listener(admin: Admin) -> None:
    """After `close` nobody is served, no task and no descriptor is left."""
    tasks = asyncio.all_tasks()
    descriptors = psutil.Process().num_fds()
    other = Admin()
    await other.start(LOOPBACK)
    address = other.server.address
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/health/live") as response:
        assert response.status == 200
    await other.server.close()
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection(address.host, address.port)
    assert asyncio.all_tasks() <= tasks
    assert psutil.Process().num_fds() == descriptors

"""The sample app while Google fails in every way it can: real processes, real sockets, real TLS.

`tests/pipeline/test_provider_outage.py` has the ten minutes and the shipped times, in virtual time. Here the
waits of the policy are shorter, so that ten ways to fail fit into half a minute. The app's own breaker keeps
its times: had it opened once, after five failures, it would stay open for longer than the test takes.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import yaml

from tests.support.doors import running
from tests.support.processes import ROOT, Program, Sidecar, free_port, until_connects
from tests.support.world import GOOGLE, World, no_namespaces

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

MODES = ["fail", "reset", "hang", "truncate", "unknown_error", "quota", "daily_quota", "denied"]
REFUSED = "refused"
SECONDS = 2.0
"""Of an outage in one mode."""
SHORTER = {
    "deadline": "2s",
    "attempt_timeout": "500ms",
    "retry": {
        "attempts": 3,
        "backoff": {"strategy": "full_jitter", "base": "20ms", "max": "200ms"},
        "budget": {"ratio": "20%", "min_per_second": 1},
    },
    "circuit_breaker": {
        "failure_ratio": "50%",
        "minimum_calls": 5,
        "window": "20s",
        "consecutive": 5,
        "open_for": "500ms",
        "open_max": "2s",
        "half_open_probes": 3,
    },
    "pace": {"rate": "50/s", "burst": 10, "patience": "1s", "hold": "1s"},
}
"""In the place of the shipped policy's `defaults`."""
REQUEST: dict[str, Any] = json.loads((ROOT / "examples/payloads/matching_transport_request.json").read_text())


class Score(NamedTuple):
    """What a recruiter goes by."""

    total: float
    confidence: float
    kilometres: float


class Answer(NamedTuple):
    score: Score
    degraded: str | None
    cache: str


class Stand:
    """Google, the sidecar with the shipped policies, and the app twice.

    `app` is asked through the sidecar. `oracle` is asked itself, for what is true: it is another process, so
    that what it knows `app` has still to ask for.
    """

    def __init__(self, world: World) -> None:
        self.google = world.providers[GOOGLE]
        self._app_port, self._oracle_port = free_port(), free_port()
        script = [sys.executable, str(ROOT / "examples" / "nextvision_app.py"), "--port"]
        self.sidecar = _sidecar(world, self._app_port, *script, str(self._app_port))
        based = f"http://127.0.0.1:{self.sidecar.port}/google-maps/maps/api"
        if no_namespaces(world.folder) is not None:  # else its URL is the hard-coded one
            self.sidecar.environment["NEXTVISION_MAPS_BASE"] = based
        self.oracle = Program([*script, str(self._oracle_port)], world.folder / "oracle.out")
        self.oracle.environment["NEXTVISION_MAPS_BASE"] = based
        ingress = yaml.safe_load((world.folder / "sidecar.yaml").read_text())["listen"]["ingress"]
        self._urls = {False: f"http://{ingress}", True: f"http://127.0.0.1:{self._oracle_port}"}
        self.http: aiohttp.ClientSession

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self.sidecar, self.oracle), aiohttp.ClientSession() as self.http:
            for port in (self._app_port, self._oracle_port):
                await until_connects(port)
            yield

    async def ask(self, home: str, work: str, *, oracle: bool = False) -> Answer:
        body = {**REQUEST, "job_address": work}
        body["preferences"] = {**REQUEST["preferences"], "location_preferences": {"city": home}}
        url = f"{self._urls[oracle]}/api/v1/matching/candidate/c1"
        async with self.http.post(url, json=body) as reply:
            told = await reply.json()
            assert reply.status == 200, told
        result, way = told["matching_results"], told["transport_intelligence"]
        score = Score(result["total_score"], result["confidence"], way["distance_km"])
        return Answer(score, reply.headers.get("Sidecar-Degraded"), reply.headers.get("Cache-Status", ""))

    def asked_for(self) -> set[str]:
        """The addresses whose places the app has asked the sidecar for."""
        lines = [line["path"] for line in self.sidecar.requests() if line["route"] == "geocode"]
        return {address for path in lines for address in parse_qs(urlsplit(path).query)["address"]}


def _sidecar(world: World, app_port: int, *command: str) -> Sidecar:
    policy = yaml.safe_load((world.folder / "google-maps.yaml").read_text())
    assert SHORTER.keys() < policy["defaults"].keys()
    policy["defaults"] |= SHORTER
    [directions] = [it for it in policy["routes"] if it["name"] == "directions"]
    # Else what is known would be forgotten where the test goes over a fifth minute.
    directions["cache"]["key"]["query"]["bucket"] = {"departure_time": "1d"}
    for route in policy["routes"]:
        for rung in route.get("fallback", ()):
            rung["on"] = rung.pop(True)  # so PyYAML takes YAML 1.1's word
    (world.folder / "google-maps.yaml").write_text(yaml.safe_dump(policy))
    shipped = (ROOT / "policies" / "nextvision.yaml").read_text()
    (world.folder / "nextvision.yaml").write_text(shipped)
    made = world.sidecar(*command, policies=("nextvision", "google-maps"))
    file = world.folder / "sidecar.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["app"] = {"url": f"http://127.0.0.1:{app_port}"}
    file.write_text(yaml.safe_dump(settings))
    return made


@asynccontextmanager
async def outage(stand: Stand, mode: str) -> AsyncIterator[None]:
    if mode == REFUSED:
        await stand.google.end(signal.SIGKILL)
    else:
        await stand.google.switch(google={"mode": mode})
    try:
        yield
    finally:
        if mode == REFUSED:
            await stand.google.start()
        else:
            await stand.google.switch(google={"mode": "ok"})


async def test_scores_are_right_or_say_so(tmp_path: Path) -> None:
    """Warm: score, distance and confidence as with Google up, and no mark. Cold: marked, and not cached. The
    app asks on, as its own breaker never opens; and once Google is back, what is new is right at once.
    """
    world = World(tmp_path)
    stand = Stand(world)
    modes = [*MODES, REFUSED]
    async with running(stand.google), stand.running():
        truths = {mode: (await stand.ask("Paris", f"12 rue {mode}", oracle=True)).score for mode in modes}
        assert len({score.kilometres for score in truths.values()}) == len(modes)
        for mode in modes:
            cold: list[str] = []
            async with outage(stand, mode):
                end = asyncio.get_running_loop().time() + SECONDS
                # The place is in the sidecar's cache, the app has never asked for it.
                warm = await stand.ask("Paris", f"12 rue {mode}")
                assert (warm.score, warm.degraded) == (truths[mode], None), mode
                while asyncio.get_running_loop().time() < end or len(cold) < 4:
                    work = f"{len(cold)} new {mode}"
                    # Both unknown: 0 km, as by the app's own fallback. One known: a distance like any other.
                    home = "Paris" if len(cold) % 2 else f"home {work}"
                    for _ in range(2):
                        answer = await stand.ask(home, work)
                        assert answer.degraded is not None, (mode, work)
                        assert "hit" not in answer.cache, (mode, work)
                        assert "stored" not in answer.cache, (mode, work)
                    cold.append(work)
                    await asyncio.sleep(0.05)
            # 5 failures would have opened its breaker, and it would not have asked for the later ones.
            await _back(stand, mode)
            await _logged(stand, set(cold), mode)


async def _logged(stand: Stand, addresses: set[str], mode: str) -> None:
    """The app has asked for all of them. Lines are written a tenth of a second later, in batches."""
    for _ in range(60):
        if addresses <= stand.asked_for():
            return
        await asyncio.sleep(0.05)
    assert addresses <= stand.asked_for(), mode


async def _back(stand: Stand, mode: str) -> None:
    """Google answers again: an address that nobody knew is right, and the same as the oracle finds it."""
    for number in range(60):
        work = f"{number} after {mode}"
        answer = await stand.ask("Paris", work)
        if answer.degraded is None:
            assert answer.score == (await stand.ask("Paris", work, oracle=True)).score
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"still degraded after {mode}")

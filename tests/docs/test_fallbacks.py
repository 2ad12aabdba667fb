"""docs/fallbacks.md: each file in it loads without a warning, and does what is said of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sidecar.config.load import load_policy
from sidecar.config.policy import PolicyFile
from sidecar.errors import CircuitOpen, ConnectFailed, ConnectionReset, QuotaHeld
from sidecar.exchange import Response
from tests.support.script import Bench, answer, fail, ok, shown

TEXT = (Path(__file__).parents[2] / "docs/fallbacks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
STRATEGIES = (
    "cache_only",
    "approximate",
    "disable_feature",
    "simplified_response",
    "redirect_service",
    "manual_intervention",
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, PolicyFile]:
    """Every file of the page, by its name."""
    found = {}
    for number, block in enumerate(BLOCKS):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        loaded = load_policy(path, {})
        assert loaded.warnings == ()
        [policy] = loaded.policies
        found[policy.name] = policy
    return found


def degraded(response: Response) -> str | None:
    return shown(response, "sidecar-degraded")


def body(response: Response) -> object:
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


def test_every_strategy_is_there(files: dict[str, PolicyFile]) -> None:
    """Under its own heading, with a file of its name."""
    assert re.findall(r"^### (\w+)$", TEXT, flags=re.MULTILINE) == list(STRATEGIES)
    assert {name.replace("_", "-") for name in STRATEGIES} < files.keys()


async def test_the_first_example(files: dict[str, PolicyFile]) -> None:
    """The replica while it answers, then a template for each verdict."""
    bench = Bench(fail(ConnectFailed()))
    bench.others["https://replica.example.com"] = [ok(b"replica"), fail(ConnectFailed())]
    send = bench.of(files["search"].routes[0])
    assert (await send(target=b"/find/jobs?q=a+b")).body == b"replica"
    response = await send(target=b"/find/jobs?q=a+b")
    assert body(response) == {"kind": "jobs", "query": "a b", "hits": [], "partial": True}
    bench.script = [answer(429)]
    response = await send(target=b"/find/jobs")
    assert (response.status, shown(response, "retry-after")) == (429, "30")


async def test_cache_only(files: dict[str, PolicyFile]) -> None:
    """A day-old answer is better than none; without one the client is told to come again."""
    bench = Bench(ok(b"real"), fail(ConnectionReset()))
    send = bench.of(files["cache-only"].routes[0])
    await send(target=b"/api/v1/jobs/7")
    await bench.clock.advance(86_000)
    response = await send(target=b"/api/v1/jobs/7")
    assert (response.body, degraded(response)) == (b"real", "stale")
    response = await send(target=b"/api/v1/jobs/8")
    assert (response.status, body(response)) == (503, {"detail": "job 8 is not at hand"})


@pytest.mark.parametrize("outcome", [fail(ConnectFailed()), fail(QuotaHeld()), answer(403), answer(503)])
async def test_approximate(files: dict[str, PolicyFile], outcome: object) -> None:
    """Whatever is wrong, the app reads `OK`, a place, and the address that it asked for."""
    bench = Bench(outcome)  # type: ignore[arg-type]
    send = bench.of(files["approximate"].routes[0])
    response = await send(target=b"/maps/api/geocode/json?address=1+rue+%22X%22&key=S3CRET")
    told = body(response)
    assert isinstance(told, dict)
    assert (response.status, told["status"]) == (200, "OK")
    [result] = told["results"]
    assert result["geometry"]["location"] == {"lat": 48.8566, "lng": 2.3522}
    assert (result["formatted_address"], result["partial_match"]) == ('1 rue "X"', True)
    assert "S3CRET" not in str(told)


async def test_disable_feature(files: dict[str, PolicyFile]) -> None:
    """The feature says that it is off."""
    send = Bench(fail(ConnectFailed())).of(files["disable-feature"].routes[0])
    response = await send("POST", b"{}")
    assert body(response) == {"status": "disabled", "feature": "transport", "compatibility": None}


async def test_simplified_response(files: dict[str, PolicyFile]) -> None:
    """A chat completion whose content is the JSON that the app looks for."""
    send = Bench(answer(500)).of(files["simplified-response"].routes[0])
    told = body(await send("POST", b"{}"))
    assert isinstance(told, dict)
    content = told["choices"][0]["message"]["content"]
    assert json.loads(content) == {"name": None, "skills": [], "years_of_experience": 0}


async def test_redirect_service(files: dict[str, PolicyFile]) -> None:
    """The standby does the work, a POST that reached the first included; then the client goes elsewhere."""
    bench = Bench(answer(500))
    bench.others["http://matching-standby.internal:8000"] = [ok(b"standby"), fail(ConnectFailed())]
    send = bench.of(files["redirect-service"].routes[0])
    response = await send("POST", b"{}", target=b"/api/v1/matching/candidate/4%2F2")
    assert (response.body, degraded(response)) == (b"standby", "fallback;rung=upstream")
    response = await send("POST", b"{}", target=b"/api/v1/matching/candidate/4%2F2")
    assert response.status == 307
    assert shown(response, "location") == "https://eu.example.com/api/v1/matching/candidate/4%2F2"


async def test_manual_intervention(files: dict[str, PolicyFile]) -> None:
    """For what no retry mends, at once; all else stays an error of its own."""
    bench = Bench(fail(QuotaHeld()))
    send = bench.of(files["manual-intervention"].routes[0])
    response = await send("POST", b"", target=b"/api/v2/jobs/parse")
    assert (response.status, shown(response, "retry-after")) == (503, "3600")
    assert body(response) == {
        "detail": "jobs cannot be read until somebody has looked at it",
        "contact": "operations",
    }
    assert bench.metrics.route("parse", "app").fallbacks == {"respond": 1}
    bench.script = [fail(CircuitOpen())]
    response = await send("POST", b"", target=b"/api/v2/jobs/parse")
    assert shown(response, "sidecar-error") == "circuit_open"
    assert bench.metrics.route("parse", "app").fallbacks == {"respond": 1, "problem": 1}

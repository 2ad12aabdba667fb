"""A provider whose terms forbid to keep its answers: `terms_ack`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config.load import load
from tests.support.script import Bench, after, ok

ROOT = Path(__file__).parents[2]


async def test_until_the_terms_are_acknowledged_nothing_is_stored() -> None:
    """`false`: those who ask the same at a time share one call; who comes later makes a new one."""
    bench = Bench(after(1, ok(b"one", cache_control="max-age=60")), after(1, ok(b"two")))
    send = bench.route(cache={"ttl": "1h", "terms_ack": False})
    together = [send() for _ in range(20)]
    await bench.clock.advance(1)
    assert {(await sent).body for sent in together} == {b"one"}
    assert len(bench.calls) == 1
    assert (await bench.clock.complete(send())).body == b"two"
    assert len(bench.calls) == 2


@pytest.mark.parametrize("settings", [{"terms_ack": True}, {}])
async def test_where_they_are_or_there_are_none_it_is(settings: dict[str, bool]) -> None:
    """`true`, and a provider without such terms: as any cache."""
    bench = Bench(ok(b"one"))
    send = bench.route(cache={"ttl": "1h", **settings})
    await send()
    await send()
    assert bench.outcomes == ["miss", "hit"]


@pytest.mark.parametrize("environment", ["development", "testing", "staging", "production"])
def test_the_optional_bridge_is_a_valid_file(
    tmp_path: Path, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the shipped files, in each environment; without it nobody listens at the bridge's ports."""
    monkeypatch.chdir(ROOT)
    shipped = load(None, {"NEXTVISION_ENV": environment})
    assert not any(policy.takeover for policy in shipped.policies)
    text = (ROOT / "sidecar.yaml").read_text()
    assert "policies: [policies/*.yaml]" in text
    files = f"[{ROOT}/policies/*.yaml, {ROOT}/policies/optional/bridge.yaml]"
    (tmp_path / "sidecar.yaml").write_text(text.replace("[policies/*.yaml]", files, 1))
    env = {"NEXTVISION_ENV": environment, "BRIDGE_URL": "http://10.1.2.3:5053"}
    (bridge,) = (it for it in load(tmp_path / "sidecar.yaml", env).policies if it.takeover)
    assert [address.port for address in bridge.takeover] == [5053, 5055]
    assert str(bridge.upstream) == "http://10.1.2.3:5053"


@pytest.mark.parametrize("said", ["private", "no-cache, must-revalidate", "private, max-age=0", "no-store"])
@pytest.mark.parametrize("name", ["geocode", "directions"])
async def test_what_google_says_to_browsers_does_not_keep_the_app_from_its_cache(
    tmp_path: Path, name: str, said: str
) -> None:
    """With the shipped file the second call is a hit, whatever `Cache-Control` the answers carry."""
    file = ROOT / "policies" / "google-maps.yaml"
    (tmp_path / "sidecar.yaml").write_text(f"app: {{url: 'http://127.0.0.1:1'}}\npolicies: ['{file}']\n")
    routes = {
        route.name: route
        for policy in load(tmp_path / "sidecar.yaml", {}).policies
        for route in policy.routes
    }
    bench = Bench(ok(b"one", cache_control=said))
    bench.caching.in_use = True
    send = bench.route(cache=routes[name].cache)
    target = b"/maps/api/x/json?address=Paris&key=k"
    await send(target=target)
    assert (await send(target=target)).body == b"one"
    assert bench.outcomes == ["miss", "hit"]

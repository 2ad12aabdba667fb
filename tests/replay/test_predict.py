"""What a log would have come to: the layers that serve traffic, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config.load import load
from sidecar.replay.figures import Figures
from sidecar.replay.log import Attempt, Line, Log
from sidecar.replay.predict import predict
from sidecar.replay.report import rows, unknowns

GOOD = Attempt(200, "ok", "")
BAD = Attempt(503, "transient", "")
Replay = Callable[..., list[Figures]]


def line(at: float, target: str = "/a", *attempts: Attempt, **members: Any) -> Line:
    last = attempts[-1] if attempts else GOOD
    usual = {"seconds": 0.01, "upstream_seconds": 0.01, "route": "all", "calls": len(attempts)}
    members = {**usual, **members}
    return Line(
        at=1_700_000_000.0 + at,
        method=members.pop("method", "GET"),
        target=target.encode(),
        status=last.status,
        client="10.0.0.1",
        sent=100,
        attempts=attempts,
        **members,
    )


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    """Lines through routes: one list of settings for each configuration."""

    def go(lines: list[Line], *configurations: dict[str, Any], **more: Any) -> list[Figures]:
        loaded = []
        for number, route in enumerate(configurations):
            folder = tmp_path / str(number)
            folder.mkdir()
            policy = {"name": "site", "routes": [{"name": "all", **route}]}
            (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
            (folder / "sidecar.yaml").write_text(yaml.safe_dump({"policies": ["policy.yaml"]}))
            loaded.append((str(number), load(folder / "sidecar.yaml", {})))
        return predict(Log("a.log", "json", lines), loaded, 0.05, more.get("prices", {}))

    return go


def test_a_longer_lifetime_makes_fewer_calls(replay: Replay) -> None:
    """Ten requests, a minute apart, under 90 s and under an hour."""
    lines = [line(60.0 * number, "/a", GOOD) for number in range(10)]
    _, short, long = replay(lines, {"cache": {"ttl": "90s"}}, {"cache": {"ttl": "1h"}})
    assert (short.total.calls, long.total.calls) == (5, 1)
    assert (short.total.outcomes["hit"], long.total.outcomes["hit"]) == (5, 9)


def test_requests_at_once_share_a_call(replay: Replay) -> None:
    """The real layer coalesces them, as long as the call takes in the log."""
    lines = [line(0.001 * number, "/a", GOOD, upstream_seconds=0.05) for number in range(20)]
    _, figures = replay(lines, {"cache": {"ttl": "1m"}})
    assert figures.total.calls == 1
    assert figures.total.outcomes == {"miss": 1, "collapsed": 19}


def test_an_outage_is_there_for_requests_that_were_answered_from_the_cache(replay: Replay) -> None:
    """Without that cache they would have met it: an attempt comes to what was nearest in time."""
    lines = [line(float(number), "/a", key="k", cache="hit") for number in range(10, 20)]
    lines += [line(number + 0.1, "/b", BAD) for number in range(10, 20)]
    lines.sort(key=lambda it: it.at)
    _, figures = replay(lines, {})
    assert figures.total.failed == 20


def test_a_retry_that_was_not_made_comes_to_what_came_next(replay: Replay) -> None:
    """One failure among good answers: with retries it would not have been seen."""
    lines = [line(float(number), "/a", BAD if number == 5 else GOOD) for number in range(10)]
    settings = {"retry": {"attempts": 2, "backoff": {"base": "10ms", "max": "10ms"}, "budget": "off"}}
    _, before, after = replay(lines, {}, settings)
    assert (before.total.failed, before.total.calls) == (1, 10)
    assert (after.total.failed, after.total.calls, after.total.retries) == (0, 11, 1)


def test_a_breaker_opens_in_the_outage_of_the_log(replay: Replay) -> None:
    """And closes when it is over, in the time of the log."""
    lines = [line(0.5 * number, "/a", BAD if 20 <= number < 60 else GOOD) for number in range(120)]
    settings = {"circuit_breaker": {"consecutive": 5, "open_for": "5s", "open_max": "5s"}}
    _, figures = replay(lines, settings)
    assert figures.total.rejected["circuit_open"] > 20
    # Each refusal is a call less, and the time after the outage is served.
    assert figures.total.calls == 120 - figures.total.rejected["circuit_open"]
    assert figures.total.requests - figures.total.failed >= 70


def test_a_body_is_known_by_the_digest_of_its_key(replay: Replay) -> None:
    """Two POSTs with the same digest asked the same; without digests nobody knows."""
    cached = {"cache": {"ttl": "1h", "methods": ["POST"], "key": {"body": "json"}}}
    asked = {"method": "POST", "ttl": 3600, "cache": "miss"}
    known = [line(float(number), "/a", GOOD, key=f"k{number % 2}", **asked) for number in range(6)]
    assert replay(known, cached)[1].total.calls == 2


def test_what_the_origin_stated_counts_under_another_policy(replay: Replay) -> None:
    """A lifetime that is not the policy's is the origin's, and `ttl` does not change it."""
    lines = [line(10.0 * number, "/a", GOOD, key="k", cache="miss", ttl=15) for number in range(6)]
    _, figures = replay(lines, {"cache": {"ttl": "1h"}})
    assert figures.total.calls == 3


def test_a_verdict_of_a_body_counts_though_the_body_is_not_there(replay: Replay) -> None:
    """A 200 that was taken for a failure then is taken for one now: it is repeated, and not stored."""
    lied = Attempt(200, "transient", "")
    lines = [line(float(number), "/a", lied, key="k", cache="miss") for number in range(4)]
    _, figures = replay(lines, {"cache": {"ttl": "1h"}, "retry": {"attempts": 2, "budget": "off"}})
    assert figures.total.retries == 4
    assert figures.total.outcomes["hit"] == 0


def test_saved_calls_are_worth_their_price(replay: Replay) -> None:
    """That of the policy, unless another one is given."""
    lines = [line(float(number), "/a", GOOD) for number in range(11)]
    settings = {"cache": {"ttl": "1h"}, "price": 0.005}
    assert replay(lines, settings)[1].money == pytest.approx(0.05)


def test_a_cache_that_was_full_when_the_log_began_is_told(replay: Replay) -> None:
    """Its first hit has no miss before it: here it is one."""
    lines = [line(0.0, "/a", key="k", cache="hit"), line(1.0, "/a", key="k", cache="hit")]
    assert replay(lines, {"cache": {"ttl": "1h"}})[1].total.outcomes == {"miss": 1, "hit": 1}
    assert unknowns(Log("a.log", "json", lines), 0.1)[0].startswith("1 answers were in the cache")


def test_the_common_format_says_what_nobody_can_know() -> None:
    """Durations above all, which are assumed."""
    told = " ".join(unknowns(Log("a.log", "common", [line(0.0)]), 0.25))
    assert "taken for 250ms" in told
    assert "bodies" in told


def test_what_a_policy_in_shadow_mode_would_refuse_is_counted(replay: Replay) -> None:
    """And refused it is not. Beside it stands what the log tells of it."""
    lines = [line(0.001 * number, "/a", GOOD) for number in range(9)]
    lines.append(replace(line(0.009, "/a", GOOD), shadow=frozenset({"rate_limit"})))
    logged, figures = replay(lines, {"rate_limit": {"rate": "1/m", "burst": 4, "mode": "shadow"}})
    assert logged.total.shadow == {"rate_limit": 1}
    assert figures.total.shadow == {"rate_limit": 6}
    assert figures.total.rejected.total() == 0
    assert ("  would: rate_limit", "6") in rows([figures])

"""The public suite for HTTP caches through a real sidecar; docs/cache-conformance.md has what it shows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.conformance.documented import failing
from tests.conformance.suite import Results, Score, install, list_tests, run, score, written

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Ran:
    results: Results
    score: Score


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run of all tests, with `distrust_age`; its results stay in pytest's folder."""
    folder = tmp_path_factory.mktemp("suite")
    place = tmp_path_factory.mktemp("run")
    try:
        suite = install(folder)
        tests = list_tests(suite)
        results = await run(suite, place, distrust_age=True)
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)
    (place / "results.json").write_text(written(results))
    return Ran(results, score(tests, results))


def test_required(ran: Ran) -> None:
    """At least 97 % of what a cache must do."""
    assert ran.score.share("required") >= 0.97, ran.score.failing


def test_optimal(ran: Ran) -> None:
    """At least 85 % of what makes a good cache."""
    assert ran.score.share("optimal") >= 0.85, ran.score.failing


def test_stale(ran: Ran) -> None:
    """Every test on stale-if-error passes, and on stale-while-revalidate where an edition has one."""
    stale = [name for name in ran.results if name.startswith(("stale-sie", "stale-while-revalidate"))]
    assert {"stale-sie-503", "stale-sie-close"} <= set(stale)
    assert [name for name in stale if ran.results[name] is not True] == []


def test_failing(ran: Ran) -> None:
    """What fails is what the documentation says, each with its reason; no more, no less."""
    assert ran.score.failing == failing()

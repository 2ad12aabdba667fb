"""The parts of what workers share, without processes."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.core import GaugeMetricFamily

from sidecar.clock import SystemClock
from sidecar.config.load import Loaded, load
from sidecar.config.workers import share, shared_out
from sidecar.decisions.breaker import Breaker, State
from sidecar.decisions.concurrency import FixedLimit
from sidecar.decisions.gcra import Buckets
from sidecar.decisions.kept import Kept
from sidecar.decisions.respawn import LONGEST, Respawn
from sidecar.decisions.verdict import Outcome, Verdict
from sidecar.telemetry.log import get_logger
from sidecar.telemetry.metrics import Metrics
from sidecar.workers import ledger
from sidecar.workers.channel import Channel
from sidecar.workers.hints import TellingBuckets
from sidecar.workers.lead import PERIOD, Lead
from sidecar.workers.ledger import NOTES, Ledger, Note
from sidecar.workers.orders import Part, Serve, Start
from sidecar.workers.report import still
from sidecar.workers.sums import cache_stats, merged, retired, total
from sidecar.workers.worker import Worker
from tests.support.clock import ManualClock

# -- decisions ---------------------------------------------------------------------------------------


def test_a_worker_that_dies_young_again_waits_longer() -> None:
    """At once, then 0.5 s doubled up to 30 s; a long life starts afresh."""
    respawn = Respawn()
    assert [respawn.delay(1.0) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, LONGEST, LONGEST]
    assert [respawn.delay(61.0), respawn.delay(1.0)] == [0, 0.5]


@pytest.mark.parametrize(("whole", "count"), [(10, 2), (10, 3), (64, 5), (7, 7)])
def test_parts_make_up_the_whole(whole: int, count: int) -> None:
    """What is divided is neither more nor less than before."""
    assert sum(share(whole, index, count) for index in range(count)) == whole


def test_nobody_gets_nothing() -> None:
    """Less than there are workers: each has one."""
    assert [share(1, index, 3) for index in range(3)] == [1, 1, 1]


def test_limits_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two workers each has half of what bounds all together, and the whole rate of a client."""
    half = shared_out(_loaded(tmp_path, monkeypatch), 0, 2)
    (route,) = half.policies[0].routes
    assert route.concurrency_limit is not None
    assert route.concurrency_limit.max == 5
    assert route.pace is not None
    assert route.pace.rate == pytest.approx(25)
    assert route.retry is not None
    assert route.retry.budget is not None
    assert route.retry.budget.min_per_second == pytest.approx(0.5)
    assert route.rate_limit is not None
    assert route.rate_limit.burst == 20
    assert half.config.limits.connections == 50


def _loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.chdir(folder)
    Path("sidecar.yaml").write_text("limits: {connections: 100}\npolicies: [p.yaml]\n", encoding="utf-8")
    Path("p.yaml").write_text(
        "name: p\nroutes:\n- name: a\n  concurrency_limit: {max: 10}\n  pace: {rate: 50/s}\n"
        "  retry: {budget: {ratio: 20%, min_per_second: 1}}\n  rate_limit: {rate: 10/s}\n"
        "  circuit_breaker: {}\n",
        encoding="utf-8",
    )
    return load(None, {})


def test_a_configuration_can_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker is started with is what was loaded."""
    loaded = _loaded(tmp_path, monkeypatch)
    assert pickle.loads(pickle.dumps(loaded)) == loaded  # its own


def test_told_of_an_open_breaker() -> None:
    """It opens until the same moment, and closes when it is told so; forced, it heeds nobody."""
    breaker = Breaker()
    assert breaker.told(State.OPEN, 15.0, 10.0, now=6.0)
    assert (breaker.acquire(14.9), breaker.retry_after(6.0)) == (None, 9.0)
    assert breaker.told(State.CLOSED, 0.0, 0.0, now=7.0)
    assert breaker.acquire(7.0) is not None
    breaker.force(State.CLOSED, 100.0, 8.0)
    assert not breaker.told(State.OPEN, 15.0, 10.0, now=9.0)


def test_a_stale_hint_opens_nothing() -> None:
    """A breaker that another had open until a time that is past stays closed here."""
    breaker = Breaker()
    assert not breaker.told(State.OPEN, 15.0, 10.0, now=15.0)
    assert breaker.state(15.0) is State.CLOSED


def test_requests_elsewhere_count() -> None:
    """What another worker let through is missing from the burst here."""
    buckets = Buckets(1.0, 10)
    buckets.charge("a", 8, 100.0)
    assert [buckets.take("a", 100.0) > 0 for _ in range(4)] == [True, True, False, False]


def test_only_what_passed_is_told() -> None:
    """A request that was refused counts nowhere."""
    buckets = TellingBuckets(1.0, 2)
    for _ in range(5):
        buckets.take("a", 100.0)
    assert buckets.let_through == {"a": 2}


async def test_a_new_worker_knows_what_the_others_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fd: int
) -> None:
    """An open breaker, a quota that is used up, and what the app has kept of a fallback."""
    clock = SystemClock()
    now = clock.now()
    kept = Kept()
    kept.put(b"paris", now + 60)
    start = Start(
        index=0,
        count=2,
        slot=1,
        slots=3,
        ledger=fd,
        sockets={},
        serve=Serve(1, [Part(_loaded(tmp_path, monkeypatch), 1, 0.0)], {}),
        breakers=[("app", State.OPEN, now + 60, 60.0)],
        kept={"maps": kept},
        held=[("app", now + 60)],
    )
    sent = pickle.loads(pickle.dumps(start))  # its own
    worker = Worker(sent, clock, Channel(clock, {}, lambda: None))
    try:
        assert worker.metrics.breakers["app"].breaker.state(now) is State.OPEN
        assert worker.metrics.paces["app"].pacer.held_for(now) == pytest.approx(60, abs=1)
        assert worker.services.overlaps.remembered(b'["paris"]', frozenset({"maps"})) == ("maps",)
    finally:
        await worker.stop()


# -- the ledger --------------------------------------------------------------------------------------


@pytest.fixture
def fd() -> Iterator[int]:
    made = ledger.make(3)
    yield made
    os.close(made)


def test_a_note_is_there_at_once(fd: int) -> None:
    """What one process wrote another reads next, once; its own notes are not among them."""
    one, other = Ledger(fd, 3, 0), Ledger(fd, 3, 1)
    note = Note(1.5, b"a" * 32, "google-maps")
    one.write(note)
    assert (other.read(), other.read(), one.read()) == (([note], False), ([], False), ([], False))


def test_a_slot_goes_on(fd: int) -> None:
    """Another process that gets the slot of one that ended is read from where that one was."""
    reader = Ledger(fd, 3, 0)
    Ledger(fd, 3, 1).write(Note(1.0, b"", "a"))
    Ledger(fd, 3, 1).write(Note(2.0, b"", "b"))
    assert [it.policy for it in reader.read()[0]] == ["a", "b"]


def test_what_was_overwritten_is_told_of(fd: int) -> None:
    """A reader who comes too late for some notes knows that it did."""
    writer, reader = Ledger(fd, 3, 0), Ledger(fd, 3, 1)
    for number in range(NOTES + 5):
        writer.write(Note(float(number), b"", "a"))
    notes, lost = reader.read()
    assert (lost, notes[-1].at) == (True, NOTES + 4)


# -- sums --------------------------------------------------------------------------------------------


def _counted(requests: int, *, in_flight: int, fails: int) -> Metrics:
    metrics = Metrics()
    cells = metrics.route("a", "app")
    for _ in range(requests):
        cells.record("GET", 200, 0.1)
    cells.retry("5xx")
    metrics.upstream("app").attempt(Verdict.OK, 0.2)
    metrics.listener("ingress").active = 3
    limit = FixedLimit(5)
    for _ in range(in_flight):
        limit.try_acquire()
    metrics.watch_limit("app", limit)
    breaker = Breaker(consecutive=2)
    metrics.watch_breaker("app", breaker)
    for _ in range(fails):
        permit = breaker.acquire(0.0)
        assert permit is not None
        breaker.end(permit, Outcome.FAILURE, 0.0, 0.1)
    return metrics


def _sent(metrics: Metrics) -> Metrics:
    """As the lead gets it."""
    there: Metrics = pickle.loads(pickle.dumps(still(metrics, 0.0)))  # its own
    return there


def test_counts_are_added_and_the_worst_is_shown() -> None:
    """Counters, histograms, limits and attempts in flight add up; a breaker that is open anywhere is open."""
    parts = [_sent(_counted(3, in_flight=1, fails=0)), _sent(_counted(4, in_flight=2, fails=2))]
    whole = Metrics()
    total(whole, parts, None, 0.0)
    assert whole.routes["a"].requests == {("GET", 200): [7]}
    assert (whole.routes["a"].durations.count, whole.routes["a"].retries) == (7, {"5xx": 2})
    assert whole.upstreams["app"].attempts()[Verdict.OK] == 2
    assert (whole.limits["app"].limit, whole.limits["app"].in_flight) == (10, 3)
    assert whole.listeners["ingress"].active == 6
    assert whole.breakers["app"].breaker.state(0.0) is State.OPEN
    assert whole.breakers["app"].entered["open"] == 1


def test_what_a_worker_counted_outlives_it() -> None:
    """Its counts stay in the sum, its connections and limits do not."""
    gone = retired(None, _sent(_counted(3, in_flight=1, fails=2)))
    gone = retired(gone, _sent(_counted(2, in_flight=0, fails=0)))
    whole = Metrics()
    total(whole, [_counted(1, in_flight=0, fails=0)], gone, 0.0)
    assert whole.routes["a"].requests == {("GET", 200): [6]}
    assert whole.listeners["ingress"].active == 3
    assert whole.limits["app"].limit == 5


def test_a_route_that_is_no_more_is_not_shown() -> None:
    """Only dead workers knew it: it was dropped by a reload."""
    before = Metrics()
    before.route("old", "app").record("GET", 200, 0.1)
    whole = Metrics()
    total(whole, [_counted(1, in_flight=0, fails=0)], retired(None, _sent(before)), 0.0)
    assert list(whole.routes) == ["a"]


def test_gauges_have_a_rule_each() -> None:
    """What adds up is added, a lag is the largest, and what is of the machine is the lead's."""

    def families(lag: float, used: float, cpu: float) -> list[GaugeMetricFamily]:
        found = []
        for name, value in (
            ("event_loop_lag_seconds", lag),
            ("cache_memory_used_bytes", used),
            ("system_cpu_usage_percent", cpu),
        ):
            found.append(GaugeMetricFamily(f"x_{name}", "", value=value))
        return found

    whole = list(merged("x", families(0.1, 10, 50), [families(0.3, 5, 70)]))
    assert [it.samples[0].value for it in whole] == [0.3, 15, 50]


def test_the_cache_is_told_of_as_one() -> None:
    """Counts are added, the ratio is theirs, and connected are all or none."""
    part = {"redis_connected": True, "hits": 3, "misses": 1, "hit_rate_percent": 75.0, "redis": None}
    other = {"redis_connected": False, "hits": 0, "misses": 4, "hit_rate_percent": 0.0, "redis": None}
    assert cache_stats([part, other]) == {
        "redis_connected": False,
        "hits": 3,
        "misses": 5,
        "hit_rate_percent": 37.5,
        "redis": None,
    }


async def test_reports_go_on_after_one_that_could_not_be_added_up() -> None:
    """What is shown of the workers never stands still for good."""
    clock = ManualClock()
    turns: list[float] = []

    class Half(Lead):
        """What the loop of reports needs of a lead."""

        def __init__(self) -> None:
            self.clock = clock
            self.log = get_logger("sidecar.workers")

        async def refresh(self) -> None:
            turns.append(clock.now())
            if len(turns) == 1:
                raise KeyError("connections")

    task = asyncio.ensure_future(Half()._report())
    for _ in range(3):
        await clock.advance(PERIOD)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(turns) == 3

"""The exposition, parsed strictly as scrapers do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar.decisions.breaker import Breaker, State
from sidecar.decisions.buckets import STANDARD
from sidecar.decisions.concurrency import FixedLimit
from sidecar.decisions.gcra import Buckets
from sidecar.decisions.pacer import Pacer
from sidecar.decisions.quota_headers import Quota, Stated
from sidecar.decisions.retry_budget import RetryBudget
from sidecar.decisions.verdict import Verdict
from sidecar.queueing import Gate
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.collector import SLICE, Collector
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.sink import Sink
from sidecar.telemetry.system import System
from tests.support.clock import ManualClock

parse_openmetrics: Callable[[str], Iterator[Metric]] = openmetrics_parser.text_string_to_metric_families
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NOW = 1000.0
"""What `ManualClock` says."""
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def metrics() -> Metrics:
    """One of everything that is counted."""
    metrics = Metrics()
    route = metrics.route("matching", "app")
    route.record("GET", 200, 0.004)
    route.record("GET", 200, 0.4)
    route.record("POST", 503, 70.0)
    route.record("GET", 599, 0.1)
    route.exemplar(TRACE, 0.4, 990.5)
    route.retry("connect")
    route.retry("connect")
    route.retry_skipped("budget")
    route.hedge("won")
    route.error("circuit_open")
    route.breaker_rejected()
    route.limit_rejected()
    route.rate_rejected()
    route.rate_unshared += 1
    route.aborted()
    route.client_gone()
    upstream = metrics.upstream("app")
    upstream.attempt(Verdict.OK, 0.02)
    upstream.attempt(Verdict.TRANSIENT, 3.0)
    upstream.connections_opened = 3
    upstream.connections_reused = 7
    upstream.connect_failures = 1
    upstream.idle = lambda: 2
    maps = metrics.upstream("google-maps")
    maps.external = True
    maps.handshake(resumed=False)
    maps.handshake(resumed=True)
    maps.handshake(resumed=True)
    maps.tls_failed("expired")
    metrics.dns.looked_up("fresh")
    metrics.dns.looked_up("stale")
    metrics.dns.looked_up("fresh")
    metrics.dns.asked("timeout")
    maps.attempt(Verdict.QUOTA, 0.3)
    route.pace_rejected("patience")
    pacer = Pacer(None, 1, learn=True, hold=60.0)
    stated = Stated((Quota("requests", 30, 60.0, 60),))
    pacer.answered(pacer.take(NOW, low=False), NOW, Verdict.OK, stated)
    pacer.answered(pacer.take(NOW, low=False), NOW, Verdict.QUOTA)
    metrics.watch_pace("google-maps", pacer).waited(0.3, low=True)
    listener = metrics.listener("ingress")
    listener.accepted, listener.active, listener.refused, listener.bad_requests = 5, 4, 1, 2
    listener.intercepted, listener.tls_failures = 3, 6
    breaker = Breaker()
    metrics.watch_breaker("app", breaker)
    breaker.force(State.OPEN, None, 999.0)
    metrics.watch_breaker("watched", Breaker(), "shadow")
    limit = FixedLimit(8)
    limit.try_acquire()
    metrics.watch_limit("app", limit)
    gate = Gate(limit, 1.0, 100, ManualClock())
    gate.waiting = 3
    metrics.watch_queue("app", gate)
    buckets = Buckets(1, 1)
    buckets.take("192.0.2.1", 0.0)
    metrics.watch_buckets("matching", buckets)
    metrics.watch_budget("app", RetryBudget(0.2, 1.0))
    return metrics


@pytest.fixture
def sink() -> Iterator[Sink]:
    read, write = os.pipe()
    sink = Sink(write)
    yield sink
    sink.close()
    os.close(read)
    os.close(write)


@pytest.fixture
def collector(metrics: Metrics, sink: Sink) -> Collector:
    clock = ManualClock()
    return Collector(
        metrics, clock=clock, system=System(clock), access_log=AccessLog(sink, clock), version="1.2.3"
    )


def values(families: list[Metric]) -> dict[str, float]:
    """Samples by what a query would name them."""
    found = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


EXPECTED = {
    'nextvision_api_requests_total{method="GET",route="matching",status="200"}': 2,
    'nextvision_api_requests_total{method="POST",route="matching",status="503"}': 1,
    'nextvision_api_requests_total{method="GET",route="matching",status="5xx"}': 1,
    'nextvision_api_request_duration_seconds_bucket{le="0.005",route="matching"}': 1,
    'nextvision_api_request_duration_seconds_bucket{le="0.5",route="matching"}': 3,
    'nextvision_api_request_duration_seconds_bucket{le="60.0",route="matching"}': 3,
    'nextvision_api_request_duration_seconds_bucket{le="+Inf",route="matching"}': 4,
    'nextvision_api_request_duration_seconds_count{route="matching"}': 4,
    'nextvision_api_request_duration_seconds_sum{route="matching"}': 70.504,
    'nextvision_api_errors_total{code="circuit_open",route="matching"}': 1,
    'nextvision_upstream_attempts_total{upstream="app",verdict="ok"}': 1,
    'nextvision_upstream_attempts_total{upstream="app",verdict="transient"}': 1,
    'nextvision_upstream_attempts_total{upstream="app",verdict="quota"}': 0,
    'nextvision_upstream_attempt_duration_seconds_count{upstream="app"}': 2,
    'nextvision_upstream_connections_opened_total{upstream="app"}': 3,
    'nextvision_upstream_connections_reused_total{upstream="app"}': 7,
    'nextvision_upstream_connections_idle{upstream="app"}': 2,
    'nextvision_upstream_connect_failures_total{upstream="app"}': 1,
    'nextvision_upstream_tls_handshakes_total{kind="full",upstream="google-maps"}': 1,
    'nextvision_upstream_tls_handshakes_total{kind="resumed",upstream="google-maps"}': 2,
    'nextvision_upstream_tls_failures_total{fault="expired",upstream="google-maps"}': 1,
    'nextvision_dns_lookups_total{outcome="fresh"}': 2,
    'nextvision_dns_lookups_total{outcome="stale"}': 1,
    'nextvision_dns_questions_total{outcome="timeout"}': 1,
    'nextvision_retries_total{reason="connect",route="matching"}': 2,
    'nextvision_retries_skipped_total{reason="budget",route="matching"}': 1,
    'nextvision_hedges_total{outcome="won",route="matching"}': 1,
    'nextvision_circuit_breaker_state{upstream="app"}': 2,
    'nextvision_circuit_breaker_shadow{upstream="app"}': 0,
    'nextvision_circuit_breaker_shadow{upstream="watched"}': 1,
    'nextvision_circuit_breaker_transitions_total{to="open",upstream="app"}': 1,
    'nextvision_circuit_breaker_transitions_total{to="closed",upstream="app"}': 0,
    'nextvision_circuit_breaker_rejections_total{route="matching"}': 1,
    'nextvision_concurrency_limit_rejections_total{route="matching"}': 1,
    'nextvision_concurrency_limit{upstream="app"}': 8,
    'nextvision_concurrency_in_flight{upstream="app"}': 1,
    'nextvision_concurrency_queue_length{upstream="app"}': 3,
    'nextvision_rate_limit_rejections_total{route="matching"}': 1,
    'nextvision_rate_limit_unshared_total{route="matching"}': 1,
    'nextvision_rate_limit_buckets{route="matching"}': 1,
    'nextvision_retry_budget_available{upstream="app"}': 10,
    'nextvision_pace_rejections_total{reason="patience",route="matching"}': 1,
    'nextvision_pace_rate{upstream="google-maps"}': 29 / 60,
    'nextvision_quota_remaining{upstream="google-maps"}': 29,
    'nextvision_pace_held{upstream="google-maps"}': 1,
    'nextvision_pace_held_seconds{upstream="google-maps"}': 60,
    'nextvision_pace_wait_seconds_count{class="batch",upstream="google-maps"}': 1,
    'nextvision_pace_wait_seconds_sum{class="batch",upstream="google-maps"}': 0.3,
    'nextvision_pace_wait_seconds_count{class="interactive",upstream="google-maps"}': 0,
    'nextvision_responses_aborted_total{route="matching"}': 1,
    'nextvision_clients_gone_total{route="matching"}': 1,
    'nextvision_route_info{route="matching",upstream="app"}': 1,
    'nextvision_connections_accepted_total{listener="ingress"}': 5,
    'nextvision_connections_active{listener="ingress"}': 4,
    'nextvision_connections_refused_total{listener="ingress"}': 1,
    'nextvision_bad_requests_total{listener="ingress"}': 2,
    'nextvision_connections_intercepted_total{listener="ingress"}': 3,
    'nextvision_tls_failures_total{listener="ingress"}': 6,
    "nextvision_access_log_lines_dropped_total": 0,
}


@pytest.mark.parametrize("series", EXPECTED)
def test_every_count_is_shown_in_both_formats(collector: Collector, series: str) -> None:
    """What was counted is what a strict parser reads, in text and in OpenMetrics."""
    text = values(list(parse_text(collector.render()[0].decode())))
    openmetrics = values(list(parse_openmetrics(collector.render(OPENMETRICS)[0].decode())))
    assert text[series] == pytest.approx(EXPECTED[series])
    assert openmetrics[series] == pytest.approx(EXPECTED[series])


def test_machine_and_process_are_shown(collector: Collector) -> None:
    """Figures of the machine, the process and the build are there and plausible."""
    found = values(list(parse_text(collector.render()[0].decode())))
    assert 0 <= found["nextvision_system_cpu_usage_percent"] <= 100
    assert 0 < found["nextvision_system_memory_usage_percent"] <= 100
    assert found["nextvision_process_resident_memory_bytes"] > 1024 * 1024
    assert found["nextvision_process_cpu_seconds_total"] > 0
    assert found["nextvision_process_open_fds"] > 2
    assert found["nextvision_process_threads"] >= 1
    assert found["nextvision_event_loop_lag_seconds"] == 0
    assert found["nextvision_event_loop_tasks"] == 0  # nothing was started
    [build] = [name for name in found if name.startswith("nextvision_build_info")]
    assert 'version="1.2.3"' in build


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html,*/*;q=0.8", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
        ("application/openmetrics-text; version=none", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.x", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_format_is_the_one_asked_for(collector: Collector, accept: str, content_type: str) -> None:
    """`Accept` chooses; nonsense gets text."""
    body, given = collector.render(accept)
    assert given == content_type
    assert body.endswith(b"# EOF\n") == given.startswith("application/openmetrics-text")


async def test_a_long_page_gives_way_to_others(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading goes on after others had their turn; where it takes no time, nobody is asked to wait."""
    clock = collector._families.clock
    assert isinstance(clock, ManualClock)
    expected, _ = collector.render()
    assert (await collector.gather()).write() == expected
    assert clock.slept == []
    monkeypatch.setattr(clock, "now", count(1000.0, SLICE).__next__)
    page = (await collector.gather()).write()
    assert page.count(b"# TYPE") == expected.count(b"# TYPE")
    assert set(clock.slept) == {0}
    assert len(clock.slept) > 50


def test_openmetrics_carries_exemplars(collector: Collector) -> None:
    """A bucket of latencies links to a trace, with the Unix time it was seen at."""
    families = parse_openmetrics(collector.render(OPENMETRICS)[0].decode())
    [example] = [sample.exemplar for family in families for sample in family.samples if sample.exemplar]
    assert example.labels == {"trace_id": TRACE.decode()}
    assert example.value == 0.4
    assert float(str(example.timestamp)) == 1_700_000_000 - 9.5
    assert b"trace_id" not in collector.render()[0]


def test_names_keep_the_conventions(collector: Collector) -> None:
    """Counters end in _total and nothing else does; each family has a help text; no name twice."""
    text = collector.render()[0].decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert len(types) == text.count("# TYPE ")
    assert set(types) == set(helps)
    for name, kind in types.items():
        assert re.fullmatch(r"nextvision(_[a-z0-9]+)+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind == "histogram" or not name.endswith(("_bucket", "_count", "_sum")), name
        assert not re.search(r"_(ms|sec|kb|mb|counter|gauge|histogram)(_|$)", name), name
        assert helps[name].endswith("."), name


def test_buckets_are_cumulative(collector: Collector) -> None:
    """Each bucket holds all below it; the last is the count."""
    for family in parse_text(collector.render()[0].decode()):
        if family.type == "histogram":
            series: dict[frozenset[tuple[str, str]], list[float]] = {}
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    labels = frozenset(pair for pair in sample.labels.items() if pair[0] != "le")
                    series.setdefault(labels, []).append(sample.value)
            assert series
            for counts in series.values():
                assert len(counts) == len(STANDARD) + 1
                assert counts == sorted(counts)


def test_calls_to_external_apis(collector: Collector) -> None:
    """They are counted and timed by verdict; the app is none of them."""
    families = {family.name: family for family in parse_text(collector.render()[0].decode())}
    calls = families["nextvision_external_api_calls"].samples
    assert {sample.labels["upstream"] for sample in calls} == {"google-maps"}
    assert {sample.labels["verdict"]: sample.value for sample in calls if sample.value} == {"quota": 1.0}
    assert len(calls) == len(Verdict)
    times = {
        (sample.name.rpartition("_")[2], sample.labels["verdict"]): sample.value
        for sample in families["nextvision_external_api_duration_seconds"].samples
        if "le" not in sample.labels
    }
    assert times == {("count", "quota"): 1.0, ("sum", "quota"): 0.3}


def test_a_namespace_of_ones_own() -> None:
    """`metrics.namespace` begins every name."""
    clock = ManualClock()
    collector = Collector(
        Metrics("shop"), clock=clock, system=System(clock), access_log=AccessLog(None, clock), version=""
    )
    names = {family.name for family in parse_text(collector.render()[0].decode())}
    assert all(name.startswith("shop_") for name in names)


def test_label_values_are_escaped() -> None:
    """A route's name may hold what the format must escape."""
    metrics = Metrics()
    name = 'a"b\\c\nd'
    metrics.route(name, "app").record("GET", 200, 0.1)
    clock = ManualClock()
    collector = Collector(
        metrics, clock=clock, system=System(clock), access_log=AccessLog(None, clock), version=""
    )
    for families in (
        parse_text(collector.render()[0].decode()),
        parse_openmetrics(collector.render(OPENMETRICS)[0].decode()),
    ):
        routes = {sample.labels.get("route") for family in families for sample in family.samples}
        assert name in routes

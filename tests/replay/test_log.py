"""What is read of access logs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.replay.log import Attempt, LogError, attempts_of, read_log

COMMON = '10.0.0.7 - frank o [10/Oct/2000:13:55:36 -0700] "GET /a?b=1 HTTP/1.0" 200 2326'


def ours(**members: Any) -> str:
    line = {
        "timestamp": "2026-01-02T03:04:05.500Z",
        "level": "INFO",
        "logger": "sidecar.access",
        "component": "egress",
        "client": "10.0.0.1",
        "method": "GET",
        "path": "/maps?q=1&key=***",
        "route": "geocode",
        "status": 200,
        "attempts": 1,
        "cache": "miss",
        "end": "done",
        "duration_ms": 500.0,
        "upstream_ms": 480.0,
        "trail": "cache;miss, upstream;status=200, classify;ok, retry;ok",
        "cache_key": "ab12",
        "ttl": 30,
        "bytes_in": 0,
        "bytes_out": 12,
    }
    return json.dumps(line | members)


def test_a_line_of_ours_tells_when_the_request_came_and_what_was_decided(tmp_path: Path) -> None:
    """The time is that of the end: the duration goes off it."""
    log = tmp_path / "a.log"
    log.write_text(ours() + "\n")
    (line,) = read_log(log).lines
    assert line.at == pytest.approx(1767323045.0)
    assert (line.plane, line.route, line.key, line.ttl) == ("egress", "geocode", "ab12", 30)
    assert (line.seconds, line.upstream_seconds, line.sent) == (0.5, 0.48, 12)
    assert line.attempts == (Attempt(200, "ok", ""),)


def test_a_trail_tells_each_attempt() -> None:
    """Those that were repeated, with status, verdict and error; not a hedge, nor another upstream's."""
    trail = (
        "circuit_breaker;closed, upstream;error=connect_failed, classify;transient, retry;connect;delay=0.1, "
        "upstream;status=503, classify;transient, retry;transient, attempt_timeout;expired, "
        "upstream;status=200;alternate, upstream;status=200, classify;quota"
    )
    assert attempts_of(trail) == (
        Attempt(0, "transient", "connect_failed"),
        Attempt(503, "transient", ""),
        Attempt(0, "", "attempt_timeout"),
        Attempt(200, "quota", ""),
    )


def test_what_stands_before_the_first_request_tells_no_format(tmp_path: Path) -> None:
    """A warning that the sidecar wrote to stderr, in a log that has both of its streams."""
    log = tmp_path / "a.log"
    log.write_text(f"shop.yaml:8:23: routes.search.retry.attempts: warning: too many\n{ours()}\nnoise\n")
    read = read_log(log)
    assert (read.format, len(read.lines), read.unusable) == ("json", 1, 2)
    log.write_text(f"a word of nginx\n{COMMON}\n")
    assert read_log(log).format == "common"


def test_what_shadow_mode_would_have_refused_is_read(tmp_path: Path) -> None:
    """By layer, once for each request."""
    log = tmp_path / "a.log"
    trail = "rate_limit;would-reject, circuit_breaker;would-reject, upstream;status=200, classify;ok"
    log.write_text(f"{ours(trail=trail)}\n{ours()}\n")
    assert [line.shadow for line in read_log(log).lines] == [{"rate_limit", "circuit_breaker"}, set()]


def test_the_common_format_and_the_combined_one_are_read(tmp_path: Path) -> None:
    """With the zone of their times; what follows the size does not matter."""
    log = tmp_path / "a.log"
    log.write_text(f'{COMMON}\n{COMMON} "http://x/" "Mozilla/4.08 [en]"\n')
    read = read_log(log)
    assert read.format == "common"
    assert [(line.target, line.status, line.client, line.sent) for line in read.lines] == [
        (b"/a?b=1", 200, "10.0.0.7", 2326)
    ] * 2
    assert read.lines[0].at == 971211336.0


def test_requests_of_the_same_second_are_spread_over_it(tmp_path: Path) -> None:
    """The common format has no fractions, and requests that come at once would share one call."""
    log = tmp_path / "a.log"
    log.write_text(f"{COMMON}\n" * 4)
    assert [line.at - 971211336.0 for line in read_log(log).lines] == [0.0, 0.25, 0.5, 0.75]


def test_a_bad_line_is_told_with_its_number_and_the_rest_is_read(tmp_path: Path) -> None:
    """Half a line, as after a crash, and one without a member."""
    log = tmp_path / "a.log"
    log.write_text("\n".join([ours(), ours()[:40], '{"logger": "sidecar.access"}', ours()]))
    read = read_log(log)
    assert (len(read.lines), read.unusable) == (2, 2)
    assert [it.partition(": ")[0] for it in read.told] == [f"{log}:2", f"{log}:3"]


def test_what_is_no_request_to_a_policy_is_left_out(tmp_path: Path) -> None:
    """Lines of the sidecar itself, tunnels and upgrades."""
    log = tmp_path / "a.log"
    told = '{"logger": "sidecar", "message": "listening"}'
    log.write_text("\n".join([told, ours(method="CONNECT", path="/"), ours(status=101), ours()]))
    read = read_log(log)
    assert (len(read.lines), read.others, read.unusable) == (1, 3, 0)


def test_a_packed_log_is_unpacked(tmp_path: Path) -> None:
    """As logrotate leaves them."""
    log = tmp_path / "a.log.gz"
    log.write_bytes(gzip.compress(ours().encode()))
    assert len(read_log(log).lines) == 1


@pytest.mark.parametrize("content", ["", "hello\n", "03:04:05 INFO    GET / 200 1ms\n"])
def test_a_file_without_a_request_is_an_error_that_says_what_to_write(tmp_path: Path, content: str) -> None:
    """Empty, no log at all, or the sidecar's text for people."""
    log = tmp_path / "a.log"
    log.write_text(content)
    with pytest.raises(LogError, match=r"logging\.format: json"):
        read_log(log)

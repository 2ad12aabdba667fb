"""What a trail says for what happened, and that it is a List whatever was noted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.structured_fields import Token
from sidecar.decisions.trail import HEDGE, Facts, Note, compose, parse

ALL = (
    "rate_limit",
    "fallback",
    "cache",
    "deadline",
    "retry",
    "circuit_breaker",
    "concurrency_limit",
    "pace",
    "attempt_timeout",
    "classify",
    "fault",
)


def beside(notes: list[Note]) -> list[Note]:
    """The same, of a hedge."""
    return [(layer, decision + HEDGE) for layer, decision in notes]


REPEATING = ("retry", "circuit_breaker", "classify", "fault")
FAILED: list[Note] = [("upstream", "status=503"), ("classify", "transient")]
RESET: list[Note] = [("upstream", "error=upstream_reset"), ("classify", "transient")]


@pytest.mark.parametrize(
    ("layers", "facts", "notes", "trail"),
    [
        ((), Facts(200, attempts=1), [], "upstream;status=200"),
        (("classify",), Facts(200, attempts=1, verdict="ok"), [], "upstream;status=200, classify;ok"),
        (
            ALL,
            Facts(200, attempts=1, verdict="ok", cache="miss"),
            [],
            (
                "rate_limit;ok, cache;miss, deadline;ok, circuit_breaker;closed, concurrency_limit;ok, "
                "pace;ok, attempt_timeout;ok, upstream;status=200, classify;ok, retry;ok, fallback;ok"
            ),
        ),
        (ALL, Facts(200, cache="hit"), [], "rate_limit;ok, cache;hit;status=200, fallback;ok"),
        (ALL, Facts(206, cache="updating"), [], "rate_limit;ok, cache;updating;status=206, fallback;ok"),
        (
            REPEATING,
            Facts(200, attempts=3, verdict="ok"),
            [*FAILED, ("retry", "transient"), *RESET, ("retry", "reset")],
            (
                "circuit_breaker;closed, upstream;status=503, classify;transient, retry;transient, "
                "circuit_breaker;closed, upstream;error=upstream_reset, classify;transient, retry;reset, "
                "circuit_breaker;closed, upstream;status=200, classify;ok, retry;ok"
            ),
        ),
        (
            REPEATING,
            Facts(503, attempts=1, verdict="transient"),
            [*FAILED, ("retry", "skipped=budget")],
            "circuit_breaker;closed, upstream;status=503, classify;transient, retry;skipped=budget",
        ),
        (
            REPEATING,
            Facts(404, attempts=1, verdict="client"),
            [("upstream", "status=404"), ("classify", "client")],
            "circuit_breaker;closed, upstream;status=404, classify;client, retry;declined",
        ),
        (
            REPEATING,
            Facts(503, attempts=1, error="circuit_open"),
            [*FAILED, ("retry", "transient"), ("circuit_breaker", "rejected")],
            (
                "circuit_breaker;closed, upstream;status=503, classify;transient, retry;transient, "
                "circuit_breaker;rejected, retry;declined"
            ),
        ),
        (
            ("deadline", "retry", "attempt_timeout", "classify"),
            Facts(504, attempts=1, error="attempt_timeout"),
            [("attempt_timeout", "expired"), ("retry", "skipped=deadline")],
            "deadline;ok, attempt_timeout;expired, retry;skipped=deadline",
        ),
        (
            ("cache", "circuit_breaker", "classify"),
            Facts(200, cache="stale"),
            [("circuit_breaker", "rejected")],
            "circuit_breaker;rejected, cache;stale;status=200",
        ),
        (
            ("cache", "classify"),
            Facts(200, attempts=1, verdict="ok", cache="revalidated"),
            [],
            "upstream;status=304, classify;ok, cache;revalidated;status=200",
        ),
        (
            ("cache", "classify"),
            Facts(304, attempts=1, verdict="ok", cache="miss"),
            [("cache", "not_modified")],
            "cache;miss, upstream;status=200, classify;ok, cache;not_modified",
        ),
        (
            ("fallback", "cache", "classify"),
            Facts(502, cache="miss", error="upstream_reset"),
            [("cache", "collapsed;error=upstream_reset")],
            "cache;collapsed;error=upstream_reset, fallback;declined",
        ),
        (
            ("fallback", "circuit_breaker", "classify"),
            Facts(200),
            [("circuit_breaker", "rejected"), ("fallback", "rung=respond")],
            "circuit_breaker;rejected, fallback;rung=respond;status=200",
        ),
        (
            ("fallback", "retry", "circuit_breaker", "classify"),
            Facts(200, attempts=2, verdict="ok", rung="respond"),
            [
                *FAILED,
                ("upstream", "error=connect_failed;alternate"),
                ("retry", "connect;alternate"),
                ("fallback", "failed=connect_failed"),
                ("fallback", "rung=respond"),
            ],
            (
                "circuit_breaker;closed, upstream;status=503, classify;transient, "
                "upstream;error=connect_failed;alternate, retry;connect;alternate, retry;declined, "
                "fallback;failed=connect_failed, fallback;rung=respond;status=200"
            ),
        ),
        (
            ("fallback", "cache", "classify"),
            Facts(200, cache="stale", rung="stale"),
            [],
            "cache;stale;rung=stale;status=200, fallback;ok",
        ),
        (("rate_limit",), Facts(503), [("respond", "status=503")], "rate_limit;ok, respond;status=503"),
        (
            ("rate_limit", "cache", "classify"),
            Facts(429, error="rate_limited"),
            [("rate_limit", "rejected")],
            "rate_limit;rejected",
        ),
        (
            ("circuit_breaker", "concurrency_limit", "classify"),
            Facts(200, attempts=1, verdict="ok"),
            [("circuit_breaker", "would-reject"), ("concurrency_limit", "queued")],
            "circuit_breaker;would-reject, concurrency_limit;queued, upstream;status=200, classify;ok",
        ),
        ((), Facts(404), [("cache", "purged=0")], "cache;purged=0"),
        (("retry", "classify"), Facts(500, error="internal_error"), [], "observe;error=internal_error"),
        (
            ("classify",),
            Facts(413, attempts=1, error="body_too_large"),
            [],
            "upstream;error=body_too_large",
        ),
        (("circuit_breaker", "classify"), Facts(499, "client_gone"), [], "observe;client_gone"),
        (
            ("circuit_breaker", "classify"),
            Facts(499, "client_gone", attempts=1),
            [],
            "circuit_breaker;closed, observe;client_gone",
        ),
        (
            REPEATING,
            Facts(499, "client_gone", attempts=1),
            [*FAILED, ("retry", "transient")],
            (
                "circuit_breaker;closed, upstream;status=503, classify;transient, retry;transient, "
                "observe;client_gone"
            ),
        ),
        (
            ("classify",),
            Facts(200, "broken", attempts=1, verdict="ok"),
            [],
            "upstream;status=200, classify;ok, observe;cut=broken",
        ),
        (
            REPEATING,
            Facts(200, attempts=2, verdict="ok"),
            [("retry", "hedge"), ("retry", "hedge-lost")],
            (
                "circuit_breaker;closed, retry;hedge, retry;hedge-lost, upstream;status=200, classify;ok, "
                "retry;ok"
            ),
        ),
        (
            REPEATING,
            Facts(200, attempts=2, verdict="ok"),
            [("retry", "hedge"), ("retry", "hedge-won")],
            (
                "circuit_breaker;closed, retry;hedge, retry;hedge-won, upstream;status=200, classify;ok, "
                "retry;ok"
            ),
        ),
        (
            REPEATING,
            Facts(200, attempts=2, verdict="ok"),
            [("retry", "hedge"), *RESET, ("retry", "hedge-won")],
            (
                "circuit_breaker;closed, retry;hedge, upstream;error=upstream_reset, classify;transient, "
                "retry;hedge-won, upstream;status=200, classify;ok, retry;ok"
            ),
        ),
        (
            REPEATING,
            Facts(200, attempts=2, verdict="negative"),
            [
                ("retry", "hedge"),
                ("upstream", "status=200;hedge"),
                ("classify", "negative;hedge"),
                ("retry", "hedge-won"),
            ],
            (
                "circuit_breaker;closed, retry;hedge, upstream;status=200;hedge, classify;negative;hedge, "
                "retry;hedge-won, retry;ok"
            ),
        ),
        (
            REPEATING,
            Facts(200, attempts=2, verdict="ok"),
            [("retry", "hedge"), *beside(FAILED), ("retry", "hedge-failed")],
            (
                "circuit_breaker;closed, retry;hedge, upstream;status=503;hedge, classify;transient;hedge, "
                "retry;hedge-failed, upstream;status=200, classify;ok, retry;ok"
            ),
        ),
        (
            REPEATING,
            Facts(503, attempts=2, verdict="transient"),
            [
                ("retry", "hedge"),
                *RESET,
                *beside(FAILED),
                ("retry", "hedge-failed"),
                ("retry", "skipped=attempts"),
            ],
            (
                "circuit_breaker;closed, retry;hedge, upstream;error=upstream_reset, classify;transient, "
                "upstream;status=503;hedge, classify;transient;hedge, retry;hedge-failed, "
                "retry;skipped=attempts"
            ),
        ),
        (
            REPEATING,
            Facts(200, attempts=1, verdict="ok"),
            [("retry", "hedge-skipped=budget")],
            (
                "circuit_breaker;closed, retry;hedge-skipped=budget, upstream;status=200, classify;ok, "
                "retry;ok"
            ),
        ),
        (
            ("classify", "fault"),
            Facts(503, attempts=1, verdict="transient"),
            [("fault", "delay=0.5;respond"), *FAILED],
            "fault;delay=0.5;respond, upstream;status=503, classify;transient",
        ),
    ],
)
def test_what_is_said(layers: tuple[str, ...], facts: Facts, notes: list[Note], trail: str) -> None:
    """Each decision in its order: what was noted, and what follows from the rest."""
    assert compose(layers, facts, notes) == trail


def test_parsed() -> None:
    """Members by layer, with their parameters and the types these have (RFC 9651)."""
    members = parse(
        b'retry;skipped=budget, upstream;status=503, fallback;rung="a b";status=200, observe;ms=1.5'
    )
    assert members == [
        ("retry", {"skipped": "budget"}),
        ("upstream", {"status": 503}),
        ("fallback", {"rung": "a b", "status": 200}),
        ("observe", {"ms": 1.5}),
    ]
    assert isinstance(members[0].parameters["skipped"], Token)


@pytest.mark.parametrize(
    "value", [b"a;b, ", b'"quoted";ok', b"7;ok", b"a;B", b"(a b);ok", "caf\u00e9".encode()]
)
def test_what_is_no_trail(value: bytes) -> None:
    """Anything but a List of tokens with parameters is none."""
    assert parse(value) is None


TEXT = st.text(max_size=12)
NOTES = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([*ALL, "upstream"]), TEXT),
        st.one_of(st.sampled_from(["rejected", "ok", "transient", "skipped=x", "rung=stale"]), TEXT),
    ),
    max_size=6,
)


@given(
    layers=st.lists(st.sampled_from(ALL), unique=True),
    notes=NOTES,
    status=st.integers(200, 599),
    attempts=st.integers(0, 3),
    cache=st.sampled_from(["", "hit", "stale", "miss", "revalidated"]),
    error=st.sampled_from(["", "circuit_open", "internal_error"]),
)
def test_whatever_was_noted_it_is_a_trail(
    layers: list[str], notes: list[Note], status: int, attempts: int, cache: str, error: str
) -> None:
    """No note makes a field that does not parse, or a header line of its own; none is lost."""
    trail = compose(layers, Facts(status, attempts=attempts, cache=cache, error=error), notes)
    members = parse(trail.encode("ascii"))
    assert members is not None
    assert trail.isprintable()
    noted = [layer for layer, _ in notes if layer in ALL]
    assert [layer for layer in noted if layer not in [member.layer for member in members]] == []

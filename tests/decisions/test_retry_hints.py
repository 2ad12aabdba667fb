from __future__ import annotations

import pytest

from sidecar.decisions.retry_hints import advised_against, client_retries, wants_event_stream
from sidecar.headers import Line


def lines(*pairs: tuple[str, str]) -> list[Line]:
    return [Line(name.encode(), value.encode()) for name, value in pairs]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], False),
        ([("X-Stainless-Retry-Count", "0")], False),
        ([("x-stainless-retry-count", "1")], True),
        ([("X-Stainless-Retry-Count", "2")], True),
        ([("X-Envoy-Attempt-Count", "1")], False),
        ([("X-Envoy-Attempt-Count", "2")], True),
        ([("X-Sidecar-Retry", "0")], False),
        ([("X-Sidecar-Retry", "1")], True),
        ([("X-Stainless-Retry-Count", "0"), ("X-Envoy-Attempt-Count", "3")], True),
        ([("X-Stainless-Retry-Count", "one")], False),
        ([("X-Stainless-Retry-Count", "-1")], False),
        ([("X-Stainless-Retry-Count", "")], False),
        ([("X-Stainless-Retry-Count", "9" * 400)], False),
        ([("X-Retry-Count", "5")], False),
    ],
)
def test_a_client_that_retries_is_known(headers: list[tuple[str, str]], said: bool) -> None:
    """By the number of its try, where it writes one; what is no number says nothing."""
    assert client_retries(lines(*headers)) is said


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], False),
        ([("x-should-retry", "false")], True),
        ([("X-Should-Retry", "False")], True),
        ([("x-should-retry", "true")], False),
        ([("x-should-retry", "maybe")], False),
    ],
)
def test_an_upstream_may_advise_against_it(headers: list[tuple[str, str]], said: bool) -> None:
    """Only the word false does."""
    assert advised_against(lines(*headers)) is said


@pytest.mark.parametrize(
    ("accept", "body", "wanted"),
    [
        ("", b"", False),
        ("application/json", b"", False),
        ("text/event-stream", b"", True),
        ("application/json, Text/Event-Stream;q=0.9", b"", True),
        ("application/json", b'{"model": "gpt-4", "stream": true}', True),
        ("application/json", b'{"stream":\n  true}', True),
        ("application/json", b'{"stream": false}', False),
        ("application/json", b'{"streams": true}', False),
    ],
)
def test_an_event_stream_is_asked_for_in_two_ways(accept: str, body: bytes, wanted: bool) -> None:
    """By `Accept`, or by the member that OpenAI's API has for it."""
    assert wants_event_stream(lines(("Accept", accept)), body) is wanted

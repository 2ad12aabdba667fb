from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.cache_status import Forward, appended, hit, member


@pytest.mark.parametrize(("ttl", "value"), [(30, b"sidecar; hit; ttl=30"), (-5, b"sidecar; hit; ttl=-5")])
def test_hit(ttl: int, value: bytes) -> None:
    """RFC 9211, 2.1 and 2.5: a stale response served is a hit with a negative ttl."""
    assert hit(ttl) == value == member(ttl=ttl)


@pytest.mark.parametrize(
    ("forward", "parameters", "value"),
    [
        (Forward.URI_MISS, {"stored": True}, b"sidecar; fwd=uri-miss; stored"),
        (Forward.VARY_MISS, {}, b"sidecar; fwd=vary-miss"),
        (Forward.MISS, {"collapsed": True}, b"sidecar; fwd=miss; collapsed"),
        (Forward.BYPASS, {"detail": "hit-for-miss"}, b'sidecar; fwd=bypass; detail="hit-for-miss"'),
        (Forward.METHOD, {}, b"sidecar; fwd=method"),
        (Forward.REQUEST, {}, b"sidecar; fwd=request"),
        (Forward.PARTIAL, {}, b"sidecar; fwd=partial"),
        (
            Forward.STALE,
            {"forward_status": 304, "ttl": 60, "stored": True, "collapsed": True},
            b"sidecar; fwd=stale; fwd-status=304; ttl=60; stored; collapsed",
        ),
        (None, {"ttl": 1, "key": b'a:v1:"h"'}, b'sidecar; hit; ttl=1; key="a:v1:\\"h\\""'),
    ],
)
def test_member(forward: Forward | None, parameters: dict[str, Any], value: bytes) -> None:
    """RFC 9211, 2: one item, its parameters in the order of the specification."""
    assert member(forward, **parameters) == value


@pytest.mark.parametrize(
    ("before", "value"),
    [(None, b"us"), (b"", b"us"), (b"Origin; hit, cdn; fwd=miss", b"Origin; hit, cdn; fwd=miss, us")],
)
def test_appended(before: bytes | None, value: bytes) -> None:
    """RFC 9211, 2: members stand in the order in which the caches saw the response."""
    assert appended(before, b"us") == value

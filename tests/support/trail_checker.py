"""Recomputes the status and the rung of an answer from its decision trail, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from sidecar.decisions.structured_fields import Bare
from sidecar.decisions.trail import Member

REFUSED: Final = {"rate_limit": 429, "attempt_timeout": 504}
"""Status of a refusal by its layer; others answer 503."""
ERRORS: Final = {
    "attempt_timeout": 504,
    "bad_request": 400,
    "bad_upstream_response": 502,
    "body_too_large": 413,
    "connect_failed": 502,
    "egress_denied": 403,
    "internal_error": 500,
    "loop_detected": 508,
    "misdirected": 421,
    "not_served": 404,
    "only_if_cached": 504,
    "rate_limit_unavailable": 503,
    "upstream_body_broken": 502,
    "upstream_certificate": 502,
    "upstream_reset": 502,
}
"""Status of an error of the sidecar's own by its code."""
GONE: Final = 499


class Conclusion(NamedTuple):
    status: int
    rung: str
    """Of the ladder; empty where none was needed."""


def conclude(trail: Iterable[Member]) -> Conclusion:
    """What the client got. Raises AssertionError where the trail leaves that open.

    Each decision is taken in its order: the last one that answers is the answer.
    """
    status: int | None = None
    hedge: int | None = None
    rung = ""
    for layer, parameters in trail:
        first = next(iter(parameters))
        if "alternate" in parameters:  # fallback says what came of it
            continue
        if "hedge" in parameters and layer != "retry":  # retry says whether it counts
            hedge = _answered(layer, parameters, hedge) if layer == "upstream" else hedge
        elif layer == "retry":
            status, hedge = _retried(first, status, hedge)
        elif layer == "observe" and first == "client_gone":
            status, rung = GONE, ""
        else:
            status = _answered(layer, parameters, status)
            rung = str(parameters.get("rung", rung))
    assert status is not None, "the trail names no answer"
    return Conclusion(status, rung)


def _retried(first: str, status: int | None, hedge: int | None) -> tuple[int | None, int | None]:
    """The answer, and that of the hedge which was told of last."""
    if first in ("ok", "declined", "skipped", "hedge", "hedge-skipped"):
        return status, hedge
    if first == "hedge-lost":
        return status, None
    if first == "hedge-failed":
        return (status if hedge is None else hedge), None
    if first == "hedge-won":
        return hedge, None
    return None, None  # what came was discarded, and is asked for again


def _answered(layer: str, parameters: dict[str, Bare] | object, status: int | None) -> int | None:
    """The answer that a decision makes; `status` where it makes none."""
    assert isinstance(parameters, dict)
    match parameters:
        case {"rejected": _}:
            return REFUSED.get(layer, 503)
        case {"expired": True}:
            return 504
        case {"not_modified": True}:
            return 304
        case {"purged": int(count)}:
            return 200 if count else 404
        case {"error": str(code)}:
            return ERRORS[code]
        case {"status": int(said)}:
            return said
    return status

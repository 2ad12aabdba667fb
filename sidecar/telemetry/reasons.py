"""Label values that come from a closed set, and how the number of those that do not is bounded."""

from __future__ import annotations

from http import HTTPStatus

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
"""RFC 9110, 9.3 and RFC 5789."""

STATUSES = frozenset(status.value for status in HTTPStatus) | {499}
"""The registry, and 499: the client left before the answer."""

MOST_REASONS = 32
"""Different reasons that are counted each by itself; what comes after them counts as `other`."""


def count_reason(cells: dict[str, int], reason: str) -> None:
    """Counts `reason`, under `other` once there are `MOST_REASONS` of them."""
    if reason not in cells and len(cells) >= MOST_REASONS:
        reason = "other"
    cells[reason] = cells.get(reason, 0) + 1

"""An answer of the admin listener, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import orjson

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"


class Page(NamedTuple):
    """An answer."""

    status: int
    content_type: str
    body: bytes


def problem_page(status: int, title: str, detail: str) -> Page:
    """An error as RFC 9457 has it."""
    members = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Page(status, PROBLEM, orjson.dumps(members))


def json_page(members: Mapping[str, object], status: int = 200) -> Page:
    """An answer in JSON."""
    return Page(status, JSON, orjson.dumps(members))

"""What the admin listener says and does about the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from aiohttp import web

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import COUNT, TEXT, Route, Schema, audit, in_json, ordering, problem, showing
from sidecar.config.order import members

WORKERS: Final = "/admin/workers"

_WORKER: Final[Schema] = {
    "type": "object",
    "required": ["worker", "pid", "status"],
    "properties": {
        "worker": {**COUNT, "description": "From 1."},
        "pid": COUNT,
        "status": {"type": "string", "enum": ["starting", "serving", "draining"]},
        "up_seconds": {"type": "number"},
        "generation": {**COUNT, "description": "Of the configuration that it serves."},
        "connections": COUNT,
        "requests": {**COUNT, "description": "Since it was started, as of its last report."},
        "lag_max_ms": {"type": "number", "description": "The largest lag of its event loop in a minute."},
        "trouble": {**TEXT, "description": "Why it does not serve what it was told to."},
    },
}
_LIST: Final[Schema] = {
    "type": "object",
    "required": ["workers", "rolling"],
    "properties": {
        "workers": {"type": "array", "items": _WORKER},
        "rolling": {"type": "boolean", "description": "They are being replaced, one after the other."},
        "restarts": {"type": "object", "additionalProperties": COUNT, "description": "By reason."},
    },
}
_ORDER: Final[Schema] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["action"],
    "properties": {"action": {"type": "string", "enum": ["restart"]}},
}
_EXAMPLE: Final = 'send {"action": "restart"}'


class WorkerPages:
    """The pages about the processes that serve."""

    def __init__(self, told: Callable[[], Mapping[str, Any]], restart: Callable[[], bool]) -> None:
        """`restart` begins to replace all; False where that is under way."""
        self._told = told
        self._restart = restart

    def routes(self) -> Iterator[Route]:
        answer = in_json("The workers.", _LIST)
        yield showing(WORKERS, self._list, "The processes that serve.", {"200": answer})
        yield ordering(
            WORKERS,
            self._act,
            "Replaces all workers, one after the other, without losing a request.",
            _ORDER,
            {"202": answer, "409": problem("They are being replaced already.")},
        )

    def _list(self, _: str) -> Page:
        return json_page(self._told())

    async def _act(self, request: web.Request) -> Page:
        try:
            asked = members(await request.read(), _EXAMPLE)
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        if dict(asked) != {"action": "restart"}:
            return problem_page(400, "Bad Request", f"action: the only one is restart ({_EXAMPLE})")
        audit(request, "workers restart")
        if not self._restart():
            return problem_page(409, "Conflict", "the workers are being restarted already")
        return json_page(self._told(), 202)

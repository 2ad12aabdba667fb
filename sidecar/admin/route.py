"""What a subject contributes to the admin listener: its routes, each with what OpenAPI says of it.

A subject is an object with `routes()`; `app.py` lists the subjects. From these come the listener's paths,
what its 404 names, `/openapi.json`, and the token, the Origin check and the audit line of what acts.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from aiohttp import web

from sidecar.admin.page import JSON, PROBLEM, Page

Schema = Mapping[str, object]
"""JSON Schema, as OpenAPI 3.1 has it."""
Handler = Callable[[web.Request], Awaitable[Page | web.StreamResponse]]
Method = Literal["GET", "POST", "DELETE"]

LARGEST: Final = 1 << 18
"""Bytes of a body that `request.read()` takes, 413 for more; `request.content` streams without end."""
NDJSON: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"

_VARIABLE: Final = re.compile(r"\{(\w+)\}")
_AUDIT: Final[web.RequestKey[tuple[str, Mapping[str, object]]]] = web.RequestKey("audit", tuple)

OBJECT: Final[Schema] = {"type": "object"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TEXT: Final[Schema] = {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that a route may give."""

    description: str
    content: Mapping[str, Schema] = field(default_factory=dict)
    """By content type."""


@dataclass(frozen=True, slots=True)
class Takes:
    """The body that a route takes."""

    content: Mapping[str, Schema]
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A method at a path. GET changes nothing, and HEAD comes with it; all else acts."""

    method: Method
    path: str
    """As aiohttp has it: `{name}` is one segment, and is `request.match_info["name"]`."""
    handler: Handler
    summary: str
    answers: Mapping[str, Answer]
    """By status. Those that all routes have alike (401 and 403 of what acts) come by themselves."""
    takes: Takes | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    """Parameters of the query, by name; a `description` in the schema becomes the parameter's."""
    page: Callable[[str], Page] | None = None
    """The answer as a value, by what Accept says, where it takes no more than that: for other listeners."""
    late_page: Callable[[str], Awaitable[Page]] | None = None
    """The same, where a part of it is made in a thread."""

    @property
    def acting(self) -> bool:
        """It takes the token and an Origin of its own, and leaves an audit line."""
        return self.method != "GET"

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(_VARIABLE.findall(self.path))


class Subject(Protocol):
    """Something that the admin listener tells of, or lets be acted upon."""

    def routes(self) -> Iterable[Route]: ...


def showing(path: str, page: Callable[[str], Page], summary: str, answers: Mapping[str, Answer]) -> Route:
    """The route of a page that is a value, made from what Accept asks for."""

    async def show(request: web.Request) -> Page:
        return page(_accept(request))

    return Route(method="GET", path=path, handler=show, summary=summary, answers=answers, page=page)


def showing_late(
    path: str, page: Callable[[str], Awaitable[Page]], summary: str, answers: Mapping[str, Answer]
) -> Route:
    """The same of a page that takes long to make, and is made beside the event loop."""

    async def show(request: web.Request) -> Page:
        return await page(_accept(request))

    return Route(method="GET", path=path, handler=show, summary=summary, answers=answers, late_page=page)


def _accept(request: web.Request) -> str:
    return ",".join(request.headers.getall("Accept", []))


def in_json(description: str, schema: Schema = OBJECT) -> Answer:
    return Answer(description, {JSON: schema})


def problem(description: str) -> Answer:
    return Answer(description, {PROBLEM: OBJECT})


def ordering(
    path: str,
    handler: Handler,
    summary: str,
    order: Schema,
    answers: Mapping[str, Answer],
    *,
    required: bool = True,
) -> Route:
    """The route of a POST that takes an `order` in JSON; one that cannot be understood is 400."""
    return Route(
        method="POST",
        path=path,
        handler=handler,
        summary=summary,
        takes=Takes({JSON: order}, required),
        answers={**answers, "400": problem("The body cannot be understood; `detail` says why.")},
    )


def audit(request: web.Request, event: str, **facts: object) -> None:
    """Says what the audit line of this act is to tell, besides who, where and how it ended. No secrets."""
    request[_AUDIT] = (event, facts)


def audited(request: web.Request) -> tuple[str, Mapping[str, object]]:
    """What `audit` was told; the event of an act that told nothing is its own."""
    told = request.get(_AUDIT)
    return ("admin act", {}) if told is None else told

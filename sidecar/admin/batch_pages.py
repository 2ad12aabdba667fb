"""The admin listener's routes about batches: submitting, looking, results, cancelling."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from sidecar.admin.page import PROBLEM, Page, json_page, problem_page
from sidecar.admin.route import (
    EVENTS,
    NDJSON,
    TEXT,
    Answer,
    Route,
    Takes,
    audit,
    in_json,
    problem,
    showing,
)
from sidecar.admin.stream import events, streaming
from sidecar.batch.jobs import Options, StoreFailed, StoreFull
from sidecar.batch.service import BadFile, Batches
from sidecar.config.units import parse_positive_duration
from sidecar.decisions.priority import Priority

if TYPE_CHECKING:
    from sidecar.clock import Clock

BATCHES: Final = "/batches"
ONE: Final = "/batches/{id}"
OVER: Final = frozenset({"completed", "cancelled", "failed"})
CHANGES: Final = 0.5
"""Seconds between two looks for progress."""
QUIET: Final = 15.0
"""Seconds without progress after which readers are told that the stream lives."""
_NONE: Final = problem("There is no such batch.")
_AWAY: Final = problem("The store of batches fails; `detail` says why.")
_FULL: Final = problem("The store of batches has no room.")
_PRIORITIES: Final = ("high", "normal", "low")


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= 10**9:
            raise ValueError(f'"{text}" is not a whole number from {least} on')
        return int(text)

    return parse


def _priority(text: str) -> Priority:
    if text not in _PRIORITIES:
        raise ValueError(f'"{text}" is not one of {", ".join(_PRIORITIES)}')
    return Priority[text.upper()]


def _name(text: str) -> str:
    if len(text) > 200 or not text.isprintable():
        raise ValueError("it has more than 200 characters, or some that cannot be shown")
    return text


_PARSE: Final[Mapping[str, Callable[[str], Any]]] = {
    "name": _name,
    "priority": _priority,
    "max_concurrency": _whole(1),
    "deadline": parse_positive_duration,
    "stop_on": _whole(1),
    "retries": _whole(0),
}
_QUERY: Final[Mapping[str, Mapping[str, object]]] = {
    "name": {"type": "string", "description": "For people."},
    "priority": {
        "enum": list(_PRIORITIES),
        "default": "low",
        "description": "Which of several batches goes first; all come after interactive requests.",
    },
    "max_concurrency": {"type": "integer", "minimum": 1, "description": "Lines in flight at most."},
    "deadline": {"type": "string", "description": "Time for all lines to begin, for example 2h."},
    "stop_on": {"type": "integer", "minimum": 1, "description": "Failed lines after which the rest is left."},
    "retries": {"type": "integer", "minimum": 0, "description": "Repetitions of a line that failed."},
    "on_error": {
        "enum": ["reject", "skip"],
        "default": "reject",
        "description": "What bad lines do: reject the batch, or be left out.",
    },
}


def options_of(query: Mapping[str, str], defaults: Options) -> tuple[Options, bool]:
    """What the query chooses, and whether bad lines are skipped. Raises ValueError, in words."""
    chosen: dict[str, Any] = {}
    for name, text in query.items():
        if name == "on_error":
            if text not in ("reject", "skip"):
                raise ValueError(f'on_error: "{text}" is neither reject nor skip')
            continue
        parse = _PARSE.get(name)
        if parse is None:
            raise ValueError(f'"{name}" is not known: only {", ".join(_QUERY)} are')
        try:
            chosen[name] = parse(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return replace(defaults, **chosen), query.get("on_error") == "skip"


class BatchPages:
    """The pages; `batches` is None where there are none: `batch.store: off`."""

    def __init__(
        self, batches: Batches | None, clock: Clock, taking: Callable[[], bool] = lambda: True
    ) -> None:
        """`taking`: whether new batches are taken; what is there goes on."""
        self._taking = taking
        self._batches = batches
        self._clock = clock

    def routes(self) -> Iterator[Route]:
        yield Route(
            method="POST",
            path=BATCHES,
            handler=self._guarded(self._submit),
            summary="Takes in a batch: one request a line. Answered once it is on the disk.",
            takes=Takes({NDJSON: {"type": "string"}}),
            query=_QUERY,
            answers={
                "202": in_json("Accepted."),
                "400": problem("Nothing was accepted: `errors` names the lines, and the mend."),
                "409": problem("There are no batches here."),
                "503": _AWAY,
                "507": _FULL,
            },
        )
        yield self._get(BATCHES, self._list, "All batches, the newest first.", in_json("Batches."))
        yield self._get(ONE, self._show, "A batch and how it stands.", in_json("The batch."))
        yield self._get(
            ONE + "/events",
            self._events,
            "Its progress as server-sent events, until it is over.",
            Answer("Events `progress`, at last `end`.", {EVENTS: TEXT}),
        )
        yield self._get(
            ONE + "/results",
            self._results,
            "Its results, those too that come while this is read.",
            Answer("One result a line, in the order in which they came.", {NDJSON: TEXT}),
        )
        yield Route(
            method="POST",
            path=ONE + "/cancel",
            handler=self._guarded(self._cancel),
            summary="Lines that have not begun are not sent; they end as failed.",
            answers={"202": in_json("The batch."), "404": _NONE, "409": problem("It is over."), "503": _AWAY},
        )
        yield Route(
            method="DELETE",
            path=ONE,
            handler=self._guarded(self._delete),
            summary="Forgets a batch with its results, running or not.",
            answers={"200": in_json("Which one."), "404": _NONE, "503": _AWAY},
        )
        figures = self._batches.figures if self._batches is not None else lambda: {"enabled": False}
        yield showing(
            "/admin/batch/stats",
            lambda _: json_page(figures()),
            "What all batches of this process come to.",
            {"200": in_json("Counters since the start, concurrency and rate of the last minutes.")},
        )

    def _get(self, path: str, act: Any, summary: str, answer: Answer) -> Route:
        answers = {"200": answer, "404": _NONE, "409": problem("There are no batches here."), "503": _AWAY}
        return Route(method="GET", path=path, handler=self._guarded(act), summary=summary, answers=answers)

    def _guarded(self, act: Any) -> Any:
        """`act` of a request and the batches; without these, or with a store that fails, an error."""

        async def guarded(request: web.Request) -> Page | web.StreamResponse:
            if self._batches is None:
                return problem_page(409, "Conflict", "there are no batches here (batch.store is off)")
            try:
                answer: Page | web.StreamResponse = await act(request, self._batches)
            except StoreFull as error:
                return problem_page(507, "Insufficient Storage", str(error))
            except StoreFailed as error:
                return problem_page(503, "Service Unavailable", str(error))
            return answer

        return guarded

    async def _submit(self, request: web.Request, batches: Batches) -> Page:
        if not self._taking():
            return problem_page(409, "Conflict", "the feature batch is switched off (GET /admin/features)")
        try:
            options, skip = options_of(request.query, batches.defaults)
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        if request.headers.get("Content-Encoding", "identity") != "identity":
            return problem_page(415, "Unsupported Media Type", "the body is encoded (send it as it is)")
        try:
            batch, faults = await batches.submit(_pieces(request), options, skip=skip)
        except BadFile as error:
            members = {
                "type": "about:blank",
                "title": "Bad Request",
                "status": 400,
                "detail": str(error),
                "errors": error.faults.members(),
            }
            audit(request, "batch refused", bad_lines=error.faults.count)
            return Page(400, PROBLEM, orjson.dumps(members))
        audit(request, "batch accepted", batch=batch.id, lines=batch.counts.total, skipped=faults.count)
        shown = await batches.shown(batch.id) or {}
        if faults.count:
            shown |= {"skipped": faults.count, "errors": faults.members()}
        return json_page(shown, 202)

    async def _list(self, _: web.Request, batches: Batches) -> Page:
        return json_page({"batches": await batches.listed()})

    async def _show(self, request: web.Request, batches: Batches) -> Page:
        shown = await batches.shown(request.match_info["id"])
        return _missing(request) if shown is None else json_page(shown)

    async def _events(self, request: web.Request, batches: Batches) -> Page | web.StreamResponse:
        name = request.match_info["id"]
        shown = await batches.shown(name)
        if shown is None:
            return _missing(request)
        async with events(request) as (response, stream):
            last: dict[str, object] | None = None
            told = self._clock.now()
            while shown is not None:
                over = shown["status"] in OVER and "finished" in shown
                if shown != last or over:
                    await stream.send(shown, event="end" if over else "progress")
                    last, told = shown, self._clock.now()
                elif self._clock.now() - told >= QUIET:
                    await stream.beat()
                    told = self._clock.now()
                if over:
                    break
                await self._clock.sleep(CHANGES)
                try:
                    shown = await batches.shown(name)
                except StoreFailed as error:
                    shown = {**(last or {}), "status": "paused", "reason": str(error)}
        return response

    async def _results(self, request: web.Request, batches: Batches) -> Page | web.StreamResponse:
        name = request.match_info["id"]
        if await batches.shown(name) is None:
            return _missing(request)
        whole = False
        async with streaming(request, NDJSON) as response:
            with suppress(LookupError):  # deleted meanwhile
                async for piece in batches.results(name):
                    if piece:
                        await response.write(piece)
                    elif request.transport is None:  # the reader left
                        break
                else:
                    whole = True
        if not whole and request.transport is not None:
            # Deleted, or the listener closes. A body that ends in order would look like all results.
            request.transport.abort()
        return response

    async def _cancel(self, request: web.Request, batches: Batches) -> Page:
        name = request.match_info["id"]
        if await batches.shown(name) is None:
            return _missing(request)
        done = await batches.cancel(name)
        audit(request, "batch cancel", batch=name, done=done)
        if not done:
            return problem_page(409, "Conflict", f"{name} is over, or ends already")
        return json_page(await batches.shown(name) or {}, 202)

    async def _delete(self, request: web.Request, batches: Batches) -> Page:
        name = request.match_info["id"]
        done = await batches.delete(name)
        audit(request, "batch delete", batch=name, done=done)
        return json_page({"deleted": name}) if done else _missing(request)


def _missing(request: web.Request) -> Page:
    return problem_page(
        404, "Not Found", f"there is no batch {request.match_info['id']} (GET /batches lists all)"
    )


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_any():
        yield piece

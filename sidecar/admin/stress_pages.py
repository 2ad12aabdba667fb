"""What the admin listener says and does about stress tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from aiohttp import web

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import OBJECT, TEXT, Route, Schema, audit, in_json, problem, showing
from sidecar.stress_tests import Busy, StressTests, Unavailable, UnknownScenario

STRESS: Final = "/admin/stress-test"

_RUN: Final[Schema] = {
    "type": "object",
    "required": ["id", "scenario", "status"],
    "properties": {
        "id": TEXT,
        "scenario": TEXT,
        "status": {"type": "string", "enum": ["running", "passed", "failed", "aborted"]},
        "progress": {"type": "array", "items": {"type": "string"}, "description": "Its last lines."},
        "result": {**OBJECT, "description": "The report, once there is one."},
    },
}
_RUNS: Final[Schema] = {
    "type": "object",
    "required": ["stress_tests"],
    "properties": {"stress_tests": {"type": "array", "items": _RUN}},
}


class StressPages:
    """The pages about the stress tests of one process."""

    def __init__(self, tests: StressTests, taking: Callable[[], bool]) -> None:
        """`taking`: whether any may be started."""
        self._tests = tests
        self._taking = taking

    def routes(self) -> Iterator[Route]:
        yield showing(
            STRESS,
            self._list,
            "The stress tests, the newest first.",
            {"200": in_json("The last ones.", _RUNS)},
        )
        yield Route(
            method="GET",
            path=f"{STRESS}/{{id}}",
            handler=self._show,
            summary="Progress and result of a stress test.",
            answers={"200": in_json("As it is now.", _RUN), "404": problem("There is none of that id.")},
        )
        yield Route(
            method="POST",
            path=STRESS,
            handler=self._start,
            summary="Starts a stress test of this sidecar, in the background.",
            query={"scenario": {**TEXT, "description": "A shipped load, such as light_load."}},
            answers={
                "202": in_json("It is running.", _RUN),
                "403": problem("It comes from a page of another site, or the feature stress_test is off."),
                "404": problem("There is no such load; `detail` lists them."),
                "409": problem("Another one is running; `detail` has its id."),
                "503": problem("It cannot be done here; `detail` is the mend."),
            },
        )

    def _list(self, _: str) -> Page:
        return json_page({"stress_tests": [run.shown for run in self._tests.runs]})

    async def _show(self, request: web.Request) -> Page:
        run = self._tests.get(request.match_info["id"])
        if run is None:
            return problem_page(404, "Not Found", "there is no stress test of that id")
        return json_page(run.shown)

    async def _start(self, request: web.Request) -> Page:
        scenario = request.query.get("scenario", "")
        audit(request, "stress test", scenario=scenario[:100])
        if not self._taking():
            mend = "in production it must be switched on: features.stress_test, or POST /admin/features"
            return problem_page(403, "Forbidden", f"the feature stress_test is off ({mend})")
        try:
            run = await self._tests.start(scenario)
        except UnknownScenario as error:
            return problem_page(404, "Not Found", f'there is no load "{scenario[:100]}" (one of {error})')
        except Busy as error:
            return problem_page(409, "Conflict", f"another one is running: {error}")
        except Unavailable as error:
            return problem_page(503, "Service Unavailable", f"no stress test can be run here: {error}")
        return json_page(run.shown, status=202)

"""What the admin listener says of the configuration in force: each value, and where it was written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from aiohttp import web

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import COUNT, OBJECT, TEXT, Route, Schema, audit, in_json, problem, showing_late
from sidecar.config.load import Loaded
from sidecar.config.problems import Origin
from sidecar.config.shown import settings_of, upstream_of
from sidecar.telemetry.stamp import Stamp

CONFIG: Final = "/admin/config"
RELOAD: Final = "/admin/reload"

_TEXTS: Final[Schema] = {"type": "array", "items": {"type": "string"}}
_RELOADED: Final[Schema] = {
    "type": "object",
    "required": ["result", "generation", "changes", "restart_needed", "problems", "warnings"],
    "properties": {
        "result": {"type": "string", "enum": ["applied", "started", "unchanged"]},
        "generation": {**COUNT, "description": "In force now; the one under trial where it was started."},
        "changes": {**_TEXTS, "description": "Settings that differ, without secrets."},
        "restart_needed": {**_TEXTS, "description": "Those that count from the next start."},
        "problems": _TEXTS,
        "warnings": _TEXTS,
    },
}

_SETTING: Final[Schema] = {
    "type": "object",
    "required": ["key", "value", "origin"],
    "properties": {
        "key": TEXT,
        "value": {"type": "string", "description": "As YAML has it; what came from a reference is ***."},
        "origin": {**TEXT, "description": "`file:line`, what else set it, or `default`."},
    },
}
_SETTINGS: Final[Schema] = {"type": "array", "items": _SETTING}
_CONFIG: Final[Schema] = {
    "type": "object",
    "required": ["generation", "loaded_at", "environment", "settings", "policies", "warnings"],
    "properties": {
        "generation": {**COUNT, "description": "1 at the start; each reload that took is one more."},
        "loaded_at": {"type": "string", "format": "date-time"},
        "environment": TEXT,
        "settings": _SETTINGS,
        "policies": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "direction", "origin", "upstream", "settings", "routes"],
                "properties": {"settings": _SETTINGS, "routes": {"type": "array", "items": OBJECT}},
            },
        },
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}


class InForce(Protocol):
    """A configuration that serves."""

    @property
    def loaded(self) -> Loaded: ...
    @property
    def generation(self) -> int:
        """1 at the start; each reload that took is one more."""
        ...

    @property
    def since(self) -> float:
        """Unix seconds."""
        ...


class Reloaded(Protocol):
    """What became of a reload."""

    @property
    def result(self) -> str: ...
    @property
    def problems(self) -> tuple[str, ...]: ...
    def told(self) -> dict[str, object]: ...


class ConfigPages:
    """The pages about what `current` gives: what it shows is worked out once for each generation."""

    def __init__(
        self,
        current: Callable[[], InForce],
        reload: Callable[[str], Awaitable[Reloaded]] | None = None,
    ) -> None:
        """`reload` loads the files again, and is told why; None: there is nothing to load."""
        self._current = current
        self._reload = reload
        self._shown: tuple[InForce, Page] | None = None

    def routes(self) -> Iterator[Route]:
        yield showing_late(
            CONFIG,
            self._config,
            "The effective configuration, without secrets, each value with its origin.",
            {"200": in_json("What is in force.", _CONFIG)},
        )
        if self._reload is not None:
            yield Route(
                method="POST",
                path=RELOAD,
                handler=self._load,
                summary="Loads the configuration's files again.",
                answers={
                    "200": in_json("It is in force, was already, or a rollout has begun.", _RELOADED),
                    "409": problem("The files are not valid: the last good configuration serves on."),
                },
            )

    async def _load(self, request: web.Request) -> Page:
        assert self._reload is not None
        outcome = await self._reload("POST /admin/reload")
        audit(request, "reload", result=outcome.result)
        if outcome.result == "failed":
            return problem_page(409, "Conflict", "; ".join(outcome.problems))
        return json_page(outcome.told())

    async def _config(self, _: str) -> Page:
        current = self._current()
        if self._shown is None or self._shown[0] is not current:
            # Of hundreds of routes it takes a while; a generation does not change.
            page = json_page(await asyncio.to_thread(told, current))
            self._shown = current, page
            return page
        return self._shown[1]


def told(current: InForce) -> dict[str, object]:
    """Plain values, ready for JSON."""
    loaded = current.loaded
    return {
        "generation": current.generation,
        "loaded_at": Stamp()(current.since),
        "environment": loaded.config.environment,
        "settings": _rows(loaded.config.model_dump(mode="json"), "", loaded.origins),
        "policies": [
            {
                "name": policy.name,
                "direction": policy.direction,
                "origin": loaded.origins[f"policies.{policy.name}"].short,
                "upstream": upstream_of(policy, loaded)[0],
                "settings": _rows(
                    policy.model_dump(mode="json", exclude={"name", "direction", "routes"}),
                    f"policies.{policy.name}",
                    loaded.origins,
                ),
                "routes": [
                    {
                        "name": route.name,
                        "origin": loaded.origins[f"policies.{policy.name}.routes.{route.name}"].short,
                        "settings": _rows(
                            route.model_dump(mode="json", exclude={"name"}),
                            f"policies.{policy.name}.routes.{route.name}",
                            loaded.origins,
                        ),
                    }
                    for route in policy.routes
                ],
            }
            for policy in loaded.policies
        ],
        "warnings": [str(warning) for warning in loaded.warnings],
    }


def _rows(values: Mapping[str, Any], prefix: str, origins: Mapping[str, Origin]) -> list[dict[str, str]]:
    return [
        {"key": key, "value": value, "origin": origin}
        for key, value, origin in settings_of(values, prefix, origins)
    ]

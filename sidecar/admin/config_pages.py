"""What the admin listener says of the configuration in force: each value, and where it was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sidecar.admin.page import Page, json_page
from sidecar.admin.route import COUNT, OBJECT, TEXT, Route, Schema, in_json, showing
from sidecar.config.load import Loaded
from sidecar.config.problems import Origin
from sidecar.config.shown import settings_of, upstream_of
from sidecar.telemetry.stamp import Stamp

CONFIG: Final = "/admin/config"

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


@dataclass(frozen=True, slots=True)
class InForce:
    """A configuration that serves."""

    loaded: Loaded
    generation: int
    """1 at the start; each reload that took is one more."""
    since: float
    """Unix seconds."""


class ConfigPages:
    """The pages about what `current` gives: what it shows is worked out once for each generation."""

    def __init__(self, current: Callable[[], InForce]) -> None:
        self._current = current
        self._shown: tuple[InForce, Page] | None = None

    def routes(self) -> Iterator[Route]:
        yield showing(
            CONFIG,
            self._config,
            "The effective configuration, without secrets, each value with its origin.",
            {"200": in_json("What is in force.", _CONFIG)},
        )

    def _config(self, _: str) -> Page:
        current = self._current()
        if self._shown is None or self._shown[0] is not current:
            self._shown = current, json_page(told(current))
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

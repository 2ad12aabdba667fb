"""What a configuration says, as the commands show it: each value with the place where it was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sidecar.config.flow import flow
from sidecar.config.load import Loaded
from sidecar.config.problems import SECRET, Origin
from sidecar.config.schema import Match, PolicyFile

_JSON: Final = ".json"
"""Ends the path of what is JSON: shown in one piece."""


def settings_of(
    values: Mapping[str, Any], prefix: str, origins: Mapping[str, Origin]
) -> list[tuple[str, str, str]]:
    """Each setting with its value and where that was written; secrets are not shown.

    `prefix` is where `values` are in `origins`; empty for sidecar.yaml as a whole.
    """
    rows: list[tuple[str, str, str]] = []

    def visit(path: str, value: object) -> None:
        full = f"{prefix}.{path}" if prefix else path
        origin = origins.get(full)
        if isinstance(value, dict) and not path.endswith(_JSON):
            for key, inner in value.items():
                visit(f"{path}.{key}" if path else key, inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):
                at = f"{full}.{index}"
                said = _written(item, at, origins)
                rows.append((f"{path}[{index}]", flow(said, at, origins), origins[at].short))
        else:
            shown = (flow if path.endswith(_JSON) and origin else value_of)(value, full, origins)
            rows.append((path, shown, origin.short if origin else "default"))

    visit("", values)
    return rows


def _written(item: Mapping[str, Any], at: str, origins: Mapping[str, Origin]) -> dict[str, Any]:
    """What the file says of an item of a list: its defaults are the same for all."""
    said = {key: inner for key, inner in item.items() if f"{at}.{key}" in origins and inner is not None}
    return {
        key: _written(inner, f"{at}.{key}", origins) if isinstance(inner, dict) and key != "json" else inner
        for key, inner in said.items()
    }


def value_of(value: object, path: str, origins: Mapping[str, Origin]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value_of(it, f'{path}.{index}', origins) for index, it in enumerate(value))}]"
    if (path in origins and origins[path].secret) or ".inject." in path:
        return SECRET
    if value is None:
        return "off"
    return str(value).lower() if isinstance(value, bool) else str(value)


def app_of(loaded: Loaded) -> tuple[str, str]:
    """Where the app is, and where that was written."""
    return value_of(loaded.config.app.url, "app.url", loaded.origins), place_of(loaded, "app.url")


def place_of(loaded: Loaded, path: str) -> str:
    origin = loaded.origins.get(path)
    return origin.short if origin else "default"


def upstream_of(policy: PolicyFile, loaded: Loaded) -> tuple[str, str]:
    if policy.upstream is None and policy.direction == "egress":
        path = f"policies.{policy.name}.hosts"
        if len(policy.hosts) == 1:
            return f"https://{value_of(policy.hosts[0], f'{path}.0', loaded.origins)}", place_of(loaded, path)
        return "https to the host that is asked", place_of(loaded, path)
    if policy.upstream is None:
        return app_of(loaded)
    path = f"policies.{policy.name}.upstream"
    return value_of(policy.upstream, path, loaded.origins), place_of(loaded, path)


def match_text(match: Match, prefix: str, loaded: Loaded) -> str:
    parts = [",".join(match.method) or "any method"]
    where = value_of(match.host, f"{prefix}.host", loaded.origins) if match.host else ""
    parts.append(where + value_of(match.path, f"{prefix}.path", loaded.origins))
    parts += [
        f"{name}: {value_of(glob, f'{prefix}.headers.{name}', loaded.origins)}"
        for name, glob in match.headers
    ]
    return " ".join(parts)

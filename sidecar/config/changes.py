"""What differs between two configurations, setting by setting, without secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from sidecar.config.flow import flow
from sidecar.config.load import Loaded
from sidecar.config.problems import SECRET, Origin
from sidecar.config.shown import value_of

_AT_START: Final = (
    "listen",
    "workers",
    "expose",
    "ca",
    "metrics",
    "tracing",
    "sentry",
    "batch",
    "history",
    "cache.redis",
    "cache.memory",
    "app.health_interval",
    "app.health_failures",
    "logging.file",
    "logging.rotate",
    "logging.sample",
    "logging.slow",
    "logging.fields",
)
"""Sections and keys that count when the process starts."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting. None: it is not there."""

    key: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.key}: {self.after}"
        if self.after is None:
            return f"- {self.key}: {self.before}"
        if self.before == self.after:
            return f"~ {self.key}: {self.after} (another)"
        return f"~ {self.key}: {self.before} -> {self.after}"


def changes(old: Loaded, new: Loaded) -> tuple[Change, ...]:
    """All settings that differ, in the order of the new configuration; what is gone comes last."""
    before, after = _leaves(old), _leaves(new)
    found = [
        Change(
            key,
            _shown(key, before[key][1], old.origins) if key in before else None,
            _shown(key, value[1], new.origins),
        )
        for key, value in after.items()
        if key not in before or before[key][0] != value[0]
    ]
    found += [
        Change(key, _shown(key, value[1], old.origins), None)
        for key, value in before.items()
        if key not in after
    ]
    found += [
        Change(f"file {name}", "", "")
        for name, digest in new.sources.items()
        if name in old.sources and old.sources[name] != digest and name in _certificates(new)
    ]
    return tuple(found)


def at_start(key: str) -> bool:
    """Whether a setting counts only when the process starts."""
    if any(f"{key}.".startswith(f"{it}.") for it in _AT_START):
        return True
    match key.split("."):
        case ["policies", _, "takeover", *_]:
            return True
    return False


def held_back(old: Loaded, new: Loaded) -> Loaded:
    """`new`, with what counts only at the start as it was in `old`."""
    config = new.config
    for key in _AT_START:
        section, _, name = key.partition(".")
        before = getattr(old.config, section)
        if name:
            before = getattr(config, section).model_copy(update={name: getattr(before, name)})
        config = config.model_copy(update={section: before})
    origins = {path: origin for path, origin in new.origins.items() if not at_start(path)}
    origins |= {path: origin for path, origin in old.origins.items() if at_start(path)}
    return new.with_config(config, origins)


def _certificates(loaded: Loaded) -> frozenset[str]:
    tls = [policy.tls for policy in loaded.policies]
    tls += [
        rung.tls
        for policy in loaded.policies
        for route in policy.routes
        for rung in route.fallback or ()
        if rung.upstream is not None
    ]
    return frozenset(str(name) for it in tls for name in (it.ca, it.cert, it.key) if name)


def _leaves(loaded: Loaded) -> dict[str, tuple[Any, Any]]:
    """Every setting by its path, as it is and as YAML has it: models are gone into, lists are whole."""
    found = dict(_visit(loaded.config, loaded.config.model_dump(mode="json"), "", ("environments",)))
    for policy in loaded.policies:
        prefix = f"policies.{policy.name}"
        said = policy.model_dump(mode="json")
        found |= _visit(policy, said, prefix, ("routes", "defaults", "name"))
        for index, route in enumerate(policy.routes):
            found[f"{prefix}.routes.{route.name}"] = (index, f"at place {index + 1}")
            found |= _visit(route, said["routes"][index], f"{prefix}.routes.{route.name}", ("name",))
    return found


def _visit(
    model: BaseModel, said: Mapping[str, Any], prefix: str, exclude: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in type(model).model_fields:
        if name in exclude:
            continue
        value = getattr(model, name)
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, BaseModel):
            yield from _visit(value, said[name], path)
        else:
            yield path, (value, said[name])


def _shown(path: str, said: Any, origins: Mapping[str, Origin]) -> str:
    if any(origin.secret for at, origin in origins.items() if f"{at}.".startswith(f"{path}.")):
        return SECRET
    if isinstance(said, (dict, list)) and said:
        return flow(said, path, origins)
    return value_of(said, path, origins)

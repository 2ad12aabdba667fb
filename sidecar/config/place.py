"""Where the keys of a part of a configuration stand, for findings about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.config.problems import SECRET, Origin, Problem
from sidecar.config.units import format_duration


@dataclass(frozen=True, slots=True)
class Place:
    """Part of a configuration: its keys, and where they stand."""

    origins: Mapping[str, Origin]
    prefix: str
    """Of the keys in `origins`; empty for sidecar.yaml."""
    shown: str = ""
    """Of the keys as they are shown."""

    @classmethod
    def of(cls, origins: Mapping[str, Origin], policy: str, route: str) -> Place:
        """A route of a policy file."""
        return cls(origins, f"policies.{policy}.routes.{route}", f"routes.{route}.")

    def origin(self, key: str) -> Origin:
        """Where the key is written, or else the nearest thing that it is part of."""
        path = f"{self.prefix}.{key}" if self.prefix else key
        while path not in self.origins and "." in path:
            path = path.rpartition(".")[0]
        return self.origins.get(path, Origin("default"))

    def written(self, key: str) -> bool:
        return (f"{self.prefix}.{key}" if self.prefix else key) in self.origins

    def time(self, key: str, seconds: float) -> str:
        return SECRET if self.origin(key).secret else format_duration(seconds)

    def word(self, key: str, text: str) -> str:
        """A part of the key's value, quoted."""
        return f'"{SECRET if self.origin(key).secret else text}"'

    def error(self, key: str, text: str) -> Problem:
        return Problem(self.origin(key), self.path(key), text)

    def warning(self, key: str, text: str) -> Problem:
        return Problem(self.origin(key), self.path(key), text, warning=True)

    def path(self, key: str) -> str:
        return self.shown + re.sub(r"\.([0-9]+)", r"[\1]", key)

    def below(self, key: str) -> Place:
        """The part under `key`."""
        return Place(self.origins, f"{self.prefix}.{key}", f"{self.path(key)}.")

    def inherited(self, key: str) -> bool:
        """Whether a route has all of the key's value from the `defaults` of its file."""
        file, _, route = f"{self.prefix}.{key}".partition(".routes.")
        written = self.origins.get(f"{file}.defaults.{route.partition('.')[2]}")
        return self.written(key) and self.origin(key) == written

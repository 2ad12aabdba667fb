"""References in values: `${VAR}`, `${VAR:-default}` and `${file:/path}`.

What comes from the environment or from a file is taken to be a secret: it is never shown. A default
stands in the configuration for all to read, so it is none. `$${` is a plain `${`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sidecar.config.positions import Entry, Items, Node, Scalar, Tree
from sidecar.config.problems import Problem

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}?")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LARGEST_SECRET: Final = 64 * 1024


def digest(content: bytes) -> str:
    """By which two versions of a file are told apart."""
    return hashlib.sha256(content).hexdigest()


@dataclass(slots=True)
class References:
    """Resolves the references of one file; collects what cannot be resolved."""

    env: Mapping[str, str]
    directory: Path
    """What a relative `${file:…}` is relative to."""
    problems: list[Problem] = field(default_factory=list)
    read: dict[str, str] = field(default_factory=dict)
    """Digests of the files that were read, by their paths; empty for one that could not be."""

    def node(self, node: Node) -> Node | None:
        """The same with all references resolved; None where one cannot be."""
        if isinstance(node, Tree):
            entries: dict[str, Entry] = {}
            for key, entry in node.entries.items():
                value = self.node(entry.value)
                if value is not None:
                    entries[key] = Entry(entry.key, value)
            return Tree(entries, node.origin, node.path)
        if isinstance(node, Items):
            items = [self.node(item) for item in node.items]
            return Items(tuple(item for item in items if item is not None), node.origin, node.path)
        return self.scalar(node) if "${" in node.text else node

    def scalar(self, node: Scalar) -> Scalar | None:
        secret = False
        failed = False

        def put(match: re.Match[str]) -> str:
            nonlocal secret, failed
            if match[0] == "$${":
                return "${"
            try:
                text, found = self._one(match)
            except _Unresolved as error:
                self.problems.append(Problem(node.origin, node.path, str(error)))
                failed = True
                return ""
            secret = secret or found
            return text

        text = _REFERENCE.sub(put, node.text)
        if failed:
            return None
        origin = replace(node.origin, secret=True) if secret else node.origin
        return replace(node, text=text, origin=origin)

    def _one(self, match: re.Match[str]) -> tuple[str, bool]:
        """What a reference stands for, and whether that is a secret."""
        inside: str = match[1]
        if not match[0].endswith("}"):
            raise _Unresolved(f"the reference {match[0]} has no end (write ${{NAME}})")
        if inside.startswith("file:"):
            return self._file(inside.removeprefix("file:")), True
        name, separator, default = inside.partition(":-")
        if not _NAME.fullmatch(name):
            raise _Unresolved(
                f"{match[0]} is not a reference (write ${{NAME}}, ${{NAME:-default}} or ${{file:/path}}; "
                "$${ is a plain ${)"
            )
        value = self.env.get(name)
        if separator and not value:  # as in the shell: an empty variable counts as missing
            return default, False
        if value is None:
            raise _Unresolved(
                f"the environment variable {name} is not set (set it, or write ${{{name}:-default}})"
            )
        return value, True

    def _file(self, name: str) -> str:
        path = self.directory / name
        self.read[str(path)] = ""
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST_SECRET + 1)
            if len(content) > _LARGEST_SECRET:
                raise _Unresolved(f"the file {name} is larger than 64KiB")
            self.read[str(path)] = digest(content)
            return content.decode().rstrip("\r\n")
        except OSError as error:
            raise _Unresolved(f"the file {name} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise _Unresolved(f"the file {name} is not UTF-8 text") from None


class _Unresolved(Exception):
    pass

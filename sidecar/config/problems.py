"""What is wrong with a configuration, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SECRET = "***"  # noqa: S105 - what is shown in place of a secret
"""Shown in place of a value that came from a reference."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written. Lines and columns count from 1; 0 means that the whole source is meant."""

    file: str
    """A path, or the name of what set the value: `--app`, `--set KEY`, an environment variable."""
    line: int = 0
    col: int = 0
    secret: bool = False
    """The value came from a reference: it must not be shown."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}" if self.line else self.file

    @property
    def short(self) -> str:
        """Without the column."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. Prints as `file:line:col: key.path: what is wrong (what to write instead)`."""

    origin: Origin
    path: str
    """Dotted path of the key inside its file; empty where the whole file is meant."""
    text: str
    warning: bool = False

    def __str__(self) -> str:
        where = f"{self.origin}: {self.path}" if self.path else str(self.origin)
        return f"{where}: {'warning: ' if self.warning else ''}{self.text}"


class ConfigError(Exception):
    """The configuration cannot be used. All that is wrong with all its files, in order of position."""

    def __init__(self, problems: Iterable[Problem], sources: Mapping[str, str] | None = None) -> None:
        """`sources` are the digests of all files that were read, by their paths."""
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.sources = sources or {}
        super().__init__("\n".join(str(problem) for problem in self.problems))


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Sorted by position, file by file as they first appear; what was found twice is told once."""
    files: dict[str, int] = {}
    seen: dict[Problem, Problem] = {}
    for problem in problems:
        files.setdefault(problem.origin.file, len(files))
        seen.setdefault(problem, problem)
    return tuple(sorted(seen.values(), key=lambda it: (files[it.origin.file], it.origin.line, it.origin.col)))


def listed(words: Sequence[str], last: str = "or") -> str:
    """`a, b or c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def suggestion(word: str, known: Sequence[str]) -> str:
    """`did you mean x?` for a near miss, otherwise all that is known."""
    if len(known) == 1:
        return f"write {known[0]}"
    begun = [it for it in known if len(word) > 2 and it.startswith(word.lower())]
    near = begun if len(begun) == 1 else difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.7)
    if near:
        return f"did you mean {near[0]}?"
    return f"one of {', '.join(known)}"

"""Generations of the configuration, kept on disk as they were written: references stay references.

One JSON file a generation, readable by its owner alone. A secret that stands in a file itself is left out:
such a generation can be looked at, and not restored.
"""

from __future__ import annotations

import difflib
import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from sidecar.config.load import Loaded, Source
from sidecar.config.problems import SECRET, ConfigError
from sidecar.config.references import digest
from sidecar.config.schema import Config, PolicyFile
from sidecar.config.validate import is_secret
from sidecar.telemetry.stamp import Stamp

_SUFFIX: Final = ".json"
REPLACED: Final = ".replaced"
"""Added to the names of policy files that a restored generation did not have."""


class HistoryError(Exception):
    """It cannot be done; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One generation."""

    id: str
    at: str
    environment: str
    why: str
    files: Mapping[str, str]
    """Texts by names relative to the directory of sidecar.yaml, that one first."""
    changes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=())
    """Secrets that stood in the files themselves, as `file: key`."""


def directory_of(loaded: Loaded) -> Path | None:
    """Where generations are kept; None: nowhere."""
    setting = loaded.config.history.dir
    return loaded.directory / setting if setting is not None and loaded.main else None


def directory_of_invalid(main: Path | None) -> Path | None:
    """The same where the files are not valid: by what can be read of sidecar.yaml."""
    if main is None:
        return None
    setting: object = Config().history.dir
    with suppress(OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        setting = yaml.safe_load(main.read_text("utf-8"))["history"]["dir"]
    return main.parent / setting if isinstance(setting, str) and setting != "off" else None


class History:
    """The generations of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, loaded: Loaded, wall: float, why: str, changes: Sequence[str] = ()) -> str:
        """Keeps what was loaded, unless it is the last one again; then bounds what is there.

        Returns its id. Raises OSError.
        """
        files, left_out = texts(loaded)
        mark = digest(json.dumps(files).encode())[:8]
        there = self._names()
        if there and there[-1].endswith(mark):
            return there[-1]
        at = Stamp()(wall)
        name = f"{at.replace(':', '').replace('-', '').replace('.', '')}-{mark}"
        kept = {
            "at": at,
            "environment": loaded.config.environment,
            "why": why,
            "files": files,
            "changes": list(changes),
            "left_out": left_out,
        }
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(self.directory / f"{name}{_SUFFIX}", json.dumps(kept, indent=1) + "\n")
        rule = loaded.config.history
        oldest = Stamp()(wall - rule.max_age).replace(":", "").replace("-", "").replace(".", "")
        names = [*there, name]
        for old in names[:-1]:
            if names.index(old) < len(names) - rule.keep or old < oldest:
                (self.directory / f"{old}{_SUFFIX}").unlink(missing_ok=True)
        return name

    def _names(self) -> list[str]:
        return sorted(it.stem for it in self.directory.glob(f"*{_SUFFIX}"))

    def all(self) -> Iterator[Kept]:
        """Oldest first. What cannot be read is passed over."""
        for name in self._names():
            try:
                yield self._read(name)
            except (OSError, ValueError, KeyError, TypeError):
                continue

    def get(self, asked: str) -> Kept:
        """One by its id, or by what only its id ends or begins with. Raises HistoryError."""
        names = self._names()
        found = [it for it in names if it == asked] or [
            it for it in names if it.startswith(asked) or it.endswith(asked)
        ]
        if len(found) != 1:
            what = "several generations are" if found else "no generation is"
            raise HistoryError(f"{what} called {asked} (`sidecar config history` lists them)")
        try:
            return self._read(found[0])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HistoryError(f"{found[0]} cannot be read: {error}") from error

    def _read(self, name: str) -> Kept:
        told: dict[str, Any] = json.loads((self.directory / f"{name}{_SUFFIX}").read_text("utf-8"))
        return Kept(
            name,
            told["at"],
            told["environment"],
            told["why"],
            dict(told["files"]),
            tuple(told["changes"]),
            tuple(told["left_out"]),
        )


def texts(loaded: Loaded) -> tuple[dict[str, str], list[str]]:
    """The files of a configuration without secrets, and which of these were left out."""
    names = [loaded.main] if loaded.main else []
    names += [loaded.origins[f"policies.{policy.name}"].file for policy in loaded.policies]
    files: dict[str, str] = {}
    left_out: list[str] = []
    for name in dict.fromkeys(names):
        shown = os.path.relpath(name, loaded.directory)
        files[shown], hidden = without_secrets(loaded.texts[name])
        left_out += [f"{shown}: {key}" for key in hidden]
    return files, left_out


def without_secrets(text: str) -> tuple[str, list[str]]:
    """The text with secrets that it holds itself blotted out, and their keys."""
    root = yaml.compose(text, yaml.SafeLoader)
    found = list(_secrets_in(root, "")) if root is not None else []
    # By place: an alias stands for the same one again.
    marks = {node.start_mark.index: node.end_mark.index for node, _ in found}
    for start, end in sorted(marks.items(), reverse=True):
        # A block ends behind its last line.
        ending = "\n" if text[start:end].endswith("\n") else ""
        text = f'{text[:start]}"{SECRET}"{ending}{text[end:]}'
    return text, [path for _, path in sorted(found, key=lambda it: it[0].start_mark.index)]


def _secrets_in(node: yaml.Node, path: str) -> Iterator[tuple[yaml.ScalarNode, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _secrets_in(value, f"{path}.{key.value}" if path else str(key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _secrets_in(value, f"{path}.{index}")
    elif (
        isinstance(node, yaml.ScalarNode)
        and _is_secret(path)
        and node.value not in ("", "off")
        and "${" not in node.value
    ):
        yield node, path


def _is_secret(path: str) -> bool:
    if path.startswith("environments."):
        path = path.split(".", 2)[-1]
    return is_secret(Config, path) or is_secret(PolicyFile, path)


def difference(before: Mapping[str, str], after: Mapping[str, str], names: tuple[str, str]) -> Iterator[str]:
    """As `diff -u` tells it, file by file."""
    for file in dict.fromkeys((*before, *after)):
        lines = difflib.unified_diff(
            before.get(file, "").splitlines(),
            after.get(file, "").splitlines(),
            f"{names[0]}/{file}" if file in before else os.devnull,
            f"{names[1]}/{file}" if file in after else os.devnull,
            lineterm="",
        )
        yield from lines


def restore(kept: Kept, source: Source, present: Loaded | None, directory: Path) -> list[str]:
    """Writes a generation's files back into `directory`, checks them, and undoes it where they are wrong.

    `present` is what the files say now; None: they are not valid, and what is written over is set aside.
    Returns what was done. Policy files that it did not have are set aside. Raises HistoryError.
    """
    if kept.left_out:
        raise HistoryError(
            f"{kept.id} held secrets in its files, which are not kept: {', '.join(kept.left_out)} "
            "(write them as ${file:…} or ${NAME}; `sidecar config diff` shows its other changes)"
        )
    now: dict[str, str] = {}
    if present is not None:
        now, hidden = texts(present)
        if hidden:
            raise HistoryError(
                f"the files now hold secrets themselves, which would be lost: {', '.join(hidden)} "
                "(write them as ${file:…} or ${NAME} first)"
            )
    others = [name for name in now or _policies_there(kept, directory) if name not in kept.files]
    done: list[str] = []
    undo: list[tuple[Path, str | None, Path | None]] = []

    def set_aside(path: Path) -> None:
        aside = _free(path)
        undo.append((path, None, aside))
        path.rename(aside)
        done.append(f"set {path} aside as {aside.name}")

    try:
        for name, text in kept.files.items():
            path = directory / name
            if now.get(name) == text or (present is None and _text_of(path) == text):
                continue
            if present is None and path.exists():
                set_aside(path)
            undo.append((path, path.read_text("utf-8") if path.exists() else None, None))
            write(path, text)
            done.append(f"wrote {path}")
        for name in others:
            set_aside(directory / name)
        source.load()
    except (OSError, ConfigError) as error:
        for path, before, moved in reversed(undo):
            if moved is not None:
                moved.rename(path)
            elif before is None:
                path.unlink(missing_ok=True)
            else:
                write(path, before)
        raise HistoryError(f"{kept.id} is not valid any more, nothing was changed: {error}") from error
    return done


def _policies_there(kept: Kept, directory: Path) -> list[str]:
    """The files that the generation's `policies` would take in now."""
    main = yaml.safe_load(next(iter(kept.files.values()), "")) or {}
    patterns = main.get("policies")
    found = {
        os.path.relpath(name, directory)
        for pattern in (patterns if isinstance(patterns, list) else ())
        for name in glob.glob(str(directory / str(pattern)), recursive=True)  # noqa: PTH207 - may be absolute
        if Path(name).is_file()
    }
    return sorted(found)


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _free(path: Path) -> Path:
    """A name for a file that is set aside: what was set aside before stays, too."""
    aside, number = path.with_name(f"{path.name}{REPLACED}"), 2
    while aside.exists():
        aside, number = path.with_name(f"{path.name}{REPLACED}-{number}"), number + 1
    return aside


def texts_there(kept: Kept, directory: Path) -> dict[str, str]:
    """The generation's files as they are now, right or wrong, without secrets."""
    found: dict[str, str] = {}
    for name in kept.files:
        text = _text_of(directory / name)
        if text is None:
            continue
        try:
            found[name] = without_secrets(text)[0]
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            at = f" in line {mark.line + 1}" if mark is not None else ""
            # What may be a secret in it cannot be told.
            found[name] = f"# not shown: this is not valid YAML{at}\n"
    return found


def write(path: Path, text: str) -> None:
    """Replaces a file as one: whoever reads it sees the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if real.exists():
            Path(name).chmod(real.stat().st_mode & 0o777)
        Path(name).replace(real)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

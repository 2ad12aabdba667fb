"""`sidecar config` and `sidecar features`: what was in force, and what is switched now."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sidecar.config.load import USUAL, Loaded, Source
from sidecar.config.problems import ConfigError

FINE, FAILED, WRONG = 0, 1, 2


def arguments(command: Any, configured: argparse.ArgumentParser) -> None:
    """Adds `config` and `features` to the commands."""
    config = command(
        "config",
        _config,
        "list the generations of the configuration that were kept, compare them, bring one back",
        "sidecar config diff 20260101T120000",
        configured,
    )
    config.add_argument("action", choices=("history", "diff", "restore"))
    config.add_argument(
        "ids",
        nargs="*",
        metavar="ID",
        help="as history lists them, or how only that one begins; diff: one (against the files) or two",
    )
    features = command(
        "features",
        _features,
        "list the feature flags of the running sidecar, or switch one for a time",
        'sidecar features set cache off --reason "stale answers" --for 10m',
        configured,
    )
    features.add_argument("action", choices=("list", "set"))
    features.add_argument("name", nargs="?", metavar="NAME", help="the feature")
    features.add_argument("state", nargs="?", choices=("on", "off", "configured"))
    features.add_argument("--reason", metavar="TEXT", help="why, for those who wonder later")
    features.add_argument("--for", dest="expires", metavar="DURATION", help="how long, a day at most")


def source(arguments: argparse.Namespace) -> Source:
    """What the options of a command name."""
    path: Path | None = arguments.config
    if path is None and Path(USUAL).exists():
        path = Path(USUAL)
    return Source(path, os.environ, tuple(arguments.set), arguments.app, arguments.env_file)


def _loaded(arguments: argparse.Namespace) -> Loaded:
    loaded = source(arguments).load()
    for problem in loaded.warnings:
        print(problem, file=sys.stderr)
    return loaded


def _wrong(text: str) -> int:
    print(f"sidecar: {text}", file=sys.stderr)
    return WRONG


def _config(arguments: argparse.Namespace) -> int:
    from sidecar.history import (
        History,
        HistoryError,
        difference,
        directory_of,
        directory_of_invalid,
        restore,
        texts,
        texts_there,
    )

    place = source(arguments)
    folder = Path() if place.path is None else place.path.parent
    loaded: Loaded | None = None
    try:
        loaded = _loaded(arguments)
        directory = directory_of(loaded)
    except ConfigError as error:
        # Then what was kept is wanted most.
        for problem in error.problems:
            print(problem, file=sys.stderr)
        directory = directory_of_invalid(place.path)
    if directory is None:
        print("sidecar: no generations are kept (history.dir is off, or there is no file)", file=sys.stderr)
        return FAILED
    history, ids = History(directory), arguments.ids
    try:
        if arguments.action == "history":
            if ids:
                return _wrong("history takes no ID")
            for kept in history.all():
                count = f"{len(kept.changes)} change{'' if len(kept.changes) == 1 else 's'}"
                print(f"{kept.id}  {kept.at}  {kept.environment}  {count}  {kept.why}")
        elif arguments.action == "diff":
            if len(ids) not in (1, 2):
                return _wrong("diff takes one ID or two (sidecar config history lists them)")
            before = history.get(ids[0])
            if len(ids) == 2:
                after = history.get(ids[1]).files
            else:
                after = texts(loaded)[0] if loaded is not None else texts_there(before, folder)
            for line in difference(before.files, after, (ids[0], ids[1] if len(ids) == 2 else "now")):
                print(line)
        else:
            if len(ids) != 1:
                return _wrong("restore takes one ID (sidecar config history lists them)")
            done = restore(history.get(ids[0]), place, loaded, folder)
            for line in done or ["it is in place already"]:
                print(line)
    except (HistoryError, OSError) as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return FAILED
    return FINE


def _features(arguments: argparse.Namespace) -> int:
    from sidecar.calling import Failed, called

    order: dict[str, object] | None = None
    if arguments.action == "set":
        if not (arguments.name and arguments.state and arguments.reason):
            return _wrong("write sidecar features set NAME on|off|configured --reason TEXT --for 10m")
        states: dict[str, object] = {"on": True, "off": False, "configured": "configured"}
        order = {"feature": arguments.name, "on": states[arguments.state], "reason": arguments.reason}
        if arguments.expires:
            order["expires"] = arguments.expires
    elif arguments.name:
        return _wrong("list takes no NAME")
    loaded = _loaded(arguments)
    try:
        told = called(loaded.config, "/admin/features", order)
    except Failed as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return FAILED
    for row in told["features"]:
        line = f"{row['feature']:20}  {'on' if row['on'] else 'off'}"
        if "reason" in row:
            left = f"{row['expires_in_seconds']:.0f}s"
            configured = "on" if row["configured"] else "off"
            line += f"  for {left} more, then {configured}: {row['reason']} ({row['client']})"
        print(line)
    return FINE

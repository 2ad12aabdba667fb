"""`sidecar replay`: what its arguments lead to."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from sidecar import config_command
from sidecar.config.load import USUAL, Loaded, Source
from sidecar.config.units import parse_positive_duration

FINE, FAILED, WRONG = 0, 1, 2


def arguments(command: Any, configured: argparse.ArgumentParser) -> None:
    """Adds `replay` to the commands."""
    replay = command(
        "replay",
        _run,
        "run an access log through the policies in virtual time, and predict hit ratio and upstream calls",
        "sidecar replay access.log --against other/sidecar.yaml --html replay.html",
        configured,
    )
    replay.add_argument(
        "log", type=Path, metavar="LOG", help="the sidecar's JSON log, or one in the common format; or .gz"
    )
    replay.add_argument(
        "--against", type=Path, metavar="FILE", help="another sidecar.yaml, to be held beside the first"
    )
    replay.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="ROUTE=AMOUNT",
        help="of one call to its upstream: goes before price of the policy; may be given again",
    )
    replay.add_argument(
        "--latency",
        default="100ms",
        metavar="DURATION",
        help="of an attempt, where the log does not say (default: 100ms)",
    )
    replay.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    replay.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots")


def _run(given: argparse.Namespace) -> int:
    if given.html is not None and find_spec("matplotlib") is None:
        return _wrong("--html needs more packages: pip install 'nextvision-sidecar[report]'")
    try:
        latency = parse_positive_duration(given.latency)
        prices = {name: float(amount) for name, _, amount in (it.partition("=") for it in given.price)}
    except ValueError as error:
        return _wrong(
            f"--latency or --price: {error} (write for example --latency 50ms --price geocode=0.005)"
        )
    source = config_command.source(given)
    if source.path is None:
        return _wrong(f"there is no {USUAL} here (name one: sidecar replay {given.log} -c FILE)")
    loaded = _loaded(source)
    other = None
    if given.against is not None:
        other = _loaded(Source(given.against, source.env, (), None, source.env_file))
    names = _names([source.path, *([given.against] if other is not None else [])])
    known = {
        route.name for it in (loaded, other) if it is not None for p in it.policies for route in p.routes
    }
    for name in prices:
        if name not in known:
            return _wrong(f"--price: no route is called {name} (sidecar routes lists them)")

    from sidecar.replay import report
    from sidecar.replay.log import LogError, read_log
    from sidecar.replay.predict import predict

    try:
        log = read_log(given.log)
    except LogError as error:
        return _wrong(str(error))
    pairs = [(name, it) for name, it in zip(names, (loaded, other), strict=False) if it is not None]
    with _quietly():
        figures = predict(log, pairs, latency, prices)
    for line in report.text(log, figures, latency):
        print(line)
    try:
        if given.json is not None:
            given.json.write_text(report.as_json(log, figures, latency), "utf-8")
        if given.html is not None:
            from sidecar.replay.html import as_html

            given.html.write_text(as_html(log, figures, latency), "utf-8")
    except OSError as error:
        print(f"sidecar: {error.filename}: {error.strerror}", file=sys.stderr)
        return FAILED
    return FINE


@contextmanager
def _quietly() -> Iterator[None]:
    """What the layers say of the past is no news; an error of their own is."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        structlog.configure(**before)


def _names(files: Sequence[Path]) -> list[str]:
    """What columns are called: the files' names, with as much of their folders as tells them apart."""
    for parts in range(1, max(len(file.parts) for file in files)):
        names = [str(Path(*file.parts[-parts:])) for file in files]
        if len(set(names)) == len(files):
            return names
    return [str(file) for file in files]


def _loaded(source: Source) -> Loaded:
    loaded = source.load()
    for problem in loaded.warnings:
        print(problem, file=sys.stderr)
    return loaded


def _wrong(text: str) -> int:
    print(f"sidecar: {text}", file=sys.stderr)
    return WRONG

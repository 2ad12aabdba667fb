"""`sidecar stress` and `sidecar drill`: what their arguments lead to."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sidecar.config.features import NAMES
from sidecar.config.units import parse_share

if TYPE_CHECKING:
    from sidecar.drills.reading import Found

FINE, FAILED, WRONG = 0, 1, 2
CI_SHARE = 0.5
"""Of a load's time: full_suite then takes less than 8 minutes."""
NEEDED = {"hdrh": "stress"}
NEEDED_AT_SAMPLE = {
    **NEEDED,
    "fastapi": "demo",
    "uvicorn": "demo",
    "requests": "demo",
    "python_multipart": "demo",
}
"""Modules, and the extra that brings each."""


def arguments(command: Any) -> None:
    """Adds `stress` and `drill` to the commands."""
    stress = command(
        "stress",
        _run,
        "load the sample app behind the sidecar, or a target, by a scenario, and tell what held",
        "sidecar stress light_load --markdown report.md",
    )
    drill = command(
        "drill",
        _run,
        "load and break the sample app behind the sidecar by a scenario, and tell what held",
        "sidecar drill app-outage",
    )
    for which in (stress, drill):
        which.add_argument(
            "scenario",
            metavar="NAME|FILE",
            nargs="?",
            help="a shipped one (left out: they are listed), or a file",
        )
        which.add_argument("--target", metavar="URL", help="load this, in place of the sample app")
        which.add_argument("--admin", metavar="URL", help="the admin listener of the sidecar at --target")
        which.add_argument("--token", metavar="TOKEN", help="its token (default: SIDECAR_ADMIN_TOKEN)")
        which.add_argument(
            "--against", metavar="URL", help="the same load there too, such as at the bare app"
        )
        which.add_argument(
            "--allow-host",
            action="append",
            default=[],
            metavar="HOST",
            help="may be loaded, besides this machine",
        )
        which.add_argument(
            *("--without", "-w"),
            action="append",
            default=[],
            choices=NAMES,
            metavar="FEATURE",
            help="switch a feature off in the sidecar that is started: what is it good for?",
        )
        which.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of its sidecar.yaml"
        )
        which.add_argument(
            "--share", default="100%", metavar="SHARE", help="of the scenario's time, at the same rates"
        )
        which.add_argument(
            "--leave-out",
            action="append",
            default=[],
            metavar="LIMIT",
            help="a key of `assert` that does not count, such as leaks where others use the target, too",
        )
        which.add_argument(
            "--ci",
            action="store_true",
            help=f"loads take {CI_SHARE:.0%} of their time, at the same rates; drills are as they are",
        )
        for kind in ("json", "markdown", "html"):
            which.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write a report in {kind}")


def _run(given: argparse.Namespace) -> int:
    needed = NEEDED if given.target else NEEDED_AT_SAMPLE
    missing = sorted({extra for module, extra in needed.items() if find_spec(module) is None})
    if missing:
        return _wrong(f"this needs more packages: pip install 'nextvision-sidecar[{','.join(missing)}]'")
    if given.html is not None and find_spec("matplotlib") is None:
        return _wrong("--html needs more packages: pip install 'nextvision-sidecar[report]'")
    from sidecar.drills import reading, runner
    from sidecar.drills.errors import StandError
    from sidecar.drills.scenario import Asserts

    if given.scenario is None:
        for name in reading.shipped():
            print(f"{name:<18} {reading.find(name).scenario.title}")
        return FINE
    try:
        share = parse_share(given.share)
        sets = dict(pair.split("=", 1) for pair in given.set)
    except ValueError as error:
        return _wrong(f"--share or --set: {error} (write for example --share 20% --set limits.body=1MiB)")
    for url in filter(None, (given.target, given.admin, given.against)):
        if not (url.startswith(("http://", "https://")) and urlsplit(url).hostname):
            return _wrong(f'"{url}" is no URL (write for example http://127.0.0.1:8080)')
    if given.target is None and given.admin is not None:
        return _wrong("--admin is of the sidecar at --target (say --target URL, too)")
    if given.target is not None and (given.without or sets):
        return _wrong("--without and --set are for a sidecar that is started here (leave --target out)")
    if unknown := sorted({*given.leave_out} - {*Asserts.model_fields}):
        limits = ", ".join(Asserts.model_fields)
        return _wrong(f'--leave-out: there is no limit "{unknown[0]}" (one of {limits})')
    for file in filter(None, (given.json, given.markdown, given.html)):
        if not file.parent.is_dir():
            return _wrong(f"{file}: there is no folder {file.parent} (make it first)")
    if not 0 < share <= 1:
        return _wrong("--share must be more than 0 % (write for example --share 20%)")
    if given.ci and share != 1:
        return _wrong("--ci and --share are two ways to shorten a load (leave one of them out)")
    options = runner.Options(
        given.target,
        given.admin,
        given.token or os.environ.get("SIDECAR_ADMIN_TOKEN"),
        given.against,
        tuple(given.without),
        sets,
        share,
        tuple(given.allow_host),
        CI_SHARE if given.ci else 1.0,
        tuple(given.leave_out),
    )
    found = reading.find(given.scenario)
    suite = reading.members(found)
    try:
        return asyncio.run(_go(suite, options, given))
    except asyncio.CancelledError:  # SIGTERM; all was stopped and mended
        return FAILED
    except StandError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return FAILED


async def _go(suite: list[Found], options: Any, given: argparse.Namespace) -> int:
    from sidecar.drills import report, runner
    from sidecar.drills.judging import readiness

    task = asyncio.current_task()
    assert task is not None
    # What was started is stopped, and what was broken is mended, before it ends.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    def say(text: str) -> None:
        print(text, flush=True)

    def finished(outcome: runner.Outcome) -> None:
        for line in report.lines(outcome):
            say(line)

    outcomes = await runner.run_all(suite, options, say, finished)
    ready = readiness(
        [(it.status, it.measured) for it in outcomes if not it.drill],
        {it.name: it.status for it in outcomes if it.drill},
        [it.status for it in outcomes],
    )
    if len(suite) > 1:  # one load tells too little
        for line in report.readiness_lines(ready):
            say(line)
    for file, text in (
        (given.json, report.as_json(outcomes, ready)),
        (given.markdown, report.as_markdown(outcomes, ready)),
    ):
        if file is not None:
            _write(file, text)
    if given.html is not None:
        from sidecar.drills.html import as_html

        _write(given.html, as_html(outcomes, ready))
    return FINE if all(it.status == "passed" for it in outcomes) else FAILED


def _write(file: Path, text: str) -> None:
    from sidecar.drills.errors import StandError

    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise StandError(f"{file}: {error.strerror}") from error


def _wrong(text: str) -> int:
    print(f"sidecar: {text}", file=sys.stderr)
    return WRONG

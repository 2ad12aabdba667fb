"""The commands. They parse, call and print; what they are about is elsewhere.

Exit codes: 0 fine, 1 the thing asked for failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from sidecar import (
    batch_arguments,
    config_command,
    drill_command,
    init_command,
    replay_command,
    showing,
)
from sidecar.config.load import USUAL, Loaded, is_policy, load, load_policy
from sidecar.config.problems import ConfigError, Problem

FINE, FAILED, WRONG = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code. `argv` without the program's name."""
    given = list(sys.argv[1:] if argv is None else argv)
    mine, command = _split(given)
    try:
        arguments = _parser().parse_args(mine)
        if command and arguments.act is not _run:
            return _wrong("only `sidecar run` takes a command after --")
        arguments.command = command
        code: int = arguments.act(arguments)
        sys.stdout.flush()
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else WRONG
    except ConfigError as error:
        _complain(error.problems)
        return WRONG
    except BrokenPipeError:  # the reader has seen enough: `sidecar routes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except KeyboardInterrupt:
        return 130
    return code


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What is ours, and the app's command after `--`."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="sidecar",
        description="A sidecar reverse proxy: cache, retries, breakers and fallbacks for an unmodified app.",
        epilog="for example: sidecar run --app http://127.0.0.1:8000\n\nsidecar COMMAND --help tells more.",
        formatter_class=plain,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sidecar {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    configured = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    configured.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help=f"the configuration (default: ./{USUAL}, if it is there)",
    )
    configured.add_argument(
        "--env-file",
        type=Path,
        metavar="FILE",
        help="variables, one NAME=value a line; those of the environment go before them",
    )
    configured.add_argument("--app", metavar="URL", help="where the app listens: goes before app.url")
    configured.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="sets a key of sidecar.yaml, such as limits.drain=10s; may be given again",
    )

    def command(
        name: str, act: Any, what: str, example: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"for example: {example}",
            parents=list(parents),
            formatter_class=plain,
            allow_abbrev=False,
        )
        made.set_defaults(act=act)
        return made

    run = command(
        "run",
        _run,
        "serve; with -- COMMAND, start the app too",
        "sidecar run -- uvicorn main:app --port 8000",
        configured,
    )
    run.usage = "sidecar run [-h] [-c FILE] [--app URL] [--set KEY=VALUE] [-- COMMAND ...]"
    demo = command(
        "demo", _demo, "show what clients of an app see with and without the sidecar", "sidecar demo --once"
    )
    demo.add_argument("--once", action="store_true", help="exit after the table; else all keeps running")
    demo.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="for the app, in place of the demo's: such as one of init's",
    )
    init_command.arguments(command)
    check = command(
        "check",
        _check,
        "tell all that is wrong with configuration files",
        "sidecar check policies/nextvision.yaml",
    )
    check.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help=f"default: ./{USUAL} and all it names"
    )
    check.add_argument("-c", "--config", type=Path, metavar="FILE", help="the same, as for other commands")
    command(
        "routes", _routes, "print each route with its layers, outermost first", "sidecar routes", configured
    )
    explain = command(
        "explain",
        _explain,
        "print the route of a request, and where each of its settings was written",
        "sidecar explain POST /api/v1/matching/candidate/42",
        configured,
    )
    explain.add_argument("method", metavar="METHOD")
    explain.add_argument("url", metavar="URL", help="with or without scheme and host")
    explain.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="a header; may be given again",
    )
    explain.add_argument(
        "-d", "--data", default="", metavar="BODY", help="the body, or @FILE: for the cache key it would get"
    )
    ca = command(
        "ca",
        _ca,
        "make or show the local CA, and print what clients need to trust it",
        'eval "$(sidecar ca)"',
        configured,
    )
    ca.add_argument(
        "action",
        nargs="?",
        choices=("rotate",),
        help="make a new key: clients need the new bundle, then a restart, as the sidecar does",
    )
    ca.add_argument(
        "--bundle", type=Path, metavar="FILE", help="write a copy of the bundle there, for others to read"
    )
    doctor = command(
        "doctor",
        _doctor,
        "call each policy host by each client there is, and tell which door leads here or what is missing",
        "sidecar run -- sidecar doctor",
        configured,
    )
    doctor.add_argument(
        "--python",
        default=sys.executable,
        metavar="FILE",
        help="the app's interpreter, whose packages are the clients (default: the sidecar's)",
    )
    dashboards = command(
        "dashboards",
        _dashboards,
        "write Grafana dashboards and Prometheus rules for the policies in force",
        "sidecar dashboards monitoring",
        configured,
    )
    dashboards.add_argument("directory", type=Path, metavar="DIR")
    dashboards.add_argument(
        "--job", default="sidecar", help="the scrape job of the sidecars (default: sidecar)"
    )
    dashboards.add_argument(
        "--runbook",
        default="docs/runbook.md",
        metavar="URL",
        help="where alerts link to (default: docs/runbook.md)",
    )
    dashboards.add_argument(
        "--force",
        action="store_true",
        help="write over files that are not generated, or were changed by hand",
    )
    batch = command(
        "batch",
        _batch,
        "send many requests at once, each through its own route, and follow them",
        "sidecar batch submit requests.ndjson --wait",
    )
    batch_arguments.arguments(batch, _batch)
    drill_command.arguments(command)
    config_command.arguments(command, configured)
    replay_command.arguments(command, configured)
    schema = command(
        "schema", _schema, "print JSON Schema, for editors", "sidecar schema policy > policy.schema.json"
    )
    schema.add_argument(
        "which", nargs="?", choices=("sidecar", "policy"), help="one kind of file (default: either)"
    )
    schema.add_argument("--markdown", action="store_true", help="docs/configuration.md instead")
    return parser


def _version() -> str:
    try:
        return version("nextvision-sidecar")
    except PackageNotFoundError:
        return "(not installed)"


def _wrong(text: str) -> int:
    print(f"sidecar: {text}", file=sys.stderr)
    return WRONG


def _complain(problems: Sequence[Problem], to: TextIO | None = None) -> None:
    for problem in problems:
        print(problem, file=to or sys.stderr)


def _loaded(arguments: argparse.Namespace) -> Loaded:
    loaded = config_command.source(arguments).load()
    _complain(loaded.warnings)
    return loaded


# -- commands ------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    from sidecar.serving import run

    return run(loaded, arguments.command, config_command.source(arguments))


def _demo(arguments: argparse.Namespace) -> int:
    from sidecar.demo import run

    if arguments.policy is not None:
        load_policy(arguments.policy, os.environ)
    return run(once=arguments.once, policy=arguments.policy)


def _check(arguments: argparse.Namespace) -> int:
    files: list[Path] = arguments.files
    if arguments.config is not None:
        files = [arguments.config, *files]
    if not files:
        if not Path(USUAL).exists():
            return _wrong(f"there is no {USUAL} here (name a file: sidecar check FILE)")
        files = [Path(USUAL)]
    code = FINE
    for file in files:
        try:
            loaded = load_policy(file, os.environ) if is_policy(file) else load(file, os.environ)
        except ConfigError as error:
            _complain(error.problems)
            count = len(error.problems)
            print(f"{file}: {count} error{'' if count == 1 else 's'}", file=sys.stderr)
            code = FAILED
        else:
            _complain(loaded.warnings)
            count = sum(len(policy.routes) for policy in loaded.policies)
            print(f"{file}: fine ({count} route{'' if count == 1 else 's'})")
    return code


def _routes(arguments: argparse.Namespace) -> int:
    for line in showing.routes(_loaded(arguments)):
        print(line)
    return FINE


def _explain(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    try:
        rows = showing.explained(loaded, arguments.method, arguments.url, arguments.header, arguments.data)
    except ValueError as error:
        return _wrong(str(error))
    wide = max(len(key) for key, _, _ in rows)
    middle = max((len(value) for _, value, _ in rows if len(value) <= 40), default=0)
    for key, value, origin in rows:
        print(f"{key:{wide}}  {value:{middle}}  {origin}".rstrip())
    return FINE


def _ca(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    if not loaded.hosts:
        print("sidecar: no policy file lists hosts, so there is nothing to intercept", file=sys.stderr)
        return FAILED
    from sidecar import trust
    from sidecar.clock import SystemClock
    from sidecar.listeners.authority import AuthorityError, open_authority

    directory, rotate = loaded.ca_directory, arguments.action == "rotate"
    try:
        authority = open_authority(directory, loaded.hosts, SystemClock().wall(), rotate=rotate)
        if arguments.bundle is not None:
            shutil.copyfile(authority.bundle, arguments.bundle)
    except (AuthorityError, OSError) as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return FAILED
    if authority.changed:
        print(f"sidecar: the local CA: {authority.changed}", file=sys.stderr)
    for line in trust.told(authority, loaded.hosts, loaded.egress, loaded.config.listen.intercept):
        print(line)
    return FINE


def _doctor(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    from sidecar import doctor

    try:
        lines, fine = doctor.run(loaded, arguments.python)
    except (doctor.NoSidecar, OSError) as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return FAILED
    for line in lines:
        print(line)
    return FINE if fine else FAILED


def _dashboards(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    from sidecar.dashboards import files

    made = files.generate(loaded, job=arguments.job, runbook_url=arguments.runbook)
    try:
        for done, file in files.write(arguments.directory, made, force=arguments.force):
            print(f"{done}: {file}")
    except files.ForeignFiles as error:
        for file in error.files:
            print(
                f"sidecar: {file} was not generated, or was changed by hand (move it away, or give --force)",
                file=sys.stderr,
            )
        return FAILED
    except (OSError, UnicodeDecodeError) as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return FAILED
    return FINE


def _batch(arguments: argparse.Namespace) -> int:
    from sidecar import batch_command

    return batch_command.run(arguments)


def _schema(arguments: argparse.Namespace) -> int:
    from sidecar.config.document import json_schema, markdown

    print(markdown() if arguments.markdown else json.dumps(json_schema(arguments.which), indent=2), end="")
    print("" if arguments.markdown else "\n", end="")
    return FINE

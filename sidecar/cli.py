"""The commands. They parse, call and print; what they are about is elsewhere.

Exit codes: 0 fine, 1 the thing asked for failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO
from urllib.parse import quote, urlsplit

from sidecar.config.load import USUAL, Loaded, is_policy, load, load_policy
from sidecar.config.problems import ConfigError, Problem
from sidecar.config.schema import Policy, Route
from sidecar.config.shown import (
    app_of,
    match_text,
    place_of,
    policy_of,
    settings_of,
    upstream_of,
    value_of,
)

if TYPE_CHECKING:
    from sidecar.headers import Line

FINE, FAILED, WRONG = 0, 1, 2
_EVERYWHERE: Final = frozenset({"observe", "classify"})
"""Layers of every pipeline."""
_BY_ITSELF: Final = frozenset({"respond", "rate_limit"})
"""Policy keys that mean something for a route that answers by itself."""
_UNQUOTED: Final = "/%:@!$&'()*+,;=~-._{}[]|^"
"""What may stand in a path as it is; all else that a user types is percent-encoded."""


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
        description="A sidecar reverse proxy: retries, circuit breakers and deadlines for an unmodified app.",
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
    check = command(
        "check",
        _check,
        "tell all that is wrong with configuration files",
        "sidecar check policies/nextvision.yaml",
    )
    check.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help=f"default: ./{USUAL} and all it names"
    )
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
    loaded = load(arguments.config, os.environ, arguments.set, arguments.app)
    _complain(loaded.warnings)
    return loaded


# -- commands ------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    loaded = _loaded(arguments)
    from sidecar.serving import run

    return run(loaded, arguments.command)


def _demo(arguments: argparse.Namespace) -> int:
    from sidecar.demo import run

    return run(once=arguments.once)


def _check(arguments: argparse.Namespace) -> int:
    files: list[Path] = arguments.files
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
    loaded = _loaded(arguments)
    for policy in loaded.policies:
        where = loaded.origins[f"policies.{policy.name}"].file
        print(f"{policy.name} ({where}) to {upstream_of(policy, loaded)[0]}")
        rows = [
            (
                route.name,
                match_text(route.match, f"policies.{policy.name}.routes.{route.name}.match", loaded),
            )
            for route in policy.routes
        ]
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for route, (name, match) in zip(policy.routes, rows, strict=True):
            print(f"  {name:{wide[0]}}  {match:{wide[1]}}  {' > '.join(pipeline_names(route))}")
    rest = _rest(loaded)
    print(f"unmatched: all other requests, to {app_of(loaded)[0]}: {' > '.join(pipeline_names(rest))}")
    return FINE


def _rest(loaded: Loaded) -> Route:
    """What requests get that no route of ingress matches."""
    return Route(name="any", rate_limit=loaded.config.limits.rate_limit)


def pipeline_names(route: Route) -> list[str]:
    """The layers that a route's pipeline is composed of, outermost first."""
    from sidecar.pipeline import ORDER, WITHOUT_UPSTREAM

    named = set(_EVERYWHERE)
    named.update(key for key in Policy.model_fields if getattr(route, key) is not None)
    if route.deadline is not None:
        named.add("attempt_timeout")  # the one timer serves both
    if route.respond is not None:
        return [*(step.name for step in ORDER if step.name in named & WITHOUT_UPSTREAM), "respond"]
    return [step.name for step in ORDER if step.name in named]


def _explain(arguments: argparse.Namespace) -> int:
    from sidecar.headers import Line
    from sidecar.routing import Matcher

    loaded = _loaded(arguments)
    try:
        url = urlsplit(arguments.url)
    except ValueError as error:
        return _wrong(f"{arguments.url}: {error}")
    if not url.scheme and not arguments.url.startswith("/"):
        return _wrong(f"{arguments.url} is neither a URL nor a path (write /{arguments.url})")
    headers: list[Line] = []
    for given in arguments.header:
        name, colon, value = given.partition(":")
        if not colon:
            return _wrong(f"{given} is not a header (write NAME:VALUE)")
        headers.append(Line(name.strip().encode(), value.strip().encode()))
    method = arguments.method.upper()
    path = quote(url.path or "/", safe=_UNQUOTED)

    outward = policy_of(url.netloc, loaded)
    routes = [
        (policy, route)
        for policy in ((outward,) if outward else loaded.policies)
        if outward or policy.direction == "ingress"
        for route in policy.routes
    ]
    matcher = Matcher(route.match for _, route in routes)
    index = matcher.match(method, url.netloc.encode(), path, headers)
    rows: list[tuple[str, str, str]]
    if index is None:
        rest = Route(name="any") if outward else _rest(loaded)
        rows = [("route", "unmatched", "no route matches: passed through and only observed")]
        rows.append(("upstream", *(upstream_of(outward, loaded) if outward else app_of(loaded))))
        rows.append(("pipeline", " > ".join(pipeline_names(rest)), ""))
    else:
        policy, route = routes[index]
        prefix = f"policies.{policy.name}.routes.{route.name}"
        rows = [("route", route.name, loaded.origins[prefix].short)]
        rows.append(
            ("match", match_text(route.match, f"{prefix}.match", loaded), place_of(loaded, f"{prefix}.match"))
        )
        rows += [(f"  {{{name}}}", value, "") for name, value in matcher.variables(index, path).items()]
        rows.append(("policy file", policy.name, loaded.origins[f"policies.{policy.name}.name"].short))
        if route.respond is None:
            rows.append(("upstream", *upstream_of(policy, loaded)))
        rows.append(("pipeline", " > ".join(pipeline_names(route)), ""))
        if route.cache is not None and route.respond is None:
            target = f"{path}?{quote(url.query, safe=f'{_UNQUOTED}?')}" if url.query else path
            ingress = loaded.config.listen.ingress
            host = url.netloc or ("localhost" if ingress.unix is not None else str(ingress))
            start = (method, url.scheme or "http", host.encode(), target.encode())
            try:
                key, remark = _cache_key(route, start, headers, arguments.data)
            except OSError as error:
                return _wrong(f"{arguments.data[1:]}: {error.strerror}")
            rows.append(("cache key", value_of(key, f"{prefix}.cache.namespace", loaded.origins), remark))
        in_use = [key for key in Policy.model_fields if route.respond is None or key in _BY_ITSELF]
        shown = route.model_dump(mode="json", include=set(in_use))
        rows += settings_of({key: shown[key] for key in in_use}, prefix, loaded.origins)
    wide = max(len(key) for key, _, _ in rows)
    middle = max((len(value) for _, value, _ in rows if len(value) <= 40), default=0)
    for key, value, origin in rows:
        print(f"{key:{wide}}  {value:{middle}}  {origin}".rstrip())
    return FINE


def _cache_key(
    route: Route, start: tuple[str, str, bytes, bytes], headers: Sequence[Line], data: str
) -> tuple[str, str]:
    """The key a request is stored under, with a remark. Raises OSError where the body cannot be read."""
    from sidecar.clock import SystemClock
    from sidecar.config.cache_rules import cache_keys

    assert route.cache is not None
    method, scheme, host, target = start
    if method not in route.cache.methods:
        return "none", f"{method} is not among cache.methods"
    given = next((line.value for line in headers if line.name == b"host"), host)
    body = Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
    keys = cache_keys(route)
    key = keys.request(method, scheme, given, target, headers, body, SystemClock().wall())
    return key.decode("ascii"), "and what the answer's Vary names"


def _schema(arguments: argparse.Namespace) -> int:
    from sidecar.config.document import json_schema, markdown

    print(markdown() if arguments.markdown else json.dumps(json_schema(arguments.which), indent=2), end="")
    print("" if arguments.markdown else "\n", end="")
    return FINE

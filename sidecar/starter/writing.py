"""A first configuration as text, with comments: safe as it is, and to be changed by who knows the app."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from sidecar.config.addresses import Url
from sidecar.starter.openapi import Document, Operation, name_of

READS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
REPEATABLE: Final = frozenset({"PUT", "DELETE"})
"""Idempotent, so that a second time does no more than the first (RFC 9110, 9.2.2)."""
DEFAULT_NAME: Final = "app"
_RESERVED: Final = frozenset({"unmatched", "unlisted"})
_ALL_READS: Final = "reads"
_SHADOW: Final = "only counts what it would refuse: take this line out once the figures are right"
_ROUTE_NAME_ROOM: Final = 56
"""Characters of a route's name, so that a number finds room behind it."""


@dataclass(frozen=True, slots=True)
class Written:
    """The two files."""

    sidecar: str
    policy: str
    policy_name: str


def write(document: Document, url: Url, source: str) -> Written:
    """The files for an app at `url`; `source` is what the document was read from, empty: there was none."""
    name = name_of(document.title) or DEFAULT_NAME
    name = DEFAULT_NAME if name in _RESERVED else name
    return Written(
        "\n".join(_sidecar(document, url)) + "\n",
        "\n".join(_policy(document, name, source)) + "\n",
        name,
    )


def _sidecar(document: Document, url: Url) -> Iterator[str]:
    health = sorted((it.path for it in document.operations if it.health), key=lambda path: (len(path), path))
    yield from (
        "# Where things are. How routes behave stands in policies/.",
        "# `sidecar check` tells what is wrong, `sidecar explain GET /path` what a request gets.",
        "environment: ${NEXTVISION_ENV:-development} # development | testing | staging | production",
        "",
        "app:",
        f"  url: {json.dumps(str(url))} # where the app listens; `sidecar run --app URL` goes before it",
    )
    if health:
        yield f"  health: {json.dumps(health[0])} # asked every few seconds: readiness follows it"
    else:
        yield "  # health: /health # asked every few seconds: readiness follows it. Without it nobody asks"
    yield from (
        "",
        "listen:",
        "  ingress: 127.0.0.1:8080 # clients of the app connect here",
        "  admin: 127.0.0.1:9901 # the dashboard, /health, /metrics",
        "",
        "policies: [policies/*.yaml]",
        "",
        "cache:",
        "  memory: 64MiB",
        '  redis: "${REDIS_URL:-}" # shared by replicas; empty: memory only',
        "",
        "admin:",
        '  token: "${SIDECAR_ADMIN_TOKEN:-}" # must be there when listen.admin is not on loopback',
        "",
        "logging:",
        "  format: json # a line for each request: `sidecar replay` reads it; in development see below",
        "  level: info",
        "",
        "limits:",
        "  body: off # any size; bodies are streamed",
        "  rate_limit: # of one client, for all routes that have none of their own",
        "    rate: 1000/m",
        "    burst: 100",
        f"    mode: shadow # {_SHADOW}",
        "",
        "environments: # laid over the above",
        "  development: {logging: {format: console}}",
        "  production: {limits: {body: 50MiB}}",
    )


def _policy(document: Document, name: str, source: str) -> Iterator[str]:
    yield from _head(document, name, source)
    yield from (
        "",
        "defaults: # merged under every route; a route turns a key off with `off`",
        "  deadline: 30s # for the whole request: attempts, waits, back-off",
        "  retry: # only what may be repeated is: reads, and whatever the app has not received",
        "    attempts: 5 # with these waits, long enough for an app to start anew",
        "    backoff: {strategy: equal_jitter, base: 200ms, max: 2s}",
        "    budget: {ratio: 50%, min_per_second: 20} # retries never multiply an outage",
        "  circuit_breaker: # stops asking an app that keeps failing",
        f"    mode: shadow # {_SHADOW}",
        "  concurrency_limit: # at the app at once; the others wait, then are refused",
        "    max: 64",
        "    queue: 2s",
        f"    mode: shadow # {_SHADOW}",
        "",
        "routes: # the first that matches counts",
    )
    names = {_ALL_READS}
    for path, group in groupby(sorted(document.operations, key=_order), key=lambda it: it.path):
        operations = list(group)
        for kind in (READS, REPEATABLE, None):
            chosen = [
                it
                for it in operations
                if (it.method in kind if kind else it.method not in READS | REPEATABLE)
            ]
            if chosen:
                yield from _route(path, chosen, names)
    if not document.operations:
        yield from (
            "  # Routes of your own go here, for example one whose answers are kept for five minutes:",
            "  # - name: pages",
            '  #   match: {method: [GET, HEAD], path: "/static/*"}',
            "  #   cache: {ttl: 5m, stale_while_revalidate: 1m, stale_if_error: 1d}",
            "",
        )
    yield from (
        "  # All else that only reads.",
        f"  - name: {_ALL_READS}",
        "    match: {method: [GET, HEAD]}",
        "    cache: {} # what the app itself allows by Cache-Control, and nothing else",
        "  # What no route matches passes, and is counted as `unmatched`.",
    )


def _head(document: Document, name: str, source: str) -> Iterator[str]:
    if source:
        yield f"# How requests to {_comment(document.title) or 'the app'} are treated."
        yield f"# Made by `sidecar init`, of {_comment(source)}; it is yours now."
    else:
        yield "# How requests to the app are treated."
        yield "# Made by `sidecar init`, without an OpenAPI document; it is yours now."
    for remark in document.left_out:
        yield f"# Left out: {_comment(remark)}"
    yield f"name: {name}"
    yield "direction: ingress # clients to the app. Calls of the app have files of their own: docs/egress.md"


def _comment(text: str) -> str:
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:100]


def _route(path: str, operations: Sequence[Operation], names: set[str]) -> Iterator[str]:
    """A route for some methods of a path."""
    methods = [it.method for it in operations]
    if "GET" in methods and "HEAD" not in methods:
        methods.append("HEAD")
    first = operations[0]
    for it in operations:
        yield f"  # {it.method} {path}: {_comment(it.summary)}".rstrip(": ")
    yield f"  - name: {_free_name(first, names)}"
    shown = methods[0] if len(methods) == 1 else f"[{', '.join(methods)}]"
    yield f"    match: {{method: {shown}, path: {json.dumps(path)}}}"
    if first.health:
        yield from (
            "    # Tells how the app is now: soon, and neither counted by the breaker nor kept waiting.",
            "    deadline: 5s",
            "    rate_limit: off",
            "    circuit_breaker: off",
            "    concurrency_limit: off",
        )
    elif first.method in READS:
        yield from _read(operations)
    else:
        yield from _change(operations)
    yield ""


def _read(operations: Sequence[Operation]) -> Iterator[str]:
    if any(it.streams for it in operations):
        yield "    deadline: off # an event stream lasts as long as it likes"
        yield "    concurrency_limit: off # and would hold its place for as long"
        return
    yield "    cache: {} # what the app itself allows by Cache-Control, and nothing else"
    yield "    # cache: {ttl: 1m, stale_while_revalidate: 1m, stale_if_error: 1d} # for a minute"
    if any(it.secured for it in operations):
        yield "    # It asks for a credential: with Authorization it is kept only when the app says `public`."


def _change(operations: Sequence[Operation]) -> Iterator[str]:
    if any(it.streams for it in operations):
        yield "    deadline: off # an event stream lasts as long as it likes"
        yield "    concurrency_limit: off # and would hold its place for as long"
    elif any(it.uploads for it in operations):
        yield "    deadline: 2m # it takes files"
    if operations[0].method in REPEATABLE:
        yield "    # Idempotent: repeated as reads are."
    else:
        yield "    # Repeated only when the app was not reached. If twice does no more than once:"
        yield "    # retry: {methods: [" + ", ".join(it.method for it in operations) + "]}"


def _free_name(operation: Operation, names: set[str]) -> str:
    """A name that no other route has: what the app calls the operation, else its method and path."""
    # FastAPI's ids are the function, the path and the method, joined.
    rest = re.sub(r"\W", "_", f"{operation.path}_{operation.method.lower()}", flags=re.ASCII)
    by_path = name_of(f"{operation.method} {operation.path}") or "route"
    usual = name_of(operation.id.removesuffix(rest)) or by_path
    if usual in names:
        usual = by_path
    usual = usual[:_ROUTE_NAME_ROOM].strip("-")
    name, number = usual, 2
    while name in names or name in _RESERVED:
        name, number = f"{usual}-{number}", number + 1
    names.add(name)
    return name


def _order(operation: Operation) -> tuple[tuple[tuple[int, str], ...], str]:
    """What a pattern takes that others take, too, comes before these: words before variables."""
    return tuple(_ranks(operation.path.split("/"))), operation.path


def _ranks(segments: Sequence[str]) -> Iterator[tuple[int, str]]:
    for segment in segments:
        if segment == "*":
            yield 3, segment
        elif segment.startswith("{") and segment.endswith("}"):
            yield 2, ""
        elif "{" in segment:
            yield 1, segment
        else:
            yield 0, segment
    yield 0, ""

"""What an OpenAPI document (3.x, or Swagger 2.0) says of an app, as far as policies need it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

import yaml

from sidecar.config.patterns import VARIABLE

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_HEALTH: Final = re.compile(
    r"/(?:healthz?|health[-_]?check|livez|readyz|ping)(?:/(?:live|ready|detailed))?/?$"
)
_LONGEST_NAME: Final = 64
_LONGEST_SUMMARY: Final = 90
_PATH_SAFE: Final = "/{}!$&'()*+,;=:@%-._~"
"""What may stand in a path as it is (RFC 3986, 3.3), and the braces of variables."""


class DocumentError(Exception):
    """It is no document of use; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """As a pattern of `match`."""
    id: str
    """Its `operationId`; empty: it has none."""
    summary: str
    uploads: bool
    """It takes files."""
    streams: bool
    """It may answer with an event stream, which ends when it likes."""
    secured: bool
    """It asks for a credential."""
    deprecated: bool

    @property
    def health(self) -> bool:
        """By its path it tells how the app is."""
        return self.method == "GET" and "{" not in self.path and _HEALTH.search(self.path) is not None


@dataclass(frozen=True, slots=True)
class Document:
    """What an app says of itself."""

    title: str
    server: str
    """Its URL without a path; empty: the document names none."""
    operations: tuple[Operation, ...] = ()
    left_out: tuple[str, ...] = ()
    """Paths that cannot be matched, and why."""


def read_document(text: str, name: str) -> Document:
    """A document in JSON or YAML. Raises DocumentError; `name` is what its message calls it."""
    try:
        said = yaml.safe_load(text)  # JSON is YAML
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise DocumentError(f"{name}{at}: neither JSON nor YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"{name}: neither JSON nor YAML: {error}") from None
    if not isinstance(said, dict) or not ("openapi" in said or "swagger" in said):
        raise DocumentError(f"{name}: no OpenAPI document (it has no member openapi)")
    paths = said.get("paths") or {}
    if not isinstance(paths, dict):
        raise DocumentError(f"{name}: paths: it is no mapping of paths")
    server, prefix = _server(said)
    operations: dict[tuple[str, str], Operation] = {}
    left_out: list[str] = []
    for path, item in paths.items():
        try:
            pattern = _pattern(str(path), prefix)
            found = list(_operations(said, pattern, _resolved(said, item)))
        except ValueError as error:
            left_out.append(f"{path}: {error}")
            continue
        for operation in found:
            alike = VARIABLE.sub("{}", pattern), operation.method
            if alike in operations:
                left_out.append(f"{operation.method} {path}: the same as {operations[alike].path}")
            else:
                operations[alike] = operation
    info = said.get("info")
    title = str(info.get("title") or "") if isinstance(info, dict) else ""
    return Document(title, server, tuple(operations.values()), tuple(left_out))


def _server(said: Mapping[str, Any]) -> tuple[str, str]:
    """The first server's origin, and the path below which all paths are."""
    if "swagger" in said:
        host = said.get("host")
        scheme = next(iter(said.get("schemes") or ("http",)))
        origin = f"{scheme}://{host}" if host else ""
        return origin, str(said.get("basePath") or "").rstrip("/")
    servers = said.get("servers")
    first = servers[0] if isinstance(servers, list) and servers else {}
    url = str(first.get("url") or "") if isinstance(first, dict) else ""
    variables = first.get("variables") if isinstance(first, dict) else None
    for name, variable in (variables or {}).items() if isinstance(variables, dict) else ():
        if isinstance(variable, dict):
            url = url.replace(f"{{{name}}}", str(variable.get("default", "")))
    if "{" in url:
        return "", ""
    parts = urlsplit(url)
    known = parts.scheme in {"http", "https"} and parts.netloc
    return f"{parts.scheme}://{parts.netloc}" if known else "", parts.path.rstrip("/")


def _resolved(said: Mapping[str, Any], item: Any) -> Mapping[str, Any]:
    """A path's methods, a reference within the document followed. Raises ValueError."""
    for _ in range(8):
        if not isinstance(item, dict):
            raise ValueError("it is no mapping of methods")  # noqa: TRY004 - it becomes a remark
        reference = item.get("$ref")
        if reference is None:
            return item
        if not str(reference).startswith("#/"):
            raise ValueError(f"it refers to another document, {reference}")
        item = said
        for part in str(reference)[2:].split("/"):
            item = item.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(item, dict) else {}
    raise ValueError("it refers to itself")


def _operations(said: Mapping[str, Any], path: str, item: Mapping[str, Any]) -> Iterator[Operation]:
    for method in METHODS:
        operation = item.get(method.lower())
        if not isinstance(operation, dict):
            continue
        answers = operation.get("responses")
        takes = operation.get("requestBody")
        kinds = _kinds(takes) | set(operation.get("consumes") or ())
        gives: set[str] = set(operation.get("produces") or ())
        for answer in answers.values() if isinstance(answers, dict) else ():
            gives |= _kinds(answer)
        security = operation.get("security", said.get("security"))
        yield Operation(
            method,
            path,
            id=str(operation.get("operationId") or ""),
            summary=_one_line(operation.get("summary") or operation.get("description")),
            uploads=bool(kinds & {"multipart/form-data", "application/octet-stream"}),
            streams="text/event-stream" in gives,
            secured=bool(security),
            deprecated=operation.get("deprecated") is True,
        )


def _kinds(said: Any) -> set[str]:
    """The media types of a body."""
    content = said.get("content") if isinstance(said, dict) else None
    return (
        {str(kind).partition(";")[0].strip().lower() for kind in content}
        if isinstance(content, dict)
        else set()
    )


def _one_line(text: object) -> str:
    """The beginning of a text, fit for a comment."""
    line = " ".join(str(text or "").split())
    line = "".join(letter for letter in line if letter.isprintable())
    return line if len(line) <= _LONGEST_SUMMARY else f"{line[: _LONGEST_SUMMARY - 1].rstrip()}…"


def _pattern(path: str, prefix: str) -> str:
    """A path of the document, below `prefix`, as `match.path` has it. Raises ValueError."""
    if not path.startswith("/"):
        raise ValueError("it does not begin with /")
    path = prefix + path
    if "?" in path or "#" in path:
        raise ValueError("a query or a fragment is no part of a path")
    if path.count("{") != path.count("}"):
        raise ValueError("a { or } has no other half")
    seen: set[str] = set()
    segments: list[str] = []
    for segment in path.split("/"):
        names = VARIABLE.findall(segment)
        # Of `{name:path}`, as some frameworks write it, the variable takes any number of segments.
        if any(name.endswith(":path") for name in names):
            segments.append("*")
            break
        # One variable a segment is what there is: several, and what is between them, become one.
        segments.append(_variable(names[0], seen) if len(names) > 1 else _segment(segment, names, seen))
    return "/".join(segments)


def _segment(segment: str, names: list[str], seen: set[str]) -> str:
    if not names:
        return quote(segment, safe=_PATH_SAFE).replace("*", "%2A")
    before, _, rest = segment.partition("{")
    after = rest.partition("}")[2]
    return quote(before, safe=_PATH_SAFE) + _variable(names[0], seen) + quote(after, safe=_PATH_SAFE)


def _variable(name: str, seen: set[str]) -> str:
    """A variable whose name is valid, and no other's in the path."""
    plain = re.sub(r"\W", "_", name.partition(":")[0], flags=re.ASCII) or "part"
    plain = f"_{plain}" if plain[0].isdigit() else plain
    number, free = 2, plain
    while free in seen:
        free, number = f"{plain}_{number}", number + 1
    seen.add(free)
    return f"{{{free}}}"


def name_of(text: str) -> str:
    """A name for a policy file or a route, made of any text; empty where nothing in it can be one."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()
    plain = re.sub(r"^[^a-z]+", "", plain)
    return plain[:_LONGEST_NAME].strip("-")

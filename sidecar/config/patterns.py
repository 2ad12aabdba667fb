"""Names, methods, paths, hosts and headers as they stand in a policy file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from sidecar.config.units import wrong

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VARIABLE: Final = re.compile(r"\{([^{}]*)\}")
_RESERVED: Final = {
    "unmatched": "names the requests that no route matches",
    "unlisted": "names the calls to hosts that no policy file lists",
}


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", value):
        raise wrong(
            '"{given}" is not a name', value, "a letter, then letters, digits, - or _; 64 characters at most"
        )
    if value in _RESERVED:
        raise wrong(f'"{{given}}" {_RESERVED[value]}: choose another name', value)
    return value


def _method(value: str) -> str:
    if not TOKEN.fullmatch(value):
        raise wrong('"{given}" is not an HTTP method', value, "write for example GET")
    if value != value.upper():
        raise wrong(
            '"{given}" would match no request: methods are upper case', value, f"write {value.upper()}"
        )
    return value


def _path(value: str) -> str:
    if value == "*":
        return value
    if not value.startswith("/"):
        raise wrong('"{given}" does not begin with /', value, f"write /{value}")
    if "?" in value or "#" in value:
        raise wrong(
            '"{given}": the query is not part of the path', value, f"write {re.split('[?#]', value)[0]}"
        )
    if "*" in value[:-1]:
        raise wrong('"{given}": * stands at the end only', value, "{name} matches one segment")
    literal = VARIABLE.sub("", value)
    if "{" in literal or "}" in literal:
        raise wrong('"{given}" has a { or } without its other half', value)
    if re.search(r"[^\x21-\x7e]", literal):
        raise wrong('"{given}" has characters that a path cannot have', value, "percent-encode them")
    names = VARIABLE.findall(value)
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise wrong('"{given}" has a variable without a valid name', value, "write for example {id}")
    if len(set(names)) < len(names):
        raise wrong('"{given}" has two variables of one name', value)
    # One variable a segment: more would let a long path keep a regular expression busy.
    if any(segment.count("{") > 1 for segment in value.split("/")):
        raise wrong('"{given}" has two variables within one segment', value)
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9*._-]+|\[[0-9A-Fa-f:.]+\]", value):
        mend = "without scheme, port and path, for example api.example.com or *.example.com"
        raise wrong('"{given}" is not a host', value, mend)
    return value.lower()


def _host_name(value: str) -> str:
    name, colon, port = value.partition(":")
    valid = re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", name) is not None
    if not valid or len(name) > 253 or "/" in port:
        raise wrong('"{given}" is not the name of a host', value, "write for example maps.googleapis.com")
    if re.fullmatch(r"[0-9]+", name.rpartition(".")[2]):
        mend = "no certificate can be made for it: point the app at a takeover address instead"
        raise wrong('"{given}" is an address, not the name of a host', value, mend)
    if colon and (not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535):
        raise wrong('"{given}" has no valid port', value, f"write {name}, or for example {name}:8443")
    return name.lower() + (f":{port}" if colon and port != "443" else "")


def _headers(value: object) -> object:
    if not isinstance(value, dict):
        return value
    lines: dict[str, object] = {}
    for name, glob in value.items():
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            raise wrong('"{given}" is not the name of a header', name)
        if name.lower() in lines:
            raise wrong('"{given}" is there twice, names of headers do not tell cases apart', name)
        if not isinstance(glob, str):
            raise wrong('the value of "{given}" is not text', name)
        lines[name.lower()] = glob
    return tuple(sorted(lines.items(), key=lambda line: line[0]))


def _one_or_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _file(value: str, info: ValidationInfo) -> str:
    context: dict[str, Any] = info.context or {}
    path = Path(context.get("directory", "")) / value
    if context and not path.is_file():
        raise wrong('"{given}" is not a file', value)
    return str(path)


Name = Annotated[
    str,
    AfterValidator(_name),
    WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"}),
]
Method = Annotated[
    str, AfterValidator(_method), WithJsonSchema({"type": "string", "pattern": "^[A-Z][A-Z0-9_-]*$"})
]
PathPattern = Annotated[
    str, AfterValidator(_path), WithJsonSchema({"type": "string", "pattern": r"^(\*|/[^?#]*)$"})
]
HostPattern = Annotated[str, AfterValidator(_host)]
HostName = Annotated[str, AfterValidator(_host_name)]
HeaderGlobs = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_headers),
    PlainSerializer(dict, return_type=dict[str, str]),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]
Methods = Annotated[
    tuple[Method, ...],
    BeforeValidator(_one_or_list),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
        }
    ),
]
FileName = Annotated[str, AfterValidator(_file)]

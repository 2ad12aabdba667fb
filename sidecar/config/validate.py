"""From a tree of YAML nodes to a model, and from pydantic's findings to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from sidecar.config.base import Model
from sidecar.config.json_value import Quoted
from sidecar.config.policy import Policy, PolicyFile, Route, Rung
from sidecar.config.positions import Items, Node, Scalar, Tree
from sidecar.config.problems import SECRET, Origin, Problem, listed, suggestion
from sidecar.config.schema import Config

M = TypeVar("M", bound=Model)

_USUAL_NAMES: Final[Mapping[str, str]] = {
    "timeout": "deadline for the whole request, attempt_timeout for one attempt",
    "timeouts": "deadline for the whole request, attempt_timeout for one attempt",
    "request_timeout": "deadline",
    "per_try_timeout": "attempt_timeout",
    "retries": "retry: {attempts: …}",
    "max_retries": "attempts, which counts the first one too",
    "max_attempts": "attempts",
    "num_retries": "attempts, which counts the first one too",
    "breaker": "circuit_breaker",
    "bulkhead": "concurrency_limit",
    "max_concurrency": "concurrency_limit: {max: …}",
    "initial": "base",
    "jitter": "strategy",
    "port": "host:port in one value",
    "url": "upstream",
    "backend": "upstream",
    "prefix": "path, with * at the end",
    "methods": "method",
    "max_age": "ttl",
    "default_ttl": "ttl",
    "max_ttl": "max_age_total",
    "grace": "stale_while_revalidate, and stale_if_error for an origin that fails",
    "swr": "stale_while_revalidate",
    "vary": "key: {headers: […]}",
}
"""What other proxies and libraries call some keys, where no key is spelled like it."""


def plain(node: Node) -> Any:
    """The tree as dicts, lists and text."""
    if isinstance(node, Tree):
        return {key: plain(entry.value) for key, entry in node.entries.items()}
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return Quoted(node.text) if node.quoted else node.text


def validate(
    model: type[M], tree: Tree, directory: Path, broken: Iterable[str] = (), partial: str = ""
) -> tuple[M | None, list[Problem]]:
    """The model, or all that is wrong with it.

    `broken` are paths of keys that are there but whose problem was found before; `directory` is what
    file names are relative to; under the key `partial` nothing need be complete.
    """
    try:
        return model.model_validate(plain(tree), context={"directory": str(directory)}), []
    except ValidationError as error:
        known = frozenset(broken)
        found = (
            _problem(model, tree, detail, known)
            for detail in error.errors(include_url=False)
            if detail["type"] != "missing" or detail["loc"][0] != partial
        )
        return None, [problem for problem in found if problem is not None]


def _problem(model: type[Model], tree: Tree, error: ErrorDetails, broken: frozenset[str]) -> Problem | None:
    node, rest = _walk(tree, error["loc"])
    kind = error["type"]
    if kind == "missing":
        return _missing(model, node, error["loc"], rest, broken)
    if kind == "extra_forbidden":
        return _unknown_key(model, tree, error["loc"])
    if kind == "too_short" and (
        node.path in broken
        or (isinstance(node, Items) and node.items)
        or any(path.startswith(f"{node.path}.") for path in broken)
    ):
        return None  # pydantic counts the valid items
    origin, secret = node.origin, node.origin.secret
    return Problem(origin, node.path, _text(error, node, secret=secret))


def _walk(tree: Tree, loc: tuple[int | str, ...]) -> tuple[Node, tuple[int | str, ...]]:
    """The node at `loc`, or the deepest one on the way there, and what is left of the way."""
    node: Node = tree
    for index, part in enumerate(loc):
        below: Node | None = None
        if isinstance(node, Tree) and isinstance(part, str):
            below = node.value(part)
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
            below = node.items[part]
        if below is None:
            return node, loc[index:]
        node = below
    return node, ()


def _missing(
    model: type[Model],
    node: Node,
    loc: tuple[int | str, ...],
    rest: tuple[int | str, ...],
    broken: frozenset[str],
) -> Problem | None:
    key = str(rest[0])
    path = f"{node.path}.{key}" if node.path else key
    if path in broken:
        return None
    examples = model_at(model, loc[:-1]).model_fields[key].examples
    simple = examples and not isinstance(examples[0], (dict, list))
    mend = f" (write for example {key}: {examples[0]})" if examples and simple else ""
    return Problem(node.origin, path, f"the key is missing{mend}")


def _unknown_key(model: type[Model], tree: Tree, loc: tuple[int | str, ...]) -> Problem:
    parent, _ = _walk(tree, loc[:-1])
    assert isinstance(parent, Tree)
    key = str(loc[-1])
    known = list(model_at(model, loc[:-1]).model_fields)
    places = [place for place in _places(model).get(key, ()) if place]
    mend = suggestion(key, known)
    near = [it for it in known if key in (f"{it}s", it.removesuffix("s"))]
    other, name = (PolicyFile, "a policy file") if model is Config else (Config, "sidecar.yaml")
    if near:
        mend = f"did you mean {near[0]}?"
    elif places:
        mend = f"it belongs under {listed(places)}"
    elif key in _USUAL_NAMES:
        mend = f"write {_USUAL_NAMES[key]}"
    elif key in other.model_fields:
        mend = f"it belongs into {name}"
    path = f"{parent.path}.{key}" if parent.path else key
    return Problem(parent.entries[key].key, path, f"unknown key ({mend})")


def model_at(model: type[Model], loc: Iterable[int | str]) -> type[Model]:
    """The model that a place in a file is for."""
    here = model
    for part in loc:
        if isinstance(part, str):
            below = model_in(here.model_fields[part].annotation)
            assert below is not None
            here = below
    return here


def model_in(annotation: Any) -> type[Model] | None:
    """The model in `Model`, `Model | None`, `tuple[Model, ...]` or an annotation of these."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    for inner in get_args(annotation):
        found = model_in(inner)
        if found is not None:
            return found
    return None


@cache
def secrets_of(model: type[Model]) -> frozenset[str]:
    """The keys whose values are secrets wherever they come from, by dotted path."""
    found: set[str] = set()

    def visit(here: type[Model], prefix: str) -> None:
        for key, field in here.model_fields.items():
            below = model_in(field.annotation)
            if below is not None:
                visit(below, f"{prefix}{key}.")
            elif _holds_secrets(field.annotation):
                found.add(f"{prefix}{key}")

    visit(model, "")
    return frozenset(found)


def is_secret(model: type[Model], path: str) -> bool:
    """Whether a key of `model` is a secret, or is part of one."""
    return any(f"{path}.".startswith(f"{key}.") for key in secrets_of(model))


def _holds_secrets(annotation: Any) -> bool:
    return annotation is SecretStr or any(_holds_secrets(inner) for inner in get_args(annotation))


@cache
def _places(model: type[Model]) -> Mapping[str, tuple[str, ...]]:
    """Where each key is known: names of the keys it stands under."""
    places: dict[str, tuple[str, ...]] = {}

    def visit(here: type[Model], name: str) -> None:
        for key, field in here.model_fields.items():
            if here is Rung and key in Policy.model_fields:
                continue  # known by the route's own
            place = "defaults or a route" if here is Route and key in Policy.model_fields else name
            if place not in places.get(key, ()):
                places[key] = (*places.get(key, ()), place)
            below = model_in(field.annotation)
            if below is not None and key not in ("environments", "defaults"):
                visit(below, "a route" if key == "routes" else key)

    visit(model, "")
    return places


def _text(error: ErrorDetails, node: Node, *, secret: bool) -> str:
    kind, context = error["type"], error.get("ctx", {})
    shown = SECRET if secret else node.text if isinstance(node, Scalar) else ""
    if kind == "sidecar":
        text: str = context["text"]
        if isinstance(node, Scalar) or (isinstance(node, Tree) and context["given"] in node.entries):
            text = text.replace("{given}", SECRET if secret else context["given"])
        else:
            text = text.replace('"{given}"', _kind(node))
        return f"{text} ({context['mend']})" if context["mend"] and not secret else text
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        if not isinstance(node, Scalar):
            return f"expected {listed(known)}, got {_kind(node)}"
        mend = suggestion("" if secret else shown, known)
        return f'"{shown}" is not known ({mend})'
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        if shown == "off" and not secret:
            return "cannot be turned off (remove the key for the defaults)"
        mend = (
            "write {} for the defaults"
            if shown in ("on", "true", "yes") and not secret
            else "write {key: value}"
        )
        return f"expected a mapping, got {_kind(node, shown)} ({mend})"
    if kind in ("tuple_type", "list_type"):
        mend = f"write [{shown}]" if shown and not secret else "write [a, b]"
        return f"expected a list, got {_kind(node, shown)} ({mend})"
    if kind == "too_short":
        if isinstance(node, Tree):
            return "the mapping is empty (write {key: value})"
        return "the list is empty (write at least one)"
    if kind == "string_type":
        return f"expected text, got {_kind(node)}"
    return f'"{shown}" is not valid' if shown else "not valid"


def _kind(node: Node, shown: str = "") -> str:
    if isinstance(node, Tree):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    return f'"{shown}"'


def origins(tree: Tree, prefix: str = "") -> dict[str, Origin]:
    """Where each value of the tree was written, by dotted path; items of lists by their index."""
    found: dict[str, Origin] = {}
    _note_origins(tree, prefix, found)
    return found


def _note_origins(node: Node, path: str, found: dict[str, Origin]) -> None:
    # No function within the other: one that calls itself is freed by the collector alone, with all it knows.
    if path:
        found[path] = node.origin
    if isinstance(node, Tree):
        for key, entry in node.entries.items():
            _note_origins(entry.value, f"{path}.{key}" if path else key, found)
    elif isinstance(node, Items):
        for index, item in enumerate(node.items):
            _note_origins(item, f"{path}.{index}", found)

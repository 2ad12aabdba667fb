"""YAML as a tree that knows where each key and each value stands.

Facts: scalars are not given types here. What a scalar means is for the schema to say: `on`, `off`,
`yes` and `no` are text (YAML 1.2, 10.3.2), `1:30` is no number in base 60, `2024-01-01` is no date.
Keys are unique (YAML 1.2, 3.2.1.3): PyYAML would keep the last one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import yaml

from sidecar.config.json_value import NULLS
from sidecar.config.problems import Origin, Problem

_DEEPEST: Final = 50
_MOST_NODES: Final = 100_000
"""Aliases of aliases of aliases ("billion laughs") end here."""
_STANDARD_TAG: Final = "tag:yaml.org,2002:"
_JSON: Final = re.compile(r"(?:^|\.)json[.\[]")
"""In the path of what stands below a `json`: any JSON value, null too."""


@dataclass(frozen=True, slots=True)
class Scalar:
    text: str
    origin: Origin
    path: str
    quoted: bool = False
    """Text, whatever it is spelled like."""


@dataclass(frozen=True, slots=True)
class Items:
    items: tuple[Node, ...]
    origin: Origin
    path: str


@dataclass(frozen=True, slots=True)
class Entry:
    key: Origin
    """Where the key stands."""
    value: Node


@dataclass(frozen=True, slots=True)
class Tree:
    entries: Mapping[str, Entry]
    origin: Origin
    path: str

    def value(self, key: str) -> Node | None:
        entry = self.entries.get(key)
        return entry.value if entry else None

    def with_value(self, key: str, value: Node, origin: Origin | None = None) -> Tree:
        """The same with `key` set."""
        known = self.entries.get(key)
        entry = Entry(origin or (known.key if known else value.origin), value)
        return Tree({**self.entries, key: entry}, self.origin, self.path)

    def without(self, key: str) -> Tree:
        return Tree({name: it for name, it in self.entries.items() if name != key}, self.origin, self.path)


Node = Scalar | Items | Tree


def read(text: str, file: str) -> tuple[Tree, list[Problem]]:
    """The mapping in a YAML document, and what is wrong with it; an empty document is an empty mapping."""
    reader = _Reader(file)
    top = Tree({}, Origin(file, 1, 1), "")
    node = reader.compose(text)
    if node is None:
        return top, reader.problems
    tree = reader.node(node, "", 0)
    if isinstance(tree, Tree):
        return tree, reader.problems
    if not reader.problems:
        reader.problem(node.start_mark, "", "expected a mapping (key: value)")
    return top, reader.problems


def value(text: str, origin: Origin, path: str) -> Node:
    """The value in a `--set KEY=VALUE`: a flow mapping or list where it is one, else text."""
    if text.startswith(("{", "[")):
        reader = _Reader(origin.file)
        node = reader.compose(text)
        tree = reader.node(node, path, 0) if node is not None else None
        if tree is not None and not reader.problems:
            return moved(tree, origin)
    return Scalar(text, origin, path)


def moved(node: Node, origin: Origin) -> Node:
    """The same, said to stand at `origin`."""
    if isinstance(node, Tree):
        entries = {key: Entry(origin, moved(entry.value, origin)) for key, entry in node.entries.items()}
        return Tree(entries, origin, node.path)
    if isinstance(node, Items):
        return Items(tuple(moved(item, origin) for item in node.items), origin, node.path)
    return Scalar(node.text, origin, node.path, node.quoted)


@dataclass(slots=True)
class _Reader:
    file: str
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0
    inside: list[yaml.Node] = field(default_factory=list)

    def problem(self, mark: yaml.Mark, path: str, text: str) -> None:
        self.problems.append(Problem(Origin(self.file, mark.line + 1, mark.column + 1), path, text))

    def compose(self, text: str) -> yaml.Node | None:
        try:
            node: yaml.Node | None = yaml.compose(text, Loader=yaml.CSafeLoader)
        except yaml.MarkedYAMLError as error:
            self.problems.append(_syntax(error, text, self.file))
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line, col = before.count("\n") + 1, error.position - before.rfind("\n")
            self.problems.append(
                Problem(Origin(self.file, line, col), "", "not valid YAML: a control character (remove it)")
            )
        else:
            return node
        return None

    def node(self, node: yaml.Node, path: str, depth: int) -> Node | None:
        """None where the node cannot be used; its problem is noted."""
        mark = node.start_mark
        self.nodes += 1
        if depth > _DEEPEST or self.nodes == _MOST_NODES or node in self.inside:
            what = (
                "contains itself by an alias (*name)"
                if node in self.inside
                else "too much, or nested too deeply"
            )
            self.problem(mark, path, what)
            return None
        if self.nodes > _MOST_NODES:
            return None
        if not node.tag.startswith(_STANDARD_TAG):
            self.problem(mark, path, f"the tag {node.tag} is not known (write the plain value)")
            return None
        origin = Origin(self.file, mark.line + 1, mark.column + 1)
        if isinstance(node, yaml.CollectionNode):
            self.inside.append(node)
            collection = self.collection(node, origin, path, depth)
            self.inside.pop()
            return collection
        assert isinstance(node, yaml.ScalarNode)
        quoted = bool(node.style)
        if not quoted and (not node.value or (node.value in NULLS and not _JSON.search(path))):
            self.problem(mark, path, "there is no value (write one, or remove the key)")
            return None
        return Scalar(node.value, origin, path, quoted)

    def collection(self, node: yaml.CollectionNode, origin: Origin, path: str, depth: int) -> Node:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, origin, path, depth)
        items = [self.node(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        return Items(tuple(item for item in items if item is not None), origin, path)

    def mapping(self, node: yaml.MappingNode, origin: Origin, path: str, depth: int) -> Tree:
        entries: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(mark, path, "a key must be text (quote a value that begins with {, [ or *)")
                continue
            name = key_node.value
            here = f"{path}.{name}" if path else name
            if name == "<<":
                self.problem(mark, here, "merge keys are not known (write what routes share under defaults)")
                continue
            first = entries.get(name)
            if first is not None:
                first_at = f"line {first.key.line}, column {first.key.col}"
                self.problem(mark, here, f"the key is there twice (the first is at {first_at})")
                continue
            if _JSON.search(f"{path}.") and _is_variable(node):
                mend = f'quote a variable: "{{{name}}}"'
                self.problem(mark, here, f"there is no value ({mend})")
                continue
            value = self.node(value_node, here, depth + 1)
            if value is not None:
                entries[name] = Entry(Origin(self.file, mark.line + 1, mark.column + 1), value)
        return Tree(entries, origin, path)


def _is_variable(node: yaml.MappingNode) -> bool:
    """`{name}`, meant as a template's variable: to YAML it is a mapping with a key and no value."""
    [(key, value), *more] = node.value
    nothing = isinstance(value, yaml.ScalarNode) and value.start_mark.index == key.end_mark.index
    return bool(node.flow_style) and not more and nothing


def _syntax(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """A message of libyaml, with the mend for the mistakes that are most frequent."""
    mark = error.problem_mark or error.context_mark
    line, col = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    what = error.problem or "not valid YAML"
    lines = text.splitlines()
    # libyaml notices some mistakes only where the next token begins.
    near = lines[max(0, line - 2) : line]
    tabbed = next((at for at in (line, line - 1) if re.match(r" *\t", "".join(lines[at - 1 : at]))), None)
    if tabbed is not None:
        mend = "indent with spaces, not with a tab"
        what, line, col = "a tab in the indentation", tabbed, lines[tabbed - 1].index("\t") + 1
    elif any(re.search(r":\s+\[[0-9a-fA-F:]*::?[0-9a-fA-F:]*\]", it) for it in near):
        mend = 'quote an IPv6 address: "[::1]:8080"'
    elif any(re.search(r"(^|[\s{,:])\$\{.*[{}].*\}|[{,][^\"']*\$\{", it) for it in near):
        mend = 'quote a reference: "${NAME}"'
    elif any(re.search(r":\s+[*@`%]", it) for it in near):
        mend = "quote a value that begins with *, @, ` or %"
    elif "mapping values are not allowed" in what:
        mend = "check the indentation, and quote values that have a colon and a space"
    elif "another document" in what:
        what = "a second document"
        mend = "a file holds one: remove the ---"
    elif error.context_mark and "quoted scalar" in (error.context or ""):
        what, mend = "a quote that is not closed", "write the closing \" or '"
        line, col = error.context_mark.line + 1, error.context_mark.column + 1
    else:
        mend = "check indentation, quotes and brackets"
    return Problem(Origin(file, line, col), "", f"not valid YAML: {what} ({mend})")

"""How one part of a configuration is laid over another."""

from __future__ import annotations

from sidecar.config.positions import Entry, Node, Tree


def merged(under: Node, over: Node) -> Node:
    """`over` laid over `under`: mappings merge key by key, all else is replaced, by `off` too."""
    if not isinstance(under, Tree) or not isinstance(over, Tree):
        return over
    entries = dict(under.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        entries[key] = Entry(entry.key, merged(below.value, entry.value)) if below else entry
    return Tree(entries, over.origin, over.path)


def merged_trees(under: Tree, over: Tree) -> Tree:
    tree = merged(under, over)
    assert isinstance(tree, Tree)
    return tree

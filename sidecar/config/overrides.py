"""What goes before sidecar.yaml: variables of the environment, `--app` and `--set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final
from urllib.parse import quote

from sidecar.config.features import FLAGS
from sidecar.config.merge import merged_trees
from sidecar.config.positions import Node, Scalar, Tree, value
from sidecar.config.problems import Origin, Problem
from sidecar.config.schema import Config
from sidecar.config.validate import is_secret

_LEVELS: Final = {"warn": "warning", "critical": "error", "fatal": "error"}
_SWITCHES: Final = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}
"""How applications write switches into variables."""
PREFIX: Final = "SIDECAR__"
"""Begins the variables that set one key of sidecar.yaml: SIDECAR__LIMITS__BODY is `limits.body`."""


def overrides(env: Mapping[str, str], sets: Sequence[str], app: str | None, problems: list[Problem]) -> Tree:
    """What goes before the file: variables of old names, SIDECAR__…, `--app`, `--set`; the last wins.

    Adds what is wrong with them to `problems`.
    """
    tree = Tree({}, Origin("--set"), "")
    if name := env.get("NEXTVISION_ENV"):
        tree = _with(tree, "environment", Scalar(name, Origin("NEXTVISION_ENV"), "environment"))
    if level := env.get("LOG_LEVEL", "").lower():
        tree = _with(
            tree, "logging.level", Scalar(_LEVELS.get(level, level), Origin("LOG_LEVEL"), "logging.level")
        )
    if enabled := env.get("PROMETHEUS_ENABLED", "").lower():
        key, origin = "metrics.enabled", Origin("PROMETHEUS_ENABLED")
        tree = _with(tree, key, Scalar(_SWITCHES.get(enabled, enabled), origin, key))
    if size := env.get("BATCH_SIZE"):
        tree = _with(tree, "batch.size", Scalar(size, Origin("BATCH_SIZE"), "batch.size"))
    for flag, key in FLAGS.items():
        if text := env.get(flag):
            tree = _with(tree, f"features.{key}", Scalar(text.lower(), Origin(flag), f"features.{key}"))
    for variable in sorted(env):
        if variable.startswith(PREFIX):
            tree = _override(tree, variable, env[variable], problems)
    if app is not None:
        tree = _with(tree, "app.url", Scalar(app, Origin("--app"), "app.url"))
    for pair in sets:
        name, equals, text = pair.partition("=")
        if not equals or not all(name.split(".")):
            mend = "write for example --set limits.drain=10s"
            problems.append(Problem(Origin("--set"), "", f'"{name}" is not KEY=VALUE ({mend})'))
        elif name.split(".")[0] == "environments":
            mend = "set the key itself, for example --set logging.level=debug"
            problems.append(
                Problem(Origin("--set"), name, f"environments cannot be set from outside ({mend})")
            )
        elif is_secret(Config, name) and "${" not in text:
            mend = f"write --set '{name}=${{NAME}}' and set the variable, or ${{file:/path}}"
            problems.append(
                Problem(Origin("--set"), name, f"all who see the list of processes could read it ({mend})")
            )
        else:
            tree = _with(tree, name, value(text, Origin("--set"), name))
    return tree


def _override(tree: Tree, variable: str, text: str, problems: list[Problem]) -> Tree:
    """The tree with the key that a variable like SIDECAR__LIMITS__BODY names."""
    keys = variable.removeprefix(PREFIX).lower().split("__")
    path, origin = ".".join(keys), Origin(variable)
    if not all(keys):
        text = "names no key (write for example SIDECAR__LIMITS__BODY=1MiB)"
        problems.append(Problem(origin, "", text))
        return tree
    if keys[0] == "environments":
        mend = "set the key itself, for example SIDECAR__LOGGING__LEVEL=debug"
        problems.append(Problem(origin, path, f"environments cannot be set from outside ({mend})"))
        return tree
    if is_secret(Config, path):
        return _with(tree, path, Scalar(text, replace(origin, secret=True), path))
    return _with(tree, path, value(text, origin, path))


def with_redis(tree: Tree, env: Mapping[str, str]) -> Tree:
    """Where the file names no Redis, the variables do: ours, or those of the app itself."""
    cache = tree.value("cache")
    written = cache.value("redis") if isinstance(cache, Tree) else None
    if not (written is None or (isinstance(written, Scalar) and not written.text)):
        return tree
    if cache is not None and not isinstance(cache, Tree):
        return tree  # a finding of its own
    if url := env.get("REDIS_URL"):
        name = "REDIS_URL"
    elif host := env.get("REDIS_HOST"):
        name = "REDIS_HOST"
        login = f":{quote(password, safe='')}@" if (password := env.get("REDIS_PASSWORD")) else ""
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        url = f"redis://{login}{host}:{env.get('REDIS_PORT') or 6379}"
    else:
        return tree
    return _with(tree, "cache.redis", Scalar(url, Origin(name, secret=True), "cache.redis"))


def _with(tree: Tree, path: str, node: Node) -> Tree:
    """The tree with one value set, by dotted path."""
    over = node
    keys = path.split(".")
    for depth in range(len(keys) - 1, -1, -1):
        over = Tree({}, node.origin, ".".join(keys[:depth])).with_value(keys[depth], over)
    assert isinstance(over, Tree)
    return merged_trees(tree, over)

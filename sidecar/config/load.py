"""Reads sidecar.yaml, and the policy files it names, into models. Finds all that is wrong at once."""

from __future__ import annotations

import difflib
import glob
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.config import lint, listen_lint
from sidecar.config.addresses import Address
from sidecar.config.general import with_general_scope, with_rate_limit
from sidecar.config.merge import merged, merged_trees
from sidecar.config.overrides import overrides, with_redis
from sidecar.config.policy import Policy, PolicyFile, Tls
from sidecar.config.positions import Items, Scalar, Tree, read
from sidecar.config.problems import SECRET, ConfigError, Origin, Problem, in_order
from sidecar.config.references import References, digest
from sidecar.config.schema import Config
from sidecar.config.validate import origins, validate

USUAL: Final = "sidecar.yaml"
"""What is read when no file is named."""
_POLICY_KEYS: Final = frozenset(PolicyFile.model_fields)
_MAIN_KEYS: Final = frozenset(Config.model_fields)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used."""

    config: Config
    """The environment's part is merged in."""
    policies: tuple[PolicyFile, ...]
    """In order of the files; `defaults` are merged into the routes, and `limits.rate_limit` into those of
    ingress that say nothing of their own."""
    origins: Mapping[str, Origin]
    """Where values were written, by dotted path: `listen.ingress` of sidecar.yaml; for policy files
    `policies.NAME.upstream` and `policies.NAME.routes.ROUTE.retry.attempts`. The rest has its default."""
    warnings: tuple[Problem, ...]
    directory: Path = Path()
    """Of sidecar.yaml: what relative names in it are relative to."""
    main: str = ""
    """The path of sidecar.yaml; empty where there is none."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """All files that it was made from, with digests of what was in them: secrets and certificates too."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """sidecar.yaml and the policy files as they were read, by their paths."""
    patterns: tuple[str, ...] = ()
    """Those of `policies`, as paths: another file may come to match one of them."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts whose calls policy files have, without ports."""
        names = (name.partition(":")[0] for policy in self.policies for name in policy.hosts)
        return tuple(dict.fromkeys(names))

    @property
    def egress(self) -> Address | None:
        """Where the egress listener is to listen; None: nowhere."""
        return listen_lint.egress_listener(self.config, self.policies, self.origins)

    def with_config(self, config: Config, origins: Mapping[str, Origin]) -> Loaded:
        return replace(self, config=config, origins=origins)

    def certificates(self, tls: Tls) -> tuple[str, ...]:
        """Digests of the files that `tls` names: one that was replaced makes another upstream of it."""
        return tuple(self.sources.get(str(name), "") for name in (tls.ca, tls.cert, tls.key) if name)

    @property
    def ca_directory(self) -> Path:
        return self.directory / self.config.ca.dir

    @property
    def log_file(self) -> Path | None:
        """The file that is logged to; None: standard output."""
        file = self.config.logging.file
        return None if file is None else self.directory / file


def load(
    path: Path | None, env: Mapping[str, str], sets: Sequence[str] = (), app: str | None = None
) -> Loaded:
    """Loads `path`, or ./sidecar.yaml where it is None; without any file the defaults apply.

    `sets` are KEY=VALUE of sidecar.yaml, `app` its `app.url`. Raises ConfigError with all problems.
    """
    if path is None and Path(USUAL).exists():
        path = Path(USUAL)
    found = _Findings()
    file = _main(path, env, sets, app, found)
    policies: list[PolicyFile] = []
    if file.tree is not None:
        for name in _policy_files(file.tree, file.directory, found):
            policy = _policy(name, env, found)
            if policy is not None:
                policies.append(policy)
    if file.config is not None:
        found.problems += lint.config(file.config, policies, found.origins)
    if not found.ambiguous:
        found.problems += lint.policies(policies, found.origins)
        # A policy file by itself knows no others.
        found.problems += listen_lint.depends_on(policies, found.origins)
    found.read_certificates(policies)
    warnings = found.finish()
    assert file.config is not None
    config = with_general_scope(file.config)
    limited = with_rate_limit(policies, config.limits.rate_limit, found.origins)
    main = "" if path is None else str(path)
    patterns = tuple(os.path.normpath(file.directory / it) for it in config.policies)
    return Loaded(
        config,
        limited,
        found.origins,
        warnings,
        directory=file.directory,
        main=main,
        sources=dict(found.sources),
        texts=dict(found.texts),
        patterns=patterns,
    )


@dataclass(frozen=True, slots=True)
class Source:
    """What a configuration is made from; `load` may be called again, for what has become of it."""

    path: Path | None
    env: Mapping[str, str]
    sets: tuple[str, ...] = ()
    app: str | None = None
    env_file: Path | None = None
    """A `.env` file: its variables count where the environment has none of that name."""

    def load(self) -> Loaded:
        """As the function `load`."""
        env = self.env
        sources = {}
        if self.env_file is not None:
            content, problem = _variables(self.env_file)
            if problem is not None:
                raise ConfigError([problem], {str(self.env_file): ""})
            env = {**content, **env}
            sources[str(self.env_file)] = digest(repr(sorted(content.items())).encode())
        try:
            loaded = load(self.path, env, self.sets, self.app)
        except ConfigError as error:
            raise ConfigError(error.problems, {**error.sources, **sources}) from None
        return replace(loaded, sources={**loaded.sources, **sources})


def _variables(file: Path) -> tuple[dict[str, str], Problem | None]:
    """The variables of a `.env` file, or what is wrong with it."""
    found = _Findings()
    text = _text(str(file), found)
    if text is None:
        return {}, found.problems[0]
    from dotenv.parser import parse_stream

    variables: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            mend = "write NAME=value"
            origin = Origin(str(file), binding.original.line, 1)
            return {}, Problem(origin, "", f"not a variable ({mend})")
        if binding.key is not None:
            variables[binding.key] = binding.value or ""
    return variables, None


def load_policy(path: Path, env: Mapping[str, str]) -> Loaded:
    """One policy file by itself, with the defaults of sidecar.yaml. Raises ConfigError."""
    found = _Findings()
    policy = _policy(str(path), env, found)
    policies = () if policy is None else (policy,)
    if not found.ambiguous:
        found.problems += lint.policies(policies, found.origins)
    return Loaded(Config(), policies, found.origins, found.finish())


def is_policy(path: Path) -> bool:
    """Whether a file looks like a policy file rather than like sidecar.yaml."""
    text = _text(str(path), _Findings())
    keys = frozenset(read(text, "")[0].entries) if text is not None else frozenset[str]()
    return len(keys & _POLICY_KEYS) > len(keys & _MAIN_KEYS)


@dataclass(slots=True)
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    names: dict[tuple[str, str], Origin] = field(default_factory=dict)
    """Of policy files and of routes, and where each is given."""
    ambiguous: bool = False
    """A name is given twice: `origins` cannot tell the two apart."""
    sources: dict[str, str] = field(default_factory=dict)
    """Digests of the files that were read, by their paths; empty for one that could not be."""
    texts: dict[str, str] = field(default_factory=dict)
    """Of YAML files."""

    def read_certificates(self, policies: Sequence[PolicyFile]) -> None:
        """Notes the files of TLS as sources, too."""
        rungs = [
            rung
            for policy in policies
            for route in policy.routes
            for rung in route.fallback or ()
            if rung.upstream is not None
        ]
        for tls in (*(policy.tls for policy in policies), *(rung.tls for rung in rungs)):
            for name in (tls.ca, tls.cert, tls.key):
                if name is not None:
                    try:
                        self.sources[str(name)] = digest(Path(name).read_bytes())
                    except OSError:
                        self.sources[str(name)] = ""

    def finish(self) -> tuple[Problem, ...]:
        """The warnings. Raises ConfigError where there is more than these."""
        problems = in_order(self.problems)
        errors = [problem for problem in problems if not problem.warning]
        if errors:
            raise ConfigError(errors, self.sources)
        return problems


class _Main(NamedTuple):
    config: Config | None
    tree: Tree | None
    """With all merged and resolved; None where the file cannot be read at all."""
    directory: Path


def _text(file: str, found: _Findings) -> str | None:
    """The file's text; None, with the problem noted, where it cannot be read."""
    found.sources[file] = ""
    try:
        content = Path(file).read_bytes()
        found.sources[file] = digest(content)
    except OSError as error:
        what = (error.strerror or "cannot be read").lower()
        if isinstance(error, FileNotFoundError):
            names = [it.name for it in Path(file).parent.glob("*")]
            near = difflib.get_close_matches(Path(file).name, names, n=1)
            what = "there is no such file" + (f" (did you mean {near[0]}?)" if near else "")
        found.problems.append(Problem(Origin(file), "", what))
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, col = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        found.problems.append(Problem(Origin(file, line, col), "", "not UTF-8 text (save the file as UTF-8)"))
        return None
    found.texts[file] = text
    return text


def _tree(file: str, found: _Findings) -> tuple[Tree | None, list[Problem]]:
    """The file's mapping and what is wrong with single nodes; None where it is no YAML."""
    text = _text(file, found)
    if text is None:
        return None, []
    tree, problems = read(text, file)
    found.problems += problems
    return (None, []) if any(not problem.path for problem in problems) else (tree, problems)


def _main(
    path: Path | None, env: Mapping[str, str], sets: Sequence[str], app: str | None, found: _Findings
) -> _Main:
    directory = path.parent if path is not None else Path()
    if path is None:
        tree: Tree | None = Tree({}, Origin("default"), "")
        problems: list[Problem] = []
    else:
        tree, problems = _tree(str(path), found)
    if tree is None:
        return _Main(None, None, directory)

    over = overrides(env, sets, app, found.problems)
    chosen = _environment(merged_trees(tree, over), env, directory)
    base = tree.without("environments")
    environments = tree.value("environments")
    overlay = environments.value(chosen) if isinstance(environments, Tree) else None
    effective = merged_trees(base, overlay) if isinstance(overlay, Tree) else base
    effective = merged_trees(effective, over)

    references = References(env, directory, read=found.sources)
    resolved = with_redis(_resolved(effective, references), env)
    found.problems += references.problems
    broken = [problem.path for problem in (*problems, *references.problems)]
    # What the environment does not use must be right too, but the variables it refers to may be unset.
    lenient = References(env, directory)
    rest = _resolved(tree, lenient)
    _, unused = validate(Config, rest, directory, [*broken, *(problem.path for problem in lenient.problems)])
    config, used = validate(Config, resolved, directory, broken)
    found.problems += [*used, *unused]
    found.origins |= origins(resolved)
    return _Main(config, resolved, directory)


def _resolved(tree: Tree, references: References) -> Tree:
    resolved = references.node(tree)
    assert isinstance(resolved, Tree)
    return resolved


def _environment(tree: Tree, env: Mapping[str, str], directory: Path) -> str:
    node = tree.value("environment")
    if isinstance(node, Scalar):
        node = References(env, directory).scalar(node)
    return node.text if isinstance(node, Scalar) else str(Config.model_fields["environment"].default)


def _policy_files(tree: Tree, directory: Path, found: _Findings) -> list[str]:
    """The files that `policies` names, in its order, those of one pattern by name."""
    files: dict[str, None] = {}
    patterns = tree.value("policies")
    for item in patterns.items if isinstance(patterns, Items) else ():
        if not isinstance(item, Scalar):
            continue
        pattern = os.path.normpath(directory / item.text)
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - a pattern may be absolute
        names = [name for name in sorted(matches) if Path(name).is_file()]
        if not names:
            shown = SECRET if item.origin.secret else item.text
            what = "matches no file" if glob.has_magic(item.text) else "is not a file"
            text = f'"{shown}" {what} (patterns are relative to {directory}/)'
            found.problems.append(Problem(item.origin, item.path, text))
        files |= dict.fromkeys(names)
    return list(files)


def _policy(file: str, env: Mapping[str, str], found: _Findings) -> PolicyFile | None:
    tree, problems = _tree(file, found)
    if tree is None:
        return None
    start = len(found.problems) - len(problems)
    directory = Path(file).parent
    references = References(env, directory, read=found.sources)
    resolved = _resolved(_with_defaults(tree), references)
    found.problems += references.problems
    broken = [problem.path for problem in (*problems, *references.problems)]
    # Routes may complete what defaults begin: those are judged by themselves for what they say only.
    _, in_defaults = validate(PolicyFile, resolved, directory, broken, partial="defaults")
    policy, wrong = validate(PolicyFile, resolved.without("defaults"), directory, broken)
    found.problems += [*in_defaults, *wrong]
    _note_names(resolved, found)
    names = _route_names(tree)
    found.problems[start:] = [_named(problem, names) for problem in found.problems[start:]]
    if policy is None:
        return None
    prefix = f"policies.{policy.name}"
    routes = resolved.value("routes")
    assert isinstance(routes, Items)
    found.origins |= origins(resolved.without("routes"), prefix)
    for route, node in zip(policy.routes, routes.items, strict=True):
        assert isinstance(node, Tree)
        found.origins |= origins(node, f"{prefix}.routes.{route.name}")
    return policy


def _with_defaults(tree: Tree) -> Tree:
    """Each route laid over the file's defaults, and these over what the file says for all routes."""
    defaults, routes, rules = tree.value("defaults"), tree.value("routes"), tree.entries.get("classify")
    if not isinstance(routes, Items):
        return tree
    if not isinstance(defaults, Tree):
        if rules is None or defaults is not None:
            return tree
        defaults = Tree({}, tree.origin, tree.path)
    for unknown in defaults.entries.keys() - Policy.model_fields.keys():
        defaults = defaults.without(unknown)  # told once, where it stands
    if rules is not None and "classify" not in defaults.entries:
        defaults = Tree({**defaults.entries, "classify": rules}, defaults.origin, defaults.path)
    items = tuple(merged(defaults, item) for item in routes.items)
    return tree.with_value("routes", Items(items, routes.origin, routes.path))


def _route_names(tree: Tree) -> dict[str, str]:
    """The paths of routes, by index as they are read and by name as they are shown."""
    routes = tree.value("routes")
    names: dict[str, str] = {}
    for item in routes.items if isinstance(routes, Items) else ():
        name = item.value("name") if isinstance(item, Tree) else None
        if isinstance(name, Scalar) and name.text.replace("-", "").replace("_", "").isalnum():
            names[item.path] = f"routes.{name.text}"
    return names


def _named(problem: Problem, names: Mapping[str, str]) -> Problem:
    head, dot, tail = problem.path.partition(".")
    return replace(problem, path=names[head] + dot + tail) if head in names else problem


def _note_names(tree: Tree, found: _Findings) -> None:
    """Names are unique over all files: metrics and logs carry nothing else."""
    routes = tree.value("routes")
    named = [("policy file", tree.value("name"))]
    items = routes.items if isinstance(routes, Items) else ()
    named += [("route", item.value("name")) for item in items if isinstance(item, Tree)]
    for kind, node in named:
        if not isinstance(node, Scalar):
            continue
        first = found.names.setdefault((kind, node.text), node.origin)
        if first is not node.origin:
            shown = SECRET if node.origin.secret else node.text
            text = (
                f'"{shown}" is the name of another {kind} too, at {first} (names are unique over all files)'
            )
            found.problems.append(Problem(node.origin, node.path, text))
            found.ambiguous = True

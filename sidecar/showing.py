"""What `sidecar routes` and `sidecar explain` show: settings, and where they were written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

from sidecar.config.addresses import Url
from sidecar.config.load import Loaded
from sidecar.config.problems import SECRET
from sidecar.config.schema import Policy, PolicyFile, Route
from sidecar.config.shown import app_of, match_text, place_of, settings_of, upstream_of, value_of
from sidecar.headers import Line
from sidecar.routing import Matcher

_EVERYWHERE: Final = frozenset({"observe", "classify"})
"""Layers of every pipeline."""
_BY_ITSELF: Final = frozenset({"respond", "rate_limit"})
"""Policy keys that mean something for a route that answers by itself."""
_UNQUOTED: Final = "/%:@!$&'()*+,;=~-._{}[]|^"
"""What may stand in a path as it is; all else that a user types is percent-encoded."""

Row = tuple[str, str, str]
"""What, its value, and where that was written."""


def routes(loaded: Loaded) -> Iterator[str]:
    """Each policy file, and its routes with their layers."""
    for policy in loaded.policies:
        where = loaded.origins[f"policies.{policy.name}"].file
        yield f"{policy.name} ({where}){_asked_for(policy)} to {upstream_of(policy, loaded)[0]}"
        rows = [
            (
                route.name,
                match_text(route.match, f"policies.{policy.name}.routes.{route.name}.match", loaded),
            )
            for route in policy.routes
        ]
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for route, (name, match) in zip(policy.routes, rows, strict=True):
            layers = " > ".join(pipeline_names(route, depends=_depends(loaded, policy)))
            yield f"  {name:{wide[0]}}  {match:{wide[1]}}  {layers}"
    rest = _rest(loaded)
    yield f"unmatched: all other requests, to {app_of(loaded)[0]}: {' > '.join(pipeline_names(rest))}"
    if loaded.egress is not None:
        what = "passed through" if loaded.config.egress.unlisted == "tunnel" else "refused"
        yield f"unlisted: the app's calls to all other hosts: {what}"


def _asked_for(policy: PolicyFile) -> str:
    if policy.direction == "ingress":
        return ""
    doors = [*policy.hosts, *(f"takeover {address}" for address in policy.takeover)]
    return f", the app's calls to {', '.join(doors)},"


def _rest(loaded: Loaded) -> Route:
    """What requests get that no route of ingress matches."""
    return Route(name="any", rate_limit=loaded.config.limits.rate_limit)


def _depends(loaded: Loaded, policy: PolicyFile) -> bool:
    """Whether the answers of a file's routes depend on calls of the app that are known here."""
    calls = frozenset(it.name for it in loaded.policies if it.direction == "egress")
    return policy.direction == "ingress" and bool(policy.counted(calls))


def pipeline_names(route: Route, *, depends: bool = False) -> list[str]:
    """The layers that a route's pipeline is composed of, outermost first; those in shadow mode say so.

    `depends`: its answers may depend on calls of the app.
    """
    from sidecar.pipeline import ORDER, WITHOUT_UPSTREAM

    named = set(_EVERYWHERE)
    if depends:
        named.add("overlap")
    named.update(key for key in Policy.model_fields if getattr(route, key) is not None)
    if route.deadline is not None:
        named.add("attempt_timeout")  # the one timer serves both
    if route.respond is not None:
        named &= WITHOUT_UPSTREAM
    names = [step.name for step in ORDER if step.name in named]
    shown = [f"{name} (shadow)" if _mode(route, name) == "shadow" else name for name in names]
    return [*shown, "respond"] if route.respond is not None else shown


def _mode(route: Route, key: str) -> str:
    return getattr(getattr(route, key, None), "mode", "enforce")


def explained(loaded: Loaded, method: str, address: str, given: Sequence[str], data: str) -> list[Row]:
    """The route of a request and all its settings; `given` are headers as NAME:VALUE, `data` a body or @FILE.

    Raises ValueError for what is not a URL, a header or a file.
    """
    try:
        url = urlsplit(address)
    except ValueError as error:
        raise ValueError(f"{address}: {error}") from error
    if not url.scheme and not address.startswith("/"):
        raise ValueError(f"{address} is neither a URL nor a path (write /{address})")
    headers: list[Line] = []
    for header in given:
        name, colon, value = header.partition(":")
        if not colon:
            raise ValueError(f"{header} is not a header (write NAME:VALUE)")
        headers.append(Line(name.strip().encode(), value.strip().encode()))
    method = method.upper()
    path = quote(url.path or "/", safe=_UNQUOTED)

    owner = _owner(loaded, url)
    files = [it for it in loaded.policies if it.direction == "ingress"] if owner is None else [owner]
    candidates = [(policy, route) for policy in files for route in policy.routes]
    matcher = Matcher(route.match for _, route in candidates)
    called = url if owner is None else _called(owner, url)
    index = matcher.match(method, called.netloc.encode(), path, headers)
    if index is None:
        return _unmatched(loaded, owner)
    policy, route = candidates[index]
    prefix = f"policies.{policy.name}.routes.{route.name}"
    rows: list[Row] = [("route", route.name, loaded.origins[prefix].short)]
    rows.append(
        ("match", match_text(route.match, f"{prefix}.match", loaded), place_of(loaded, f"{prefix}.match"))
    )
    rows += [(f"  {{{name}}}", value, "") for name, value in matcher.variables(index, path).items()]
    rows.append(("policy file", policy.name, loaded.origins[f"policies.{policy.name}.name"].short))
    if route.respond is None:
        rows.append(("upstream", *upstream_of(policy, loaded)))
        for part in ("query", "headers"):
            for name, _ in getattr(policy.inject, part):
                where = place_of(loaded, f"policies.{policy.name}.inject.{part}.{name}")
                rows.append((f"inject.{part}.{name}", SECRET, where))
    layers = pipeline_names(route, depends=_depends(loaded, policy))
    rows.append(("pipeline", " > ".join(layers), ""))
    if route.cache is not None and route.respond is None:
        target = f"{path}?{quote(url.query, safe=f'{_UNQUOTED}?')}" if url.query else path
        ingress = loaded.config.listen.ingress
        host = called.netloc or ("localhost" if ingress.unix is not None else str(ingress))
        start = (method, called.scheme or "http", host.encode(), target.encode())
        try:
            key, remark = _cache_key(route, start, headers, data)
        except OSError as error:
            raise ValueError(f"{data[1:]}: {error.strerror}") from error
        rows.append(("cache key", value_of(key, f"{prefix}.cache.namespace", loaded.origins), remark))
    in_use = [key for key in Policy.model_fields if route.respond is None or key in _BY_ITSELF]
    shown = route.model_dump(mode="json", include=set(in_use))
    return rows + settings_of({key: shown[key] for key in in_use}, prefix, loaded.origins)


def _unmatched(loaded: Loaded, owner: PolicyFile | None) -> list[Row]:
    rest = "no route matches: passed through and only observed"
    if owner is None:
        layers = " > ".join(pipeline_names(_rest(loaded)))
        return [("route", "unmatched", rest), ("upstream", *app_of(loaded)), ("pipeline", layers, "")]
    layers = " > ".join(pipeline_names(Route(name="any")))
    named = ("route", f"{owner.name}/unmatched", rest)
    return [named, ("upstream", *upstream_of(owner, loaded)), ("pipeline", layers, "")]


def _owner(loaded: Loaded, url: SplitResult) -> PolicyFile | None:
    """The egress policy file that a URL belongs to."""
    if not url.scheme or not url.hostname:
        return None
    usual = 443 if url.scheme == "https" else 80
    port = url.port or usual
    host = url.hostname.removesuffix(".")
    names = {f"{host}:{port}"} | ({host} if port == usual else set())
    return next((policy for policy in loaded.policies if names & set(policy.hosts)), None)


def _called(policy: PolicyFile, url: SplitResult) -> SplitResult:
    """The URL as the upstream is asked for it."""
    if policy.upstream is not None:
        return url._replace(scheme=policy.upstream.scheme, netloc=policy.upstream.authority)
    assert url.hostname is not None
    usual = url.port in (None, 443) or (url.scheme == "http" and url.port == 80)
    asked = Url("https", url.hostname.removesuffix("."), 443 if usual else url.port or 443)
    return url._replace(scheme="https", netloc=asked.authority)


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

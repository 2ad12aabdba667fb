"""Settings of `cache` that are valid one by one and make no sense together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from sidecar.config.cache_policy import NEVER_CACHED, Cache
from sidecar.config.patterns import VARIABLE
from sidecar.config.place import Place
from sidecar.config.policy import PolicyFile, Route
from sidecar.config.problems import Problem, listed, suggestion
from sidecar.config.schema import CacheStore
from sidecar.routing import path_pattern

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""RFC 9110, 9.2.1."""
_ONLY_IF_SAFE: Final = "only where they are the same for everybody"


def memory(store: CacheStore, files: Iterable[PolicyFile], place: Place) -> list[Problem]:
    """Findings about `cache` of sidecar.yaml."""
    for policy in files:
        for route in policy.routes:
            if route.cache is not None and route.cache.max_object > store.memory:
                text = (
                    f'smaller than one answer may be by cache.max_object of route "{route.name}" '
                    "(raise it, or lower that)"
                )
                return [place.warning("cache.memory", text)]
    return []


def route(route: Route, cache: Cache, place: Place, *, one_reader: bool = False) -> Iterator[Problem]:
    """Findings about `cache` of a route. `one_reader`: what is private is for the app, by its own calls."""
    yield from _methods(route, cache, place)
    yield from _times(cache, place)
    yield from _query(cache, place)
    yield from _tags(route, cache, place)
    yield from _warming(route, cache, place)
    if cache.share_private and not one_reader:
        text = f"answers that are meant for one user, or set cookies, are shown to others ({_ONLY_IF_SAFE})"
        yield place.warning("cache.share_private", text)
    if cache.share_authorized:
        text = f"answers to one user's credentials are shown to others ({_ONLY_IF_SAFE})"
        yield place.warning("cache.share_authorized", text)


def _methods(route: Route, cache: Cache, place: Place) -> Iterator[Problem]:
    wanted = route.match.method
    if not cache.methods:
        yield place.error("cache.methods", "nothing is cached (write cache: off)")
    elif wanted and not set(wanted) & set(cache.methods) and not _drops_only(wanted, cache, place):
        names = listed(wanted, "and")
        able = [it for it in wanted if it not in NEVER_CACHED]
        mend = f"write methods: [{', '.join(able)}] if equal requests may have equal answers"
        yield place.error(
            "cache",
            f"never used: the route is for {names}, and cache.methods are {listed(cache.methods, 'and')} "
            f"({mend if able else 'write cache: off'})",
        )
    with_body = [it for it in cache.methods if it not in ("GET", "HEAD") and (not wanted or it in wanted)]
    if with_body and not place.written("cache.key.body"):
        yield place.warning(
            "cache.methods",
            f"each spelling of a {with_body[0]}'s body has an answer of its own "
            "(write key: {body: json}, or body: bytes if that is meant)",
        )


def _drops_only(methods: tuple[str, ...], cache: Cache, place: Place) -> bool:
    """Nothing is stored, and nothing asks for it: an unsafe method still drops what it makes invalid."""
    return place.inherited("cache") or (cache == Cache() and not set(methods) <= _SAFE)


def _times(cache: Cache, place: Place) -> Iterator[Problem]:
    most = cache.max_age_total
    for name in ("ttl", "negative_ttl"):
        time: float | None = getattr(cache, name)
        if most is not None and time is not None and time > most:
            yield place.error(
                f"cache.{name}",
                f"{place.time(f'cache.{name}', time)} is longer than max_age_total, "
                f"{place.time('cache.max_age_total', most)} (write a shorter one, or raise max_age_total)",
            )
    if cache.ttl is None and cache.negative_ttl is None and not cache.respect_origin:
        yield place.warning(
            "cache.respect_origin",
            "neither the origin nor the policy says how long answers are fresh (write ttl)",
        )
    if cache.ttl is None and cache.refresh_ahead is not None:
        yield place.warning(
            "cache.refresh_ahead",
            "without ttl only answers are refreshed that the origin calls fresh (write ttl)",
        )
    yield from _adaptive(cache, place)


def _adaptive(cache: Cache, place: Place) -> Iterator[Problem]:
    bounds = cache.adaptive_ttl
    if bounds is None:
        return
    key = "cache.adaptive_ttl"
    least, most = place.time(f"{key}.min", bounds.min), place.time(f"{key}.max", bounds.max)
    if bounds.min > bounds.max:
        yield place.error(f"{key}.min", f"{least} is longer than max, {most} (raise max)")
    elif cache.ttl is None:
        yield place.warning(key, "there is no ttl that it could adapt (write ttl)")
    elif not bounds.min <= cache.ttl <= bounds.max:
        text = f"{place.time('cache.ttl', cache.ttl)} is outside of adaptive_ttl, {least} to {most}"
        yield place.warning("cache.ttl", f"{text} (write one within)")


def _query(cache: Cache, place: Place) -> Iterator[Problem]:
    query = cache.key.query
    bucketed = frozenset(name for name, _ in query.bucket)

    def dropped(name: str) -> bool:
        return any(name == it or (it.endswith("*") and name.startswith(it[:-1])) for it in query.drop)

    for index, name in enumerate(query.fold):
        other = "dropped" if dropped(name) else "bucketed" if name in bucketed else None
        if other is not None:
            key = f"cache.key.query.fold.{index}"
            yield place.error(
                key, f"{place.word(key, name)} is {other} already (remove it from one of the two)"
            )
    for name in sorted(bucketed):
        if dropped(name):
            key = f"cache.key.query.bucket.{name}"
            yield place.error(key, f'"{name}" is dropped already (remove it from one of the two)')


def _tags(route: Route, cache: Cache, place: Place) -> Iterator[Problem]:
    known = VARIABLE.findall(route.match.path)
    for index, tag in enumerate(cache.tags):
        key = f"cache.tags.{index}"
        for name in VARIABLE.findall(tag):
            if name not in known:
                written = [f"{{{it}}}" for it in known]
                mend = suggestion(f"{{{name}}}", written) if known else "the path has none"
                what = place.word(key, f"{{{name}}}")
                yield place.error(key, f"{what} is no variable of the route's path ({mend})")


def _warming(route: Route, cache: Cache, place: Place) -> Iterator[Problem]:
    if not cache.warm:
        return
    if "GET" not in cache.methods or (route.match.method and "GET" not in route.match.method):
        yield place.error("cache.warm", "warming sends GET, which is not cached here (remove it)")
        return
    pattern = re.compile(path_pattern(route.match.path), re.DOTALL)
    for index, url in enumerate(cache.warm):
        key = f"cache.warm.{index}"
        if not pattern.fullmatch(url.partition("?")[0]):
            what = place.word(key, url)
            yield place.error(key, f"{what} is not a path of this route (write it where it belongs)")

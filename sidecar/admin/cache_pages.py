"""What the admin listener says and does about the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from aiohttp import web

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import COUNT, TEXT, Answer, Route, Schema, audit, in_json, ordering, problem, showing
from sidecar.config.order import members
from sidecar.telemetry.redact import redact_url

STATS: Final = "/admin/cache/stats"
PURGE: Final = "/admin/cache/purge"
WARM: Final = "/admin/cache/warm"
_PURGE: Final[Schema] = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {
        "key": {**TEXT, "description": "One stored answer, as `sidecar explain` prints its key."},
        "prefix": {**TEXT, "description": "All whose key begins so."},
        "tag": {**TEXT, "description": "All that carry the tag."},
        "url": {**TEXT, "description": "All that answer a GET of this URL."},
        "namespace": {**TEXT, "description": "All of the namespace."},
    },
}
_WARM: Final[Schema] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "urls": {
            "type": "array",
            "items": TEXT,
            "description": "Absent: what is configured, and what was most wanted.",
        }
    },
}
_SELECTORS: Final = ("key", "prefix", "tag", "url", "namespace")
_EXAMPLE: Final = 'send for example {"tag": "candidate:42"}'


class CacheControl(Protocol):
    """What can be seen of the cache, and done to it."""

    def stats(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        ...

    async def purge(
        self,
        *,
        key: str | None = None,
        prefix: str | None = None,
        tag: str | None = None,
        url: str | None = None,
        namespace: str | None = None,
    ) -> int:
        """Drops what exactly one of these names; how many there were.

        Raises ValueError, in words for whoever asked, for what names nothing.
        """
        ...

    def warm(self, urls: Sequence[str]) -> int:
        """Begins to fetch `urls`; without any, what is configured and what was most wanted. How many.

        Raises ValueError, in words for whoever asked, for what cannot be fetched.
        """
        ...


class CachePages:
    """The pages about one cache; None: no route has one."""

    def __init__(self, cache: Callable[[], CacheControl | None]) -> None:
        """`cache` gives None while no route has one."""
        self._cache = cache

    def routes(self) -> Iterator[Route]:
        yield showing(
            STATS,
            self._stats,
            "What the cache holds and how it is used.",
            {"200": in_json("Counters since the start, by namespace too.")},
        )
        yield ordering(PURGE, self._purge, "Drops stored answers.", _PURGE, _counting("200", "purged"))
        yield ordering(
            WARM,
            self._warm,
            "Fetches URLs ahead of time.",
            _WARM,
            _counting("202", "warming"),
            required=False,
        )

    def _stats(self, _: str) -> Page:
        cache = self._cache()
        return json_page({"enabled": False} if cache is None else cache.stats())

    async def _purge(self, request: web.Request) -> Page:
        """Answers once it is done."""
        try:
            selector = _selector(_members(await request.read()))
            shown = {name: redact_url(value) for name, value in selector.items()}
            audit(request, "cache purge", **shown)
            cache = self._cache()
            if cache is None:
                return _without()
            count = await cache.purge(**selector)
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        audit(request, "cache purge", **shown, purged=count)
        return json_page({"purged": count})

    async def _warm(self, request: web.Request) -> Page:
        """Answers once it is begun."""
        try:
            urls = _to_warm(_members(await request.read()))
            cache = self._cache()
            if cache is None:
                return _without()
            count = cache.warm(urls)
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        audit(request, "cache warm", warming=count)
        return json_page({"warming": count}, 202)


def _counting(status: str, count: str) -> Mapping[str, Answer]:
    """What those answer that tell how many."""
    answer = {"type": "object", "required": [count], "properties": {count: COUNT}}
    return {status: in_json("Done, or begun.", answer), "409": problem("No route has a cache.")}


def _without() -> Page:
    return problem_page(409, "Conflict", "no route has a cache (write cache: {} in a policy file)")


def _members(body: bytes) -> Mapping[str, object]:
    return members(body, _EXAMPLE) if body.strip() else {}


def _selector(asked: Mapping[str, object]) -> dict[str, str]:
    """What to purge: one member, text. Raises ValueError."""
    names = ", ".join(_SELECTORS)
    if unknown := [name for name in asked if name not in _SELECTORS]:
        raise ValueError(f'"{unknown[0]}" is not known: name exactly one of {names} ({_EXAMPLE})')
    if len(asked) != 1:
        raise ValueError(
            f"the body names {len(asked)} things to purge: name exactly one of {names} ({_EXAMPLE})"
        )
    ((name, value),) = asked.items()
    if not isinstance(value, str) or not value:
        raise ValueError(f'"{name}" is not text, or empty ({_EXAMPLE})')
    return {name: value}


def _to_warm(asked: Mapping[str, object]) -> list[str]:
    """The URLs. Raises ValueError."""
    example = 'send for example {"urls": ["/api/v1/jobs"]}, or no body at all'
    if unknown := [name for name in asked if name != "urls"]:
        raise ValueError(f'"{unknown[0]}" is not known: only urls is ({example})')
    urls = asked.get("urls", [])
    if not isinstance(urls, list) or not all(isinstance(url, str) and url for url in urls):
        raise ValueError(f'"urls" is not a list of URLs ({example})')
    return urls

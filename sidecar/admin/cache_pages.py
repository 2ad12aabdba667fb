"""What the admin listener says and does about the cache, as values: any listener can serve them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Final, Protocol
from urllib.parse import urlsplit

import orjson

from sidecar.admin.page import Page, json_page, problem_page

STATS: Final = "/admin/cache/stats"
PURGE: Final = "/admin/cache/purge"
WARM: Final = "/admin/cache/warm"
LARGEST: Final = 1 << 18
"""Bytes of a request's body."""
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

    def __init__(self, cache: CacheControl | None) -> None:
        self._cache = cache

    def stats(self) -> Page:
        return json_page({"enabled": False} if self._cache is None else self._cache.stats())

    async def act(self, path: str, body: bytes) -> Page:
        """The answer to a POST at `PURGE` or `WARM`, once it is done or begun."""
        try:
            asked = _members(body)
            if path == PURGE:
                selector = _selector(asked)
                return _without() if self._cache is None else _purged(await self._cache.purge(**selector))
            urls = _to_warm(asked)
            return _without() if self._cache is None else _warming(self._cache.warm(urls))
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))


def same_site(origin: str, fetch_site: str, host: str, *, named: bool) -> bool:
    """Whether a POST may come from where it says, by `Origin`, `Sec-Fetch-Site` and `Host`.

    A browser sends `Origin` with every POST (Fetch, 3.2), other clients send none: no page of somebody
    else can act through the browser of one who may reach the admin listener. Unless hosts may be
    `named`, they are addresses or `localhost`: any other name may be made to lead here by its owner.
    """
    if fetch_site and fetch_site not in ("same-origin", "none"):
        return False
    if not origin:
        return True
    try:
        parts = urlsplit(origin)
        if parts.netloc.lower() != host.lower():
            return False
        if not named and parts.hostname != "localhost":
            ip_address(parts.hostname or "")
    except ValueError:
        return False
    return True


def _purged(count: int) -> Page:
    return json_page({"purged": count})


def _warming(count: int) -> Page:
    return json_page({"warming": count}, 202)


def _without() -> Page:
    return problem_page(409, "Conflict", "no route has a cache (write cache: {} in a policy file)")


def _members(body: bytes) -> Mapping[str, object]:
    if not body.strip():
        return {}
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error} ({_EXAMPLE})") from None
    if not isinstance(asked, dict):
        raise ValueError(f"the body is not a JSON object ({_EXAMPLE})")  # noqa: TRY004 - as all here
    return asked


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

"""Where an OpenAPI document comes from: a file, a URL, or the app itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import aiohttp

PATIENCE: Final = 10.0
"""Seconds for a document to come."""
LARGEST: Final = 32 << 20
"""Bytes of one."""


class FetchError(Exception):
    """It cannot be had; the message is for the user."""


class NotThereError(FetchError):
    """The server answers, and has none."""


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def fetch(place: str) -> str:
    """The text at a URL, or in a file. Raises FetchError."""
    content = asyncio.run(_fetched(place)) if is_url(place) else _read(Path(place))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FetchError(f"{place}: not UTF-8 text") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise FetchError(f"{file}: {(error.strerror or 'cannot be read').lower()}") from None


async def _fetched(url: str) -> bytes:
    timeout = aiohttp.ClientTimeout(PATIENCE)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as http,
            http.get(url, headers={"Accept": "application/json, application/yaml"}) as reply,
        ):
            if reply.status != 200:
                kind = NotThereError if 400 <= reply.status < 500 else FetchError
                raise kind(f"{url}: it answers {reply.status}")
            content = await reply.content.read(LARGEST + 1)
            while len(content) <= LARGEST and (more := await reply.content.read(LARGEST)):
                content += more
    except TimeoutError:
        raise FetchError(f"{url}: no answer within {PATIENCE:g} s (does it run?)") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise FetchError(f"{url}: {error} (does it run?)") from None
    if len(content) > LARGEST:
        raise FetchError(f"{url}: more than {LARGEST >> 20} MiB")
    return content

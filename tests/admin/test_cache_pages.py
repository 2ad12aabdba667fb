"""What the admin listener shows of the cache and does to it, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import jsonschema
import pytest

from tests.admin.test_api import LOOPBACK, Admin

TOKEN = "open sesame"


class Cache:
    """Remembers what it was told to do."""

    def __init__(self) -> None:
        self.purged: list[dict[str, str]] = []
        self.warmed: list[Sequence[str]] = []

    def stats(self) -> dict[str, object]:
        return {"hits": 3, "namespaces": {"matching": {"hits": 3}}}

    async def purge(
        self,
        *,
        key: str | None = None,
        prefix: str | None = None,
        tag: str | None = None,
        url: str | None = None,
        namespace: str | None = None,
    ) -> int:
        given = {"key": key, "prefix": prefix, "tag": tag, "url": url, "namespace": namespace}
        self.purged.append({name: value for name, value in given.items() if value is not None})
        if url == "nonsense":
            raise ValueError('"nonsense" is not a URL')
        return 7

    def warm(self, urls: Sequence[str]) -> int:
        if "/nowhere" in urls:
            raise ValueError("no route caches /nowhere")
        self.warmed.append(list(urls))
        return len(urls) or 12


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
async def client(cache: Cache) -> AsyncIterator[aiohttp.ClientSession]:
    """Of a listener without a token."""
    admin = Admin()
    await admin.start(LOOPBACK, cache)
    async with aiohttp.ClientSession(f"http://{admin.server.address}") as session:
        yield session
    await admin.server.close()


@pytest.fixture
async def guarded(cache: Cache) -> AsyncIterator[aiohttp.ClientSession]:
    """Of a listener with a token."""
    admin = Admin()
    await admin.start(LOOPBACK, cache, TOKEN)
    async with aiohttp.ClientSession(f"http://{admin.server.address}") as session:
        yield session
    await admin.server.close()


async def asked(
    client: aiohttp.ClientSession, path: str, body: str | bytes = b"", **headers: str
) -> tuple[int, dict[str, Any]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.post(f"/admin/cache/{path}", data=body, headers=named) as response:
        kind = "application/json" if response.ok else "application/problem+json"
        assert response.content_type == kind
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json(content_type=None)


async def test_stats_are_those_of_the_cache(client: aiohttp.ClientSession) -> None:
    """As they are, in JSON."""
    async with client.get("/admin/cache/stats") as response:
        assert response.status == 200
        assert await response.json() == {"hits": 3, "namespaces": {"matching": {"hits": 3}}}


@pytest.mark.parametrize("name", ["key", "prefix", "tag", "url", "namespace"])
async def test_purge_takes_one_of_five(client: aiohttp.ClientSession, cache: Cache, name: str) -> None:
    """And tells how much went."""
    assert await asked(client, "purge", f'{{"{name}": "x:1"}}') == (200, {"purged": 7})
    assert cache.purged == [{name: "x:1"}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "the body names 0 things to purge: name exactly one of key, prefix, tag, url, namespace"),
        ("{}", "the body names 0 things to purge"),
        ('{"tag": "a", "key": "b"}', "the body names 2 things to purge"),
        ('{"tags": "a"}', '"tags" is not known: name exactly one of'),
        ('{"tag": ""}', '"tag" is not text, or empty'),
        ('{"tag": 42}', '"tag" is not text, or empty'),
        ('{"tag": ', "the body is not JSON"),
        ('["tag"]', "the body is not a JSON object"),
        (b'{"tag": "\xff"}', "the body is not JSON"),
        ('{"url": "nonsense"}', '"nonsense" is not a URL'),
    ],
)
async def test_a_purge_that_makes_no_sense_teaches(
    client: aiohttp.ClientSession, cache: Cache, body: str | bytes, said: str
) -> None:
    """400 with what is wrong and, where it is the form, what to send."""
    status, problem = await asked(client, "purge", body)
    assert status == 400
    assert problem["detail"].startswith(said)
    if cache.purged == []:
        assert '{"tag": "candidate:42"}' in problem["detail"]


async def test_warming_is_begun(client: aiohttp.ClientSession, cache: Cache) -> None:
    """202 with the count; without a body it is what the cache finds worth it."""
    assert await asked(client, "warm", '{"urls": ["/a", "/b?c=1"]}') == (202, {"warming": 2})
    assert await asked(client, "warm") == (202, {"warming": 12})
    assert cache.warmed == [["/a", "/b?c=1"], []]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"url": "/a"}', '"url" is not known: only urls is'),
        ('{"urls": "/a"}', '"urls" is not a list of URLs'),
        ('{"urls": ["/a", 1]}', '"urls" is not a list of URLs'),
        ('{"urls": [""]}', '"urls" is not a list of URLs'),
        ('{"urls": ["/nowhere"]}', "no route caches /nowhere"),
    ],
)
async def test_a_warming_that_makes_no_sense_teaches(
    client: aiohttp.ClientSession, cache: Cache, body: str, said: str
) -> None:
    """400, and nothing is begun."""
    status, problem = await asked(client, "warm", body)
    assert status == 400
    assert problem["detail"].startswith(said)
    assert cache.warmed == []


@pytest.mark.parametrize("path", ["purge", "warm"])
@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic open sesame"])
async def test_acting_takes_the_token(
    guarded: aiohttp.ClientSession, cache: Cache, path: str, authorization: str
) -> None:
    """401 that says which; nothing is done."""
    status, problem = await asked(guarded, path, '{"tag": "a"}', Authorization=authorization)
    assert status == 401
    assert "admin.token" in problem["detail"]
    assert TOKEN not in str(problem)
    assert (cache.purged, cache.warmed) == ([], [])


async def test_with_the_token_it_is_done(guarded: aiohttp.ClientSession, cache: Cache) -> None:
    """And reading takes none."""
    given = f"Bearer {TOKEN}"
    assert await asked(guarded, "purge", '{"tag": "a"}', Authorization=given) == (200, {"purged": 7})
    async with guarded.get("/admin/cache/stats") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Origin": "http://evil.example:9901", "Host": "evil.example:9901"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
async def test_no_page_of_another_site_acts(
    client: aiohttp.ClientSession, cache: Cache, headers: dict[str, str]
) -> None:
    """Also not one whose name leads here."""
    status, problem = await asked(client, "purge", '{"tag": "a"}', **headers)
    assert (status, problem["title"]) == (403, "Forbidden")
    assert cache.purged == []


async def test_a_page_of_the_listener_itself_acts(client: aiohttp.ClientSession, cache: Cache) -> None:
    """A dashboard there will."""
    for host in ("127.0.0.1:9901", "localhost:9901", "[::1]:9901"):
        headers = {"Origin": f"http://{host}", "Host": host, "Sec_Fetch_Site": "same-origin"}
        assert (await asked(client, "purge", '{"tag": "a"}', **headers))[0] == 200
    assert len(cache.purged) == 3


async def test_with_a_token_the_listener_may_have_a_name(guarded: aiohttp.ClientSession) -> None:
    """No page can know the token."""
    host = "sidecar.internal:9901"
    headers = {"Origin": f"https://{host}", "Host": host, "Authorization": f"Bearer {TOKEN}"}
    assert (await asked(guarded, "purge", '{"tag": "a"}', **headers))[0] == 200


async def test_reading_an_action_is_refused(client: aiohttp.ClientSession, cache: Cache) -> None:
    """A link or a crawler purges nothing."""
    async with client.get("/admin/cache/purge?tag=a") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
    assert cache.purged == []


async def test_a_huge_body_is_refused(client: aiohttp.ClientSession) -> None:
    """It is not kept in memory."""
    status, _ = await asked(client, "purge", b'{"tag": "' + b"a" * (1 << 18) + b'"}')
    assert status == 413


async def test_without_a_cache() -> None:
    """The statistics say so, and acting is a conflict with what to do."""
    admin = Admin()
    await admin.start(LOOPBACK)
    async with aiohttp.ClientSession(f"http://{admin.server.address}") as client:
        async with client.get("/admin/cache/stats") as response:
            assert await response.json() == {"enabled": False}
        for path in ("purge", "warm"):
            status, problem = await asked(client, path, '{"tag": "a"}' if path == "purge" else "")
            assert status == 409
            assert "cache: {}" in problem["detail"]
    await admin.server.close()


async def test_the_openapi_document_describes_the_actions(client: aiohttp.ClientSession) -> None:
    """What they take and answer is as the document says."""
    async with client.get("/openapi.json") as response:
        paths = (await response.json())["paths"]
    for path, body, status in (("purge", {"tag": "a"}, 200), ("warm", {"urls": ["/a"]}, 202)):
        described = paths[f"/admin/cache/{path}"]["post"]
        takes = described["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator(takes).validate(body)
        assert not jsonschema.Draft202012Validator(takes).is_valid({"colour": "red"})
        got, answer = await asked(client, path, str(body).replace("'", '"'))
        assert got == status
        schema = described["responses"][str(status)]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator(schema).validate(answer)

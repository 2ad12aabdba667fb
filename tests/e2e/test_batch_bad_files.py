"""Files that are no batches: each is refused with the line's number, what is wrong, and what to write."""

from __future__ import annotations

import gzip
import signal
from collections.abc import Iterator
from pathlib import Path

import orjson

from tests.support.batches import BatchClient, CountingApp, batch_sidecar, jobs, started

GOOD = jobs(3, "GET")


def line(**members: object) -> bytes:
    return orjson.dumps({"custom_id": "bad", "method": "GET", "url": "/jobs/9", **members}) + b"\n"


def without(name: str) -> bytes:
    members = orjson.loads(line())
    del members[name]
    return orjson.dumps(members) + b"\n"


def files() -> Iterator[tuple[str, bytes, int, str]]:
    """Name, content, number of the bad line, and words of the message."""
    yield "0 bytes", b"", 1, "no lines"
    yield "line breaks alone", b"\n\r\n  \n", 1, "no lines"
    yield "a byte order mark alone", b"\xef\xbb\xbf", 1, "not JSON"
    yield "cut off in the middle", GOOD + line()[:25], 4, "not JSON"
    yield "a brace that is missing", GOOD + line().replace(b"}", b"") + GOOD, 4, "not JSON"
    yield "single quotes", b"{'custom_id': '1'}\n" + GOOD, 1, "not JSON"
    yield "a comma at the end", GOOD + line().replace(b"}", b",}"), 4, "not JSON"
    yield "a comment", b"# requests\n" + GOOD, 1, "not JSON"
    yield "two objects in one line", GOOD + line().strip() + line(custom_id="2"), 4, "not JSON"
    yield "an object over several lines", b'{\n"custom_id": "1",\n"method": "GET"}\n', 1, "not JSON"
    yield "an array", b"[" + GOOD.strip().replace(b"\n", b",\n") + b"]", 1, "one object a line"
    yield "CSV", b"custom_id,method,url\n1,GET,/jobs/1\n", 1, "not JSON"
    yield "UTF-16", GOOD.decode().encode("utf-16"), 1, "UTF-8"
    yield "Latin-1", GOOD + '{"custom_id": "é"}\n'.encode("latin-1"), 4, "UTF-8"
    yield "gzip", gzip.compress(GOOD), 1, "UTF-8"
    yield "a number alone", GOOD + b"7\n", 4, "not a JSON object"
    yield "a number that is none", GOOD + line().replace(b'"bad"', b"NaN"), 4, "not JSON"
    yield "no custom_id", GOOD + without("custom_id"), 4, '"custom_id" is missing'
    yield "a custom_id that is a number", GOOD + line(custom_id=4), 4, '"custom_id"'
    yield "a custom_id again", GOOD + line(custom_id="1"), 4, "that of line 2"
    yield "no method", GOOD + without("method"), 4, '"method" is missing'
    yield "a method in small letters", GOOD + line(method="get"), 4, "write one of"
    yield "no url", GOOD + without("url"), 4, '"url" is missing'
    yield "a url without its slash", GOOD + line(url="jobs/9"), 4, "begin it with /"
    yield "a url with a space", GOOD + line(url="/jobs/9 9"), 4, "percent-encode"
    yield "no route", GOOD + line(url="/elsewhere"), 4, "no route"
    yield "a host that no policy knows", GOOD + line(url="https://elsewhere.example/"), 4, "no route"
    yield "a body of a GET", GOOD + line(body={}), 4, "has no body"
    yield "a member that is not known", GOOD + line(priority=1), 4, "is not known"
    yield "a header of the sidecar's", GOOD + line(headers={"Connection": "close"}), 4, "leave it out"
    yield "a line of 5 MiB", GOOD + line(headers={"X": "x" * (5 << 20)}) + GOOD, 4, "4 MiB"
    yield "5 MiB without a line break", b"x" * (5 << 20), 1, "4 MiB"


async def test_each_bad_file_is_told_with_its_line(tmp_path: Path) -> None:
    """More than 30 malformed files: 400 with the first bad line's number and a mend in brackets; nothing of
    them is kept, and no line of them is sent.
    """
    async with CountingApp() as app:
        sidecar = batch_sidecar(tmp_path, app, logging={"access": False})
        await started(sidecar)
        wrong: list[tuple[str, object, object]] = []
        try:
            async with BatchClient(sidecar) as client:
                for name, content, number, words in files():
                    status, answer = await client.submit(content)
                    first = answer.get("errors", [{"line": 0, "detail": ""}])[0]
                    if (status, first["line"]) != (400, number) or words not in first["detail"]:
                        wrong.append((name, status, first))
                    elif not first["detail"].endswith(")"):
                        wrong.append((name, "no mend", first))
                async with client.http.get("/batches") as reply:
                    assert await reply.json() == {"batches": []}
        finally:
            await sidecar.end(signal.SIGKILL)
        assert len(list(files())) >= 30
        assert wrong == []
        assert not app.calls

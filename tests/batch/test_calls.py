"""One line through its route: what its result says of the answer."""

from __future__ import annotations

import base64
from pathlib import Path

import orjson
import pytest

from sidecar.batch.calls import LARGEST
from tests.support.batch_bench import BatchBench, lines
from tests.support.script import Outcome, answer

JSON = (b"Content-Type", b"application/json; charset=utf-8")
TEXT = (b"Content-Type", b"text/plain")


async def result(folder: Path, outcome: Outcome) -> tuple[bytes, int]:
    """The text of one line's result, and how often the upstream was asked."""
    bench = BatchBench(folder, outcome)
    await bench.start()
    await bench.batch(lines(1))
    await bench.over()
    (text,) = await bench.results()
    await bench.close()
    return text, len(bench.bench.calls)


async def test_numbers_of_an_answer_keep_all_their_digits(tmp_path: Path) -> None:
    """A JSON body is in the result as it came, but on one line: no number is rounded."""
    text, _ = await result(
        tmp_path, answer(200, b'{\r\n "id": 123456789012345678901234567890,\n "p": 1.10\n}', JSON)
    )
    assert b"\n" not in text
    assert b"\r" not in text
    assert b'"id": 123456789012345678901234567890' in text
    assert b'"p": 1.10' in text
    assert orjson.loads(text)["body"]["p"] == 1.1


@pytest.mark.parametrize("body", [b'{"n": NaN}', b"", b"{"])
async def test_what_only_says_it_is_json_is_text(tmp_path: Path, body: bytes) -> None:
    """An answer that calls itself JSON and is none is told as the text that it is."""
    text, _ = await result(tmp_path, answer(200, body, JSON))
    assert orjson.loads(text)["body"] == body.decode()


@pytest.mark.parametrize("headers", [(TEXT,), (TEXT, (b"Content-Encoding", b"gzip"))])
async def test_bytes_that_are_no_text_are_told_as_bytes(
    tmp_path: Path, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    """Bytes that are no UTF-8, and those of an encoding, come back the same in base64."""
    body = b"\xff\xfe\x00\x01"
    text, _ = await result(tmp_path, answer(200, body, *headers))
    assert base64.b64decode(orjson.loads(text)["body_base64"]) == body


async def test_an_answer_too_large_fails_its_line_once(tmp_path: Path) -> None:
    """A body above the bound is the line's failure, with its code; it is not asked for again and again."""
    text, asked = await result(tmp_path, answer(200, b"x" * (LARGEST + 1), TEXT))
    assert orjson.loads(text)["error"]["code"] == "result_too_large"
    assert asked == 1

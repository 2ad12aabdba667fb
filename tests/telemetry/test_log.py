"""What the sidecar says of itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import orjson
import pytest

from sidecar.telemetry.log import configure, get_logger
from sidecar.telemetry.sink import Sink
from tests.support.clock import ManualClock

Format = Literal["json", "console"]


def written(
    path: Path, say: Callable[[], object], *, style: Format = "json", level: str = "info"
) -> list[bytes]:
    """The lines that `say` leads to."""
    fd = os.open(path / "log", os.O_WRONLY | os.O_CREAT)
    sink = Sink(fd)
    configure(sink, ManualClock(), format=style, level=level)
    say()
    sink.close()
    os.close(fd)
    return (path / "log").read_bytes().splitlines()


def test_an_event_is_a_json_line(tmp_path: Path) -> None:
    """Time, level, logger and message first, then what the event carries."""
    [line] = written(tmp_path, lambda: get_logger("sidecar.app").info("started", port=8080, path=Path("/x")))
    assert list(orjson.loads(line).items()) == [
        ("timestamp", "2023-11-14T22:13:20.000Z"),
        ("level", "INFO"),
        ("logger", "sidecar.app"),
        ("message", "started"),
        ("port", 8080),
        ("path", repr(Path("/x"))),
    ]


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_decides(tmp_path: Path, level: str, lines: int) -> None:
    """What is less severe is not written."""

    def say() -> None:
        log = get_logger("x")
        for method in (log.debug, log.info, log.warning, log.error):
            method("event")

    assert len(written(tmp_path, say, level=level)) == lines


def test_an_unknown_level_is_refused(tmp_path: Path) -> None:
    """A misspelt level is an error, not silence."""
    with pytest.raises(ValueError, match="no log level"):
        written(tmp_path, lambda: None, level="loud")


def test_a_logger_may_be_older_than_the_set_up(tmp_path: Path) -> None:
    """Layers bind their loggers whenever they like."""
    early = get_logger("early")
    [line] = written(tmp_path, lambda: early.info("event"))
    assert orjson.loads(line)["logger"] == "early"


def test_what_libraries_say_is_in_the_same_log(tmp_path: Path) -> None:
    """Warnings through `logging` arrive as events, with their traceback; their chatter does not."""

    def say() -> None:
        logging.getLogger("asyncio").info("chatter")
        try:
            int("lost")
        except ValueError:
            logging.getLogger("asyncio").exception("task %s failed", 7)

    [line] = written(tmp_path, say)
    event = orjson.loads(line)
    assert (event["level"], event["logger"], event["message"]) == ("ERROR", "asyncio", "task 7 failed")
    assert "invalid literal for int()" in event["exception"]


def test_the_console_format_is_one_readable_line(tmp_path: Path) -> None:
    """No colours in a file."""
    [line] = written(tmp_path, lambda: get_logger("sidecar.app").info("started", port=8080), style="console")
    assert b"\x1b" not in line
    assert b"started" in line
    assert b"port=8080" in line


def test_odd_text_breaks_no_line(tmp_path: Path) -> None:
    """Line feeds are escaped, lone surrogates replaced."""
    [line] = written(tmp_path, lambda: get_logger("x").info("a\nb", odd="\ud800"))
    assert orjson.loads(line)["message"] == "a\nb"


def test_a_broken_sink_breaks_nobody() -> None:
    """With stdout closed, events are dropped and the caller goes on."""
    read, write = os.pipe()
    os.close(read)
    sink = Sink(write)
    configure(sink, ManualClock())
    get_logger("x").info("one")
    get_logger("x").info("two")
    sink.close()
    os.close(write)
    assert sink.dropped == 2

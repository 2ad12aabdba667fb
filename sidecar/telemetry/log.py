"""What the sidecar says of itself: structured events, one line each, through a sink.

Set up once by `app.py`. Lines have the access log's first members (`timestamp`, `level`, `logger`,
`message`), so that one query reads both.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import structlog

from sidecar.telemetry.jsonline import dump_line
from sidecar.telemetry.stamp import Stamp

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import EventDict, WrappedLogger

    from sidecar.clock import Clock
    from sidecar.telemetry.sink import Sink

Format = Literal["json", "console"]


class _SinkLogger:
    """The end of structlog's chain: a rendered line goes to the sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.write(line.encode("utf-8", "backslashreplace") + b"\n")

    debug = info = warning = error = critical = msg


class _Bridge(logging.Handler):
    """Takes in what libraries say through `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger(record.name).log(record.levelno, record.getMessage(), exc_info=record.exc_info)


Fault = Callable[[BaseException, Mapping[str, object]], None]
"""Hears of an exception that was logged as an error, with the members of its line."""


def configure(
    sink: Sink,
    clock: Clock,
    *,
    format: Format = "json",  # noqa: A002 # the key's name in YAML
    level: str = "info",
    on_fault: Fault | None = None,
) -> None:
    """Sends all events of at least `level` to `sink`, and warnings of libraries with them.

    Raises ValueError where `level` is none of debug, info, warning, error, critical.
    """
    least = logging.getLevelNamesMapping().get(level.upper())
    if least is None:
        raise ValueError(f"{level!r} is no log level: debug, info, warning, error or critical")
    stamp = Stamp()

    def add_time(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {"timestamp": stamp(clock.wall()), **event}

    def tell_fault(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        if on_fault is not None and event["level"] in _FAULTS and (error := _exception(event)) is not None:
            on_fault(error, event)
        return event

    first = [structlog.stdlib.add_log_level, add_time]
    if on_fault is not None:
        first.append(tell_fault)
    last: list[structlog.typing.Processor]
    if format == "console":
        last = [
            structlog.dev.ConsoleRenderer(
                colors=sink.is_terminal,
                timestamp_key="timestamp",
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    else:
        last = [structlog.processors.format_exc_info, _ordered, _to_json]
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: _SinkLogger(sink),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(least, logging.WARNING), handlers=[_Bridge()], force=True)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose events carry `name`; may be made before `configure`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(source=name)
    return logger


_FAULTS = frozenset({"error", "critical"})


def _exception(event: EventDict) -> BaseException | None:
    """The exception that an event carries, in any of the forms that structlog takes."""
    carried = event.get("exc_info")
    if isinstance(carried, BaseException):
        return carried
    if isinstance(carried, tuple):
        return carried[1] if isinstance(carried[1], BaseException) else None
    return sys.exc_info()[1] if carried else None


def _ordered(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What everybody looks for first, first."""
    return {
        "timestamp": event.pop("timestamp"),
        "level": event.pop("level").upper(),
        "logger": event.pop("source", "sidecar"),
        "message": event.pop("event"),
        **event,
    }


def _to_json(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> str:
    return dump_line(event).decode().rstrip("\n")

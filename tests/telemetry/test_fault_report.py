"""Faults of ours at Sentry: what is sent to a real server with a project's DSN, and what never is."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from sidecar.config.schema import Route
from sidecar.errors import ConnectFailed
from sidecar.exchange import Exchange, Request, Response
from sidecar.pipeline import Place, compile_pipeline
from sidecar.telemetry import log
from sidecar.telemetry.fault_report import EVERY, FaultReport
from sidecar.telemetry.sink import Sink
from tests.support.clock import ManualClock
from tests.support.script import Bench

SECRET = "S3CR3T"


class Sentry:
    """Takes envelopes and keeps their events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.raw = b""
        self.keys: list[str] = []
        self.dsn = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/api/7/envelope/", self._take)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.dsn = f"http://publickey@127.0.0.1:{runner.addresses[0][1]}/7"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw += body
        self.keys.append(request.headers["X-Sentry-Auth"])
        lines = body.split(b"\n")
        for head, item in zip(lines[1::2], lines[2::2], strict=False):
            if json.loads(head)["type"] == "event":
                self.events.append(json.loads(item))
        return web.json_response({"id": "0" * 32})


async def refuses(exchange: Exchange) -> Response:
    raise ConnectFailed(SECRET)


async def breaks(exchange: Exchange) -> Response:
    body = exchange.request.body
    raise ZeroDivisionError(f"cannot read {body!r}")


def request() -> Exchange:
    made = Exchange(Request("POST", b"/?token=" + SECRET.encode(), [], SECRET.encode()), "192.0.2.7", 0.0)
    made.request_id = "r1"
    return made


async def test_a_fault_of_ours_is_sent_without_what_a_client_sent() -> None:
    """One event with type, stack, route and request id; no text, body, query, or value of a variable."""
    sentry, clock = Sentry(), ManualClock()
    async with sentry.running():
        report = FaultReport(sentry.dsn, clock, version="1.2.3", environment="testing")
        sink = Sink(os.open(os.devnull, os.O_WRONLY))
        log.configure(sink, clock, on_fault=report)
        place = Place(Route.model_validate({"name": "things"}), "app", Bench().services)
        assert (await compile_pipeline(place, refuses)(request())).status == 502
        for _ in range(3):
            assert (await compile_pipeline(place, breaks)(request())).status == 500
        await asyncio.to_thread(report.close)
        sink.close()
    [event] = sentry.events
    [error] = event["exception"]["values"]
    assert error["type"] == "ZeroDivisionError"
    assert error["stacktrace"]["frames"][-1]["function"] == "breaks"
    assert (event["tags"]["route"], event["tags"]["request_id"]) == ("things", "r1")
    assert (event["environment"], event["release"]) == ("testing", "nextvision-sidecar@1.2.3")
    assert SECRET.encode() not in sentry.raw
    assert "sentry_key=publickey" in sentry.keys[0]


async def test_the_same_fault_is_sent_once_a_while() -> None:
    """A bug that every request runs into sends an event a minute; another bug is sent at once."""
    sentry, clock = Sentry(), ManualClock()
    async with sentry.running():
        report = FaultReport(sentry.dsn, clock, version="1", environment="testing")
        for wait in (0.0, 1.0, EVERY):
            await clock.advance(wait)
            try:
                int("lost")
            except ValueError as error:
                report(error, {})
        try:
            os.environ["SIDECAR_NO_SUCH_VARIABLE"]
        except KeyError as error:
            report(error, {})
        await asyncio.to_thread(report.close)
    assert [event["exception"]["values"][0]["type"] for event in sentry.events] == [
        "ValueError",
        "ValueError",
        "KeyError",
    ]


@pytest.mark.parametrize("level", ["info", "error"])
def test_what_libraries_log_as_errors_is_heard_too(level: str) -> None:
    """Asyncio tells of a task that failed by an error with a traceback; what is less severe is none of it."""
    heard: list[BaseException] = []
    sink = Sink(os.open(os.devnull, os.O_WRONLY))
    log.configure(sink, ManualClock(), level="debug", on_fault=lambda error, _: heard.append(error))
    fault = ValueError("lost")
    logging.getLogger("asyncio").log(
        logging.getLevelNamesMapping()[level.upper()], "task failed", exc_info=fault
    )
    sink.close()
    assert heard == ([fault] if level == "error" else [])


async def test_a_dead_server_holds_nobody_up() -> None:
    """With nobody at the DSN reporting returns at once, and closing ends."""
    report = FaultReport("http://key@127.0.0.1:9/7", ManualClock(), version="1", environment="testing")
    report(ValueError("lost"), {})
    await asyncio.wait_for(asyncio.to_thread(report.close), 20)

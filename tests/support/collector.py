"""A collector of OpenTelemetry's: takes OTLP over HTTP, decodes the protobuf, keeps the spans."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.harness import eventually


@dataclass
class Seen:
    """A span, as it came."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    failed: bool
    seconds: float
    attributes: dict[str, str | int | bool]
    events: list[str]
    resource: dict[str, str]


class Collector:
    """Used with `async with`; `status` is what it answers."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status != 200:
            return web.Response(status=self.status)
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for told in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {pair.key: pair.value.string_value for pair in told.resource.attributes}
            for scope in told.scope_spans:
                assert scope.scope.name == "sidecar"
                self.spans += [_seen(span, resource) for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    async def until(self, count: int) -> list[Seen]:
        """The spans, once there are `count`."""
        await eventually(lambda: len(self.spans) >= count, f"{count} spans")
        return self.spans


def _seen(span: Span, resource: dict[str, str]) -> Seen:
    attributes: dict[str, str | int | bool] = {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value")
        for pair in span.attributes
    }
    return Seen(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.status.code == 2,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        attributes,
        [event.name for event in span.events],
        resource,
    )

"""Sends spans to a collector, from a thread of its own: over OTLP/HTTP, with OpenTelemetry's own exporter.

The exporter repeats what a collector could not take, for at most `PATIENCE`; meanwhile the tracer's queue
fills, and then drops. The data plane never waits for it.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from sidecar.telemetry.spans import Spans
from sidecar.telemetry.trace import BATCH

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.schema import Tracing
    from sidecar.telemetry.trace import Ended, Tracer

EVERY: Final = 1.0
"""Seconds after which spans are sent that are no batch yet."""
PATIENCE: Final = 10.0
"""Seconds for one batch, repeats included."""
CLOSE_SECONDS: Final = 3.0
"""Seconds for what is left at the end."""

_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class _Reason(logging.Handler):
    """What the exporter says, kept: it is told once a stretch of trouble, not with each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


class TraceExport:
    """Of one process: takes what the tracer has, until it is closed."""

    def __init__(
        self, tracer: Tracer, settings: Tracing, clock: Clock, log: Any, *, version: str, environment: str
    ) -> None:
        assert settings.otlp is not None
        self._tracer = tracer
        self._clock = clock
        self._log = log
        self._counts = tracer.counts
        self._troubled = False
        resource = Resource.create(
            {
                "service.name": settings.service,
                "service.version": version,
                "deployment.environment.name": environment,
                **dict(settings.attributes),
            }
        )
        self._spans = Spans(resource, version)
        self._reason = _Reason()
        talk = logging.getLogger(_EXPORTER)
        talk.handlers[:], talk.propagate = [self._reason], False
        headers = {name.lower(): value.get_secret_value() for name, value in settings.headers}
        self._exporter = OTLPSpanExporter(settings.otlp, headers=headers or None, timeout=PATIENCE)
        self._awake = threading.Event()
        self._closing = False
        tracer.wake = self._awake.set
        self._thread = threading.Thread(target=self._run, name="trace export", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sends what is left, for at most `CLOSE_SECONDS`. Blocks."""
        self._closing = True
        self._awake.set()
        self._thread.join(CLOSE_SECONDS)
        self._exporter.shutdown()  # type: ignore[no-untyped-call] # which also ends the wait for another try

    def _run(self) -> None:
        while not self._closing:
            self._awake.wait(EVERY)
            self._awake.clear()
            self._send(self._tracer.take())
        self._send(self._tracer.take())

    def _send(self, ended: list[Ended]) -> None:
        epoch = self._clock.wall() - self._clock.now()
        for start in range(0, len(ended), BATCH):
            batch = ended[start : start + BATCH]
            try:
                taken = self._exporter.export([self._spans.of(it, epoch) for it in batch])
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one batch, the next gets its chance
                self._reason.last = repr(error)
                taken = SpanExportResult.FAILURE
            if taken is SpanExportResult.SUCCESS:
                self._counts.exported += len(batch)
                self._tell(troubled=False)
            else:
                self._counts.failed += len(batch)
                self._tell(troubled=True)

    def _tell(self, *, troubled: bool) -> None:
        if troubled == self._troubled:
            return
        self._troubled = troubled
        if troubled:
            self._log.warning("spans are lost: the collector does not take them", reason=self._reason.last)
        else:
            self._log.info("the collector takes spans again")

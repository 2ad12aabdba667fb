"""Settings that need a package which is not installed by itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.config.place import Place
    from sidecar.config.problems import Problem
    from sidecar.config.schema import Config


def missing(settings: Config, place: Place) -> Iterator[Problem]:
    """An error for each setting whose extra is missing, with the command that mends it."""
    if settings.tracing.otlp is not None and not _installed("opentelemetry.exporter.otlp.proto.http"):
        yield place.error("tracing.otlp", _text("otel"))
    if settings.sentry.dsn is not None and not _installed("sentry_sdk"):
        yield place.error("sentry.dsn", _text("sentry"))


def _text(extra: str) -> str:
    return f"it takes the extra {extra}, which is not installed (pip install 'nextvision-sidecar[{extra}]')"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False

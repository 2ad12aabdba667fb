"""Settings that need an extra: said when it is missing, and their own mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sidecar.config.load import load
from sidecar.config.problems import ConfigError


def problems(folder: Path, text: str) -> list[str]:
    file = folder / "sidecar.yaml"
    file.write_text(text)
    try:
        load(file, {})
    except ConfigError as error:
        return [str(problem).removeprefix(f"{folder}/") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("extra", "module", "text", "told"),
    [
        (
            "otel",
            "opentelemetry.exporter.otlp.proto.http",
            "tracing: {otlp: 'http://127.0.0.1:4318'}",
            "1:17: tracing.otlp: it takes the extra otel,",
        ),
        (
            "sentry",
            "sentry_sdk",
            "sentry: {dsn: 'https://key@sentry.example/7'}",
            "1:15: sentry.dsn: it takes the extra sentry,",
        ),
    ],
)
def test_a_missing_extra_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, module: str, text: str, told: str
) -> None:
    """With the place, and the command that mends it; with the extra there is nothing to say."""
    assert problems(tmp_path, text) == []
    monkeypatch.setitem(sys.modules, module, None)
    assert problems(tmp_path, text) == [
        f"sidecar.yaml:{told} which is not installed (pip install 'nextvision-sidecar[{extra}]')"
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tracing: {otlp: 'collector:4317'}", "is not the URL of a collector (write for example"),
        ("tracing: {otlp: 'http://u:p@c:4318'}", "without user, query and fragment (put secrets in"),
        ("tracing: {ratio: 2}", "tracing.ratio"),
        ("tracing: {service: ''}", "a service has a name"),
        ("sentry: {dsn: 'https://sentry.example/7'}", "not the DSN of a project"),
        ("logging: {fields: {status: X-Status}}", 'has a member "status" already (choose another name)'),
        ("logging: {fields: {user: 'X User'}}", 'what "user" is taken from is not the name of a header'),
        ("logging: {sample: 0%}", "logging.sample"),
        ("logging: {rotate: {keep: 0}}", "logging.rotate.keep"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, text: str, told: str) -> None:
    """One problem each, that says what to write instead."""
    [problem] = problems(tmp_path, text)
    assert told in problem


def test_a_dsn_is_a_secret(tmp_path: Path) -> None:
    """It is in no representation of the configuration, nor in an error about it."""
    (tmp_path / "sidecar.yaml").write_text("sentry: {dsn: 'https://S3CR3T@sentry.example/7'}")
    assert "S3CR3T" not in repr(load(tmp_path / "sidecar.yaml", {}).config)
    [problem] = problems(tmp_path, "sentry: {dsn: 'S3CR3T@sentry.example'}")
    assert "S3CR3T" not in problem


def test_a_collector_is_asked_at_the_usual_path(tmp_path: Path) -> None:
    """Unless a path is written."""
    for written, asked in (
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/", "https://c/v1/traces"),
        ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ):
        (tmp_path / "sidecar.yaml").write_text(f"tracing: {{otlp: '{written}'}}")
        assert load(tmp_path / "sidecar.yaml", {}).config.tracing.otlp == asked

"""`fault` in a policy file: what is taken, and what `check` has to say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config.load import load
from sidecar.config.schema import Expiry, Fault


def loaded(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Fault, list[str]]:
    """The fault of the one route, and the warnings."""
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").write_text("policies: [p.yaml]\n", encoding="utf-8")
    policy = f"name: shop\nroutes:\n  - name: cart\n    fault: {text}\n"
    Path("p.yaml").write_text(policy, encoding="utf-8")
    found = load(None, {})
    fault = found.policies[0].routes[0].fault
    assert fault is not None
    return fault, [str(warning) for warning in found.warnings]


def test_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times in seconds, shares of one, bytes a second; a plain delay is a range of one."""
    text = (
        "{percent: 20%, every: 3, first: 9, delay: 500ms, truncate: 1KiB, bandwidth: 16KiB/s, expires: 10m}"
    )
    fault, warnings = loaded(text, tmp_path, monkeypatch)
    assert (fault.percent, fault.every, fault.first) == (0.2, 3, 9)
    assert fault.delay is not None
    assert (fault.delay.min, fault.delay.max) == (0.5, 0.5)
    assert (fault.truncate, fault.bandwidth) == (1024, 16384)
    assert fault.expires == Expiry(after=600.0)
    assert warnings == []
    shown = fault.model_dump(mode="json")
    assert (shown["bandwidth"], shown["expires"], shown["delay"]["max"]) == ("16KiB/s", "10m", "500ms")


@pytest.mark.parametrize("time", ["2030-01-31T12:00:00Z", "2030-01-31T13:00:00+01:00"])
def test_a_time(time: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its zone; shown in UTC."""
    fault, _ = loaded(f"{{reset: true, expires: {time}}}", tmp_path, monkeypatch)
    assert fault.expires == Expiry(at=1896091200.0)
    assert fault.model_dump(mode="json")["expires"] == "2030-01-31T12:00:00Z"


def test_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` and `run` remind of a fault that nobody will end."""
    _, [warning] = loaded("{reset: true}", tmp_path, monkeypatch)
    mend = "write expires: 10m, or a time"
    assert warning == f"p.yaml:4:12: routes.cart.fault: warning: injects failures without end ({mend})"

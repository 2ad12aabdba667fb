"""A configuration that was replaced leaves memory at once."""

from __future__ import annotations

import gc
import re
import shutil
from pathlib import Path

import pytest

from sidecar.app import App
from sidecar.clock import SystemClock
from sidecar.config.load import Source
from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parents[2]


ROLLOUT = "rollout: {percent: 10%, guard: {error_rate: 5%}, window: 60s}"


@pytest.mark.parametrize(("rollout", "result"), [("", "applied"), (ROLLOUT, "started")])
async def test_a_replaced_generation_is_freed_without_the_collector(
    tmp_path: Path, rollout: str, result: str
) -> None:
    """With the shipped policies, after a trial too: next to nothing of it is in cycles.

    Those would wait for the collector, which is told to come seldom, and stops all requests when it does: for
    seconds, once dozens of generations wait for it.
    """
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    main, policy = tmp_path / "sidecar.yaml", tmp_path / "policies" / "nextvision.yaml"
    listen = ", ".join(f"{name}: 127.0.0.1:{free_port()}" for name in ("ingress", "egress", "admin"))
    main.write_text(f"policies: [policies/*.yaml]\nlisten: {{{listen}}}\nhistory: {{dir: off}}\n{rollout}\n")
    source = Source(main, {})
    app = App(source.load(), SystemClock(), source)
    found = []
    try:
        for seconds in (41, 42, 43):
            gc.collect()
            gc.disable()
            policy.write_text(re.sub(r"(?m)^  deadline: \d+s", f"  deadline: {seconds}s", policy.read_text()))
            assert (await app.reloading.reload("test")).result == result
            found.append(gc.collect())
            gc.enable()
    finally:
        gc.enable()
        await app.stop()
    # One cycle around a policy file kept 2,700 objects each time.
    assert found[-1] < 500

"""`sidecar init` from the sample app: what it writes is fine, and the demo runs on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Program, free_port, until_connects

ROOT = Path(__file__).resolve().parents[2]
DEMO = """
import sys
from pathlib import Path
from sidecar import demo
from sidecar.demo.acts import ACTS

demo.ACTS = ACTS[:1]
sys.exit(demo.run(True, Path(sys.argv[1])))
"""


def done(*command: str, cwd: Path) -> str:
    """What a command printed; it must end well."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_from_the_running_sample_app_to_a_demo_on_it(tmp_path: Path) -> None:
    """`init --app`, `check`, then the demo's first act, in which no client fails."""
    port = free_port()
    app = Program(
        [sys.executable, str(ROOT / "examples" / "nextvision_app.py"), "--port", str(port)],
        tmp_path / "app.out",
    )
    await app.start()
    await until_connects(port)
    folder = tmp_path / "made"
    folder.mkdir()
    done("-m", "sidecar", "init", "--app", f"http://127.0.0.1:{port}", cwd=folder)
    await app.end()
    assert "sidecar.yaml: fine (9 routes)" in done("-m", "sidecar", "check", cwd=folder)
    policy = folder / "policies" / "nextvision.yaml"
    assert "/api/v1/matching/candidate/{candidate_id}" in policy.read_text()
    table = done("-c", DEMO, str(policy), cwd=ROOT)
    assert re.search(r"with the sidecar +300 +0 ", table), table

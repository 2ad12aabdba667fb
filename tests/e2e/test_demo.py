"""`sidecar demo` shows real traffic, is honest about it, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from sidecar import demo

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

ROOT = Path(__file__).resolve().parents[2]
TIME = r"(\S+(?: s| ms)|-)"
ROW = re.compile(rf"^  (without|with) the sidecar +(\d+) +(\d+) +(\d+|-) +(\d+) +{TIME} +{TIME} +(\d+)$")
SHORTENED = """
import sys
from sidecar import demo
from sidecar.demo.acts import ACTS, Act

async def kill_the_sidecar(stage):
    await stage.sidecar.kill()
    return "The sidecar was killed."

demo.ACTS = {acts}
sys.exit(demo.run({once}))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_demo_ends_well_and_prints_its_table() -> None:
    """`demo --once`: exit 0; in no act do more clients fail with the sidecar, and without it many do."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "demo", "--once"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    rows = [match for line in done.stdout.splitlines() if (match := ROW.match(line))]
    assert [row[1] for row in rows] == ["without", "with"] * 9, done.stdout
    failures = [int(row[3]) for row in rows]
    without, beside = failures[::2], failures[1::2]
    assert all(few <= many for many, few in zip(without, beside, strict=True)), done.stdout
    assert all(many > 0 for many in without[1:6]), done.stdout
    wrong, marked = ([row[column] for row in rows] for column in (4, 5))
    assert wrong[:12] == ["-"] * 12, done.stdout
    assert all(int(count) > 0 for count in wrong[12::2]), "without the sidecar the app lies"
    assert [int(count) for count in wrong[13::2]] == [0] * 3, done.stdout
    assert all(int(count) > 0 for count in marked[13::2]), done.stdout
    assert sum(beside) < sum(without) / 4, done.stdout
    told = " ".join(done.stdout.split())
    assert re.search(r"The sidecar repeated \d+ attempts: .*after a refused connection", told), done.stdout
    assert re.search(r"Its circuit breaker opened .* and closed .*: it is closed now", told), done.stdout


@pytest.mark.timeout(120)
def test_without_once_it_goes_on_until_ctrl_c() -> None:
    """Its addresses answer while it runs, and nobody listens there after Ctrl-C: exit 0."""
    program = SHORTENED.format(acts="ACTS[:1]", once=False)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            shown = ""
            for line in process.stdout:
                shown += line
                if line.startswith("  tail -f"):
                    break
            found = sorted(set(re.findall(r"http://127\.0\.0\.1:\d+", shown)))
            assert len(found) == 4, shown
            ingress = re.search(r"(http://127\.0\.0\.1:\d+)/api/v1/matching", shown)
            assert ingress is not None
            answer = httpx.get(f"{ingress[1]}/api/v1/health")
            assert answer.json()["status"] == "healthy"
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=60)
        finally:
            process.terminate()  # in order: it stops what it has started
            process.wait(60)
    assert (process.returncode, complaints) == (0, "")
    for url in found:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1)


@pytest.mark.timeout(120)
def test_a_failing_demo_says_so() -> None:
    """Should the sidecar die, clients of it fail and the demo with them: exit 1, why, no traceback."""
    program = SHORTENED.format(acts="(Act('killed', 1.0, 2.0, kill_the_sidecar),)", once=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "the sidecar ended before it was told to" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60


def test_it_names_the_packages_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the packages of the sample app: exit 2, and the command that installs them."""

    def find_spec(name: str) -> ModuleSpec | None:
        return None if name in {"fastapi", "uvicorn"} else demo.__spec__

    monkeypatch.setattr(demo, "find_spec", find_spec)
    assert demo.run(once=True) == 2
    complaint = capsys.readouterr().err
    assert "needs fastapi, uvicorn: pip install 'nextvision-sidecar[demo]'" in complaint

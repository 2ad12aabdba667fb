"""`sidecar replay` as a command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sidecar.cli import main
from tests.replay.test_log import ours

POLICY = """
name: maps
direction: egress
hosts: [maps.example.com]
routes:
  - name: geocode
    match: {path: /maps}
    cache: {ttl: TTL}
    price: 0.005
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").write_text("policies: [maps.yaml]\n")
    Path("other.yaml").write_text("policies: [longer.yaml]\n")
    Path("maps.yaml").write_text(POLICY.replace("TTL", "30s"))
    Path("longer.yaml").write_text(POLICY.replace("TTL", "1h"))
    lines = [ours(timestamp=f"2026-01-02T03:{minute:02}:05.500Z", ttl=30) for minute in range(20)]
    Path("a.log").write_text("\n".join(lines))
    return tmp_path


def test_two_configurations_are_held_beside_the_log(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One table in the terminal, the same figures in JSON, calls saved in money."""
    assert main(["replay", "a.log", "--against", "other.yaml", "--json", "out.json"]) == 0
    table = {row[:16].strip(): row[16:].split() for row in capsys.readouterr().out.splitlines()}
    assert table["upstream calls"] == ["20", "20", "1"]
    assert table["money saved"] == ["0.00", "0.00", "0.10"]
    results = json.loads(Path("out.json").read_text())["results"]
    assert [it["total"]["hit_ratio"] for it in results] == [0.0, 0.0, 0.95]


def test_a_price_on_the_command_line_goes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a price that is not in the files."""
    assert main(["replay", "a.log", "--against", "other.yaml", "--price", "geocode=1"]) == 0
    assert re.search(r"money saved +0\.00 +0\.00 +19\.00", capsys.readouterr().out)


def test_the_report_is_one_file_that_loads_nothing(folder: Path) -> None:
    """With the plots in it."""
    assert main(["replay", "a.log", "--against", "other.yaml", "--html", "out.html"]) == 0
    page = Path("out.html").read_text()
    assert page.count("<svg") == 1
    assert "hit ratio" in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.log"], "nothing.log: No such file"),
        (["a.log", "--price", "geo=1"], "no route is called geo"),
        (["a.log", "--price", "geocode=much"], "write for example --latency 50ms --price geocode=0.005"),
        (["a.log", "--latency", "50"], "--latency"),
        (["a.log", "--against", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["maps.yaml"], "logging.format: json"),
    ],
)
def test_what_cannot_be_done_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """Exit code 2, and what to write instead."""
    assert main(["replay", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_a_configuration_there_is_nothing_to_predict(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything would pass: that is no answer."""
    Path("sidecar.yaml").unlink()
    assert main(["replay", "a.log"]) == 2
    assert "sidecar replay a.log -c FILE" in capsys.readouterr().err

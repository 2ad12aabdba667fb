"""Broken configurations, each with exactly what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config.load import load
from sidecar.config.problems import ConfigError

TABLES = (
    "broken_main.yaml",
    "broken_policies.yaml",
    "broken_fallbacks.yaml",
    "broken_faults.yaml",
    "broken_lifecycle.yaml",
)
CASES: list[dict[str, Any]] = [
    case
    for table in TABLES
    for case in yaml.safe_load(Path(__file__).with_name(table).read_text(encoding="utf-8"))
]


def findings(case: Mapping[str, Any]) -> list[str]:
    """What loading the files of a case, in the current directory, says."""
    Path("sidecar.yaml").write_text(case.get("main", "policies: [p.yaml]\n"), encoding="utf-8")
    files = dict(case.get("files", {}))
    if "policy" in case:
        files["p.yaml"] = case["policy"]
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(None, case.get("env", {}), case.get("sets", ()), case.get("app"))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_says_what_is_wrong_and_where(
    case: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken configuration is refused with file, line, column, key and mend."""
    monkeypatch.chdir(tmp_path)
    assert findings(case) == case["expect"]


def test_the_tables_are_long_enough() -> None:
    """The product promises a hundred."""
    assert len(CASES) >= 100


def test_a_file_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The byte that is no text is pointed at."""
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").write_bytes(b"app:\n  url: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"^sidecar.yaml:2:11: not UTF-8 text \(save the file as UTF-8\)$"):
        load(None, {})


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt file name is met with the one that is there."""
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").write_text("", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"^sidecar.yml: there is no such file \(did you mean sidecar.yaml\?\)$"
    ):
        load(Path("sidecar.yml"), {})


def test_aliases_of_aliases_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that would expand to millions of nodes is refused, soon."""
    monkeypatch.chdir(tmp_path)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    Path("sidecar.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="too much, or nested too deeply"):
        load(None, {})

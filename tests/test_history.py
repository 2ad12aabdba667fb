"""Generations on disk: kept, bounded, compared, brought back; never with a secret in them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.config.load import Loaded, Source
from sidecar.history import History, HistoryError, difference, restore, texts, without_secrets

MAIN = """\
# ours
policies: [policies/*.yaml]
admin: {token: "${TOKEN}"}
history: {keep: 3, max_age: 1h}
limits: {drain: %ds}
"""
POLICY = "name: app\nroutes: [{name: all, match: {path: /*}}]\n"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "app.yaml").write_text(POLICY)
    (tmp_path / "sidecar.yaml").write_text(MAIN % 1)
    return Source(tmp_path / "sidecar.yaml", {"TOKEN": "open sesame"})


def changed(source: Source, drain: int) -> Loaded:
    assert source.path is not None
    source.path.write_text(MAIN % drain)
    return source.load()


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "kept")


def test_a_generation_is_kept_as_it_was_written(source: Source, history: History) -> None:
    """Comments and references included; readable by its owner alone; the same again is not kept twice."""
    loaded = source.load()
    name = history.keep(loaded, 1000.0, "start")
    assert history.keep(loaded, 2000.0, "again") == name
    [kept] = history.all()
    assert kept.files == {"sidecar.yaml": MAIN % 1, "policies/app.yaml": POLICY}
    assert (kept.why, kept.environment) == ("start", "development")
    file = history.directory / f"{name}.json"
    assert "open sesame" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.directory.stat().st_mode) == 0o700


def test_count_and_age_are_bounded(source: Source, history: History) -> None:
    """The oldest goes first, and what is too old, but never the last."""
    for number in range(1, 6):
        history.keep(changed(source, number), 1000.0 + number, "test")
    drains = [kept.files["sidecar.yaml"] for kept in history.all()]
    assert drains == [MAIN % number for number in (3, 4, 5)]
    history.keep(changed(source, 9), 1000.0 + 7200, "test")
    assert [kept.files["sidecar.yaml"] for kept in history.all()] == [MAIN % 9]


def test_two_are_compared(source: Source, history: History) -> None:
    """As `diff -u` does it."""
    history.keep(source.load(), 1000.0, "test")
    [kept] = history.all()
    lines = list(difference(kept.files, texts(changed(source, 2))[0], ("old", "now")))
    assert lines[:2] == ["--- old/sidecar.yaml", "+++ now/sidecar.yaml"]
    assert "-limits: {drain: 1s}" in lines
    assert "+limits: {drain: 2s}" in lines


def test_one_is_brought_back(source: Source, history: History, tmp_path: Path) -> None:
    """Byte for byte; a policy file that it did not have is set aside, not lost."""
    history.keep(source.load(), 1000.0, "test")
    [kept] = history.all()
    (tmp_path / "policies" / "aa.yaml").write_text(
        "name: more\nroutes: [{name: more, match: {path: /more}}]\n"
    )
    present = changed(source, 2)
    done = restore(kept, source, present, present.directory)
    assert len(done) == 2
    assert (tmp_path / "sidecar.yaml").read_text() == MAIN % 1
    assert (tmp_path / "policies" / "aa.yaml.replaced").exists()
    assert [policy.name for policy in source.load().policies] == ["app"]


def test_one_that_is_not_valid_any_more_changes_nothing(source: Source, history: History) -> None:
    """What was written is undone, and the reason told."""
    history.keep(source.load(), 1000.0, "test")
    [kept] = history.all()
    present = changed(source, 2)
    stale = Source(source.path, {})
    with pytest.raises(HistoryError, match="TOKEN is not set"):
        restore(kept, stale, present, present.directory)
    assert source.path is not None
    assert source.path.read_text() == MAIN % 2


def test_a_secret_in_the_file_is_not_kept(source: Source, history: History) -> None:
    """It is blotted out, and such a generation says why it cannot be brought back."""
    assert source.path is not None
    source.path.write_text('admin: {token: "hunter2hunter2"}\n')
    loaded = source.load()
    history.keep(loaded, 1000.0, "test")
    [kept] = history.all()
    assert kept.files["sidecar.yaml"] == 'admin: {token: "***"}\n'
    assert kept.left_out == ("sidecar.yaml: admin.token",)
    with pytest.raises(HistoryError, match=r"admin\.token"):
        restore(kept, source, loaded, loaded.directory)


def test_secrets_are_found_wherever_they_may_stand() -> None:
    """In environments, in what is injected, in several lines; references and empty ones stay."""
    text, keys = without_secrets(
        "environments:\n  production:\n    cache: {redis: redis://:pw@h}\n"
        "inject:\n  headers:\n    Authorization: >\n      Bearer\n      abc\n  query: {key: '${KEY}'}\n"
        "admin: {token: ''}\ntracing: {headers: {Authorization: Basic abc}}\n"
    )
    assert "pw" not in text
    assert "abc" not in text
    assert "${KEY}" in text
    assert keys == [
        "environments.production.cache.redis",
        "inject.headers.Authorization",
        "tracing.headers.Authorization",
    ]


def test_the_line_behind_a_secret_stays_where_it_is() -> None:
    """Behind a block, too; and an alias of a secret is no second one to blot out."""
    text, _ = without_secrets(
        "inject:\n  headers:\n    Authorization: &it |\n      Bearer abc\n    X-Other: *it\nname: shop\n"
    )
    assert text == 'inject:\n  headers:\n    Authorization: "***"\n    X-Other: *it\nname: shop\n'


def test_an_unknown_one_is_said_to_be_unknown(history: History) -> None:
    """With where to look."""
    with pytest.raises(HistoryError, match="sidecar config history"):
        history.get("nothing")


@pytest.fixture
def broken(source: Source, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose one generation is kept, and whose files are wrong now: one cut short, one too many."""
    loaded = source.load()
    History(loaded.directory / ".sidecar" / "history").keep(loaded, 1_700_000_000.0, "start")
    folder = loaded.directory
    (folder / "policies" / "app.yaml").write_text("name: app\nroutes: [{name: all, # half")
    (folder / "policies" / "extra.yaml").write_text("nonsense: true\n")
    monkeypatch.setenv("TOKEN", "t" * 20)
    monkeypatch.chdir(folder)
    return folder


def test_files_that_are_wrong_are_restored(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That is when it is wanted most; what was there is set aside, none of it lost."""
    assert main(["config", "restore", "2023"]) == 0
    told = capsys.readouterr()
    assert "policies/app.yaml:3:1: not valid YAML" in told.err
    assert "set policies/extra.yaml aside as extra.yaml.replaced" in told.out
    assert main(["check"]) == 0
    assert (broken / "policies" / "app.yaml.replaced").read_text().endswith("# half")
    assert (broken / "policies" / "extra.yaml.replaced").read_text() == "nonsense: true\n"


def test_what_was_set_aside_before_stays(broken: Path) -> None:
    """The second time another name is taken."""
    (broken / "policies" / "app.yaml.replaced").write_text("mine")
    assert main(["config", "restore", "2023"]) == 0
    assert (broken / "policies" / "app.yaml.replaced").read_text() == "mine"
    assert (broken / "policies" / "app.yaml.replaced-2").read_text().endswith("# half")


def test_files_that_are_wrong_are_compared(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listed, too; of what is no YAML nobody can tell what is a secret, so it is not shown."""
    assert main(["config", "history"]) == 0
    assert main(["config", "diff", "2023"]) == 0
    shown = capsys.readouterr().out
    assert "+# not shown: this is not valid YAML in line" in shown
    assert "# half" not in shown

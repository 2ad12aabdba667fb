"""What goes before the files: single variables, a `.env` file, feature flags; and what production refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config.load import Source, load
from sidecar.config.problems import ConfigError
from sidecar.config.shown import settings_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").write_text("limits: {body: 2MiB, drain: 5s}\n")
    return tmp_path


def test_a_variable_sets_one_key() -> None:
    """Before the file, after --set; its name is the origin."""
    env = {"SIDECAR__LIMITS__BODY": "1MiB", "SIDECAR__TRUSTED__PROXIES": "[10.0.0.0/8]"}
    loaded = load(None, env, ["limits.drain=1s"])
    assert loaded.config.limits.body == 1 << 20
    assert str(loaded.origins["limits.body"]) == "SIDECAR__LIMITS__BODY"
    assert [str(it) for it in loaded.config.trusted.proxies] == ["10.0.0.0/8"]
    assert load(None, env, ["limits.body=3MiB"]).config.limits.body == 3 << 20


def test_a_secret_in_a_variable_is_not_shown() -> None:
    """Neither as a setting nor in an error."""
    loaded = load(None, {"SIDECAR__ADMIN__TOKEN": "hunter2"})
    rows = settings_of(loaded.config.model_dump(mode="json"), "", loaded.origins)
    assert ("admin.token", "***", "SIDECAR__ADMIN__TOKEN") in rows
    with pytest.raises(ConfigError) as caught:
        load(None, {"SIDECAR__CACHE__REDIS": "http://:hunter2@h"})
    assert "hunter2" not in str(caught.value)


def test_a_secret_on_the_command_line_is_refused() -> None:
    """The list of processes would show it; a reference does not."""
    with pytest.raises(ConfigError) as caught:
        load(None, {}, ["admin.token=hunter2hunter2"])
    assert "list of processes" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    token = load(None, {"T": "hunter2"}, ["admin.token=${T}"]).config.admin.token
    assert token is not None
    assert token.get_secret_value() == "hunter2"


def test_a_file_of_variables_is_read_when_asked_for() -> None:
    """The environment goes before it, and it is one of the sources that are watched."""
    Path(".env").write_text("# ours\nSIDECAR__LIMITS__BODY=1MiB\nexport NEXTVISION_ENV='staging'\n")
    assert Source(Path("sidecar.yaml"), {}).load().config.environment == "development"
    source = Source(Path("sidecar.yaml"), {"NEXTVISION_ENV": "testing"}, env_file=Path(".env"))
    loaded = source.load()
    assert (loaded.config.environment, loaded.config.limits.body) == ("testing", 1 << 20)
    assert ".env" in loaded.sources
    Path(".env").write_text("A=1\nnot a variable\n")
    with pytest.raises(ConfigError, match=r"^\.env:2:1: not a variable \(write NAME=value\)$"):
        source.load()


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("FEATURE_CACHING", "cache"),
        ("FEATURE_RETRY_MECHANISMS", "retry"),
        ("FEATURE_HEALTH_MONITORING", "health_monitoring"),
        ("FEATURE_STRESS_TEST", "stress_test"),
    ],
)
def test_the_guides_flags_are_features(variable: str, key: str) -> None:
    """They go before the file, and say so."""
    Path("sidecar.yaml").write_text(f"features: {{{key}: true}}\n")
    loaded = load(None, {variable: "false"})
    assert getattr(loaded.config.features, key) is False
    assert str(loaded.origins[f"features.{key}"]) == variable


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("admin: {token: changeme123}", "the one of examples is no secret"),
        ("admin: {token: ab12cd34ef}", "too short"),
        ("admin: {token: aaaaaaaaaaaaaaaaaaaaaaaa}", "too uniform"),
        ("logging: {level: debug}", "no debug in production"),
        ("listen: {admin: 0.0.0.0:9901}", "without admin.token"),
    ],
)
def test_production_refuses_what_development_may(text: str, said: str) -> None:
    """A finding with the key and the mend; elsewhere than in production it is none."""
    Path("sidecar.yaml").write_text(f"{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(None, {"NEXTVISION_ENV": "production"})
    assert said in str(caught.value)
    if "listen" not in text:
        load(None, {"NEXTVISION_ENV": "staging"})

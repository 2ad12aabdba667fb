"""What the admin listener says of the configuration in force."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jsonschema
import orjson
import pytest

from sidecar.admin.config_pages import ConfigPages
from sidecar.config.load import load

MAIN = """\
app: {url: "http://127.0.0.1:8000"}
admin: {token: "${TOKEN}"}
cache: {redis: "redis://:hunter2@127.0.0.1:6379"}
policies: [maps.yaml]
"""
MAPS = """\
name: maps
direction: egress
hosts: [maps.example]
upstream: https://maps.example
inject: {query: {key: plain-key}}
routes:
  - name: geocode
    match: {method: GET, path: /geocode}
    retry: {attempts: 3}
"""


@pytest.fixture
def pages(tmp_path: Path) -> ConfigPages:
    (tmp_path / "sidecar.yaml").write_text(MAIN)
    (tmp_path / "maps.yaml").write_text(MAPS)
    loaded = load(tmp_path / "sidecar.yaml", {"TOKEN": "open sesame"}, ["limits.drain=7s"])
    return ConfigPages(lambda: SimpleNamespace(loaded=loaded, generation=3, since=0.0))


async def test_each_value_has_its_origin(pages: ConfigPages) -> None:
    """The file and line, what else set it, or `default`; of policies too. As the OpenAPI document says."""
    [route] = pages.routes()
    assert route.late_page is not None
    shown = orjson.loads((await route.late_page("")).body)
    jsonschema.Draft202012Validator(route.answers["200"].content["application/json"]).validate(shown)
    assert (shown["generation"], shown["environment"]) == (3, "development")
    settings = {row["key"]: (row["value"], Path(row["origin"]).name) for row in shown["settings"]}
    assert settings["app.url"] == ("http://127.0.0.1:8000", "sidecar.yaml:1")
    assert settings["limits.drain"] == ("7s", "--set")
    assert settings["listen.ingress"] == ("127.0.0.1:8080", "default")
    [policy] = shown["policies"]
    assert (policy["name"], policy["upstream"]) == ("maps", "https://maps.example")
    [geocode] = policy["routes"]
    retry = {row["key"]: (row["value"], Path(row["origin"]).name) for row in geocode["settings"]}
    assert retry["retry.attempts"] == ("3", "maps.yaml:9")


async def test_no_secret_is_shown(pages: ConfigPages) -> None:
    """Neither what came from a reference nor what is secret by its nature."""
    [route] = pages.routes()
    assert route.late_page is not None
    body = (await route.late_page("")).body.decode()
    for secret in ("open sesame", "hunter2", "plain-key"):
        assert secret not in body
    assert '"inject.query.key","value":"***"' in body

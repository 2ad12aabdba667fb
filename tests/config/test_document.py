"""JSON Schema, docs/configuration.md and the files that are shipped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sidecar.config.base import Model
from sidecar.config.document import FILES, json_schema, markdown
from sidecar.config.load import load
from sidecar.config.positions import Items, Node, Tree, read
from sidecar.config.validate import model_in
from sidecar.routing import Matcher

ROOT = Path(__file__).parents[2]
SHIPPED = [
    ("sidecar", ROOT / "sidecar.yaml"),
    *(("policy", file) for file in sorted((ROOT / "policies").glob("*.yaml"))),
]


def yaml_1_2(node: Node) -> Any:
    """What an editor's YAML 1.2 reader makes of a file."""
    if isinstance(node, Tree):
        return {key: yaml_1_2(entry.value) for key, entry in node.entries.items()}
    if isinstance(node, Items):
        return [yaml_1_2(item) for item in node.items]
    if node.quoted or node.text == "null":
        return node.text if node.quoted else None
    if node.text in ("true", "false"):
        return node.text == "true"
    if re.fullmatch(r"[0-9]+", node.text):
        return int(node.text)
    return float(node.text) if re.fullmatch(r"[0-9]+\.[0-9]+", node.text) else node.text


@pytest.mark.parametrize("which", [None, *FILES])
def test_the_schema_is_one(which: str | None) -> None:
    """Valid as JSON Schema, draft 2020-12."""
    jsonschema.Draft202012Validator.check_schema(json_schema(which))


@pytest.mark.parametrize(("which", "file"), SHIPPED, ids=[file.stem for _, file in SHIPPED])
def test_the_schema_takes_the_shipped_files(which: str, file: Path) -> None:
    """Editors find nothing wrong with them; as one kind of file, or as either."""
    tree, problems = read(file.read_text(encoding="utf-8"), which)
    assert not problems
    jsonschema.Draft202012Validator(json_schema(which)).validate(yaml_1_2(tree))
    jsonschema.Draft202012Validator(json_schema()).validate(yaml_1_2(tree))


@pytest.mark.parametrize(
    ("which", "value"),
    [
        ("sidecar", {"listn": {}}),
        ("sidecar", {"limits": {"idle": 75}}),
        ("sidecar", {"limits": {"connections": "many"}}),
        ("policy", {"name": "shop", "routes": []}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "retry": {"attempts": 0}}]}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "match": {"path": "cart"}}]}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "cache": {"ttl": 30}}]}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "cache": {"key": {"body": "text"}}}]}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "cache": {"namespace": "a:b"}}]}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "cache": {"warm": ["cart"]}}]}),
        ("sidecar", {"cache": {"redis": "http://redis"}}),
        ("policy", {"name": "shop", "classify": [{"status": 404}], "routes": [{"name": "cart"}]}),
        ("policy", {"name": "shop", "classify": [{"verdict": "bad"}], "routes": [{"name": "cart"}]}),
        (
            "policy",
            {"name": "shop", "classify": [{"status": "4x", "verdict": "ok"}], "routes": [{"name": "cart"}]},
        ),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "classify": []}]}),
        (
            "policy",
            {"name": "shop", "routes": [{"name": "cart", "classify": [{"verdict": "ok", "json": {}}]}]},
        ),
    ],
)
def test_the_schema_refuses_what_is_wrong(which: str, value: object) -> None:
    """Editors mark the common mistakes."""
    assert not jsonschema.Draft202012Validator(json_schema(which)).is_valid(value)


@pytest.mark.parametrize(
    ("which", "value"),
    [
        ("sidecar", {"limits": {"body": "off", "connections": "${MOST}"}}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "retry": "off", "deadline": "${D:-3s}"}]}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "cache": {"refresh_ahead": "off"}}]}),
        ("policy", {"name": "shop", "routes": [{"name": "cart", "cache": "off"}]}),
        (
            "policy",
            {
                "name": "shop",
                "routes": [
                    {
                        "name": "cart",
                        "cache": {
                            "ttl": "${TTL:-30m}",
                            "methods": ["GET", "POST"],
                            "key": {"query": {"drop": ["utm_*"], "bucket": {"t": "5m"}}, "body": "json"},
                            "refresh_ahead": "80%",
                            "warm": ["/cart?a=b"],
                        },
                    }
                ],
            },
        ),
        (
            "policy",
            {
                "name": "shop",
                "classify": [{"status": ["5xx", 404], "json": {"a": [1, None, {}]}, "verdict": "ok"}],
                "routes": [{"name": "cart", "classify": "off"}],
            },
        ),
        ("sidecar", {"cache": {"memory": "64MiB", "redis": ""}}),
        ("sidecar", {"cache": {"redis": "redis+sentinel://a:1,b:2/mymaster"}}),
        ("sidecar", {"cache": {"redis": "${REDIS_URL:-}"}}),
    ],
)
def test_the_schema_knows_off_and_references(which: str, value: object) -> None:
    """Both may stand where another type is expected."""
    jsonschema.Draft202012Validator(json_schema(which)).validate(value)


def every_field(model: type[Model]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        below = model_in(field.annotation)
        if below is not None:
            yield from every_field(below)


@pytest.mark.parametrize("which", FILES)
def test_every_key_is_described(which: str) -> None:
    """With a sentence; those that are no mapping with an example too."""
    for name, field in every_field(FILES[which]):
        assert field.description, name
        assert field.description.endswith("."), name
        assert field.examples or model_in(field.annotation), name


def test_the_documentation_is_current() -> None:
    """docs/configuration.md is what `sidecar schema --markdown` prints."""
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == markdown()


@pytest.mark.parametrize("environment", ["development", "testing", "staging", "production"])
def test_the_shipped_files_are_fine(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each environment, with no variable set and nothing to warn of."""
    monkeypatch.chdir(ROOT)
    loaded = load(None, {"NEXTVISION_ENV": environment})
    assert loaded.warnings == ()
    assert loaded.config.environment == environment


@pytest.mark.parametrize(
    ("request_line", "route"),
    [
        ("POST /api/v1/matching/candidate/42", "matching"),
        ("POST /api/v3/matching/candidate/42/transport", "matching-transport"),
        ("POST /api/v3/intelligent-matching", "intelligent-matching"),
        ("POST /api/v2/conversion/commitment/enhanced", "conversion"),
        ("POST /api/v2/jobs/parse", "job-parsing"),
        ("POST /api/v2/transport/compatibility", "transport"),
        ("GET /api/v1/health", "health"),
        ("GET /api/v3/health", "health"),
        ("GET /api/v2/maps/health", "maps-health"),
        ("GET /api/job-parser/health", "job-parser"),
        ("POST /api/cv-parser/parse", "cv-parser"),
        ("GET /docs", "docs"),
        ("GET /docs/oauth2-redirect", "docs"),
        ("GET /openapi.json", "openapi"),
        ("HEAD /", "reads"),
        ("DELETE /api/v1/matching/candidate/42", None),
    ],
)
def test_nextvisions_requests_find_their_routes(
    request_line: str, route: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped policies are for the app's real paths."""
    monkeypatch.chdir(ROOT)
    (policy,) = [policy for policy in load(None, {}).policies if policy.direction == "ingress"]
    routes = policy.routes
    method, path = request_line.split()
    index = Matcher(route.match for route in routes).match(method, b"127.0.0.1:8080", path, ())
    assert (None if index is None else routes[index].name) == route


@pytest.mark.parametrize("which", ["sidecar", "policy"])
def test_the_schema_that_editors_read_is_current(which: str) -> None:
    """`sidecar schema sidecar > schema/sidecar.schema.json` after a change, and the same for policy."""
    written = (ROOT / "schema" / f"{which}.schema.json").read_text(encoding="utf-8")
    assert written == json.dumps(json_schema(which), indent=2) + "\n"


@pytest.mark.parametrize(("which", "file"), SHIPPED, ids=[file.name for _, file in SHIPPED])
def test_shipped_files_name_their_schema(which: str, file: Path) -> None:
    """In the line that the YAML language server looks for."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found is not None
    assert (file.parent / found[1]).resolve() == ROOT / "schema" / f"{which}.schema.json"

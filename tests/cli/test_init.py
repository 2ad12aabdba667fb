"""`sidecar init`: a first configuration from what an app says of itself."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli import main
from sidecar.config.load import Loaded, load
from sidecar.config.policy import Route
from sidecar.starter.openapi import DocumentError, name_of, read_document

SHOP: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "The Shop", "version": "1"},
    "servers": [{"url": "https://shop.example.com/v1"}],
    "paths": {
        "/orders/{order-id}": {
            "get": {"operationId": "getOrder", "security": [{"key": []}]},
            "delete": {"operationId": "dropOrder"},
            "patch": {"operationId": "changeOrder"},
        },
        "/orders/latest": {"get": {"summary": "The newest\norder"}},
        "/files/{path:path}": {"get": {}},
        "/upload": {"post": {"requestBody": {"content": {"multipart/form-data": {}}}}},
        "/events": {"get": {"responses": {"200": {"content": {"text/event-stream": {}}}}}},
        "/healthz": {"get": {"operationId": "getOrder"}},
        "/elsewhere": {"$ref": "other.json#/x"},
    },
}


def made(folder: Path, *arguments: str) -> Loaded:
    """What `init` writes into a folder, as it is loaded: no error, and no warning."""
    assert main(["init", str(folder), *arguments]) == 0
    loaded = load(folder / "sidecar.yaml", {})
    assert loaded.warnings == ()
    return loaded


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    file = tmp_path / "shop.json"
    file.write_text(json.dumps(SHOP))
    return file


def routes(loaded: Loaded) -> dict[str, Route]:
    return {route.name: route for policy in loaded.policies for route in policy.routes}


def test_each_path_has_its_routes_by_what_its_methods_do(tmp_path: Path, shop: Path) -> None:
    """Reads, what may be repeated, and the rest; under the server's path, with valid names for variables."""
    found = routes(made(tmp_path, "--openapi", str(shop)))
    assert {name: (route.match.method, route.match.path) for name, route in found.items()} == {
        "get-v1-events": (("GET", "HEAD"), "/v1/events"),
        "get-v1-files": (("GET", "HEAD"), "/v1/files/*"),
        "getorder": (("GET", "HEAD"), "/v1/healthz"),
        "get-v1-orders-latest": (("GET", "HEAD"), "/v1/orders/latest"),
        "get-v1-orders-order-id": (("GET", "HEAD"), "/v1/orders/{order_id}"),
        "droporder": (("DELETE",), "/v1/orders/{order_id}"),
        "changeorder": (("PATCH",), "/v1/orders/{order_id}"),
        "post-v1-upload": (("POST",), "/v1/upload"),
        "reads": (("GET", "HEAD"), "*"),
    }


def test_what_a_path_is_for_shows_in_its_policies(tmp_path: Path, shop: Path) -> None:
    """Health is asked soon and counted by no breaker; a stream has no deadline; files have time."""
    loaded = made(tmp_path, "--openapi", str(shop))
    by_path = {(route.match.path, route.match.method[0]): route for route in routes(loaded).values()}
    assert by_path["/v1/healthz", "GET"].circuit_breaker is None
    assert by_path["/v1/healthz", "GET"].deadline == 5
    assert by_path["/v1/events", "GET"].deadline is None
    assert by_path["/v1/upload", "POST"].deadline == 120
    assert by_path["/v1/orders/latest", "GET"].cache is not None
    assert by_path["/v1/orders/{order_id}", "PATCH"].cache is None
    assert loaded.config.app.health == "/v1/healthz"
    assert str(loaded.config.app.url) == "https://shop.example.com"


def test_a_first_configuration_refuses_nothing(tmp_path: Path, shop: Path) -> None:
    """What might turn requests away only counts, until somebody has looked at the figures."""
    loaded = made(tmp_path, "--openapi", str(shop))
    for route in routes(loaded).values():
        for policy in (route.rate_limit, route.circuit_breaker, route.concurrency_limit):
            assert policy is None or policy.mode == "shadow"


def test_what_cannot_be_matched_is_told(
    tmp_path: Path, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error and in the file: nothing is lost in silence."""
    made(tmp_path, "--openapi", str(shop))
    remark = "/elsewhere: it refers to another document, other.json#/x"
    assert f"left out: {remark}" in capsys.readouterr().err
    assert f"# Left out: {remark}" in (tmp_path / "policies" / "the-shop.yaml").read_text()


def test_what_is_there_is_not_written_over(
    tmp_path: Path, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one file of it, unless --force says so."""
    (tmp_path / "sidecar.yaml").write_text("app: {url: http://127.0.0.1:1}\n")
    assert main(["init", str(tmp_path), "--openapi", str(shop)]) == 1
    assert "give --force" in capsys.readouterr().err
    assert (tmp_path / "sidecar.yaml").read_text() == "app: {url: http://127.0.0.1:1}\n"
    assert not (tmp_path / "policies").exists()
    made(tmp_path, "--openapi", str(shop), "--force")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """An app that serves the files of a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_an_app_is_asked_for_its_document(tmp_path: Path, served: str) -> None:
    """At /openapi.json; where it listens goes before what the document says."""
    (tmp_path / "served" / "openapi.json").write_text(json.dumps(SHOP))
    loaded = made(tmp_path / "out", "--app", served)
    assert str(loaded.config.app.url) == served
    assert loaded.policies[0].name == "the-shop"


def test_an_app_without_one_gets_a_sensible_default(
    tmp_path: Path, served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which says so, and has one route for all that reads."""
    loaded = made(tmp_path / "out", "--app", served)
    assert list(routes(loaded)) == ["reads"]
    assert "/openapi.json: it answers 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "d.json:1:2: neither JSON nor YAML"),
        ("[1]", "no OpenAPI document"),
        ("name: shop", "no OpenAPI document"),
        ("{openapi: 3.0.0, paths: [1]}", "paths: it is no mapping"),
    ],
)
def test_what_is_no_document_is_told(text: str, said: str) -> None:
    """With the place, where there is one."""
    with pytest.raises(DocumentError, match=said):
        read_document(text, "d.json")


@pytest.mark.parametrize("arguments", [["--openapi", "nowhere.json"], ["--app", "http://127.0.0.1:1"]])
def test_what_cannot_be_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Exit code 1, and nothing is written."""
    assert main(["init", str(tmp_path), *arguments]) == 1
    assert "nowhere.json: no such file" in (said := capsys.readouterr().err) or "does it run?" in said
    assert not list(tmp_path.iterdir())


def test_an_app_url_that_is_none_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what to write instead."""
    assert main(["init", str(tmp_path), "--app", "127.0.0.1:8000"]) == 2
    assert "write http://127.0.0.1:8000" in capsys.readouterr().err


def test_strange_documents_lead_to_valid_files(tmp_path: Path) -> None:
    """Whatever is in names, texts and paths: quotes, line ends, letters of all kinds, two of the same."""
    document = {
        "swagger": "2.0",
        "basePath": "/ü",
        "host": "x.example.com:8443",
        "info": {"title": '"}\n# ünmatched: {'},
        "paths": {
            "/a b/{x}/{x}": {"get": {"summary": "a: b\n  - c # d"}},
            "/{a}.{b}": {"get": {"operationId": "unmatched"}, "post": {"operationId": "x" * 100}},
            "/{c}": {"get": {"operationId": "reads"}},
            "/{d}": {"get": {"operationId": "reads"}},
            "/*/1": {"get": {"operationId": "reads"}},
            "no-slash": {"get": {}},
            "/odd/{": {"get": {}},
        },
    }
    file = tmp_path / "d.json"
    file.write_text(json.dumps(document))
    loaded = made(tmp_path, "--openapi", str(file))
    assert str(loaded.config.app.url) == "http://x.example.com:8443"
    assert {route.match.path for route in routes(loaded).values()} == {
        "/%C3%BC/%2A/1",
        "/%C3%BC/a%20b/{x}/{x_2}",
        "/%C3%BC/{a}",
        "*",
    }
    assert name_of("***") == ""

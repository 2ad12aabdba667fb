"""The commands as a user types them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.caching.cache import Caching
from sidecar.cli import main
from sidecar.clock import SystemClock, SystemRandom
from sidecar.config.load import load
from sidecar.config.schema import Route
from sidecar.overlap import Overlaps
from sidecar.pipeline import Place, Services, composed
from sidecar.showing import pipeline_names
from sidecar.state import State
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
POLICY = """\
name: shop
upstream: "${SHOP_URL:-http://127.0.0.1:9}"
defaults:
  deadline: 8s
routes:
  - name: cart
    match: {method: [GET, PUT], path: "/cart/{id}", headers: {x-key: "${KEY:-k}"}}
    retry: {attempts: 2}
    idle: off
  - name: rest
    match: {method: POST}
    deadline: off
    attempt_timeout: "${SLOW:-3s}"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("NEXTVISION_ENV", "LOG_LEVEL", "REDIS_URL", "REDIS_HOST"):
        monkeypatch.delenv(name, raising=False)
    Path("sidecar.yaml").write_text("policies: [shop.yaml]\n", encoding="utf-8")
    Path("shop.yaml").write_text(POLICY, encoding="utf-8")


def test_check_of_all(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file it is sidecar.yaml and all that it names."""
    assert main(["check"]) == 0
    assert capsys.readouterr() == ("sidecar.yaml: fine (2 routes)\n", "")


def test_check_of_a_policy_file(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself; several files are each told of."""
    assert main(["check", "shop.yaml", "sidecar.yaml"]) == 0
    assert capsys.readouterr().out == "shop.yaml: fine (2 routes)\nsidecar.yaml: fine (2 routes)\n"
    assert main(["check", "-c", "sidecar.yaml"]) == 0
    assert capsys.readouterr().out == "sidecar.yaml: fine (2 routes)\n"


def test_check_tells_all_errors_at_once(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, with exit code 1."""
    Path("shop.yaml").write_text(POLICY.replace("8s", "8").replace("attempts", "attemps"), encoding="utf-8")
    assert main(["check"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        'shop.yaml:4:13: defaults.deadline: "8" has no unit (write 8s, or 8ms)',
        "shop.yaml:8:13: routes.cart.retry.attemps: unknown key (did you mean attempts?)",
        "sidecar.yaml: 2 errors",
    ]


def test_check_says_warnings_and_is_content(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning does not fail."""
    Path("shop.yaml").write_text(POLICY.replace("attempts: 2", "attempts: 1"), encoding="utf-8")
    assert main(["check"]) == 0
    assert (
        "shop.yaml:8:23: routes.cart.retry.attempts: warning: 1 attempt is no retry"
        in capsys.readouterr().err
    )


def test_check_with_nothing_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is wrong usage."""
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 2
    assert (
        capsys.readouterr().err
        == "sidecar: there is no sidecar.yaml here (name a file: sidecar check FILE)\n"
    )


def test_routes(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Each route with what it matches and its layers, outermost first."""
    assert main(["routes"]) == 0
    assert capsys.readouterr().out == (
        "shop (shop.yaml) to http://127.0.0.1:9\n"
        "  cart  GET,PUT /cart/{id} x-key: k  observe > deadline > retry > attempt_timeout > classify\n"
        "  rest  POST *                       observe > attempt_timeout > classify\n"
        "unmatched: all other requests, to http://127.0.0.1:8000: observe > classify\n"
    )


def test_a_policy_in_shadow_mode_is_shown_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `routes` and by `explain`: a reader must not take it for one that protects."""
    monkeypatch.chdir(tmp_path)
    Path("sidecar.yaml").write_text("policies: [shop.yaml]\n", encoding="utf-8")
    text = "name: shop\nroutes:\n  - name: cart\n    circuit_breaker: {mode: shadow}\n"
    Path("shop.yaml").write_text(text, encoding="utf-8")
    for command in (["routes"], ["explain", "GET", "/"]):
        assert main(command) == 0
        assert "observe > circuit_breaker (shadow) > classify" in capsys.readouterr().out
    assert main(["explain", "GET", "/"]) == 0
    assert re.search(r"circuit_breaker\.mode +shadow +shop.yaml:4", capsys.readouterr().out)


def test_explain(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The route, its variables, and each setting with the place that it comes from."""
    assert main(["explain", "get", "http://shop/cart/7?full=1", "-H", "X-Key: k"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:6]] == [
        ["route", "cart", "shop.yaml:6"],
        ["match", "GET,PUT", "/cart/{id}", "x-key:", "k", "shop.yaml:7"],
        ["{id}", "7"],
        ["policy", "file", "shop", "shop.yaml:1"],
        ["upstream", "http://127.0.0.1:9", "shop.yaml:2"],
        ["pipeline", "observe", ">", "deadline", ">", "retry", ">", "attempt_timeout", ">", "classify"],
    ]
    settings = {line.split()[0]: line.split()[1:] for line in lines[6:]}
    assert settings["deadline"] == ["8s", "shop.yaml:4"]
    assert settings["idle"] == ["off", "shop.yaml:9"]
    assert settings["retry.attempts"] == ["2", "shop.yaml:8"]
    assert settings["retry.backoff.base"] == ["25ms", "default"]
    assert settings["circuit_breaker"] == ["off", "default"]


def test_explain_of_a_request_that_no_route_matches(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """It is passed through, and that is no failure."""
    assert main(["explain", "GET", "/cart/7", "--app", "http://10.0.0.7:80"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["route", "unmatched"],
        ["upstream", "http://10.0.0.7"],
        ["pipeline", "observe"],
    ]


RULES = """\
name: shop
classify:
  - {status: 404, json: {error.code: [none, "4*", 404]}, verdict: negative}
  - {status: [429, 5xx], header: {x-left: 0}, json: {"r[*]": {a: null, b: true}}, verdict: quota}
  - {json: {key: "${KEY:-k}"}, verdict: auth}
routes:
  - {name: cart, match: {path: /cart}}
  - {name: own, match: {path: /own}, classify: [{json: {"a.*": "true"}, verdict: ok, degraded: maps}]}
  - {name: none, classify: off}
"""


def rules(capsys: pytest.CaptureFixture[str], path: str) -> list[list[str]]:
    """What `explain` says of the rules of a route."""
    assert main(["explain", "GET", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [re.split(r" {2,}", line) for line in lines if line.startswith("classify")]


def test_explain_shows_the_rules(
    shop: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its place, as it would be written; the route's own, or those of its file; no secret."""
    monkeypatch.setenv("KEY", "s3cret")
    Path("shop.yaml").write_text(RULES, encoding="utf-8")
    assert rules(capsys, "/cart") == [
        [
            "classify[0]",
            "{status: [404], json: {error.code: [none, 4*, 404]}, verdict: negative}",
            "shop.yaml:3",
        ],
        [
            "classify[1]",
            '{status: [429, 5xx], header: {x-left: "0"}, json: {"r[*]": {a: null, b: true}}, verdict: quota}',
            "shop.yaml:4",
        ],
        ["classify[2]", "{json: {key: ***}, verdict: auth}", "shop.yaml:5"],
    ]
    assert rules(capsys, "/own") == [
        ["classify[0]", '{json: {a.*: "true"}, verdict: ok, degraded: maps}', "shop.yaml:8"]
    ]
    assert rules(capsys, "/") == [["classify", "off", "shop.yaml:9"]]


def test_explain_of_a_call_to_a_provider(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A host of an egress policy has its routes, and no request to the app does."""
    Path("maps.yaml").write_text(
        "name: maps\ndirection: egress\nhosts: [maps.example]\n"
        "routes: [{name: geocode, match: {path: '/g*'}}]\n",
        encoding="utf-8",
    )
    Path("sidecar.yaml").write_text("policies: [maps.yaml, shop.yaml]\n", encoding="utf-8")
    for url, route, upstream in (
        ("https://maps.example/geo", "geocode", "https://maps.example"),
        ("https://maps.example/x", "maps/unmatched", "https://maps.example"),
        ("/geo", "unmatched", "http://127.0.0.1:8000"),
    ):
        assert main(["explain", "GET", url]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        shown = {line[0]: line[1] for line in lines}
        assert (shown["route"], shown["upstream"]) == (route, upstream)


CACHED = """\
name: shop
routes:
  - name: search
    match: {method: [GET, POST, PUT], path: "/search"}
    cache:
      namespace: "${SPACE:-found}"
      methods: [GET, POST]
      key: {query: {drop: [key], sort: true}, body: json}
"""


RESPOND_KEYS = ("status", "json", "text")  # `headers` has no entry: nothing to show
LADDER = """\
name: shop
routes:
  - name: cart
    match: {path: "/cart/{id}"}
    fallback:
      - {on: [quota], upstream: "http://b.example.com", deadline: 2s, retry: {attempts: 2}}
      - respond:
          status: 503
          headers: {Retry-After: 10}
          json: {id: "{id}", "n": [1, null, true, "1"], token: "${TOKEN:-t}"}
  - name: gone
    match: {path: /gone}
    respond: {status: 410, text: "${TOKEN:-t}"}
"""


def test_explain_of_a_ladder(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step as it is written, with its place; an answer as it would be written."""
    Path("shop.yaml").write_text(LADDER, encoding="utf-8")
    assert main(["explain", "GET", "/cart/7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r" {2,}", line) for line in lines if line.startswith("fallback")] == [
        [
            "fallback[0]",
            '{on: [quota], upstream: "http://b.example.com", deadline: 2s, retry: {attempts: 2}}',
            "shop.yaml:6",
        ],
        [
            "fallback[1]",
            (
                '{respond: {status: 503, headers: {Retry-After: "10"}, '
                'json: {id: "{id}", n: [1, null, true, "1"], token: t}}}'
            ),
            "shop.yaml:7",
        ],
    ]


def test_explain_of_a_route_that_answers_by_itself(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """No upstream, and no policy that has no part in it."""
    Path("shop.yaml").write_text(LADDER, encoding="utf-8")
    assert main(["explain", "GET", "/gone"]) == 0
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    respond = [f"respond.{key}" for key in RESPOND_KEYS]
    assert keys == ["route", "match", "policy", "pipeline", "rate_limit", *respond]


def test_routes_shows_who_answers(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A ladder is a layer; a route that answers by itself has none but those above upstreams."""
    Path("shop.yaml").write_text(LADDER, encoding="utf-8")
    assert main(["routes"]) == 0
    shown = capsys.readouterr().out
    assert "observe > fallback > classify\n" in shown
    assert "  gone  any method /gone       observe > respond\n" in shown


@pytest.mark.parametrize("url", ["/cart/7", "/gone"])
def test_explain_hides_what_is_secret_in_an_answer(
    url: str, shop: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However deep within it."""
    Path("shop.yaml").write_text(LADDER, encoding="utf-8")
    monkeypatch.setenv("TOKEN", "hunter2")
    assert main(["explain", "GET", url]) == 0
    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert "***" in shown


def cache_key(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `explain` says of the cache key."""
    assert main(["explain", *arguments]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cache key")]
    return line.removeprefix("cache key").strip()


def test_explain_prints_the_cache_key(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal for requests that the route takes for the same, and for no others."""
    Path("shop.yaml").write_text(CACHED, encoding="utf-8")
    key = cache_key(capsys, "GET", "/search?a=1&b=2&key=s3cret")
    assert re.fullmatch(
        r"found:v1:127\.0\.0\.1_8080:/search:[0-9a-f]{40} +and what the answer's Vary names", key
    )
    assert cache_key(capsys, "GET", "http://127.0.0.1:8080/search?b=2&key=other&a=1") == key
    assert cache_key(capsys, "GET", "/search?a=1&b=3") != key
    assert cache_key(capsys, "GET", "/search?a=1&b=2", "-H", "Host: shop").startswith(
        "found:v1:shop:/search:"
    )


def test_explain_knows_the_body_of_a_post(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """By its meaning, written out or read from a file."""
    Path("shop.yaml").write_text(CACHED, encoding="utf-8")
    Path("body.json").write_text('{"b": 2, "a": 1.0}', encoding="utf-8")
    key = cache_key(capsys, "POST", "/search", "-d", '{"a":1,"b":2}')
    assert cache_key(capsys, "POST", "/search", "-d", "@body.json") == key
    assert cache_key(capsys, "POST", "/search", "-d", '{"a":1,"b":3}') != key
    assert main(["explain", "POST", "/search", "-d", "@missing"]) == 2
    assert capsys.readouterr().err == "sidecar: missing: No such file or directory\n"


def test_explain_says_why_there_is_no_cache_key(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The method, for example."""
    Path("shop.yaml").write_text(CACHED, encoding="utf-8")
    assert cache_key(capsys, "PUT", "/search").split(None, 1) == ["none", "PUT is not among cache.methods"]


def test_a_secret_namespace_is_in_no_shown_key(
    shop: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As everywhere."""
    Path("shop.yaml").write_text(CACHED, encoding="utf-8")
    monkeypatch.setenv("SPACE", "hunter2")
    assert main(["explain", "GET", "/search"]) == 0
    assert "hunter2" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["routes"], ["explain", "POST", "/"], ["explain", "GET", "/cart/1", "-H", "x-key: k3y"]]
)
def test_no_command_shows_a_secret(
    arguments: list[str], shop: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What came from the environment is shown as stars."""
    secrets = {"SHOP_URL": "http://s3cret:81", "KEY": "k3y", "SLOW": "77s"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "***" in out
    assert not [secret for secret in ("s3cret", "k3y", "77s") if secret in out + err]


@pytest.mark.parametrize("which", ["sidecar", "policy"])
def test_schema(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is JSON, and says which dialect."""
    assert main(["schema", which]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["serve"],
        ["check", "--fast"],
        ["explain", "GET"],
        ["explain", "GET", "cart"],
        ["explain", "GET", "http://[::1"],
        ["explain", "GET", "/", "-H", "x-key"],
        ["schema", "routes"],
        ["routes", "--", "uvicorn"],
        ["routes", "-c", "other.yaml"],
        ["routes", "--set", "limits.drain"],
    ],
)
def test_wrong_usage(arguments: list[str], shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the reason on standard error, nothing on standard output."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([it, "--help"] for it in ("run", "demo", "check"))]
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; the help of a command has an example."""
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert arguments == ["--version"] or "for example: sidecar" in out


def test_a_broken_configuration_does_not_run(shop: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and no listener."""
    assert main(["run", "--set", "listen.ingress=nowhere"]) == 2
    assert capsys.readouterr().err == (
        '--set: listen.ingress: "nowhere" has no port (write for example 127.0.0.1:8080)\n'
    )


def test_check_as_a_process(shop: None, tmp_path: Path) -> None:
    """`python -m sidecar check` says the same, and its exit code is the process's."""
    Path("shop.yaml").write_text("name: shop\nrutes: []\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "check"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "shop.yaml:1:1: routes: the key is missing",
        "shop.yaml:2:1: rutes: unknown key (did you mean routes?)",
        "sidecar.yaml: 2 errors",
    ]


def test_a_reader_that_leaves_early(tmp_path: Path) -> None:
    """`sidecar schema | head -1` is no error."""
    done = subprocess.run(
        f"'{sys.executable}' -m sidecar schema | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout == "{\n0\n"
    assert done.stderr == ""


def test_the_layers_that_are_shown_are_those_that_are_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each shipped route, and for one with each key by itself."""
    monkeypatch.chdir(ROOT)
    clock = SystemClock()
    metrics = Metrics("test")
    services = Services(
        clock=clock,
        overlaps=Overlaps(clock),
        random=SystemRandom(),
        state=State(metrics, clock),
        metrics=metrics,
        access_log=AccessLog(None, clock, format="json"),
        caching=Caching.unused(clock),
    )
    single = [
        Route(name="any"),
        Route(name="any", deadline=1),
        Route(name="any", attempt_timeout=1),
        Route(name="any", retry={}),
        Route(name="any", circuit_breaker={}),
        Route(name="any", concurrency_limit={"max": 1}),
        Route(name="any", fallback=[{"respond": {}}]),
        Route(name="any", deadline=1, retry={}, respond={"status": 503}),
        Route(name="any", rate_limit={"rate": "1/s"}),
        Route(name="any", fault={"reset": True}),
    ]
    for route in [*(route for policy in load(None, {}).policies for route in policy.routes), *single]:
        steps = composed(Place(route=route, upstream="app", services=services))
        # Faults may be set on any route at run time: their layer is in every pipeline, and shows where named.
        named = [step.name for step in steps if step.name != "fault" or route.fault is not None]
        ends = ["respond"] if route.respond is not None else []
        assert pipeline_names(route) == named + ends

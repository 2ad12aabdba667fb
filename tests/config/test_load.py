"""What a configuration comes to: merging, environments, overrides, references, origins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from sidecar.config.load import Loaded, is_policy, load, load_policy
from sidecar.config.problems import ConfigError, Origin
from sidecar.config.schema import Address, Config, Route, Url


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(
    main: str = "policies: [p.yaml]\n", policy: str = "", env: Mapping[str, str] | None = None, *sets: str
) -> Loaded:
    Path("sidecar.yaml").write_text(main, encoding="utf-8")
    Path("p.yaml").write_text(policy, encoding="utf-8")
    return load(None, env or {}, sets)


def route(policy: str, env: Mapping[str, str] | None = None) -> Route:
    """The first route of a policy file."""
    return loaded(policy=policy, env=env).policies[0].routes[0]


def test_no_file_at_all() -> None:
    """The defaults serve, and --app names the app."""
    result = load(None, {}, app="http://127.0.0.1:9000")
    assert result.config == Config(app={"url": "http://127.0.0.1:9000"})
    assert result.policies == ()
    assert result.origins["app.url"] == Origin("--app")


def test_an_empty_file() -> None:
    """The same as none."""
    assert loaded("# nothing yet\n").config == Config()


def test_values_become_what_they_mean() -> None:
    """Addresses, URLs, sizes, durations, networks, switches."""
    config = loaded(
        "app: {url: unix:/run/app.sock}\n"
        'listen: {ingress: "[::1]:8080", admin: unix:/run/admin.sock}\n'
        "limits: {body: 1MiB, idle: 5m}\n"
        "logging: {access: false}\n"
        "trusted: {proxies: [10.0.0.0/8, 127.0.0.1]}\n"
    ).config
    assert config.app.url == Url("http", "localhost", 80, "/run/app.sock")
    assert config.listen.ingress == Address("::1", 8080)
    assert config.listen.admin == Address(unix="/run/admin.sock")
    assert (config.limits.body, config.limits.idle, config.logging.access) == (1048576, 300, False)
    assert [str(network) for network in config.trusted.proxies] == ["10.0.0.0/8", "127.0.0.1/32"]


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "1:30", "2024-01-01", "012", "null_", "0x1F"])
def test_scalars_are_those_of_yaml_1_2(word: str) -> None:
    """Words that YAML 1.1 takes for switches, sexagesimals or dates are text."""
    assert route(
        f"name: shop\nroutes: [{{name: cart, match: {{headers: {{x-a: {word}}}}}}}]\n"
    ).match.headers == (("x-a", word),)


def test_defaults_are_merged_under_each_route() -> None:
    """A mapping merges key by key, a list and a scalar replace, `off` turns off."""
    policies = loaded(
        policy="""
name: shop
defaults:
  deadline: 8s
  retry: {attempts: 3, on: {errors: [connect, reset]}, backoff: {base: 50ms}}
  circuit_breaker: {consecutive: 3}
routes:
  - {name: plain, match: {path: /plain}}
  - name: own
    match: {path: /own}
    deadline: 2s
    retry: {on: {errors: [connect]}, backoff: {max: 1s}}
    circuit_breaker: off
"""
    ).policies
    plain, own = policies[0].routes
    assert plain.deadline == 8
    assert plain.circuit_breaker is not None
    assert own.deadline == 2
    assert own.circuit_breaker is None
    assert own.retry is not None
    assert own.retry.attempts == 3
    assert own.retry.on.errors == ("connect",)
    assert own.retry.on.verdicts == ("transient", "rate_limited")
    assert (own.retry.backoff.base, own.retry.backoff.max) == (0.05, 1)


def test_a_route_completes_what_defaults_begin() -> None:
    """Defaults need not be whole."""
    limit = route(
        "name: shop\ndefaults: {concurrency_limit: {queue: 1s}}\n"
        "routes: [{name: cart, concurrency_limit: {max: 4}}]\n"
    ).concurrency_limit
    assert limit is not None
    assert (limit.max, limit.queue) == (4, 1)


def verdicts(routes: str) -> list[list[str] | None]:
    """The verdicts of each route's rules, in a file that has rules itself."""
    policies = loaded(policy=f"name: shop\nclassify: [{{status: 404, verdict: negative}}]\n{routes}").policies
    return [
        None if route.classify is None else [rule.verdict for rule in route.classify]
        for route in policies[0].routes
    ]


def test_rules_are_those_of_the_file_unless_a_route_has_its_own() -> None:
    """Its list takes their place, `off` leaves none."""
    assert verdicts(
        """
routes:
  - {name: plain, match: {path: /plain}}
  - {name: own, match: {path: /own}, classify: [{status: 404, verdict: auth}]}
  - {name: none, match: {path: /none}, classify: off}
"""
    ) == [["negative"], ["auth"], None]
    assert verdicts("defaults: {deadline: 8s}\nroutes: [{name: cart}]\n") == [["negative"]]


def test_values_in_json_are_those_of_yaml_1_2() -> None:
    """Quotes make text of a number; null is a value there."""
    (rule,) = (
        route(
            "name: shop\nroutes: [{name: cart, classify: [{verdict: ok, json: {a: "
            "[1, 1.0, -2e3, .5, '1', \"true\", true, False, null, ~, Null, on, 1x, '', +7, 012]}}]}]\n"
        ).classify
        or ()
    )
    assert rule.model_dump(mode="json")["json"] == {
        "a": [1, 1.0, -2000.0, 0.5, "1", "true", True, False, None, None, None, "on", "1x", "", 7, 12]
    }


def test_settings_are_equal_and_hash_alike_when_they_say_the_same() -> None:
    """They are keys of the state that outlives a reload."""
    text = "name: shop\nroutes: [{name: cart, retry: {budget: {ratio: %s}}, circuit_breaker: {}}]\n"
    one, other, different = route(text % "20%"), route(text % "0.2"), route(text % "30%")
    assert one == other
    assert hash(one) == hash(other)
    assert one.retry != different.retry
    assert one.circuit_breaker == different.circuit_breaker


ENVIRONMENTS = """
environment: ${STAGE:-development}
logging: {format: json, level: info}
limits: {drain: 5s}
environments:
  development: {logging: {format: console}}
  production:
    logging: {level: warning}
    admin: {token: "${ADMIN_TOKEN}"}
"""


def test_the_environment_is_merged_over_the_rest() -> None:
    """Key by key, and only the one that applies."""
    config = loaded(ENVIRONMENTS).config
    assert config.environment == "development"
    assert (config.logging.format, config.logging.level, config.limits.drain) == ("console", "info", 5)
    assert config.environments is None


def test_a_variable_that_another_environment_needs_may_be_unset() -> None:
    """A developer need not have production's secrets."""
    assert loaded(ENVIRONMENTS).config.admin.token is None
    with pytest.raises(ConfigError, match="ADMIN_TOKEN is not set"):
        loaded(ENVIRONMENTS, env={"STAGE": "production"})


def test_what_goes_before_what() -> None:
    """File, environment, variables, --set: each goes before those named first."""
    env = {"NEXTVISION_ENV": "production", "ADMIN_TOKEN": "9f2c41d07ab36e58"}
    assert loaded(ENVIRONMENTS, "", env).config.logging.level == "warning"
    assert loaded(ENVIRONMENTS, "", {**env, "LOG_LEVEL": "WARN"}).config.logging.level == "warning"
    assert loaded(ENVIRONMENTS, "", {**env, "LOG_LEVEL": "ERROR"}).config.logging.level == "error"
    result = loaded(ENVIRONMENTS, "", {**env, "LOG_LEVEL": "ERROR"}, "logging.level=info")
    assert result.config.logging.level == "info"
    assert str(result.origins["logging.level"]) == "--set"


def test_set_takes_mappings_lists_and_the_environment() -> None:
    """A flow mapping merges, a list replaces, and --set environment chooses."""
    config = loaded(
        ENVIRONMENTS,
        "",
        {"ADMIN_TOKEN": "9f2c41d07ab36e58"},
        "limits={idle: 1s}",
        "trusted.proxies=[10.0.0.0/8]",
        "environment=production",
        "listen.admin=[::1]:9901",
    ).config
    assert (config.limits.idle, config.limits.drain) == (1, 5)
    assert len(config.trusted.proxies) == 1
    assert config.logging.level == "warning"
    assert config.listen.admin == Address("::1", 9901)


def test_references() -> None:
    """Variables, defaults and files, also as a part of a text."""
    Path("token").write_text("t0ken\n", encoding="utf-8")
    result = loaded(
        'app: {url: "http://${HOST}:${PORT:-8000}"}\nadmin: {token: "${file:token}"}\n',
        env={"HOST": "127.0.0.2", "PORT": ""},
    )
    assert str(result.config.app.url) == "http://127.0.0.2:8000"
    assert result.config.admin.token is not None
    assert result.config.admin.token.get_secret_value() == "t0ken"
    assert "t0ken" not in repr(result.config)


def test_an_escaped_reference_is_text() -> None:
    """`$${` is a plain `${`."""
    headers = route('name: shop\nroutes: [{name: cart, match: {headers: {x-a: "$${b}"}}}]\n').match.headers
    assert headers == (("x-a", "${b}"),)


def test_what_comes_from_outside_is_a_secret_and_a_default_is_not() -> None:
    """Origins tell, so that nobody prints it."""
    origins = loaded(
        'app: {url: "${URL:-http://127.0.0.1:1}"}\nlimits: {idle: "${IDLE}"}\n', env={"IDLE": "5s"}
    ).origins
    assert not origins["app.url"].secret
    assert origins["limits.idle"].secret


def test_no_error_shows_a_secret() -> None:
    """Whatever is wrong with it, and wherever it stands."""
    secret = "hunter2-99999"
    places = [
        'listen: {ingress: "%s"}',
        'listen: {ingress: "127.0.0.1:%s"}',
        'app: {url: "http://a:%s@b"}',
        'app: {url: "http://127.0.0.1/%s"}',
        'limits: {idle: "%s", body: "%s", connections: "%s"}',
        'logging: {format: "%s", access: "%s"}',
        'trusted: {proxies: ["%s"]}',
        'trusted: {proxies: "%s"}',
        'limits: "%s"',
        'listen: {ingress: {port: "%s"}}',
        'policies: ["%s"]',
        'environment: "%s"',
        'app: {health: "%s"}',
        'metrics: {namespace: "%s"}',
        'cache: {memory: "%s", redis: "%s"}',
        'cache: {redis: "redis://:%s@a,b"}',
        'cache: {redis: "redis://:x?%s=y@a"}',
        'cache: {redis: "redis://a:%s"}',
        'trusted: {debug: ["%s"]}',
    ]
    for place in places:
        with pytest.raises(ConfigError) as caught:
            loaded(place.replace("%s", "${SECRET}"), env={"SECRET": secret})
        assert "hunter2" not in str(caught.value), place
        assert "99999" not in str(caught.value), place


def test_no_finding_shows_a_secret() -> None:
    """Figures that make no sense together are not shown when one is secret."""
    policy = (
        'name: shop\nroutes:\n  - name: cart\n    deadline: "${D}"\n    attempt_timeout: 70s\n'
        "    retry: {}\n    concurrency_limit: {max: 1, queue: 71s}\n"
    )
    for deadline in ("69s", "142s"):
        try:
            text = "\n".join(str(it) for it in loaded(policy=policy, env={"D": deadline}).warnings)
        except ConfigError as error:
            text = str(error)
        assert text
        assert deadline not in text


def test_origins_are_those_of_the_value_that_won() -> None:
    """From the route, from the defaults, or none."""
    origins = loaded(
        policy="name: shop\ndefaults: {deadline: 8s, retry: {attempts: 2}}\n"
        "routes:\n  - name: cart\n    deadline: 2s\n"
    ).origins
    prefix = "policies.shop.routes.cart"
    assert str(origins[f"{prefix}.deadline"]) == "p.yaml:5:15"
    assert str(origins[f"{prefix}.retry.attempts"]) == "p.yaml:2:44"
    assert f"{prefix}.retry.max_body" not in origins


def test_policy_files_come_in_order_and_once() -> None:
    """Those of a pattern by name; a file that two patterns match is read once."""
    Path("policies").mkdir()
    for name in ("b", "a", "z"):
        text = f"name: {name}\nroutes: [{{name: r{name}, match: {{path: /{name}}}}}]\n"
        Path(f"policies/{name}.yaml").write_text(text, encoding="utf-8")
    result = loaded("policies: [policies/z.yaml, policies/*.yaml]\n")
    assert [policy.name for policy in result.policies] == ["z", "a", "b"]


def test_patterns_are_relative_to_the_file(tmp_path: Path) -> None:
    """Not to where the command runs."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/main.yaml").write_text("policies: [p.yaml]\n", encoding="utf-8")
    (tmp_path / "etc/p.yaml").write_text(
        "name: shop\nupstream: https://shop\ntls: {ca: ca.pem}\nroutes: [{name: cart}]\n", encoding="utf-8"
    )
    (tmp_path / "etc/ca.pem").write_text("", encoding="utf-8")
    (policy,) = load(Path("etc/main.yaml"), {}).policies
    assert policy.tls.ca == "etc/ca.pem"


def test_one_policy_file_by_itself() -> None:
    """It is told apart from sidecar.yaml by its keys, and checked alone."""
    loaded("app: {}\n", "name: shop\nroutes: [{name: cart}]\n")
    assert is_policy(Path("p.yaml"))
    assert not is_policy(Path("sidecar.yaml"))
    assert load_policy(Path("p.yaml"), {}).policies[0].routes[0].name == "cart"

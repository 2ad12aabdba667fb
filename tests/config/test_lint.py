"""Settings that do not fit each other: what must not be said, what is a warning, and the sums behind it.

What must be said is in the tables of broken files.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.load import load
from sidecar.config.policy import Strategy
from sidecar.config.retry_lint import longest_backoff
from sidecar.config.schema import Backoff
from sidecar.decisions.backoff import MULTIPLIERS
from sidecar.decisions.backoff import Backoff as Delays


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def warnings(routes: str, main: str = "policies: [p.yaml]\n") -> list[str]:
    """The warnings about a policy file; there is no error."""
    Path("sidecar.yaml").write_text(main, encoding="utf-8")
    Path("p.yaml").write_text(f"name: shop\n{routes}", encoding="utf-8")
    return [str(problem) for problem in load(None, {}).warnings]


@pytest.mark.parametrize(
    "routes",
    [
        "routes: [{name: cart, match: {method: POST}, retry: {on: {errors: [connect]}}}]",
        "routes: [{name: cart, match: {method: POST}, retry: {methods: [POST]}}]",
        "routes: [{name: cart, match: {method: [GET, POST]}, retry: {}}]",
        "routes: [{name: cart, retry: {}}]",
        "defaults: {retry: {}}\nroutes: [{name: cart, match: {method: POST}}]",
        "routes: [{name: cart, deadline: 3s, attempt_timeout: 3s}]",
        "routes: [{name: cart, deadline: 10s, attempt_timeout: 3s, retry: {attempts: 3}}]",
        "routes: [{name: cart, deadline: 10s, retry: {attempts: 9}}]",
        "routes: [{name: cart, deadline: 9s, attempt_timeout: 6s, retry: {on: {errors: [connect]}}}]",
        "routes: [{name: a, match: {path: /a}}, {name: rest}]",
        "classify: [{status: 404, verdict: ok}]\nroutes: [{name: cart, cache: {ttl: 1m}}]",
        "classify: [{status: 404, verdict: negative}]\nroutes: [{name: cart, cache: {negative_ttl: 1m}}]",
        "routes: [{name: a, match: {headers: {x-a: 1}}}, {name: rest}]",
        "routes: [{name: a, match: {method: GET}}, {name: b, match: {method: [GET, POST]}}]",
        "routes: [{name: cart, circuit_breaker: {failure_ratio: off}}]",
        "routes: [{name: cart, retry: {budget: off}}]",
        "routes: [{name: cart, match: {method: POST}, retry: {idempotency_key: true}}]",
        "routes: [{name: cart, retry: {idempotency_key: true}}]",
        "routes: [{name: cart, match: {method: GET}, retry: {hedge: {}}}]",
        "routes: [{name: cart, match: {method: POST}, retry: {methods: [POST], hedge: {after: 300ms}}}]",
        "defaults: {retry: {hedge: {}}}\nroutes: [{name: cart, match: {method: POST}}]",
        "routes: [{name: cart, attempt_timeout: 1s, retry: {hedge: {after: 900ms, max: 2}}}]",
        "routes: [{name: cart, attempt_timeout: 1s, retry: {hedge: {after: p80}}}]",
        "routes: [{name: cart, cache: {}}]",
        "routes: [{name: cart, match: {method: [GET, POST]}, cache: {ttl: 30m}}]",
        "routes: [{name: cart, match: {method: POST}, cache: {}}]",
        "routes: [{name: cart, match: {method: POST}, cache: {methods: POST, key: {body: bytes}}}]",
        "routes: [{name: cart, match: {method: GET}, cache: {methods: [GET, POST]}}]",
        "defaults: {cache: {ttl: 1m}}\nroutes: [{name: cart, match: {method: POST}}]",
        "routes: [{name: cart, cache: {stale_while_revalidate: 1m, stale_if_error: 0}}]",
        "routes: [{name: cart, cache: {ttl: 7d, max_age_total: 7d}}]",
        "routes: [{name: cart, cache: {ttl: 1m, adaptive_ttl: {min: 1m, max: 1m}, refresh_ahead: 80%}}]",
        "routes: [{name: cart, match: {path: '/cart*'}, cache: {tags: [cart], warm: ['/cart/7?a=b']}}]",
        "routes: [{name: cart, fallback: [{on: [quota], respond: {}}, {respond: {text: '{query.q}'}}]}]",
        "routes: [{name: cart, fallback: [{on: [auth], respond: {}}, {respond: {}}]}]",
        "routes: [{name: cart, fallback: [{upstream: 'http://b', deadline: 2s}, {respond: {}}]}]",
        "routes: [{name: cart, deadline: 8s, attempt_timeout: 2s, fallback: [{upstream: 'http://b'}]}]",
        (
            "routes: [{name: cart, match: {method: POST}, retry: {methods: [POST]}, "
            "fallback: [{upstream: 'http://b', deadline: 2s}]}]"
        ),
        (
            "routes: [{name: cart, match: {method: POST}, cache: {methods: [POST], key: {body: json}}, "
            "fallback: [{upstream: 'http://b', deadline: 2s}]}]"
        ),
        (
            "routes: [{name: cart, match: {method: POST}, "
            "fallback: [{upstream: 'http://b', deadline: 2s, methods: [GET]}]}]"
        ),
        (
            "defaults: {deadline: 8s, retry: {}, fallback: [{respond: {}}]}\n"
            "routes: [{name: cart, match: {path: '/{id}'}, respond: {text: '{id} {{id}} {} { id }'}}]"
        ),
        (
            "defaults: {fallback: [{upstream: 'http://b', deadline: 2s, methods: [POST], retry: {}}]}\n"
            "routes: [{name: cart, match: {method: POST}}]"
        ),
    ],
)
def test_what_makes_sense_is_let_be(routes: str) -> None:
    """No error and no warning."""
    assert warnings(routes) == []


def test_a_last_attempt_that_is_cut_short_is_a_warning() -> None:
    """It may still succeed, so the file can be used (this is DESIGN's own example)."""
    (said,) = warnings(
        "routes:\n"
        "  - name: geocode\n"
        "    deadline: 8s\n"
        "    attempt_timeout: 3s\n"
        "    retry: {attempts: 3, backoff: {base: 200ms, max: 2s}}\n"
    )
    assert said == (
        "p.yaml:6:23: routes.geocode.retry.attempts: warning: 3 attempts of 3s and up to 600ms of back-off "
        "take 9.6s, longer than the deadline of 8s: the last is cut short "
        "(fewer attempts, a shorter attempt_timeout or a longer deadline)"
    )


@pytest.mark.parametrize(
    "rule", ["{status: 404, verdict: transient}", "{status: 404, json: {a: x}, verdict: auth}"]
)
def test_a_status_that_is_retried_may_have_rules(rule: str) -> None:
    """One that says the same, or one that is for some of its answers."""
    assert warnings(f"classify: [{rule}]\nroutes: [{{name: cart, retry: {{on: {{statuses: [404]}}}}}}]") == []


def test_a_narrower_rule_may_go_before_a_wider_one() -> None:
    """That is what the order is for."""
    narrow = "{status: 404, json: {a: x}, verdict: ok}, {status: 404, json: {a: 'x*'}, verdict: auth}"
    assert warnings(f"classify: [{narrow}, {{status: 4xx, verdict: ok}}]\nroutes: [{{name: cart}}]") == []


def test_a_negative_ttl_without_a_negative_verdict_is_a_warning() -> None:
    """No status has that verdict by itself, so nothing is ever kept by it."""
    (said,) = warnings("routes: [{name: cart, cache: {negative_ttl: 1m}}]")
    assert said == (
        "p.yaml:2:45: routes.cart.cache.negative_ttl: warning: no answer has the verdict negative "
        "(add a rule to classify, for example {status: 404, verdict: negative})"
    )


def test_one_attempt_is_a_warning() -> None:
    """It is harmless, and says something else than it does."""
    (said,) = warnings("routes: [{name: cart, retry: {attempts: 1}}]")
    assert said == (
        "p.yaml:2:41: routes.cart.retry.attempts: warning: 1 attempt is no retry (write retry: off)"
    )


@pytest.mark.parametrize(
    ("retry", "key", "said"),
    [
        (
            "{attempts: 2, hedge: {after: p95, max: 3}}",
            "hedge.max",
            "2 attempts, the first included, leave 1 for hedges, not 3 (raise attempts)",
        ),
        ("{hedge: {}, budget: off}", "budget", "without a budget a slow upstream gets every request twice"),
        (
            "{hedge: {after: p80}, budget: {ratio: 10%}}",
            "hedge.after",
            "p80 is for hedging 20% of the requests, and the budget pays for 10%, retries included (raise ",
        ),
    ],
)
def test_hedges_that_nobody_pays_for_are_a_warning(retry: str, key: str, said: str) -> None:
    """They may be meant, with the sum that says what they come to."""
    (found,) = warnings(f"routes: [{{name: cart, retry: {retry}}}]")
    assert f"routes.cart.retry.{key}: warning: {said}" in found


EGRESS = "direction: egress\nhosts: [api.example.com]\nroutes: [{name: call}]"


@pytest.mark.parametrize(
    ("main", "policy", "key"),
    [
        ("listen: {egress: '0.0.0.0:8081'}\npolicies: [p.yaml]\n", EGRESS, "listen.egress"),
        (
            "listen: {intercept: ['127.0.0.1:443', '[::]:443']}\npolicies: [p.yaml]\n",
            EGRESS,
            "listen.intercept[1]",
        ),
        ("policies: [p.yaml]\n", f"takeover: 0.0.0.0:5053\nupstream: http://b\n{EGRESS}", "takeover"),
    ],
)
def test_an_open_proxy_is_a_warning(main: str, policy: str, key: str) -> None:
    """Beyond loopback others may call out in the app's name."""
    (said,) = warnings(policy, main)
    assert f": {key}: warning: not on loopback: whoever reaches it calls out in the app's name" in said


@pytest.mark.parametrize(
    ("main", "policy"),
    [
        ("policies: [p.yaml]\n", EGRESS),
        ("listen: {egress: off, ingress: '127.0.0.1:8081'}\npolicies: [p.yaml]\n", EGRESS),
        ("listen: {ingress: '127.0.0.1:8081'}\npolicies: [p.yaml]\n", "routes: [{name: in}]"),
        ("listen: {intercept: '127.0.0.1:443'}\npolicies: [p.yaml]\n", EGRESS),
        (
            "policies: [p.yaml]\n",
            f"takeover: [127.0.0.1:5053, '[::1]:5053']\nupstream: http://b:5053\n{EGRESS}",
        ),
    ],
)
def test_listeners_that_fit(main: str, policy: str) -> None:
    """The egress listener's default port is only taken where a file has use for it."""
    assert warnings(policy, main) == []


def test_an_unchecked_certificate_is_a_warning() -> None:
    """It may be meant, and should be seen."""
    (said,) = warnings("upstream: https://shop\ntls: {verify: false}\nroutes: [{name: cart}]")
    assert "tls.verify: warning: anybody can pass for the upstream" in said


def test_trusting_everybody_is_a_warning() -> None:
    """Any client could then name its own address."""
    (said,) = warnings("routes: [{name: cart}]", "policies: [p.yaml]\ntrusted: {proxies: [0.0.0.0/0]}\n")
    assert said.startswith("sidecar.yaml:2:21: trusted.proxies[0]: warning: every client is believed")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("0.0.0.0/0", "calls may go to every address"),
        ("169.254.0.0/16", "calls may go to the metadata service at 169.254.169.254"),
        ("fd00::/8", "calls may go to the metadata service at fd00:ec2::23"),
        ("169.254.169.254", None),
        ("10.0.0.0/8", None),
    ],
)
def test_networks_that_calls_may_go_to(network: str, said: str | None) -> None:
    """Those that hold what hands out credentials are a warning, unless it is itself what is written."""
    main = f"policies: [p.yaml]\negress: {{allow_private: ['{network}']}}\n"
    found = warnings("routes: [{name: cart}]", main)
    assert len(found) == (said is not None)
    if said is not None:
        assert f"egress.allow_private[0]: warning: {said}" in found[0]


@pytest.mark.parametrize(
    ("cache", "key", "said"),
    [
        (
            "{methods: [GET, POST], ttl: 1m}",
            "methods",
            "each spelling of a POST's body has an answer of its own",
        ),
        ("{share_private: true}", "share_private", "answers that are meant for one user"),
        ("{share_authorized: true}", "share_authorized", "answers to one user's credentials are shown"),
        ("{respect_origin: false}", "respect_origin", "neither the origin nor the policy says"),
        ("{refresh_ahead: 80%}", "refresh_ahead", "without ttl only answers are refreshed"),
        ("{adaptive_ttl: {min: 1m, max: 1h}}", "adaptive_ttl", "there is no ttl that it could adapt"),
        ("{ttl: 1d, adaptive_ttl: {min: 1m, max: 1h}}", "ttl", "1d is outside of adaptive_ttl, 1m to 1h"),
    ],
)
def test_a_cache_that_may_surprise_is_a_warning(cache: str, key: str, said: str) -> None:
    """It may be meant, and should be seen."""
    (found,) = warnings(f"routes: [{{name: cart, cache: {cache}}}]")
    assert f"routes.cart.cache.{key}: warning: {said}" in found


def test_a_memory_that_one_answer_overflows_is_a_warning() -> None:
    """Such an answer would be stored nowhere."""
    (said,) = warnings("routes: [{name: cart, cache: {}}]", "policies: [p.yaml]\ncache: {memory: 64KiB}\n")
    assert said.startswith("sidecar.yaml:2:17: cache.memory: warning: smaller than one answer may be by")


def test_letting_everybody_purge_is_a_warning() -> None:
    """Any client could empty the cache."""
    (said,) = warnings("routes: [{name: cart}]", 'policies: [p.yaml]\ntrusted: {debug: ["::/0"]}\n')
    assert said.startswith("sidecar.yaml:2:19: trusted.debug[0]: warning: everybody may PURGE")


@pytest.mark.parametrize(
    "main",
    [
        'listen: {admin: 0.0.0.0:9901}\nadmin: {token: "x"}\n',
        "listen: {admin: unix:/run/admin.sock}\n",
        'listen: {admin: "[::1]:9901"}\n',
        "listen: {ingress: 127.0.0.1:0, admin: 127.0.0.1:0}\n",
        "listen: {ingress: 127.0.0.1:9000, admin: 127.0.0.2:9000}\n",
        "app: {url: http://10.0.0.7:8080}\nlisten: {ingress: 127.0.0.1:8080}\n",
    ],
)
def test_listeners_that_are_apart(main: str) -> None:
    """Admin on loopback takes no token; port 0 clashes with nothing; another machine is not this one."""
    assert warnings("routes: [{name: cart}]", f"policies: [p.yaml]\n{main}") == []


@given(
    st.sampled_from(get_args(Strategy)),
    st.floats(0, 2),
    st.floats(0, 2),
    st.lists(st.floats(0, 0.999), min_size=1, max_size=6),
    st.sampled_from(sorted(MULTIPLIERS)),
)
def test_no_back_off_is_longer_than_said(
    strategy: Strategy, base: float, extra: float, draws: list[float], category: str
) -> None:
    """The sum that the finding states bounds what the back-off really does, for each strategy."""
    settings = Backoff(strategy=strategy, base=base, max=base + extra)
    delays = Delays(strategy, settings.base, settings.max)
    previous = total = 0.0
    for failures, draw in enumerate(draws, 1):
        previous = delays.next_delay(failures, previous, draw, category)
        total += previous
    assert total <= longest_backoff(settings, len(draws)) + 1e-9


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (
            "match: {method: POST}, fallback: [{upstream: 'http://b', deadline: 2s}]",
            "a POST is sent there only if the first upstream got nothing (write methods: [POST] if both may",
        ),
        ("fallback: [{upstream: 'http://b'}]", "nothing bounds the wait for it (write attempt_timeout)"),
        (
            "deadline: 8s, fallback: [{upstream: 'http://b'}]",
            "an upstream that hangs takes the route's whole deadline, which leaves nothing for this one",
        ),
    ],
)
def test_another_upstream_that_may_be_of_no_use_is_a_warning(route: str, said: str) -> None:
    """It may be meant, and should be seen."""
    (found,) = warnings(f"routes: [{{name: cart, {route}}}]")
    assert f"routes.cart.fallback[0].upstream: warning: {said}" in found


def test_an_unchecked_certificate_of_another_upstream_is_a_warning() -> None:
    """As one of the first upstream is."""
    (found,) = warnings(
        "routes: [{name: cart, fallback: [{upstream: 'https://b', deadline: 2s, tls: {verify: false}}]}]"
    )
    assert "routes.cart.fallback[0].tls.verify: warning: anybody can pass for the upstream" in found


def test_a_secret_in_the_clear_is_a_warning() -> None:
    """`inject` towards a provider by plain HTTP: anybody on the way reads it. Not so on loopback."""
    file = (
        "direction: egress\nhosts: [maps.googleapis.com]\nupstream: {}\n"
        "inject: {{query: {{key: s3cret}}}}\nroutes: [{{name: maps}}]\n"
    )
    assert warnings(file.format("http://maps.internal")) == [
        "p.yaml:5:9: inject: warning: the secrets are sent unencrypted (write an https:// upstream)"
    ]
    assert warnings(file.format("http://127.0.0.1:9")) == []

"""What an app that the sidecar starts finds in its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.child_environment import Trust, foreign_roots, led
from sidecar.config.addresses import Address

PROXY = Address("127.0.0.1", 8081)
URL = "http://127.0.0.1:8081"
TRUST = Trust(Path("/ca/ca.pem"), Path("/ca/bundle.pem"))


def test_all_that_can_be_set() -> None:
    """Proxies in both cases, loopback past them, the CA for every kind of client, OpenAI's base URL."""
    assert led({"HOME": "/app"}, PROXY, TRUST, openai="openai").environment == {
        "HOME": "/app",
        **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), URL),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1"),
        **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), "/ca/bundle.pem"),
        "NODE_EXTRA_CA_CERTS": "/ca/ca.pem",
        "NODE_USE_ENV_PROXY": "1",
        "OPENAI_BASE_URL": f"{URL}/openai/v1",
        "OPENAI_API_BASE": f"{URL}/openai/v1",
    }


def test_no_proxy_is_kept() -> None:
    """What either case of it says stays, once, and loopback comes behind it."""
    result = led({"NO_PROXY": "db.internal, 10.0.0.0/8", "no_proxy": "db.internal,localhost"}, PROXY, TRUST)
    for name in ("NO_PROXY", "no_proxy"):
        assert result.environment[name] == "db.internal,10.0.0.0/8,localhost,127.0.0.1,::1"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_users(name: str) -> None:
    """It stays as it is, and alone; the hosts of an override go past it."""
    result = led({name: "http://proxy.corp:3128"}, PROXY, TRUST, hosts=["a.example"])
    assert {key: value for key, value in result.environment.items() if "PROXY" in key.upper()} == {
        "NODE_USE_ENV_PROXY": "1",
        name: "http://proxy.corp:3128",
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1,a.example"),
    }
    assert (result.own_proxy, result.kept) == (name, (name,))


def test_our_own_proxy_is_no_proxy_of_the_users() -> None:
    """A user who has set what `sidecar ca` prints gets no warning."""
    result = led({"HTTPS_PROXY": URL + "/"}, PROXY, TRUST)
    assert result.own_proxy is None
    assert result.environment["https_proxy"] == URL


def test_a_base_url_of_the_users() -> None:
    """OPENAI_BASE_URL stays where the user set it."""
    result = led({"OPENAI_BASE_URL": "http://llm.local/v1"}, PROXY, TRUST, openai="openai")
    assert result.environment["OPENAI_BASE_URL"] == "http://llm.local/v1"
    assert result.environment["OPENAI_API_BASE"] == f"{URL}/openai/v1"
    assert result.kept == ("OPENAI_BASE_URL",)


def test_without_an_egress_listener() -> None:
    """Only the CA is set: there is no proxy to name."""
    assert set(led({}, None, TRUST, openai="openai").environment) == {
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
    }


def test_roots_of_the_users() -> None:
    """Files that our bundle was not made from are told: it was made from that of SSL_CERT_FILE."""
    given = {
        "SSL_CERT_FILE": "/corp.pem",
        "REQUESTS_CA_BUNDLE": "/corp.pem",
        "CURL_CA_BUNDLE": "/other.pem",
        "NODE_EXTRA_CA_CERTS": "/ca/ca.pem",
    }
    assert foreign_roots(given, TRUST) == {"CURL_CA_BUNDLE": "/other.pem"}

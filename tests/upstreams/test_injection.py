"""Secrets on the wire to a provider, in the place of what the app sent."""

from __future__ import annotations

import pytest

from sidecar.clock import Ids
from sidecar.config.inject_policy import Inject
from sidecar.exchange import Exchange, Request
from sidecar.headers import Line
from sidecar.upstreams.forward import request_head
from sidecar.upstreams.injection import Injection


def injection(**settings: dict[str, str]) -> Injection:
    made = Injection.of(Inject.model_validate(settings))
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        (b"/geo?address=Paris&key=dummy", b"/geo?address=Paris&key=a%2Fb%26c"),
        (b"/geo?key=dummy&address=Paris&key=other", b"/geo?address=Paris&key=a%2Fb%26c"),
        (b"/geo?k%65y=dummy&address=a%20b", b"/geo?address=a%20b&key=a%2Fb%26c"),
        (b"/geo?monkey=1&Key=2&key", b"/geo?monkey=1&Key=2&key=a%2Fb%26c"),
        (b"/geo", b"/geo?key=a%2Fb%26c"),
        (b"/geo?", b"/geo?key=a%2Fb%26c"),
    ],
)
def test_a_parameter_replaces_the_apps_own(target: bytes, sent: bytes) -> None:
    """However the app spells the name; all other bytes of the target stay as they are."""
    assert injection(query={"key": "a/b&c"}).target(target) == sent


@pytest.mark.parametrize("joined", [True, False])
def test_a_header_replaces_the_apps_own(joined: bool) -> None:
    """One Authorization goes out, ours; the rest is as the app sent it."""
    headers = [
        Line(b"Authorization", b"Bearer dummy"),
        Line(b"Accept", b"*/*"),
        Line(b"AUTHORIZATION", b"Bearer other"),
    ]
    request = Request("GET", b"/v1/models", headers, host=b"api.openai.com")
    if joined:
        request.plain = b"".join(line.wire for line in headers)
    exchange = Exchange(request, "", 0.0)
    inject = injection(headers={"Authorization": "Bearer s3cret"})
    head = request_head(exchange, Ids(), egress=True, inject=inject)
    assert head == (
        b"GET /v1/models HTTP/1.1\r\nHost: api.openai.com\r\nAccept: */*\r\n"
        b"Authorization: Bearer s3cret\r\n\r\n"
    )
    assert b"s3cret" not in request.target + b"".join(line.wire for line in request.headers)


def test_nothing_is_put_where_the_secret_is_empty() -> None:
    """`${KEY:-}` without a KEY: what the app sends stays."""
    assert Injection.of(Inject.model_validate({"query": {"key": ""}, "headers": {"x-key": ""}})) is None
    some = injection(query={"key": "", "id": "1"}, headers={"x-key": ""})
    assert some.target(b"/?key=app") == b"/?key=app&id=1"
    assert (some.fields, some.lines) == (frozenset(), b"")


def test_a_model_does_not_show_them() -> None:
    """Neither its text nor what it is dumped as."""
    model = Inject.model_validate({"query": {"key": "s3cret"}, "headers": {"x-key": "s3cret"}})
    assert "s3cret" not in f"{model!r}{model.model_dump()}{model.model_dump_json()}"

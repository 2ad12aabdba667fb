"""Ladders of the app's own calls, over real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tests.support.egress import HOST, Egress
from tests.support.harness import Answer
from tests.support.origin import Origin

NOWHERE = "http://127.0.0.1:1"
BACKUP = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 6\r\n\r\nbackup"
LATER = {"respond": {"json": {"status": "OK", "address": "{query.address}"}}}
CALL = f"GET http://{HOST}/geo?address=a+b&key=S3CRET HTTP/1.1\r\nHost: {HOST}\r\nX-Key: k\r\n\r\n".encode()


def ladder(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"deadline": "5s", "attempt_timeout": "2s", "fallback": list(steps)}


async def call(egress: Egress) -> Answer:
    client = await egress.connect()
    return await client.ask(CALL)


async def test_another_upstream_is_called_as_the_first_would_be(tmp_path: Path) -> None:
    """In its own name, and with no line of ours: to a provider the sidecar is not there."""
    async with Origin(BACKUP) as origin:
        route = ladder({"upstream": f"http://{origin.address}"}, LATER)
        async with Egress(tmp_path, NOWHERE, route=route) as egress:
            answer = await call(egress)
        assert (answer.status, answer.body) == (200, b"backup")
        assert answer.header("sidecar-degraded") == "fallback;rung=upstream"
        assert answer.every("cache-control") == ["no-store"]
        (request,) = origin.requests
        assert request.target == "/geo?address=a+b&key=S3CRET"
        assert (request.header("host"), request.header("x-key")) == (str(origin.address), "k")
        for ours in ("via", "x-request-id", "x-forwarded-for", "x-forwarded-host"):
            assert request.header(ours) is None
    (line,) = egress.requests()
    assert (line["rung"], line["upstream"]) == ("upstream", f"http://{origin.address}")
    assert "S3CRET" not in str(line)


async def test_a_template_answers_the_app(tmp_path: Path) -> None:
    """Shaped like the provider, where nobody can be reached."""
    async with Egress(tmp_path, NOWHERE, route=ladder(LATER)) as egress:
        answer = await call(egress)
    assert (answer.status, orjson.loads(answer.body)) == (200, {"status": "OK", "address": "a b"})
    assert answer.header("sidecar-degraded") == "fallback;rung=respond"
    assert egress.metrics.route("all", "provider").fallbacks == {"respond": 1}


async def test_another_upstream_may_not_be_where_calls_may_not_go(tmp_path: Path) -> None:
    """A name that leads to a private address is refused as for any call; the next rung answers."""
    async with Origin(BACKUP) as origin:
        route = ladder({"upstream": f"http://backup.example:{origin.address.port}"}, LATER)
        names = {"backup.example": "127.0.0.1"}
        private: dict[str, Any] = {"allow_private": []}
        async with Egress(tmp_path, NOWHERE, route=route, names=names, egress=private) as egress:
            answer = await call(egress)
        assert answer.header("sidecar-degraded") == "fallback;rung=respond"
        assert origin.connections == 0
    (line,) = egress.requests()
    assert "fallback;failed=egress_denied" in line["trail"]


async def test_a_route_of_calls_that_the_sidecar_answers(tmp_path: Path) -> None:
    """No call goes out."""
    async with Origin(BACKUP) as origin:
        route = {"respond": {"status": 403, "text": "not from here"}}
        async with Egress(tmp_path, f"http://{origin.address}", route=route) as egress:
            answer = await call(egress)
        assert (answer.status, answer.body) == (403, b"not from here")
        assert origin.connections == 0

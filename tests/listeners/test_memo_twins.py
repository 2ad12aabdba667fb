"""Known heads against the pipeline, on the same bytes: same answers, upstream bytes, counts and log.

`FUZZ=1000000` in the environment says how many exchanges the long run has.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest

from tests.support.twins import Twins

EXCHANGES = int(os.environ.get("FUZZ", "1500"))
OF_A_PART = 2000
"""Exchanges of one test, at least."""

POLICY: dict[str, Any] = {
    "name": "tested",
    "direction": "ingress",
    "defaults": {"deadline": "30s", "circuit_breaker": {}, "concurrency_limit": {"max": 100}},
    "routes": [
        {"name": "plain", "match": {"path": "/plain/*"}, "cache": {"ttl": "10s"}},
        {
            "name": "stale",
            "match": {"path": "/stale/*"},
            "cache": {"ttl": "3s", "stale_while_revalidate": "4s", "stale_if_error": "1h"},
        },
        {"name": "ahead", "match": {"path": "/ahead/*"}, "cache": {"ttl": "10s", "refresh_ahead": "50%"}},
        {
            "name": "keyed",
            "match": {"path": "/keyed/*"},
            "cache": {"ttl": "10s", "key": {"headers": ["cookie"], "query": {"drop": ["x"], "sort": True}}},
        },
        {
            "name": "dropped",
            "match": {"path": "/dropped/*"},
            "cache": {"ttl": "10s", "key": {"query": {"drop": ["x"], "bucket": {"t": "5s"}}}},
        },
        {
            "name": "tenant",
            "match": {"path": "/tenant/*", "headers": {"x-tenant": "a*"}},
            "cache": {"ttl": "10s"},
        },
        {"name": "crumb", "match": {"path": "/crumb/*", "headers": {"cookie": "a*"}}, "cache": {"ttl": "9s"}},
        {
            "name": "limited",
            "match": {"path": "/limited/*"},
            "rate_limit": {"rate": "2/s", "burst": 3},
            "cache": {"ttl": "10s"},
        },
        {
            "name": "shadow",
            "match": {"path": "/shadow/*"},
            "rate_limit": {"rate": "2/s", "burst": 3, "mode": "shadow"},
            "cache": {"ttl": "10s"},
        },
        {
            "name": "ladder",
            "match": {"path": "/ladder/*"},
            "fallback": [{"on": ["transient"], "respond": {"status": 200, "json": {"status": "sorry"}}}],
            "cache": {"ttl": "10s", "negative_ttl": "2s"},
        },
        {"name": "rest"},
    ],
}  # fmt: skip
ROUTES = [
    "plain",
    "stale",
    "ahead",
    "keyed",
    "dropped",
    "tenant",
    "crumb",
    "limited",
    "shadow",
    "ladder",
    "rest",
]
KINDS = [
    "a",
    "b",
    "fresh",
    "vary",
    "cookies",
    "etag",
    "private",
    "empty",
    "large",
    "missing",
    "down",
    "tagged",
]


class Origin:
    """Says something else each time that it is asked; what, and for how long, its path says."""

    def __init__(self) -> None:
        self._asked: Counter[bytes] = Counter()

    def __call__(self, head: bytes) -> bytes:
        target = head.split(b" ", 2)[1]
        self._asked[target] += 1
        kind = target.partition(b"?")[0].rpartition(b"/")[2].decode("latin-1")
        body = b"%s, time %d" % (target, self._asked[target])
        status, lines = b"200 OK", [b"Date: Tue, 14 Nov 2023 22:13:20 GMT", b"X-Request-ID: theirs"]
        lines.append(b"X-Time: %d" % self._asked[target])
        if kind == "fresh":
            lines.append(b"Cache-Control: max-age=6, stale-while-revalidate=2")
        elif kind == "vary":
            lines.append(b"Vary: Accept-Encoding")
            body += b" gzip" if b"gzip" in head else b" plain"
        elif kind == "cookies":
            lines.append(b"Vary: Cookie, X-Forwarded-Proto")
        elif kind == "etag":
            lines.append(b'ETag: "one"')
        elif kind == "private":
            lines.append(b"Cache-Control: private")
        elif kind == "empty":
            status, body = b"204 No Content", b""
        elif kind == "large":
            body *= 4000
        elif kind == "missing":
            status = b"404 Not Found"
        elif kind == "down":
            status = b"503 Service Unavailable" if self._asked[target] % 3 == 0 else status
        elif kind == "tagged":
            lines.append(b"Cache-Tag: some")
        if head.startswith(b"HEAD ") or status.startswith(b"204"):
            body = b""
        if not status.startswith(b"204"):
            lines.append(b"Content-Length: %d" % len(body))
        return b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, b"\r\n".join(lines), body)


MOSTLY = [b"User-Agent: one", b"Accept: */*", b"Accept-Encoding: gzip"]
SOMETIMES = [
    b"Accept-Encoding: br", b"accept-encoding:gzip", b"X-Tenant: a1", b"X-Tenant: b1", b"Cookie: a=1",
    b"Cookie: b=2", b"cookie: a=\x01", b"Range: bytes=0-3", b'If-None-Match: "one"', b"X-Request-ID:",
    b"Cache-Control: no-cache", b"Cache-Control: max-age=1", b"Authorization: me", b"Connection: keep-alive",
    b"Connection: close", b"Content-Length: 0", b"Expect: 100-continue", b"Upgrade: x", b"Pragma: no-cache",
    b"X-Sidecar-Debug: 1", b"X-Forwarded-For: 10.0.0.1", b"X-Forwarded-For: 127.0.0.3", b"X : y",
    b"X-Forwarded-Proto: https", b"Forwarded: for=x", b"X-Correlation-ID: same", b"X-Correlation-ID:",
    b"TE: trailers", b"Host: other", b"tracestate: a=b", b"Transfer-Encoding: chunked",
]  # fmt: skip
VALUES = [
    b"",
    b" ",
    b"x",
    b"a\tb",
    b"a\x00b",
    b"a\rb",
    b"a\nb",
    b"a\x7fb",
    b"\xff",
    b"a" * 3000,
    b"1\r\nRange: bytes=0-1",
    b"1\r\n\r\nGET /",
]


THEMES = [
    [b"Cookie: a=1", b"Cookie: b=2", b"cookie: a=3"],
    [b"X-Tenant: a1", b"X-Tenant: b1"],
    [b"Accept-Encoding: br", b"accept-encoding:gzip", b"Accept-Encoding: gzip, br"],
    [b"X-Forwarded-For: 10.0.0.1", b"X-Forwarded-For: 127.0.0.3"],
    [b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http"],
    [b"X-Sidecar-Debug: 1", b"X-Sidecar-Debug: 0"],
    [b"Cache-Control: no-cache", b"Cache-Control: max-age=2"],
    [b"Range: bytes=0-3", b"If-None-Match: *"],
]
"""Lines of one field, or for one purpose, whose difference may matter."""
OF_FIELD = {b"Cookie": "crumb", b"X-Tena": "tenant"}
"""The routes that look at such a field."""
TRACE, ID = b"<trace>", b"<id>"
"""Stand for values that are others each time."""


class Script:
    """What clients of one script ask for: a few URLs, with heads that are alike but for a line or two."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._lines = chance.choice([*THEMES, chance.sample(SOMETIMES, 2)])
        routes = ["plain", "plain", "ahead", "ladder", OF_FIELD.get(self._lines[0][:6], "stale")]
        kinds = ["a", "fresh", "vary", "cookies", "tagged"]
        self._urls = [
            self._url(routes, kinds),
            *(self._url(ROUTES, KINDS) for _ in range(chance.randrange(4))),
        ]
        self._heads = [self._head() for _ in range(chance.choice([2, 4, 12]))]

    def _url(self, routes: list[str], kinds: list[str]) -> bytes:
        chance = self._chance
        route, kind = chance.choice(routes), chance.choice(kinds)
        query = chance.choice([b"", b"", b"", b"?x=1", b"?t=1&b=2&a=1"])
        return b"/%b/%b%b" % (route.encode(), kind.encode(), query)

    def _head(self) -> bytes:
        chance = self._chance
        method = chance.choice([b"GET"] * 24 + [b"HEAD", b"POST", b"get"])
        version = chance.choice([b"HTTP/1.1"] * 32 + [b"HTTP/1.0"])
        lines = [b"Host: app", *MOSTLY[: chance.choice([1, 1, 3])]]
        ids = (b"traceparent: " + TRACE, b"X-Request-ID: " + ID)
        rare = (b"Cookie: " + ID, b"X-Correlation-ID: " + ID, b"b3:" + ID)
        lines += [line for line in ids if chance.random() < 0.4]
        lines += [line for line in rare if chance.random() < 0.06]
        if chance.random() < 0.5:
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(self._lines))
        if chance.random() < 0.05:
            lines.append(chance.choice(SOMETIMES))
        start = b"%b %b %b" % (method, chance.choice(self._urls), version)
        return b"%b\r\n%b\r\n\r\n" % (start, b"\r\n".join(lines))

    def _filled(self, message: bytes) -> bytes:
        """The same with ids of its own, some of them malformed."""
        chance = self._chance
        trace = b"00-%032x-%016x-0%d" % (chance.randrange(1 << 99), chance.randrange(9), chance.randrange(2))
        number = b"%032x" % chance.randrange(1 << 99)
        if chance.random() < 0.08:
            trace = chance.choice(VALUES)
        if chance.random() < 0.08:
            number = chance.choice(VALUES)
        return message.replace(TRACE, trace).replace(ID, number)

    def request(self) -> bytes:
        fresh = self._chance.random() < 0.03
        return self._filled(self._head() if fresh else self._chance.choice(self._heads))

    def chunks(self) -> list[bytes]:
        """What one connection reads: mostly whole heads, now and then pieces or several at once."""
        chance = self._chance
        message = self.request()
        shape = chance.random()
        if shape < 0.90:
            return [message]
        if shape < 0.93:
            return [message + self.request()]
        if shape < 0.95:
            return [b"\r\n", message]
        if shape < 0.97:
            return [message + chance.choice([b"x", b"\r\n", b"GET"]), message]
        cut = chance.randrange(1, len(message))
        return [message[:cut], message[cut:]]


async def run(seed: int, exchanges: int, *, memory: int) -> tuple[int, int]:
    """Follows a script; how many requests were answered, and how many of them by known heads."""
    chance = random.Random(seed)
    twins = Twins(POLICY, Origin, memory=memory)
    script = Script(chance)
    sent = 0
    for step in range(exchanges):
        kind = chance.random()
        what: tuple[int, list[bytes]] | None = None
        if kind < 0.95:
            number, reads = what = chance.choice([1, 1, 2, 3]), script.chunks()
            await twins.send(number, *reads)
        elif kind < 0.98:
            await twins.wait(chance.choice([0.0, 0.25, 0.5, 1.0, 1.0, 4.0]))
        elif kind < 0.987:
            await twins.leave(chance.choice([1, 2, 3]))
        elif kind < 0.995:
            await twins.purge(**chance.choice([{"tag": "some"}, {"namespace": "plain"}, {"url": "/plain/a"}]))
        else:
            twins.reload()
        different = twins.difference(counts=step % 50 == 0)
        assert not different, f"seed {seed}, step {step}: {what}\n{different}"
        sent = step + 1
    assert not (different := twins.difference()), f"seed {seed}: {different}"
    answered = sum(
        cell[0] for route in ROUTES for cell in twins.other.metrics.route(route, "origin").requests.values()
    )
    by_memo = twins.knowing.by_memo
    await twins.close()
    assert sent == exchanges
    return answered, by_memo


@pytest.mark.parametrize("part", range(-(-EXCHANGES // OF_A_PART)))
async def test_scripts_of_chance(part: int) -> None:
    """Whatever connections read, and whenever: nothing tells a sidecar that knows heads from another."""
    answered = by_memo = 0
    seed = part * 1000
    while answered < min(EXCHANGES, OF_A_PART):
        found = await run(seed, 300, memory=(40_000, 1 << 20)[seed % 2])
        answered, by_memo, seed = answered + found[0], by_memo + found[1], seed + 1
    print(f"{answered} exchanges, {by_memo} of them by known heads")  # noqa: T201
    assert by_memo > answered / 100, "too few were answered by known heads for this to say much"

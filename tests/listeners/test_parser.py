"""Bytes to requests, without sockets: where they are cut changes nothing, whatever they are."""

from __future__ import annotations

import random

from sidecar.clock import Ids, SystemClock
from sidecar.errors import ClientError
from sidecar.exchange import Request, Stream
from sidecar.listeners.ingress import Limits, Listener
from sidecar.listeners.parser import Incoming
from sidecar.pipeline import Handler
from sidecar.telemetry.metrics import Metrics

SEEDS = [
    b"GET /a?b=c HTTP/1.1\r\nHost: app\r\nX-A: 1\r\nX-B:\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: app:80\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\n\r\n",
    b"POST /a/b HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\nX-Request-ID: 1\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: app\r\nUpgrade: x\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nhi",
    b"GET / HTTP/1.1\r\nHost: app\r\nUpgrade: x\r\nConnection: X-A, upgrade\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: [::1]\r\nTE: trailers\r\nKeep-Alive: 5\r\n\r\n",
    b"DELETE http://other/x HTTP/1.1\r\nHost: app\r\ntraceparent: 00-1-1-00\r\n\r\n",
]
SPLICES = [
    *(bytes([number]) for number in range(256)),
    *(b"\r\n", b"\n\r\n", b"\r\n\r\n", b" ", b"\t", b": ", b" :", b"Host: app\r\n", b"Content-Length: 5\r\n"),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"0\r\n\r\n",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"%00",
    ),
]


def no_route(_: object) -> Handler:
    raise AssertionError("nothing is served here")


def listener() -> Listener:
    return Listener(
        Limits(head=400, body=100, connections=1, header_timeout=1.0, idle=1.0, drain=1.0),
        no_route,
        clock=SystemClock(),
        ids=Ids(),
        cells=Metrics().listener("x"),
    )


def seen(request: Request) -> tuple[object, ...]:
    return (
        request.method,
        request.target,
        request.path,
        request.query,
        request.host,
        request.http10,
        request.upgrade,
        [line.wire for line in request.headers],
    )


def read(on: Listener, pieces: list[bytes]) -> tuple[list[object], bool]:
    """The requests that were complete, and whether there was something to refuse.

    Which of two faults is found first may depend on the cut.
    """
    found: list[Incoming] = []
    parser = on.parser(lambda _: None)
    refused = False
    for piece in pieces:
        try:
            parser.feed(piece)
        except ClientError:
            refused = True
        found += parser.ready
        parser.ready.clear()
        if refused:
            break
    requests: list[object] = []
    for incoming in found:
        if incoming.complete:
            body = incoming.request.body
            assert not isinstance(body, Stream)
            requests.append(
                (
                    *seen(incoming.request),
                    body or b"".join(incoming.chunks),
                    incoming.keep_alive,
                    incoming.expect,
                )
            )
    return requests, refused


def mutated(chance: random.Random) -> bytes:
    message = b"".join(chance.choices(SEEDS, k=chance.choice((1, 1, 2))))
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        start = chance.randrange(len(message) + 1)
        end = min(len(message), start + chance.choice((0, 0, 1, 1, 2, 8)))
        message = message[:start] + chance.choice(SPLICES) + message[end:]
    return message


async def test_cuts() -> None:
    """Read at once, byte by byte, or in any two pieces: the same requests, the same refusal.

    At once is where the listener reads known heads by memory; byte by byte is where llhttp reads all.
    """
    chance = random.Random(7)
    remembering = listener()  # the memory of what was read before must not matter either
    refused = 0
    for _ in range(6000):
        message = mutated(chance)
        bytewise = read(listener(), [message[i : i + 1] for i in range(len(message))])
        cut = chance.randrange(len(message) + 1)
        for on, pieces in (
            (remembering, [message]),
            (remembering, [message]),
            (listener(), [message]),
            (remembering, [message[:cut], message[cut:]]),
        ):
            assert read(on, pieces) == bytewise, (message, pieces)
        refused += bytewise[1]
    assert 1500 < refused < 4500, "the messages are neither all bad nor all good"


async def test_one_after_another() -> None:
    """On a connection whose requests come one a read, some just like the last: each is read as by llhttp."""
    chance = random.Random(11)
    alike = 0
    for _ in range(400):
        messages = [mutated(chance) if chance.random() < 0.2 else chance.choice(SEEDS) for _ in range(3)]
        train = [message for message in messages for _ in range(chance.choice((1, 2, 3)))]
        bytewise = [bytes([number]) for message in train for number in message]
        assert read(listener(), train) == read(listener(), bytewise), train
        alike += len(train) - len(messages)
    assert alike > 300, "some are just like the last"

"""What `sidecar doctor` calls through a door: the listener answers by itself, and names the door.

No policy has a part in it, nothing is counted, and the provider hears nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import orjson

from sidecar.exchange import Response
from sidecar.headers import Line

if TYPE_CHECKING:
    from sidecar.exchange import Exchange
    from sidecar.pipeline import Handler

PATH: Final = "/.well-known/sidecar-doctor"
"""The end of a path: SDKs put their version before it. By its form it is nobody's resource (RFC 8615)."""
BASE, PROXY, HOSTS = "base URL", "forward proxy", "hosts override"
_HEADERS: Final = (Line(b"Content-Type", b"application/json"), Line(b"Cache-Control", b"no-store"))


def answers(door: str) -> Handler:
    """A handler that tells the door, and gives the number in the query back."""

    async def answer(exchange: Exchange) -> Response:
        nonce = parse_qs(exchange.request.query.decode("latin-1")).get("nonce", [""])[0]
        body = orjson.dumps({"sidecar_doctor": nonce, "door": door})
        return Response(200, _HEADERS, body)

    return answer

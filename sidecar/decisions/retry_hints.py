"""What a request and an answer say that bears on repeating: the client retries itself, the upstream says that
it is no use, the answer will be an event stream.

Facts: the SDKs made with Stainless (OpenAI's and Anthropic's among them) number their tries in
`x-stainless-retry-count`, from 0. Envoy numbers attempts in `x-envoy-attempt-count`, from 1, where a route
has `include_request_attempt_count`. A sidecar puts `X-Sidecar-Retry` on the attempts after its first. When
each of k tiers makes n attempts, the last gets n^k of them: so what is a retry already is not retried
again ("Handling Overload", Site Reliability Engineering, 2016). The SDKs obey `x-should-retry` of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.headers import Line

_FIRST: Final[Mapping[bytes, int]] = {
    b"x-stainless-retry-count": 0,
    b"x-envoy-attempt-count": 1,
    b"x-sidecar-retry": 0,
}
"""By field: the number that a first try has."""
_NUMBER: Final = re.compile(rb"[0-9]{1,9}")
_STREAMED: Final = re.compile(rb'"stream"\s*:\s*true')
"""How a body asks OpenAI and its followers for an event stream. Their SDKs accept JSON all the same."""


def client_retries(headers: Sequence[Line]) -> bool:
    """Whether a request says of itself that it is a repetition."""
    for line in headers:
        first = _FIRST.get(line.name)
        if first is not None and _NUMBER.fullmatch(line.value) and int(line.value) > first:
            return True
    return False


def advised_against(headers: Sequence[Line]) -> bool:
    """Whether an answer says that its request should not be repeated."""
    return any(line.name == b"x-should-retry" and line.value.lower() == b"false" for line in headers)


def wants_event_stream(headers: Sequence[Line], body: bytes) -> bool:
    """Whether a request asks for an event stream, in its head or in its JSON."""
    accepts = any(line.name == b"accept" and b"text/event-stream" in line.value.lower() for line in headers)
    return accepts or _STREAMED.search(body) is not None

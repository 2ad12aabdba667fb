"""Secrets in a URL never reach a log, a trace or a metric.

Judged by the name of a parameter, of the query or of a segment of the path (`;jsessionid=…`, RFC 3986, 3.3),
as servers see it (percent-decoded): what is called key, token, signature, password and the like keeps its
name and loses its value.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

HIDDEN = b"***"

_PARAMETER = re.compile(rb"([^=&;]+)=([^&;]*)")
_OF_SEGMENT = re.compile(rb"(?<=;)([^=;/]+)=([^;/]*)")
_NOT_LETTERS = re.compile(rb"[^a-z0-9]+")
_SECRET = re.compile(
    rb"(token|secret|passw|pwd|signature|credential|session|cookie|jwt|authoriz|accesskey|assertion)"
    rb"|key$|^(auth|oauth.*|sig|hmac|code|sid|otp|pin|pass)$"
)


@lru_cache(1024)
def is_secret(name: bytes) -> bool:
    """Whether a query parameter called `name`, percent-encoded or not, holds a secret."""
    if b"%" in name:
        name = unquote_to_bytes(name)
    return _SECRET.search(_NOT_LETTERS.sub(b"", name.lower())) is not None


def _hide(match: re.Match[bytes]) -> bytes:
    name = match[1]
    return name + b"=" + HIDDEN if match[2] and is_secret(name) else match[0]


def redact_target(target: bytes) -> bytes:
    """`target` (path and query, RFC 9112, 3.2.1) with the values of secret parameters hidden."""
    path, mark, query = target.partition(b"?")
    if b";" in path:
        path = _OF_SEGMENT.sub(_hide, path)
    return path + mark + _PARAMETER.sub(_hide, query)


def redact_url(url: str) -> str:
    """`url` with its user information and the values of secret parameters hidden; anything else as it is."""
    before, slashes, rest = url.partition("//")
    authority, slash, tail = rest.partition("/")
    if slashes and "@" in authority:
        authority = HIDDEN.decode() + "@" + authority.rpartition("@")[2]
    whole = before + slashes + authority + slash + tail
    return redact_target(whole.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

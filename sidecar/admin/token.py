"""Who may act through the admin listener."""

from __future__ import annotations

import hmac


def may_act(authorization: str, token: str | None) -> bool:
    """Whether an `Authorization` value (RFC 6750, 2.1) carries the configured `token`.

    True without a token: the configuration allows that on loopback only.
    """
    if token is None:
        return True
    scheme, _, credentials = authorization.partition(" ")
    # Compared in constant time, so that the answer's timing tells nothing of the token.
    given = credentials.strip().encode("utf-8", "surrogateescape")
    return scheme.lower() == "bearer" and hmac.compare_digest(given, token.encode())

"""Who may act through the admin listener."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit


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


def same_site(origin: str, fetch_site: str, host: str, *, named: bool) -> bool:
    """Whether a POST may come from where it says, by `Origin`, `Sec-Fetch-Site` and `Host`.

    A browser sends `Origin` with every POST (Fetch, 3.2), other clients send none: no page of somebody
    else can act through the browser of one who may reach the admin listener. Unless hosts may be
    `named`, they are addresses or `localhost`: any other name may be made to lead here by its owner.
    """
    if fetch_site and fetch_site not in ("same-origin", "none"):
        return False
    if not origin:
        return True
    try:
        parts = urlsplit(origin)
        if parts.netloc.lower() != host.lower():
            return False
        if not named and parts.hostname != "localhost":
            ip_address(parts.hostname or "")
    except ValueError:
        return False
    return True

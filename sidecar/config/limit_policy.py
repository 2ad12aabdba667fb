"""The models of a route's limits: `rate_limit` and `concurrency_limit`. Attribute names are the YAML keys."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, WithJsonSchema

from sidecar.config.base import Mode, Model, mode, required, setting
from sidecar.config.patterns import TOKEN
from sidecar.config.units import Count, Duration, Rate, Switch, wrong

_HEADER: Final = "header:"


def _client_key(value: str) -> str:
    if value == "client":
        return value
    if not value.startswith(_HEADER):
        mend = (
            f"write client, or {_HEADER}{value}" if TOKEN.fullmatch(value) else "write client or header:NAME"
        )
        raise wrong('"{given}" does not tell clients apart', value, mend)
    if not TOKEN.fullmatch(value.removeprefix(_HEADER)):
        raise wrong('"{given}" names no header', value, "write for example header:X-API-Key")
    return value.lower()


ClientKey = Annotated[
    str,
    AfterValidator(_client_key),
    WithJsonSchema({"type": "string", "pattern": r"^(client|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+)$"}),
]


class RateLimit(Model):
    """Bounds the requests of one client: so many at once, and so many per time (GCRA)."""

    rate: Rate = required("Requests that are let through in the long run, evenly.", "1000/m")
    burst: Count = setting(20, "Requests that may come at once, after a pause long enough.", 50)
    key: ClientKey = setting(
        "client",
        "What a client is. `client`: its address, as far as `trusted.proxies` vouch for it; of IPv6 the "
        "first 64 bits. `header:NAME`: the value of a header; requests without it go by their address.",
        "header:X-API-Key",
    )
    scope: Literal["route", "all"] = setting(
        "route",
        "`route`: each route counts by itself. `all`: all with the same settings count together.",
        "all",
    )
    shared: Switch = setting(
        False,
        "Whether replicas count together, in the Redis of `cache.redis`; else each counts by itself.",
        True,
    )
    failure: Literal["local", "open", "closed"] = setting(
        "local",
        "With `shared`, while Redis does not answer: `local`, each replica counts by itself; `open`, all may "
        "pass; `closed`, none may.",
        "open",
    )
    mode: Mode = mode()


class Adaptive(Model):
    """A limit that follows what the upstream bears, by the time to its first byte."""

    initial: Count = setting(8, "The limit at the start.", 16)
    min: Count = setting(2, "It never gets lower than this.", 4)
    max: Count = setting(64, "It never gets higher than this.", 200)


class ConcurrencyLimit(Model):
    """Bounds the attempts in flight."""

    max: Count | None = setting(None, "Attempts in flight at once: this, or `adaptive`.", 16)
    adaptive: Adaptive | None = setting(
        None,
        "Learns how many attempts in flight the upstream bears; `{}` for the defaults.",
        {"initial": 8, "min": 2, "max": 64},
    )
    queue: Duration | None = setting(
        None,
        "How long a request may wait for its turn; `off`: it is refused at once. One whose turn will not "
        "come in time is refused at once, too.",
        "1s",
    )
    queue_size: Count = setting(1000, "Requests that may wait at once.", 100)
    priority: Literal["high", "normal", "low"] = setting(
        "normal",
        "Who goes first, among the routes that share the limit: those to the same upstream with the same "
        "`max` or `adaptive`, `queue` and `queue_size`. A tenth of the limit is kept for each class above. "
        "A request's own `Priority: u=5` to `u=7` makes it `low`.",
        "high",
    )
    mode: Mode = mode()

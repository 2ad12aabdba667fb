"""The models of sidecar.yaml: where things are. Attribute names are the YAML keys.

Those of policy files are in `sidecar.config.policy`; all are imported from here.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr, WithJsonSchema

from sidecar.config.addresses import Address, Cidr, Listener, Listeners, NameServer, Network, Server, Url
from sidecar.config.base import Model, section, setting
from sidecar.config.batch_policy import Batch
from sidecar.config.cache_policy import AdaptiveTtl, Cache, CacheKey, QueryKey
from sidecar.config.classify_policy import ClassifyRule
from sidecar.config.fault_policy import DelayRange, Expiry, Fault
from sidecar.config.features import Features
from sidecar.config.limit_policy import Adaptive, ConcurrencyLimit, RateLimit
from sidecar.config.logging_settings import Logging
from sidecar.config.metrics_settings import Exposed, Metrics
from sidecar.config.pace_policy import Pace
from sidecar.config.policy import (
    IDEMPOTENT,
    Backoff,
    Budget,
    CircuitBreaker,
    Hedge,
    Match,
    Policy,
    PolicyFile,
    Retry,
    RetryOn,
    Route,
    Rung,
    RungTarget,
    SlowCalls,
    Tls,
)
from sidecar.config.respond_policy import Respond
from sidecar.config.tracing_settings import Sentry, Tracing
from sidecar.config.units import Count, Delay, Duration, PositiveShare, Size, wrong
from sidecar.config.workers import Workers
from sidecar.stores.redis_url import parse as parse_redis_url

__all__ = [
    "IDEMPOTENT",
    "Adaptive",
    "AdaptiveTtl",
    "Address",
    "Admin",
    "App",
    "Backoff",
    "Batch",
    "Budget",
    "CaFiles",
    "Cache",
    "CacheKey",
    "CacheStore",
    "CircuitBreaker",
    "ClassifyRule",
    "ConcurrencyLimit",
    "Config",
    "DelayRange",
    "Dns",
    "Egress",
    "Environment",
    "Environments",
    "Expiry",
    "Fault",
    "Features",
    "Guard",
    "Hedge",
    "History",
    "Limits",
    "Listen",
    "Logging",
    "Match",
    "Metrics",
    "Model",
    "Network",
    "Pace",
    "Policy",
    "PolicyFile",
    "QueryKey",
    "RateLimit",
    "Respond",
    "Retry",
    "RetryOn",
    "Rollout",
    "Route",
    "Rung",
    "RungTarget",
    "Sentry",
    "Settings",
    "SlowCalls",
    "Tls",
    "Tracing",
    "Trusted",
    "Url",
]

Environment = Literal["development", "testing", "staging", "production"]


def _health(value: str) -> str:
    if not value.startswith("/"):
        raise wrong('"{given}" is not a path of the app', value, "write for example /health")
    if re.search(r"[^\x21-\x7e]", value):
        raise wrong('"{given}" has characters that a path cannot have', value)
    return value


def _token(value: object) -> object:
    return None if value == "" else value


def _redis(value: object) -> object:
    if value == "" or not isinstance(value, str):
        return value or None
    try:
        parse_redis_url(value)
    except ValueError as error:
        # The URL may hold a password, which may hold a `?`: no part of it is shown.
        reason = re.sub(r"(?s)^unknown option .*; ", "it has an unknown option; ", str(error))
        raise wrong(f"not the URL of a Redis: {reason}", value) from None
    return value


HealthPath = Annotated[str, AfterValidator(_health), WithJsonSchema({"type": "string", "pattern": "^/"})]
Token = Annotated[
    SecretStr | None,
    BeforeValidator(_token),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]

RedisUrl = Annotated[
    SecretStr | None,
    BeforeValidator(_redis),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "string",
                    "pattern": r"^((redis|rediss|valkey|valkeys|unix)(\+(sentinel|cluster))?://.+)?$",
                },
                {"type": "null"},
            ]
        }
    ),
]


class App(Model):
    """The app that the sidecar stands beside."""

    url: Server = setting("http://127.0.0.1:8000", "Where the app listens.", "unix:/run/app.sock")
    health: HealthPath | None = setting(
        None,
        "Path that is polled to tell whether the app is up; absent: a connection must succeed.",
        "/health",
    )
    health_interval: Duration = setting(
        "5s", "Time between two polls of an app that is well; one in doubt is polled each second.", "10s"
    )
    health_timeout: Duration = setting(
        "2s", "Time for a connection, and for an answer; none in time is busy, not dead.", "5s"
    )
    health_failures: Count = setting(
        3, "Refusals or failures in a row until the app counts as down, and the sidecar as not ready.", 5
    )


class Listen(Model):
    """Where the sidecar listens: `host:port`, `[ipv6]:port` or `unix:/path`; port 0 is any free one."""

    ingress: Listener = setting("127.0.0.1:8080", "Clients of the app connect here.", "0.0.0.0:8080")
    egress: Listener | None = setting(
        "127.0.0.1:8081",
        "The app's own calls: a forward proxy, and `/POLICY/…` as a base URL. Unless it is written here, it "
        "listens only if there is a policy file with `direction: egress`.",
        "0.0.0.0:8081",
        "off",
    )
    intercept: Listeners = setting(
        (),
        "One address or a list: TLS for the `hosts` of policy files, for apps whose hosts file (or DNS) "
        "leads those hosts here.",
        "127.0.0.1:443",
        ["127.0.0.1:443", "[::1]:443"],
    )
    admin: Listener = setting(
        "127.0.0.1:9901",
        "Health and metrics. Elsewhere than on loopback it takes `admin.token`.",
        "0.0.0.0:9901",
    )


class CacheStore(Model):
    """Where the cache keeps what routes with `cache` store."""

    memory: Size = setting("64MiB", "Memory that cached answers may take, all routes together.", "256MiB")
    redis: RedisUrl = setting(
        None,
        "URL of a Redis or Valkey that replicas share: `redis://`, `rediss://`, `unix://`, "
        "`redis+sentinel://` or `redis+cluster://`. Absent or empty: REDIS_URL, else REDIS_HOST with "
        "REDIS_PORT and REDIS_PASSWORD, else memory only; `off`: memory only.",
        "redis://127.0.0.1:6379/0",
    )


class Admin(Model):
    """The admin listener."""

    token: Token = setting(
        None,
        "Token that acting on the admin listener takes; required when it is not on loopback.",
        "${SIDECAR_ADMIN_TOKEN:-}",
    )


class Limits(Model):
    """What one client, and all clients together, may ask of the sidecar."""

    head: Size = setting("32KiB", "Largest request head: request line and headers.", "16KiB")
    body: Size | None = setting(
        None, "Largest request body of a client, streamed ones too; `off`: any size.", "50MiB"
    )
    connections: Count = setting(4096, "Connections open at once, of each kind of listener.", 1000)
    header_timeout: Duration = setting("10s", "Time for a request head to arrive.", "5s")
    idle: Duration = setting("75s", "Time that an unused client connection is kept open.", "30s")
    drain: Delay = setting(
        "30s", "Time for requests in flight to end when the sidecar is told to stop.", "10s"
    )
    rate_limit: RateLimit | None = setting(
        None,
        "Limit on the requests of one client over all ingress routes together, and those that no route "
        "matches. Routes with a `rate_limit` of their own, `off` included, are left out. `scope` is `all` "
        "here unless it is written.",
        {"rate": "1000/m", "burst": 20},
    )


class Trusted(Model):
    """Whom the sidecar believes."""

    proxies: tuple[Cidr, ...] = setting(
        (),
        "Networks whose Forwarded and X-Forwarded-* headers count, and whose X-Request-ID is kept.",
        ["10.0.0.0/8"],
    )
    debug: tuple[Cidr, ...] = setting(
        ("127.0.0.1/32", "::1/128"),
        "Networks that may PURGE what is cached, and get the decision trail by X-Sidecar-Debug.",
        ["127.0.0.1/32"],
    )


class Egress(Model):
    """What the app may call besides the hosts that policy files list."""

    unlisted: Literal["tunnel", "deny"] = setting(
        "tunnel", "Other hosts: `tunnel`, passed through untouched; `deny`, refused with 403.", "deny"
    )
    allow_private: tuple[Cidr, ...] = setting(
        (),
        "Addresses and networks that calls may go to although they are none of the public internet: private, "
        "loopback, link-local, those of metadata services and so on. All others of these are refused, but "
        "for an address that a policy file itself names as `upstream` or `connect_to`.",
        ["10.20.0.0/16"],
    )


class Dns(Model):
    """By whom the names of hosts that the app calls are resolved: never through the hosts file, which may
    lead them to the sidecar.
    """

    servers: tuple[NameServer, ...] = setting(
        (),
        "DNS servers by their IP addresses, in the order in which they are asked. Empty: those of "
        "/etc/resolv.conf, with its search domains; where that names systemd-resolved, which looks into the "
        "hosts file, those behind it.",
        ["10.0.0.2", "10.0.0.2:5353"],
    )


class CaFiles(Model):
    """The local certificate authority, by which calls over TLS are intercepted."""

    dir: str = setting(
        ".sidecar/ca",
        "Directory of its key, its certificate and the bundle for clients, relative to this file. `sidecar "
        "ca` prints what clients need.",
        "/var/lib/sidecar/ca",
    )


class History(Model):
    """Generations of the configuration, kept on disk: `sidecar config history`."""

    dir: str | None = setting(
        ".sidecar/history",
        "Directory, relative to this file. References stay references, so no secret is in it; `off`: none.",
        "/var/lib/sidecar/history",
        "off",
    )
    keep: Count = setting(50, "How many generations are kept; the oldest goes first.", 20)
    max_age: Duration = setting("90d", "Older ones go, but for the last.", "30d")


class Guard(Model):
    """What a new generation must not do worse than."""

    error_rate: PositiveShare = setting("5%", "Share of answers with a status of 500 or more.", "2%")
    p95: Duration | None = setting(None, "95th percentile of the time to the head of an answer.", "2s")


class Rollout(Model):
    """How a new generation takes over: first for a share of the traffic, then for all or not at all."""

    percent: PositiveShare = setting(
        "10%", "Share of the clients that a new generation serves at first.", "5%"
    )
    guard: Guard = section(Guard, "What it must not do worse than; it is rolled back as soon as it does.")
    window: Duration = setting("60s", "How long it is watched before it serves everybody.", "5m")
    minimum_requests: Count = setting(
        20, "Requests it must have served by then; with fewer it is watched longer, ten windows at most.", 100
    )


class Settings(Model):
    """All that can differ between environments."""

    app: App = section(App, "The app that the sidecar stands beside.")
    listen: Listen = section(Listen, "Addresses the sidecar listens on.")
    expose: tuple[Exposed, ...] = setting(
        (),
        "Paths of the admin listener that ingress answers too, to GET and HEAD: what the app has there is "
        "hidden.",
        ["/health", "/health/ready"],
    )
    security_headers: Literal["on", "off"] = setting(
        "off",
        "`on`: answers of ingress that lack them get X-Content-Type-Options: nosniff, X-Frame-Options: DENY "
        "and, where a trusted proxy says that the client came by https, Strict-Transport-Security for a year "
        "with subdomains.",
        "on",
    )
    policies: tuple[str, ...] = setting(
        (), "Policy files, relative to this file; * and ** are wildcards.", ["policies/*.yaml"]
    )
    cache: CacheStore = section(CacheStore, "Where the cache keeps its entries.")
    batch: Batch = section(Batch, "Batches of requests.")
    admin: Admin = section(Admin, "The admin listener.")
    logging: Logging = section(Logging, "Logs.")
    metrics: Metrics = section(Metrics, "Prometheus metrics.")
    tracing: Tracing = section(Tracing, "Traces, over OTLP.")
    sentry: Sentry = section(Sentry, "Faults of the sidecar itself, to Sentry.")
    limits: Limits = section(Limits, "Limits on clients.")
    trusted: Trusted = section(Trusted, "Whom the sidecar believes.")
    egress: Egress = section(Egress, "What the app may call.")
    dns: Dns = section(Dns, "By whom the names of hosts that the app calls are resolved.")
    ca: CaFiles = section(CaFiles, "The local certificate authority.")
    workers: Workers = setting(
        1,
        "Processes that serve on the same ports, each with an event loop of its own; `auto`: one for each "
        "CPU that the sidecar may use.",
        2,
        "auto",
    )
    features: Features = section(Features, "What is switched on.")
    history: History = section(History, "Generations of the configuration that are kept.")
    rollout: Rollout | None = setting(
        None,
        "How a reload takes over: `{}` for a guarded rollout with the defaults; absent or `off`: at once.",
        {"percent": "10%", "guard": {"error_rate": "2%", "p95": "2s"}, "window": "60s"},
    )


class Environments(Model):
    """What differs per environment: merged over the rest of the file."""

    development: Settings = section(Settings, "In development.")
    testing: Settings = section(Settings, "In testing.")
    staging: Settings = section(Settings, "In staging.")
    production: Settings = section(Settings, "In production.")


class Config(Settings):
    """sidecar.yaml. Once loaded, `environments` is empty: what it said is merged into the rest."""

    environment: Environment = setting(
        "development",
        "Which of `environments` applies. The variable NEXTVISION_ENV goes before this.",
        "production",
    )
    environments: Environments | None = setting(
        None, "Mappings merged over the rest of the file, by name of the environment.", {"production": {}}
    )

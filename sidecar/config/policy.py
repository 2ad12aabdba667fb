"""The models of a policy file: how routes behave. Attribute names are the YAML keys."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from sidecar.config.addresses import Address, Listeners, Server, Target, Url
from sidecar.config.base import Mode, Model, mode, required, section, setting
from sidecar.config.cache_policy import Cache
from sidecar.config.classify_policy import RuleList
from sidecar.config.fault_policy import Fault
from sidecar.config.inject_policy import AppKeeps, Inject, Providers
from sidecar.config.limit_policy import ConcurrencyLimit, RateLimit
from sidecar.config.pace_policy import Pace
from sidecar.config.patterns import FileName, HeaderGlobs, HostName, HostPattern, Methods, Name, PathPattern
from sidecar.config.respond_policy import FallingVerdicts, Respond
from sidecar.config.retry_policy import IDEMPOTENT, Backoff, Budget, Hedge, Retry, RetryOn, Strategy
from sidecar.config.units import Amount, Count, Duration, PositiveShare, Switch

__all__ = [
    "IDEMPOTENT",
    "Backoff",
    "Budget",
    "CircuitBreaker",
    "ConcurrencyLimit",
    "Hedge",
    "Match",
    "Policy",
    "PolicyFile",
    "Retry",
    "RetryOn",
    "Route",
    "Rung",
    "RungTarget",
    "SlowCalls",
    "Strategy",
    "Tls",
]


class Match(Model):
    """Which requests a route is for. What is absent matches all; a request must fit all that is there."""

    method: Methods = setting((), "One method or a list of them.", "GET", ["GET", "HEAD"])
    path: PathPattern = setting(
        "*",
        "Path without the query, compared as it is on the wire. `{name}` matches one segment or a part of "
        "one, `*` at the end matches any tail.",
        "/api/v1/jobs/{id}",
        "/static/*",
    )
    host: HostPattern | None = setting(
        None, "Host without the port, in any case; `*` matches any characters.", "*.example.com"
    )
    headers: HeaderGlobs = setting(
        (),
        "Headers that must be there, each with its value; `*` matches any characters.",
        {"x-version": "2*"},
    )


class SlowCalls(Model):
    """Counts slow answers against the upstream."""

    ratio: PositiveShare = setting("80%", "Share of slow attempts that opens the breaker.", "50%")
    over: Duration = required("An attempt is slow when its headers take longer than this.", "5s")


class CircuitBreaker(Model):
    """Stops calling an upstream that keeps failing, and probes whether it is back."""

    failure_ratio: PositiveShare | None = setting(
        "50%", "Share of failed attempts within the window that opens the breaker.", "25%"
    )
    minimum_calls: Count = setting(10, "Attempts that the window must hold before a ratio is looked at.", 20)
    window: Duration = setting("20s", "Time over which attempts are counted.", "1m")
    consecutive: Count | None = setting(5, "Failures in a row that open the breaker.", 3)
    slow_call: SlowCalls | None = setting(
        None, "Opens the breaker for slowness too.", {"ratio": "80%", "over": "5s"}
    )
    open_for: Duration = setting(
        "5s", "Time the breaker stays open at first; it doubles with each failed probing.", "10s"
    )
    open_max: Duration = setting("60s", "The breaker never stays open for longer than this.", "5m")
    half_open_probes: Count = setting(
        3, "Attempts let through to probe; when so many have succeeded the breaker closes.", 1
    )
    scope: Literal["upstream", "route"] = setting(
        "upstream",
        "Whether routes with the same settings share a breaker per upstream, or each has its own.",
        "route",
    )
    mode: Mode = mode()


class Tls(Model):
    """TLS to the upstream. File names are relative to the policy file."""

    ca: FileName | None = setting(None, "File of certificates to trust instead of the system's.", "ca.pem")
    cert: FileName | None = setting(None, "File of the client certificate.", "client.pem")
    key: FileName | None = setting(None, "File of its private key.", "client.key")
    verify: Switch = setting(True, "Whether the upstream's certificate is checked.", False)


class RungTarget(NamedTuple):
    """An upstream that a step of a ladder asks."""

    upstream: Url
    connect_to: Address | None
    tls: Tls


class Rung(Model):
    """A step of a ladder: another upstream that is asked instead, or an answer of the sidecar's own."""

    on: FallingVerdicts = setting(
        ("transient", "rate_limited", "quota"),
        "Verdicts that the step is for, on an answer or an error. `auth` counts only where it is listed.",
        ["quota"],
    )
    respond: Respond | None = setting(
        None,
        "The answer, from a template: nothing gets past it, so it is the last step for its verdicts.",
        {"status": 200, "json": {"status": "OK", "id": "{id}"}},
    )
    upstream: Server | None = setting(
        None,
        "Another upstream that is asked the same. Its answer is taken unless it fails too. The keys below "
        "are for it: it has none of the route's policies but the deadline.",
        "https://backup.example.com",
    )
    connect_to: Target | None = setting(
        None, "Address to connect to, whatever the upstream's name resolves to.", "10.0.0.8:443"
    )
    tls: Tls = section(Tls, "TLS to an https upstream.")
    methods: Methods | None = setting(
        None,
        "Methods that may be sent there when the first upstream may have acted on the request already. "
        "Absent: the idempotent ones, and those that `retry.methods` and `cache.methods` of the route name. "
        "Any method is sent when the first got nothing.",
        ["GET", "HEAD", "POST"],
    )
    deadline: Duration | None = setting(
        None, "Time for this step. Absent: what is left of the route's deadline.", "10s"
    )
    attempt_timeout: Duration | None = setting(None, "As for a route.", "3s")
    idle: Duration | None = setting("5m", "As for a route.", "30s", "off")
    retry: Retry | None = setting(None, "As for a route.", {"attempts": 2})
    circuit_breaker: CircuitBreaker | None = setting(
        None, "As for a route; the breaker is this upstream's own.", {"consecutive": 3}
    )
    concurrency_limit: ConcurrencyLimit | None = setting(None, "As for a route.", {"max": 16})
    pace: Pace | None = setting(None, "As for a route.", {"rate": "50/s"})
    classify: RuleList | None = setting(
        None, "As for a route. Absent: the route's own.", [{"status": 404, "verdict": "negative"}]
    )

    @property
    def target(self) -> RungTarget:
        """Tells the pools of connections apart. Only of a step with `upstream`."""
        assert self.upstream is not None
        return RungTarget(self.upstream, self.connect_to, self.tls)

    def route(self, route: Route) -> Route:
        """The route as this step's upstream sees it: the step's policies instead of its own."""
        own = {key: getattr(self, key) for key in Policy.model_fields.keys() & Rung.model_fields.keys()}
        kept = {
            "respond": None,
            "deadline": self.deadline or route.deadline,
            "classify": self.classify or route.classify,
        }
        return route.model_copy(update={**dict(Policy()), **own, **kept})


class Policy(Model):
    """What can be done for a route. A key that is absent or `off` costs nothing."""

    rate_limit: RateLimit | None = setting(
        None,
        "Limit on the requests of one client. With this key, `off` included, the route does not count for "
        "`limits.rate_limit` of sidecar.yaml.",
        {"rate": "100/m", "burst": 20},
    )
    fallback: Annotated[tuple[Rung, ...], Field(min_length=1)] | None = setting(
        None,
        "Ladder: what is tried, step by step, when there is no good answer and no stale one.",
        [{"upstream": "https://backup.example.com"}, {"respond": {"status": 503, "text": "Later."}}],
    )
    cache: Cache | None = setting(
        None, "Cache: `{}` for what the origin allows (RFC 9111) and nothing else.", {"ttl": "30m"}
    )
    deadline: Duration | None = setting(
        None, "Time for the whole request, all attempts and waits included.", "30s"
    )
    attempt_timeout: Duration | None = setting(
        None, "Time for one attempt, up to the response headers.", "3s"
    )
    idle: Duration | None = setting(
        "5m", "Longest silence within a response body before it is given up.", "30s", "off"
    )
    retry: Retry | None = setting(None, "Retries: `{}` for the defaults.", {"attempts": 2})
    circuit_breaker: CircuitBreaker | None = setting(
        None, "Circuit breaker: `{}` for the defaults.", {"consecutive": 3}
    )
    concurrency_limit: ConcurrencyLimit | None = setting(
        None, "Limit on concurrency.", {"max": 16, "queue": "1s"}, {"adaptive": {}, "queue": "1s"}
    )
    pace: Pace | None = setting(
        None, "The pace that a provider's quota allows: `{}` for one that is learnt.", {"rate": "50/s"}
    )
    classify: RuleList | None = setting(
        None,
        "Rules that give answers their verdict: the first that matches does, else the status. Absent: the "
        "rules of the file; a list takes their place.",
        [{"json": {"status": "OVER_QUERY_LIMIT"}, "verdict": "rate_limited"}],
    )
    fault: Fault | None = setting(
        None, "Injected failures, for tests; refused in production.", {"percent": "20%", "delay": "2s"}
    )
    price: Amount | None = setting(
        None,
        "What one call to the upstream costs, in whatever currency: `sidecar replay` tells what is saved.",
        0.005,
    )
    respond: Respond | None = setting(
        None,
        "The sidecar answers by itself: no upstream, and no other policy, has a part in it.",
        {"status": 503, "headers": {"Retry-After": "60"}},
    )


class Route(Policy):
    """Some requests, and what is done for them. Keys that are absent come from the file's `defaults`."""

    name: Name = required("Unique over all policy files: the route's label in metrics and logs.", "matching")
    match: Match = section(Match, "Which requests it is for. The first route that matches wins.")


class PolicyFile(Model):
    """A policy file: one upstream, and the routes to it. Once loaded, `defaults` are part of each route."""

    name: Name = required("Unique over all policy files.", "nextvision")
    direction: Literal["ingress", "egress"] = setting(
        "ingress",
        "Which way the requests go: `ingress`, from clients to the app; `egress`, from the app to others.",
        "egress",
    )
    hosts: tuple[HostName, ...] = setting(
        (),
        "With `egress`: the hosts whose requests are this file's, by https at port 443 and http at port 80, "
        "or at the port that follows the name.",
        ["maps.googleapis.com"],
    )
    takeover: Listeners = setting(
        (),
        "With `egress`: addresses that the app has hard-coded, one or a list. The sidecar listens there, by "
        "plain HTTP, and sends on to `upstream`.",
        "127.0.0.1:5053",
    )
    depends_on: Providers = setting(
        "all",
        "With `ingress`: the egress policy files whose failing calls make an answer of the app doubtful, one "
        "or a list: it is marked `Sidecar-Degraded`, and not cached. Where they are named, nothing is cached "
        "before their first call has come through the sidecar. `all` are all of them, `[]` none.",
        ["google-maps"],
        "all",
    )
    upstream: Server | None = setting(
        None,
        "Where the requests go. Absent: to `app.url`; with `egress`, by https to the host that was asked.",
        "https://api.example.com",
    )
    connect_to: Target | None = setting(
        None, "Address to connect to, whatever the upstream's name resolves to.", "10.0.0.7:443"
    )
    tls: Tls = section(Tls, "TLS to an https upstream.")
    inject: Inject = section(
        Inject,
        "With `egress`: secrets that are put on each request on its way to the upstream, instead of what "
        "the app sent under these names. The app, the cache and the log never see them.",
    )
    app_keeps: AppKeeps | None = setting(
        None,
        "With `egress`: the app keeps answers in a memory of its own. After a fallback, answers to requests "
        "whose JSON has the text that the app asked for are marked `Sidecar-Degraded`, and not cached, for "
        "that time, or until the app has asked again and the provider has answered.",
        {"query": "address", "ttl": "1d"},
    )
    classify: RuleList | None = setting(
        None,
        "Rules that give answers their verdict, for all routes that have none of their own.",
        [{"status": 404, "verdict": "negative"}],
    )
    defaults: Policy = section(Policy, "Policy keys merged under those of every route.")
    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = required(
        "In order: the first that matches wins.", [{"name": "all", "deadline": "30s"}]
    )

    def counted(self, calls: frozenset[str]) -> frozenset[str]:
        """Those of the egress policy files `calls` that the answers of this file's routes depend on."""
        return calls if self.depends_on == "all" else calls & frozenset(self.depends_on)

    def expected(self, calls: frozenset[str]) -> frozenset[str]:
        """Those of `calls` that the file names: they have to come through the sidecar."""
        return frozenset() if self.depends_on == "all" else calls & frozenset(self.depends_on)

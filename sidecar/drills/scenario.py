"""The model of a scenario: a load, what breaks, and what must hold. Attribute names are YAML keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self, cast

from pydantic import create_model, model_validator

from sidecar.config.base import Model, required, section, setting
from sidecar.config.fault_policy import Fault
from sidecar.config.units import (
    Amount,
    Count,
    Delay,
    Duration,
    PositiveShare,
    Rate,
    Share,
    Size,
    Status,
    Switch,
    Whole,
    wrong,
)
from sidecar.drills.plan import LONGEST, SLOT
from sidecar.drills.shape import Segment, ramp


class Step(Model):
    """A time with a rate."""

    rate: Rate = required("Requests a second.", "100/s")
    to: Rate | None = setting(None, "The rate at its end; it changes steadily.", "200/s")
    duration: Duration = required("How long.", "10s")


class Users(Model):
    """Users who come in evenly over a ramp; then the rate of `hold` for a time."""

    users: Count = required("How many there are at the end of the ramp.", 10)
    requests: Count = required("How many each makes during the ramp.", 20)
    ramp: Duration = required("How long they take to come.", "30s")
    hold: Step | None = setting(None, "What follows the ramp.")


class Load(Model):
    """When requests arrive: by users who come, or by steps."""

    ramp: Users | None = setting(None, "users · requests arrivals at a rate that rises from 0.")
    steps: tuple[Step, ...] = setting((), "Rates, one after the other.")
    arrivals: Literal["poisson", "even"] = setting("poisson", "How arrivals are spaced.", "even")
    patience: Duration = setting("10s", "A client gives up after so long: the request has failed.", "3s")
    connections: Count = setting(2000, "Connections at most; a request that finds none free fails.", 500)
    seed: Count = setting(1, "Of chance: the same load for the same seed.", 7)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.ramp is None and not self.steps:
            raise wrong(
                "there is no rate", "", "write ramp: {users: …} or steps: [{rate: 50/s, duration: 10s}]"
            )
        if sum(segment.seconds for segment in self.segments) > LONGEST:
            raise wrong("the load takes longer than an hour", "", "shorten it")
        return self

    @property
    def segments(self) -> tuple[Segment, ...]:
        steps = list(self.steps)
        found = []
        if self.ramp is not None:
            found.append(ramp(self.ramp.users, self.ramp.requests, self.ramp.ramp))
            if self.ramp.hold is not None:
                steps.insert(0, self.ramp.hold)
        found += [Segment(step.duration, step.rate, step.to or step.rate) for step in steps]
        return tuple(found)


class Variable(Model):
    """What `{{name}}` stands for: one of `values`, a line of `file`, or a number of `range`."""

    values: tuple[str, ...] = setting((), "Drawn anew for each request.", ["Paris", "Lyon"])
    file: str | None = setting(None, "A file with a value in each line, beside the scenario.", "places.txt")
    range: tuple[Count, Count] | None = setting(None, "The first and the last whole number.", [1, 500])

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (bool(self.values), self.file is not None, self.range is not None).count(True) != 1:
            raise wrong("it is one of values, file and range", "", "write for example {range: [1, 500]}")
        if self.range is not None and self.range[0] > self.range[1]:
            raise wrong("its range ends before it begins", "", "write the smaller number first")
        return self


class Template(Model):
    """A kind of request. `{{n}}` is its number, `{{name}}` a variable, in path, headers and body."""

    weight: Amount = setting(1, "How often it is made, beside the others.", 5)
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = setting("GET", "The method.", "POST")
    path: str = required("Path and query.", "/api/v1/health")
    headers: Mapping[str, str] = setting({}, "Headers.", {"Accept": "application/json"})
    body: str = setting("", "The body, as text.", "hello")
    payload: str | None = setting(None, "A sample payload, or a file beside the scenario, as the body.")
    padding: Size | None = setting(None, "So much is added to the body.", "5MiB")
    expect: tuple[Status, ...] = setting((), "Statuses that are as they should be; else 200 to 399.", [413])
    wrong_if: str = setting(
        "",
        "A pattern: an answer whose body matches, and that is not marked degraded, is wrong.",
        '"lie": true',
    )

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            re.compile(self.wrong_if)
        except re.error as error:
            raise wrong(
                f"wrong_if is no pattern: {error}", "", "escape what is meant as it stands: \\("
            ) from None
        return self


class Inject(Model):
    """A fault of the sidecar's `fault` layer, set through its admin listener. It ends by itself."""

    route: str | None = setting(None, "The route whose attempts are hit.", "matching")
    upstream: str | None = setting(None, "The upstream whose attempts are hit.", "app")
    fault: Fault = required(
        "What happens to them; docs/faults.md has the keys.", {"respond": {"status": 503}}
    )


Mode = Literal["slow", "fail", "quota", "daily_quota", "denied", "reset", "hang", "truncate"]
GoogleMode = Literal[Mode, "zero_results", "unknown_error"]
"""Google also has errors that come as 200."""
Silence = Literal["servfail", "nxdomain", "silent"]
Invalid = Literal["expired", "not_yet_valid"]


class ProviderFault(Model):
    """How a fake provider behaves; examples/providers.py says what each mode is."""

    mode: Mode = required("What becomes of its calls.", "fail")
    delay: Delay = setting("0s", "How late its answers come.", "2s")
    share: PositiveShare = setting("100%", "Of its calls.", "50%")

    @model_validator(mode="after")
    def _late(self) -> Self:
        if self.mode == "slow" and not self.delay:
            raise wrong("slow by no time is not slow", "", "write delay: 2s")
        return self


class GoogleFault(ProviderFault):
    mode: GoogleMode = required("What becomes of its calls.", "quota")  # type: ignore[assignment]  # wider


class Providers(Model):
    google: GoogleFault | None = setting(None, "Google Maps.", {"mode": "quota"})
    openai: ProviderFault | None = setting(None, "OpenAI.", {"mode": "slow", "delay": "4s"})

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.google is None and self.openai is None:
            raise wrong("there is no provider", "", "write for example google: {mode: quota}")
        return self


class Break(Model):
    """Something that breaks for a time; exactly one kind."""

    at: Delay = setting("0s", "When, from the start of the load.", "2s")
    duration: Duration = required("How long; then it is mended.", "3s")
    inject: Inject | None = setting(None, "Attempts at an upstream fail.")
    app: Literal["killed", "frozen", "burst503", "hang"] | None = setting(
        None, "The sample app is killed, stopped, answers 503, or never.", "killed"
    )
    providers: Providers | None = setting(None, "The fake providers.")
    redis: Literal["killed", "frozen", "slow"] | None = setting(None, "The Redis server.", "frozen")
    delay: Delay = setting("0s", "With `redis: slow`: how late its answers come.", "300ms")
    dns: Silence | None = setting(
        None, "The name server that the sidecar finds the providers by: what it answers.", "silent"
    )
    certificate: Invalid | None = setting(None, "The certificate that the providers show.", "expired")
    sidecar: Literal["restarted"] | None = setting(
        None,
        "The sidecar is restarted: worker by worker, or stopped and started where it has none.",
        "restarted",
    )
    slow_clients: Count | None = setting(
        None, "So many connections each send a byte of a request's head a second.", 200
    )

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.kinds) != 1:
            raise wrong(f"it is one of {', '.join(KINDS)}", "", "write one of them, and further entries")
        if (self.redis == "slow") != bool(self.delay):
            raise wrong(
                "redis: slow and delay go together", "", "write for example redis: slow, delay: 300ms"
            )
        if self.duration > 3500:
            raise wrong("a fault lasts an hour at most", "")
        return self

    @property
    def things(self) -> frozenset[str]:
        """What it breaks: one fault at a time has each."""
        kind = self.kinds[0]
        if self.providers is not None:
            return frozenset(self.providers.model_dump(exclude_none=True))
        if self.inject is not None:
            return frozenset([f"{kind} {self.inject.route} {self.inject.upstream}"])
        return frozenset([kind])

    @property
    def told(self) -> str:
        """In words for people."""
        kind = self.kinds[0]
        if self.providers is not None:
            modes = [
                f"{name} {it['mode']}" for name, it in self.providers.model_dump(exclude_none=True).items()
            ]
            return " and ".join(modes)
        if self.inject is not None:
            return f"fault on {self.inject.route or self.inject.upstream}"
        return f"{kind.replace('_', ' ')} {getattr(self, kind)}"


KINDS = ("inject", "app", "providers", "redis", "dns", "certificate", "sidecar", "slow_clients")


class Leaks(Model):
    """How much more the sidecar may hold after the load than before it."""

    connections: Whole = setting(0, "Connections of clients.", 1)
    permits: Whole = setting(0, "Attempts in flight or waiting, fills of the cache, lines of batches.", 1)
    tasks: Whole = setting(3, "Tasks of its event loop; some begin with the first request.", 5)
    fds: Whole = setting(3, "Open files and sockets, without kept connections to upstreams.", 10)
    memory: Size = setting("64MiB", "Resident memory; what was cached is in it.", "128MiB")
    within: Duration = setting("15s", "Time to let go; some connections are kept for a while.", "30s")


class Asserts(Model):
    """What must hold; what is not named is only measured."""

    availability: PositiveShare | None = setting(None, "Share of requests answered as expected.", "99%")
    p50: Duration | None = setting(None, "Longest median.", "100ms")
    p95: Duration | None = setting(None, "Longest 95th percentile.", "500ms")
    p99: Duration | None = setting(None, "Longest 99th percentile.", "2s")
    throughput: Rate | None = setting(
        None, "Expected answers a second, in the last step of the load.", "95/s"
    )
    amplification: Amount | None = setting(None, "Most requests at the app for each of the clients'.", 1.2)
    provider_calls: Whole | None = setting(None, "Most calls at the fake providers, in all.", 20)
    hit_ratio: PositiveShare | None = setting(
        None, "Least share of cached routes' requests answered so.", "70%"
    )
    degraded: Share | None = setting(None, "Largest share of answers marked `Sidecar-Degraded`.", "5%")
    wrong: Share | None = setting(None, "Largest share of answers that are wrong and do not say so.", "0%")
    recovery: Duration | None = setting(
        None, "Longest time from the end of the last fault until 99 % are answered again.", "5s"
    )
    memory: Size | None = setting(None, "Largest resident memory of the sidecar.", "512MiB")
    leaks: Leaks | None = setting(None, "What the sidecar may still hold afterwards.", {"memory": "128MiB"})


class Abort(Model):
    """When to stop before the end: the scenario has failed then."""

    failed: PositiveShare | None = setting(None, "The share of requests that failed is above it.", "50%")
    after: Count = setting(50, "Judged from so many requests on.", 200)


class BlastRadius(Model):
    """What a scenario may touch at most."""

    hosts: tuple[str, ...] = setting(
        (), "Hosts besides this machine that may be loaded.", ["staging.example"]
    )
    requests: Count = setting(200_000, "Requests in all; then the load ends.", 5000)
    attempts: PositiveShare = setting("100%", "Of the attempts at an upstream that `inject` may hit.", "20%")


class Stand(Model):
    """What is started for it: the sample app, the fake providers, the sidecar with these policies."""

    policies: tuple[str, ...] = setting(
        ("nextvision", "google-maps", "openai"), "Shipped policies by name, or files beside the scenario."
    )
    settings: Mapping[str, str] = setting(
        {}, "Keys of sidecar.yaml, by dotted path.", {"limits.body": "1MiB"}
    )
    redis: Literal["none", "own"] = setting("none", "`own`: a server is started, as the cache's.", "own")


class _Scenario(Model):
    name: str = required("Its name.", "light_load")
    title: str = setting("", "What it shows, in a sentence.")
    suite: tuple[str, ...] = setting((), "Scenarios that are run one after the other, in place of all else.")
    drill: Switch = setting(
        False, "It counts as a drill, as all that have `faults` do, and not as a load.", True
    )
    stand: Stand = section(Stand, "What is started.")
    load: Load | None = setting(None, "When requests arrive.")
    variables: Mapping[str, Variable] = setting({}, "What `{{name}}` stands for.")
    traffic: tuple[Template, ...] = setting((), "Which requests.")
    faults: tuple[Break, ...] = setting((), "What breaks.")
    abort: Abort = section(Abort, "When to stop.")
    blast_radius: BlastRadius = section(BlastRadius, "What it may touch.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.suite:
            return self
        if self.load is None or not self.traffic:
            missing = "load" if self.load is None else "traffic"
            raise wrong(f"there is no {missing}", "", "a scenario has load and traffic, or suite")
        known = {"n", *self.variables}
        for index, template in enumerate(self.traffic):
            for text in (template.path, template.body, json.dumps(dict(template.headers))):
                for name in SLOT.findall(text):
                    if name not in known:
                        raise wrong(
                            f"traffic.{index}: there is no variable {name}", "", "add it to variables"
                        )
        self._one_at_a_time()
        allowed = self.blast_radius.attempts
        for index, fault in enumerate(self.faults):
            if fault.inject is not None and fault.inject.fault.percent > allowed:
                raise wrong(
                    f"faults.{index}: it hits more attempts than blast_radius.attempts allows",
                    "",
                    "lower percent",
                )
        return self

    def _one_at_a_time(self) -> None:
        ordered = sorted(enumerate(self.faults), key=lambda it: it[1].at)
        for place, (index, fault) in enumerate(ordered):
            for before, other in ordered[:place]:
                if other.things & fault.things and fault.at < other.at + other.duration:
                    text = f"faults.{index}: it breaks what faults.{before} has broken and not mended yet"
                    raise wrong(text, "", "let it begin when that ends, or later")

    @property
    def is_drill(self) -> bool:
        return self.drill or bool(self.faults)

    @property
    def asserts(self) -> Asserts:
        return cast("Asserts", getattr(self, "assert"))


# `assert` is a word of Python's, so the key cannot be written as an attribute.
_FIELDS: Any = {"assert": (Asserts, section(Asserts, "What must hold."))}
Scenario = create_model("Scenario", __base__=_Scenario, **_FIELDS)
AnyScenario = _Scenario

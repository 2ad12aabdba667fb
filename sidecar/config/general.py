"""What sidecar.yaml says for all routes of ingress that do not say it themselves: `limits.rate_limit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sidecar.config.limit_policy import RateLimit
from sidecar.config.policy import PolicyFile
from sidecar.config.problems import Origin
from sidecar.config.schema import Config

KEY: Final = "rate_limit"


def with_general_scope(config: Config) -> Config:
    """`limits.rate_limit` counts all routes together, unless it says otherwise."""
    limit = config.limits.rate_limit
    if limit is None or "scope" in limit.model_fields_set:
        return config
    limits = config.limits.model_copy(update={KEY: limit.model_copy(update={"scope": "all"})})
    return config.model_copy(update={"limits": limits})


def with_rate_limit(
    policies: Sequence[PolicyFile], limit: RateLimit | None, origins: dict[str, Origin]
) -> tuple[PolicyFile, ...]:
    """The policy files with `limit` in each ingress route that does not name the key, not even to turn it
    off. `origins` learns where it was written.
    """
    if limit is None:
        return tuple(policies)
    written = {path: origin for path, origin in origins.items() if f"{path}.".startswith(f"limits.{KEY}.")}
    made = []
    for policy in policies:
        routes = []
        for route in policy.routes:
            if policy.direction != "ingress" or KEY in route.model_fields_set:
                routes.append(route)
                continue
            routes.append(route.model_copy(update={KEY: limit}))
            prefix = f"policies.{policy.name}.routes.{route.name}"
            origins |= {prefix + path.removeprefix("limits"): origin for path, origin in written.items()}
        made.append(policy.model_copy(update={"routes": tuple(routes)}))
    return tuple(made)

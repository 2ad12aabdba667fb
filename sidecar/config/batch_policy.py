"""`batch` of sidecar.yaml: where batches are kept, and how hard they may work."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, SecretStr, WithJsonSchema, model_validator

from sidecar.config.base import Model, setting
from sidecar.config.units import Count, Duration, PositiveShare, Size, wrong
from sidecar.stores.redis_url import Target
from sidecar.stores.redis_url import parse as parse_redis_url

SQLITE: Final = "sqlite:"
_REDIS: Final = r"(rediss?|valkeys?|unix)(\+(sentinel|cluster))?://"


def _store(value: str) -> str:
    if re.match(_REDIS, value):
        try:
            target = parse_redis_url(value)
        except ValueError as error:
            # The URL may hold a password, which may hold a `?`: no part of it is shown.
            reason = re.sub(r"(?s)^unknown option .*; ", "it has an unknown option; ", str(error))
            raise wrong(f"not the URL of a Redis: {reason}", value) from None
        if target.login.password or target.sentinel_login.password:
            raise wrong("it holds a password, and this key is shown", value, "write it as batch.password")
    elif not value.startswith(SQLITE) or not value.removeprefix(SQLITE).strip("/"):
        mend = f"write for example {SQLITE}sidecar-batch.db, or redis://127.0.0.1:6379"
        shown = "it" if "@" in value else '"{given}"'  # it may hold a password
        raise wrong(f"{shown} is no place for batches", value, mend)
    return value


Store = Annotated[
    str, AfterValidator(_store), WithJsonSchema({"type": "string", "pattern": f"^({SQLITE}.+|{_REDIS}.+)"})
]
Retries = Annotated[int, Field(ge=0, le=100)]


class Batch(Model):
    """Batches: many requests in one file, each through its own route."""

    store: Store | None = setting(
        "sqlite:sidecar-batch.db",
        "Where batches are kept: `sqlite:` and a file, relative to this one, which the first batch makes; or "
        "the URL of a Redis 7 or Valkey that replicas share, written as that of `cache.redis`, without a "
        "password. `off`: no batches.",
        "redis://127.0.0.1:6379/1",
    )
    password: SecretStr | None = setting(
        None, "Password of the Redis of `store`; its user stands in the URL.", "${BATCH_REDIS_PASSWORD}"
    )
    max_store: Size | None = setting(
        None,
        "Size above which the file does not grow: batches are refused then; `off`: the disk's. A Redis has "
        "`maxmemory` of its own.",
        "2GiB",
    )
    size: Count = setting(
        50,
        "Lines that are fetched at a time, at first; adapts between 10 and 200. BATCH_SIZE goes before this.",
        100,
    )
    concurrency: Count = setting(10, "Lines in flight at first; adapts to what the upstream bears.", 5)
    max_concurrency: Count = setting(50, "Lines in flight at most, of all batches together.", 20)
    memory: Size = setting("2GiB", "Memory of the process above which batches fetch and send less.", "512MiB")
    cpu: PositiveShare = setting("85%", "CPU of the machine in use above which batches send less.", "70%")
    retries: Retries = setting(
        3, "Repetitions of a line that failed in a way that may pass, where the batch does not say it.", 5
    )
    deadline: Duration = setting(
        "24h",
        "Time after which lines that have not begun end as failed, where the batch does not say it.",
        "2h",
    )
    keep: Duration = setting("7d", "Time that a batch and its results are kept once it is over.", "24h")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.concurrency > self.max_concurrency:
            raise wrong(
                "concurrency is above max_concurrency",
                self.concurrency,
                "lower it, or raise max_concurrency",
            )
        if self.store is None or self.store.startswith(SQLITE):
            if self.password is not None:
                raise wrong("password belongs to a Redis, and store is none", "", "leave it out")
        elif self.max_store is not None:
            raise wrong(
                "max_store is the size of a file, and store is a Redis", "", "set the server's maxmemory"
            )
        return self

    def path(self, directory: Path) -> Path | None:
        """The file of the store; None: it is none, or there is none."""
        if self.store is None or not self.store.startswith(SQLITE):
            return None
        return directory / self.store.removeprefix(SQLITE)

    def redis(self) -> Target | None:
        """The Redis of the store; None: it is none, or there is none."""
        if self.store is None or self.store.startswith(SQLITE):
            return None
        target = parse_redis_url(self.store)
        if self.password is None:
            return target
        return replace(target, login=replace(target.login, password=self.password.get_secret_value()))

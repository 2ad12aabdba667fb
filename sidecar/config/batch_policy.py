"""`batch` of sidecar.yaml: where batches are kept, and how hard they may work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from sidecar.config.base import Model, setting
from sidecar.config.units import Count, Duration, PositiveShare, Size, wrong

SQLITE: Final = "sqlite:"


def _store(value: str) -> str:
    if not value.startswith(SQLITE) or not value.removeprefix(SQLITE).strip("/"):
        raise wrong('"{given}" is no place for batches', value, f"write for example {SQLITE}sidecar-batch.db")
    return value


Store = Annotated[str, AfterValidator(_store), WithJsonSchema({"type": "string", "pattern": f"^{SQLITE}.+"})]
Retries = Annotated[int, Field(ge=0, le=100)]


class Batch(Model):
    """Batches: many requests in one file, each through its own route."""

    store: Store | None = setting(
        "sqlite:sidecar-batch.db",
        "Where batches are kept: `sqlite:` and a file, relative to this one. The file is made by the first "
        "batch. `off`: no batches.",
        "sqlite:/var/lib/sidecar/batch.db",
    )
    max_store: Size | None = setting(
        None, "Size above which the file does not grow: batches are refused then; `off`: the disk's.", "2GiB"
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
        return self

    def path(self, directory: Path) -> Path | None:
        """The file of the store; None: there is none."""
        return None if self.store is None else directory / self.store.removeprefix(SQLITE)

"""What `/metrics` says of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sidecar.telemetry.families import Families, Source


class ConfigCells:
    """What became of the configurations that were offered."""

    __slots__ = ("candidate", "generation", "loaded_at", "reloads", "rollouts", "unapplied")

    def __init__(self) -> None:
        self.generation = 1
        self.candidate = 0
        """The generation that serves a share of the traffic; 0: none does."""
        self.loaded_at = 0.0
        """Unix seconds: when the generation in force was loaded."""
        self.reloads = {"applied": 0, "unchanged": 0, "failed": 0, "started": 0}
        self.rollouts = {"promoted": 0, "rolled_back": 0, "replaced": 0}
        self.unapplied = 0
        """Settings of the files in force that wait for a restart."""


def config_source(cells: ConfigCells) -> Source:
    """The families of one process's configuration."""

    def families(make: Families) -> Iterator[Metric]:
        for name, text, value in (
            ("config_generation", "Number of the configuration in force; 1 at the start.", cells.generation),
            (
                "config_candidate_generation",
                "Number of the one that serves a share of the traffic; 0 where none does.",
                cells.candidate,
            ),
            ("config_loaded_timestamp_seconds", "When it was loaded, in Unix time.", cells.loaded_at),
            ("config_restart_needed", "Settings of the files that wait for a restart.", cells.unapplied),
        ):
            yield make.gauge(name, text, (), [((), value)])
        yield make.counter(
            "config_reloads",
            "Reloads: applied, started (as a rollout), unchanged, or failed (the last good one serves).",
            ("result",),
            [((result,), count) for result, count in cells.reloads.items()],
        )
        yield make.counter(
            "config_rollouts",
            "Guarded rollouts by how they ended; replaced: another reload came.",
            ("outcome",),
            [((outcome,), count) for outcome, count in cells.rollouts.items()],
        )

    return families

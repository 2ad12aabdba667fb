"""Batches and their lines, and what a store of them promises.

A line goes through these states; each arrow is one atomic step of the store:

    pending ── claim ──▶ claimed ── begin ──▶ begun ── finish ──▶ done
       ▲                    │                   │
       └──── release, or the lease ran out ─────┘   (what was begun comes back as `in_doubt`)

A claim is a worker's, and holds as long as the worker renews its lease. What a dead worker held is given to
whoever claims next: so replicas share a batch, and a killed process resumes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol

import orjson

from sidecar.decisions.priority import Priority

LEASE: Final = 10.0
"""Seconds after its last renewal for which a worker's claims hold."""
MOST_BYTES: Final = 8 << 20
"""Of the requests, or results, that a store gives at a time: fewer of them where they are large, but one."""


class Status(Enum):
    """As `status` of a batch says it; `paused` is a running one that cannot go on just now."""

    VALIDATING = "validating"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Outcome(Enum):
    """How a line ended."""

    OK = "ok"
    """Answered with a status below 400."""
    FAILED = "failed"
    """Answered with another status, or not at all."""
    UNKNOWN = "unknown"
    """Begun by a process that died, and not safe to repeat: it may have been done, or not."""


class StoreFailed(Exception):
    """The store could not do what was asked, and did nothing of it. The message is for people."""


class StoreFull(StoreFailed):
    """It has no room: the disk is full, or `batch.max_store` is reached."""


@dataclass(frozen=True, slots=True)
class Options:
    """What whoever submits a batch may choose. Times in seconds."""

    name: str = ""
    priority: Priority = Priority.LOW
    """Which of several batches goes first. All of them come after interactive requests."""
    max_concurrency: int | None = None
    deadline: float | None = None
    """After acceptance; the lines that have not begun by then end as failed."""
    stop_on: int | None = None
    """Failed lines after which the rest is not begun."""
    retries: int = 3
    """Repetitions of a line after failures that may pass."""

    def dump(self) -> bytes:
        return orjson.dumps(
            {
                "name": self.name,
                "priority": self.priority.name,
                "max_concurrency": self.max_concurrency,
                "deadline": self.deadline,
                "stop_on": self.stop_on,
                "retries": self.retries,
            }
        )

    @classmethod
    def parse(cls, text: bytes) -> Options:
        members: dict[str, Any] = orjson.loads(text)
        return cls(**{**members, "priority": Priority[members["priority"]]})


@dataclass(frozen=True, slots=True)
class Item:
    """A line as it is kept: what was asked, checked."""

    number: int
    """Of the line in the file, from 1."""
    custom_id: str
    request: bytes
    """JSON: `method`, `url`, `headers`, `body`."""
    repeatable: bool
    """Asking twice does no more than asking once."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A line that a worker holds."""

    item: Item
    in_doubt: bool
    """Another worker had begun it, and died before its result was stored."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a line ended; `text` is its line of the results, without the line break."""

    number: int
    outcome: Outcome
    text: bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """Lines of a batch."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    unknown: int = 0

    @property
    def done(self) -> int:
        return self.ok + self.failed + self.unknown

    @property
    def pending(self) -> int:
        return self.total - self.done


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the store knows it. Times in Unix seconds."""

    id: str
    options: Options
    status: Status
    created: float
    counts: Counts = field(default_factory=Counts)
    finished: float | None = None
    """When the last of its lines ended."""
    reason: str = ""
    """Why the lines that had not begun were not: `cancelled`, `deadline` or `stopped`; empty: they are."""

    @property
    def over(self) -> bool:
        return self.finished is not None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A line whose `custom_id` an earlier one has."""

    number: int
    first: int


class JobStore(Protocol):
    """Where batches are kept. One object a process; several processes may share what is behind it.

    All operations may raise StoreFailed (or StoreFull), and then have changed nothing. *Durable* means that
    what was done outlives the process and, as far as the disk tells the truth, the machine. Times are Unix
    seconds, so that processes agree on them.
    """

    async def open(self) -> None:
        """Makes ready; what dead workers had begun to submit and never had accepted is removed."""
        ...

    async def close(self) -> None:
        """Lets what was asked for end, and gives the claims of this process back. Safe to call twice."""
        ...

    async def create(self, batch: Batch, worker: str) -> None:
        """A new batch without lines, `validating`. Not durable before `accept`."""
        ...

    async def add(self, batch: str, items: Sequence[Item]) -> list[Duplicate]:
        """Adds lines, all but the duplicates, which are returned. Not durable before `accept`."""
        ...

    async def accept(self, batch: str, total: int) -> None:
        """The batch is `running` from now on. Atomic; durable, with all lines that were added."""
        ...

    async def delete(self, batch: str) -> bool:
        """Removes a batch and all that belongs to it; False where there is none. Durable."""
        ...

    async def batch(self, batch: str) -> Batch | None: ...

    async def batches(self) -> list[Batch]:
        """All of them, the newest first."""
        ...

    async def end(self, batch: str, status: Status, reason: str) -> bool:
        """Says that no further line is to begin, and why; False where that was said or all is over.

        Atomic: of several processes one gets True. Durable.
        """
        ...

    async def claim(self, batch: str, worker: str, most: int, now: float) -> list[Claimed]:
        """Up to `most` lines that nobody holds, in the order of the file; first those of dead workers.

        Fewer where `MOST_BYTES` says so.

        Atomic: no two workers get the same line. A worker that claims renews its lease by that.
        """
        ...

    async def begin(self, batch: str, worker: str, numbers: Sequence[int]) -> list[int]:
        """These claimed lines are about to be sent: durable before it returns.

        Returns those that the worker still holds; the others must not be sent.
        """
        ...

    async def release(self, batch: str, worker: str, numbers: Sequence[int]) -> None:
        """Gives lines back that were not done: pending again, without doubt. Atomic."""
        ...

    async def renew(self, worker: str, now: float) -> None:
        """The worker lives: its claims hold for another `LEASE` seconds."""
        ...

    async def finish(self, batch: str, results: Sequence[Result], now: float) -> list[Result]:
        """Stores results; returns those that were the first of their lines, the others change nothing.

        Atomic and durable. When no line is left the batch is over, and `completed` unless `end` said else.
        """
        ...

    async def results(self, batch: str, after: int, most: int) -> list[tuple[int, bytes]]:
        """Results in the order in which they were stored: those with a position above `after`.

        Up to `most`, fewer where `MOST_BYTES` says so.
        """
        ...

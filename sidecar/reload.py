"""Reloads: from files, a signal or an order to a generation that serves, or to a reason why not.

Reading, checking and what else takes time is done in a thread; then one reference is swapped. Requests in
flight end on the generation that they began with.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from sidecar.config.changes import at_start, changes, held_back
from sidecar.config.problems import ConfigError
from sidecar.egress_plane import authority_of, context_of
from sidecar.history import History, directory_of
from sidecar.listeners.binding import CannotStart
from sidecar.rollout import Split
from sidecar.telemetry.checks import CheckResult, Known
from sidecar.telemetry.config_families import ConfigCells
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping

    from sidecar.app import App
    from sidecar.config.load import Loaded, Source
    from sidecar.data_plane import DataPlane
    from sidecar.generation import Compiled
    from sidecar.listeners.authority import Authority
    from sidecar.telemetry.checks import Check

Result = Literal["applied", "started", "unchanged", "failed"]

MOST_CHANGES: Final = 50
"""Changes that a line of the log names."""
_OVERLAPPING: Final = 16
"""Reports of past reloads that are remembered."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a configuration that was offered."""

    result: Result
    generation: int
    """In force afterwards; where `result` is `started`, the one under trial."""
    changes: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    """Changes that count only when the process starts."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def told(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {
            "result": self.result,
            "generation": self.generation,
            "changes": list(self.changes),
            "restart_needed": list(self.restart),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }


class Reloading:
    """What happens to the configuration of one process."""

    def __init__(self, app: App, source: Source | None) -> None:
        """Without a `source` there is nothing to load again."""
        self._app = app
        self._source = source
        self.cells = ConfigCells()
        self._log = get_logger("sidecar.config")
        self._one = asyncio.Lock()
        self._next = 2
        self._bad: tuple[str, ...] = ()
        """Why the files as they are do not serve; empty: they do."""
        self._wait: tuple[str, ...] = ()
        """Changes of the files in force that count only from the next start."""
        self._handled: Mapping[str, str] = app.in_force.loaded.sources
        self._as_started = app.in_force.loaded
        self.past: deque[dict[str, object]] = deque(maxlen=_OVERLAPPING)
        self._last_trial = ""
        self.cells.loaded_at = app.in_force.since
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- offering ------------------------------------------------------------------------------

    async def reload(self, why: str) -> Outcome:
        """Loads the files again. What is wrong with them is in the outcome, the log, health and metrics."""
        if self._source is None:
            return self._failed(("there are no files to load again",), why)
        async with self._one:
            try:
                loaded = await asyncio.to_thread(self._source.load)
            except ConfigError as error:
                self._handled = error.sources
                return self._failed(tuple(str(problem) for problem in error.problems), why)
            return await self._offer(loaded, why)

    async def offer(self, loaded: Loaded, why: str) -> Outcome:
        """As `reload`, for what was loaded already."""
        async with self._one:
            return await self._offer(loaded, why)

    def refuse(self, error: ConfigError, why: str) -> Outcome:
        """The files are wrong: the last good generation serves on."""
        self._handled = error.sources
        return self._failed(tuple(str(problem) for problem in error.problems), why)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those of `policies` in force, as paths."""
        return self._app.in_force.loaded.patterns

    @property
    def handled(self) -> Mapping[str, str]:
        """The sources of what was offered last, with their digests."""
        return self._handled

    async def _offer(self, loaded: Loaded, why: str) -> Outcome:
        app = self._app
        self._handled = loaded.sources
        self._bad = ()
        wait = tuple(str(it) for it in changes(self._as_started, loaded) if at_start(it.key))
        wait += _listener(self._as_started, loaded)
        loaded = held_back(self._as_started, loaded)
        newest = app.current.parts[-1].loaded
        found = changes(newest, loaded)
        self._wait = wait
        self.cells.unapplied = len(wait)
        warnings = tuple(str(it) for it in loaded.warnings)
        if not found:
            self.cells.reloads["unchanged"] += 1
            outcome = Outcome("unchanged", app.in_force.number, (), wait, (), warnings)
            return self._told(outcome, why)
        shown = tuple(str(it) for it in found)
        try:
            authority = await asyncio.to_thread(prepare, app, newest, loaded)
            self._abandon()
            rule = loaded.config.rollout
            number = self._next
            if rule is None:
                compiled = self._compile(loaded, number)
                before = app.in_force.loaded
                app.serve(compiled)
                await app.adopt(before, loaded, authority)
            else:
                split = Split(app.in_force, self._compile(loaded, number, f"@{number}"), rule, app.clock)
                app.serve(split)
                app.egress.told(authority)
        except CannotStart as error:
            return self._failed((str(error),), why)
        finally:
            app.spares.clear()
        self._next += 1
        if rule is not None:
            self.cells.reloads["started"] += 1
            self.cells.candidate = number
            return self._told(Outcome("started", number, shown, wait, (), warnings), why)
        self.cells.reloads["applied"] += 1
        self._in_force(compiled)
        await self._keep(loaded, why, shown)
        return self._told(Outcome("applied", number, shown, wait, (), warnings), why)

    def _compile(self, loaded: Loaded, number: int, suffix: str = "") -> Compiled:
        """Raises `CannotStart`; what metrics and state know is then as it was."""
        app = self._app
        try:
            return app.compile(loaded, number, suffix)
        except BaseException:
            self._recompile()
            raise

    def _recompile(self) -> None:
        """The generation in force once more: metrics show its own again, and flags count."""
        app = self._app
        now = app.in_force
        app.serve(replace(app.compile(now.loaded, now.number), since=now.since))

    # -- trials --------------------------------------------------------------------------------

    def _abandon(self) -> None:
        """A newer configuration ends the trial of the one before."""
        current = self._app.current
        if isinstance(current, Split):
            self.cells.rollouts["replaced"] += 1
            self._end(current, "replaced", "another configuration came")

    def _end(self, split: Split, outcome: str, why: str) -> None:
        self._app.serve(split.old)
        self.cells.candidate = 0
        self._recompile()
        self._last_trial = f"generation {split.new.number} was {outcome.replace('_', ' ')}: {why}"
        level = self._log.info if outcome == "promoted" else self._log.warning
        level(f"rollout {outcome.replace('_', ' ')}", generation=split.new.number, why=why)
        self.past.append({"rollout": outcome, "generation": split.new.number, "why": why})

    def sweep(self, now: float) -> None:
        """Called about once a second: judges the trial under way."""
        current = self._app.current
        if not isinstance(current, Split) or self._one.locked():
            return
        judgement = current.trial.judge(now)
        if judgement is None:
            return
        if judgement.outcome == "roll_back":
            self.cells.rollouts["rolled_back"] += 1
            self._bad = (f"rolled back: {judgement.why}",)
            self._end(current, "rolled_back", judgement.why)
            return
        self._run(self._promote(current, judgement.why))

    async def _promote(self, split: Split, why: str) -> None:
        async with self._one:
            app = self._app
            if app.current is not split:
                return
            before, loaded = split.old.loaded, split.new.loaded
            try:
                compiled = self._compile(loaded, split.new.number)
            except CannotStart as error:  # a file that it needs is gone since
                self.cells.rollouts["rolled_back"] += 1
                self._bad = (f"rolled back: {error}",)
                self._end(split, "rolled_back", str(error))
                return
            app.serve(compiled)
            self.cells.candidate = 0
            self.cells.rollouts["promoted"] += 1
            self._in_force(compiled)
            await app.adopt(before, loaded, app.egress.authority)
            self._last_trial = f"generation {compiled.number} was promoted: {why}"
            self._log.info("rollout promoted", generation=compiled.number, why=why)
            self.past.append({"rollout": "promoted", "generation": compiled.number, "why": why})
            await self._keep(loaded, "rollout promoted", [str(it) for it in changes(before, loaded)])

    # -- flags ---------------------------------------------------------------------------------

    def switched(self, feature: str, on: bool | None, why: str) -> None:
        """A feature was switched: the generations in use are compiled anew, without or with it."""
        self._log.warning(
            "feature switched", feature=feature, on="as configured" if on is None else on, why=why
        )
        app = self._app
        current = app.current
        if isinstance(current, Split):
            old, new = current.parts
            anew = Split(
                replace(app.compile(old.loaded, old.number), since=old.since),
                replace(app.compile(new.loaded, new.number, f"@{new.number}"), since=new.since),
                current.rule,
                app.clock,
                current.trial,
            )
            app.serve(anew)
        else:
            self._recompile()
        app.follow_features()

    # -- telling -------------------------------------------------------------------------------

    def _in_force(self, compiled: Compiled) -> None:
        self.cells.generation = compiled.number
        self.cells.loaded_at = compiled.since

    def _failed(self, problems: tuple[str, ...], why: str) -> Outcome:
        self._bad = problems
        self.cells.reloads["failed"] += 1
        return self._told(Outcome("failed", self._app.in_force.number, problems=problems), why)

    def _told(self, outcome: Outcome, why: str) -> Outcome:
        self.past.append({"why": why, **outcome.told()})
        facts = {"generation": outcome.generation, "why": why}
        if outcome.result == "failed":
            for problem in outcome.problems:
                self._log.error("configuration refused, the last good one serves", problem=problem, **facts)
            return outcome
        for warning in outcome.warnings:
            self._log.warning("configuration", warning=warning)
        if outcome.restart:
            self._log.warning("this takes a restart", changes=list(outcome.restart), **facts)
        if outcome.result != "unchanged":
            self._log.info(
                "configuration loaded" if outcome.result == "applied" else "rollout started",
                changes=list(outcome.changes[:MOST_CHANGES]),
                more=max(len(outcome.changes) - MOST_CHANGES, 0),
                **facts,
            )
        return outcome

    def keep_first(self) -> None:
        """Begins to keep what the process started with."""
        self._run(self._keep(self._as_started, "start", ()))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="configuration")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Waits for what is being written."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, loaded: Loaded, why: str, found: list[str] | tuple[str, ...]) -> None:
        directory = directory_of(loaded)
        if directory is None:
            return
        try:
            await asyncio.to_thread(History(directory).keep, loaded, self._app.clock.wall(), why, found)
        except (OSError, ValueError) as error:
            self._log.warning(
                "this generation is not kept (write history: {dir: off}, or a directory that can be written)",
                reason=str(error),
            )

    def checks(self) -> Iterator[Check]:
        """What health says of the configuration."""
        app = self._app
        facts: dict[str, object] = {"generation": app.in_force.number}
        if len(self._bad) > 1:
            facts["more_problems"] = len(self._bad) - 1
        if self._wait:
            facts["restart_needed"] = list(self._wait)
        if isinstance(app.current, Split):
            trial = app.current.trial
            facts["candidate"] = {
                "generation": app.current.new.number,
                "so_far": trial.new.told(),
                "beside": trial.old.told(),
            }
        if self._last_trial:
            facts["last_rollout"] = self._last_trial
        bad = f"the last good one serves: {self._bad[0]}" if self._bad else ""
        yield Known("configuration", CheckResult("degraded" if bad else "healthy", bad, facts=facts))
        off = [row for row in app.flags.listed(app.in_force.loaded.config.features) if "reason" in row]
        if off:
            switched = ", ".join(f"{it['feature']} {'on' if it['on'] else 'off'}" for it in off)
            reason = f"switched by an operator: {switched}"
            yield Known("features", CheckResult("degraded", reason, facts={"switched": off}))


def _listener(old: Loaded, new: Loaded) -> tuple[str, ...]:
    """The first policy file of egress needs a listener, which is made at the start."""
    if new.egress is not None and old.egress is None:
        return (f"+ listen.egress: {new.egress} (the first policy file with direction: egress)",)
    return ()


def prepare(plane: DataPlane, before: Loaded, loaded: Loaded) -> Authority | None:
    """In a thread: what reads files or takes time. Raises `CannotStart`."""
    kept = {key for pools in (plane.pools, plane.egress.pools) for key in pools.made_from()}
    known = {(url, tls, files) for _, url, _, tls, files, *_ in kept}
    wanted = [
        (policy.name, url, policy.tls)
        for policy in loaded.policies
        for url in plane.egress.urls(policy, loaded.config.app.url)
    ]
    wanted += [
        (str(rung.upstream), rung.upstream, rung.tls)
        for policy in loaded.policies
        for route in policy.routes
        for rung in route.fallback or ()
        if rung.upstream is not None
    ]
    for name, url, tls in wanted:
        files = loaded.certificates(tls)
        if (url, tls, files) not in known:
            context = context_of(name, url, tls)
            if context is not None:
                plane.spares.add((tls, files), context)
    if before.hosts != loaded.hosts:
        return authority_of(loaded, plane.clock.wall())
    return None

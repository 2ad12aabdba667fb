"""The worker processes: started, watched, replaced, told, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from sidecar.decisions.respawn import Respawn
from sidecar.listeners.binding import CannotStart
from sidecar.process_setup import version_here
from sidecar.telemetry.log import get_logger
from sidecar.workers.channel import Channel, Lost, Refused

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.sink import Sink
    from sidecar.workers.orders import Serve, Start
    from sidecar.workers.report import Report

Status = Literal["starting", "serving", "draining"]

START_PATIENCE: Final = 60.0
"""Seconds that a worker may take until it serves."""
ORDER_PATIENCE: Final = 30.0
"""Seconds that it may take to serve another generation."""
REPORT_PATIENCE: Final = 2.0
"""Seconds that it may take for a report; then its last one counts."""
END_PATIENCE: Final = 5.0
"""Seconds that it may take to end, once it has nothing to do any more."""
_ROOT: Final = Path(__file__).resolve().parents[2]


class Member:
    """One worker process."""

    def __init__(self, index: int, slot: int, since: float) -> None:
        self.index = index
        self.slot = slot
        self.since = since
        """`Clock.now()` when it was started."""
        self.status: Status = "starting"
        self.report: Report | None = None
        """The last one."""
        self.order = 0
        """Of what it serves."""
        self.trouble = ""
        """Why it does not serve what it was told to; empty: it does."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.channel: Channel | None = None
        self.lines: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return 0 if self.process is None else self.process.pid


class Crew:
    """All workers of one lead."""

    def __init__(
        self,
        count: int,
        clock: Clock,
        *,
        sink: Callable[[], Sink] | None,
        start: Callable[[Member], Start],
        handlers: Callable[[Member], dict[str, Callable[..., Any]]],
        on_gone: Callable[[Member], None],
        fds: Callable[[], Sequence[int]],
    ) -> None:
        """`start` is what a new one is told, `handlers` what it may ask, `fds` what it inherits.

        `sink` takes their log lines; None: they write to our standard output themselves. `on_gone` hears of
        each that is no more, with its last report.
        """
        self.count = count
        self.members: list[Member] = []
        self.restarts = {"died": 0, "asked": 0}
        """Workers that were started in the place of others, by why."""
        self.rolling = False
        self._clock = clock
        self._sink = sink
        self._start = start
        self._handlers = handlers
        self._on_gone = on_gone
        self._fds = fds
        self._log = get_logger("sidecar.workers")
        self._respawns = [Respawn() for _ in range(count)]
        self._free = list(range(1, 2 * count + 2))
        """Slots of the ledger that nobody has; 0 is the lead's."""
        self._covered: dict[int, Member] = {}
        """Who accepts for a place that has no worker."""
        self._ending = False
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- starting ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts all. Raises `CannotStart`."""
        await asyncio.gather(*(self._spawn(index) for index in range(self.count)))

    async def _spawn(self, index: int) -> Member:
        """One more, which serves. Raises `CannotStart`."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        member = Member(index, self._free.pop(0), self._clock.now())
        handlers: dict[str, Callable[..., Any]] = {
            **self._handlers(member),
            "serving": lambda: _settle(member.ready, None),
            "failed": lambda why: _settle(member.ready, CannotStart(why)),
            "leaving": lambda: self._run(self._leave(member)),
        }
        try:
            member.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "sidecar.workers", str(theirs.fileno()), version_here()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=None if self._sink is None else asyncio.subprocess.PIPE,
                env=_environment(),
                pass_fds=(theirs.fileno(), *self._fds()),
            )
        except OSError as error:
            ours.close()
            self._free.append(member.slot)
            raise CannotStart(f"workers: no process can be started: {error.strerror}") from error
        finally:
            theirs.close()
        self.members.append(member)
        if self._sink is not None:
            member.lines = self._run(self._forward(member, self._sink))
        member.channel = Channel(self._clock, handlers, lambda: None)
        await member.channel.open(ours)
        self._run(self._watch(member))
        start = self._start(member)
        member.order = start.serve.number
        member.channel.cast("start", start)
        late = CannotStart(f"workers: a worker did not serve within {START_PATIENCE:g} s")
        timer = self._clock.arm(self._clock.now() + START_PATIENCE, lambda: _settle(member.ready, late))
        try:
            await member.ready
        except BaseException:
            if member.process.returncode is None:
                member.process.kill()
            await member.gone.wait()
            raise
        finally:
            timer.cancel()
        member.status = "serving"
        self._arrange()
        self._log.info("worker serves", worker=index + 1, pid=member.pid)
        return member

    async def _forward(self, member: Member, sink: Callable[[], Sink]) -> None:
        """Its log lines become ours: whole ones, so that those of two workers never mix."""
        assert member.process is not None
        assert member.process.stdout is not None
        rest = b""
        while data := await member.process.stdout.read(1 << 18):
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                sink().write(lines + newline, lines.count(b"\n") + 1)
        if rest:
            sink().write(rest + b"\n")

    # -- watching ------------------------------------------------------------------------------

    async def _watch(self, member: Member) -> None:
        assert member.process is not None
        code = await member.process.wait()
        if member.lines is not None:
            await member.lines
        self.members.remove(member)
        self._free.append(member.slot)
        _settle(member.ready, CannotStart(f"workers: a worker ended at its start ({_ended(code)})"))
        self._on_gone(member)
        if member.channel is not None:
            member.channel.close()
        self._arrange()
        member.gone.set()
        if member.status != "serving" or self._ending:
            return
        lived = self._clock.now() - member.since
        self._log.error(
            "worker died",
            worker=member.index + 1,
            pid=member.pid,
            how=_ended(code),
            lived_seconds=round(lived, 1),
        )
        if not self.at(member.index):
            await self._replace_dead(member.index, lived)

    async def _replace_dead(self, index: int, lived: float) -> None:
        while not self._ending:
            delay = self._respawns[index].delay(lived)
            if delay:
                self._log.warning("worker is started later", worker=index + 1, seconds=delay)
                await self._clock.sleep(delay)
            began = self._clock.now()
            try:
                if not self._ending:
                    await self._spawn(index)
                    self.restarts["died"] += 1
            except CannotStart as error:
                self._log.error("worker cannot be started", worker=index + 1, reason=str(error))
                lived = self._clock.now() - began
                continue
            return

    def at(self, index: int) -> list[Member]:
        """Those that serve in this place."""
        return [it for it in self.serving if it.index == index]

    @property
    def serving(self) -> list[Member]:
        return [it for it in self.members if it.status == "serving"]

    def _arrange(self) -> None:
        """What waits at a place without a worker, another accepts."""
        serving = self.serving
        for index in range(self.count):
            there = any(it.index == index for it in serving)
            covering = self._covered.get(index)
            if there or covering not in serving:
                self._covered.pop(index, None)
                if covering is not None and covering.channel is not None:
                    covering.channel.cast("uncover", index)
                if not there and serving and not self._ending:
                    chosen = self._covered[index] = min(
                        serving, key=lambda it: (it.index - index) % self.count
                    )
                    assert chosen.channel is not None
                    chosen.channel.cast("cover", index)

    # -- replacing -----------------------------------------------------------------------------

    async def roll(self) -> int:
        """Replaces all, one after the other: the new one accepts before the old one leaves. How many were."""
        async with self._one:
            self.rolling = True
            try:
                replaced = 0
                for index in range(self.count):
                    for member in self.at(index):
                        replaced += await self._succeed(member)
                self._log.info("workers were restarted", count=replaced)
                return replaced
            finally:
                self.rolling = False

    async def _leave(self, member: Member) -> None:
        async with self._one:
            if member.status == "serving":
                await self._succeed(member)

    async def _succeed(self, member: Member) -> int:
        if self._ending:
            return 0
        try:
            await self._spawn(member.index)
        except CannotStart as error:
            self._log.error(  # the reason says it
                "worker is not replaced: its successor cannot be started",
                worker=member.index + 1,
                reason=str(error),
            )
            return 0
        self.restarts["asked"] += 1
        await self.retire(member, linger=True)
        return 1

    async def retire(self, member: Member, *, linger: bool) -> None:
        """Lets what it has in hand end, takes its last report, and ends it."""
        member.status = "draining"
        self._arrange()
        await self.ask(member, "drain", linger, within=None)
        await self.ask(member, "drain_egress", within=None)
        await self.end(member)

    # -- ending --------------------------------------------------------------------------------

    def close_to_newcomers(self) -> None:
        """No worker is replaced from now on."""
        self._ending = True

    async def drain(self) -> None:
        """All stop accepting clients, and end what they have in hand."""
        self.close_to_newcomers()
        for member in self.serving:
            member.status = "draining"
        linger = False
        await asyncio.gather(*(self.ask(it, "drain", linger, within=None) for it in tuple(self.members)))

    async def drain_egress(self) -> None:
        await asyncio.gather(*(self.ask(it, "drain_egress", within=None) for it in tuple(self.members)))

    async def close(self) -> None:
        """Ends all."""
        self.close_to_newcomers()
        await asyncio.gather(*(self.end(it) for it in tuple(self.members)))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def end(self, member: Member) -> None:
        """Takes its last report, and ends it; kills it where it does not."""
        member.status = "draining"
        await self.take_report(member)
        if member.channel is not None:
            member.channel.cast("finish")
        timer = self._clock.arm(self._clock.now() + END_PATIENCE, lambda: _kill(member))
        await member.gone.wait()
        timer.cancel()

    # -- talking -------------------------------------------------------------------------------

    def others(self, but: Member | None = None) -> Iterator[Channel]:
        for member in self.members:
            if member is not but and member.channel is not None:
                yield member.channel

    async def ask(self, member: Member, name: str, *values: object, within: float | None) -> Any:
        """What it answers; None where it is gone, late or cannot. `within` None: as long as it lives."""
        if member.channel is None:
            return None
        try:
            return await member.channel.call(name, *values, within=1e6 if within is None else within)
        except (Lost, TimeoutError):
            return None
        except Refused as error:
            self._log.warning("worker refused", worker=member.index + 1, what=name, reason=str(error))
            return None

    async def ask_all(self, name: str, *values: object, within: float) -> list[Any]:
        """What those answer that serve, as far as they do."""
        told = await asyncio.gather(*(self.ask(it, name, *values, within=within) for it in self.serving))
        return [it for it in told if it is not None]

    async def take_reports(self) -> None:
        await asyncio.gather(*(self.take_report(it) for it in tuple(self.members)))

    async def take_report(self, member: Member) -> None:
        report: Report | None = await self.ask(member, "report", within=REPORT_PATIENCE)
        if report is not None:
            member.report = report

    def order(self, order: Serve) -> None:
        """All are to serve other generations; `settled` tells when they do."""
        for member in self.members:
            self._run(self._order(member, order))

    async def _order(self, member: Member, order: Serve) -> None:
        assert member.channel is not None
        try:
            member.order = await member.channel.call("serve", order, within=ORDER_PATIENCE)
            member.trouble = ""
        except Lost:
            return
        except (Refused, TimeoutError) as error:
            member.trouble = str(error) or "it did not answer in time"
            self._log.error(  # the reason says it
                "worker serves an older generation", worker=member.index + 1, reason=member.trouble
            )

    async def settled(self, number: int) -> None:
        """Waits until all serve as the order of that number has it, or have said why not."""
        until = self._clock.now() + ORDER_PATIENCE
        while self._clock.now() < until:
            if all(it.order >= number or it.trouble for it in self.serving):
                return
            await self._clock.sleep(0.01)

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name="workers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # whoever waits raises it; nobody need


def _kill(member: Member) -> None:
    if member.process is not None and member.process.returncode is None:
        member.process.kill()


def _ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _environment() -> dict[str, str]:
    """Ours; this very package is found, wherever the process was started."""
    if _ROOT.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

"""`sidecar run`: from the start to a signal, or to the end of the app that was started too."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvloop

from sidecar import core_files
from sidecar.allocator import keep_chunks
from sidecar.app import App
from sidecar.child import FORWARDED, Child, interrupted_from_terminal
from sidecar.child_start import led_child
from sidecar.clock import SystemClock
from sidecar.listeners.binding import CannotStart
from sidecar.process_setup import worker_count

if TYPE_CHECKING:
    from sidecar.config.load import Loaded, Source
    from sidecar.watching import Watching


async def serve(loaded: Loaded, command: Sequence[str], source: Source | None = None) -> int:
    """Serves until a signal or the end of the child; returns the exit code."""
    core = core_files.forgo()
    clock = SystemClock()
    app = _app(loaded, clock, source)
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        if not stopping.done():
            stopping.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    if app.watching is not None:
        loop.add_signal_handler(signal.SIGHUP, app.watching.now, "SIGHUP")
    loop.add_signal_handler(signal.SIGUSR2, app.restart_workers)
    try:
        await app.start()
    except BaseException:
        await app.stop()
        raise
    child: Child | None = None
    try:
        if command:
            try:
                child = await Child.start(*await led_child(app, loaded, command, os.environ), clock)
            except OSError as error:
                raise CannotStart(f"{command[0]}: {error.strerror}; is the command right?") from error
            core_files.allow(child.pid, core)
            app.log.info("started the app", command=command[0], pid=child.pid)
            for number in FORWARDED:
                loop.add_signal_handler(number, child.signal, number)
            if app.watching is not None:
                loop.add_signal_handler(signal.SIGHUP, _hang_up, app.watching, child)
            await asyncio.wait((stopping, child.exited), return_when=asyncio.FIRST_COMPLETED)
        else:
            await stopping
        await app.drain()
        if child is not None:
            by_terminal = (
                stopping.done() and stopping.result() == signal.SIGINT and interrupted_from_terminal()
            )
            await child.stop(loaded.config.limits.drain, by_terminal=by_terminal)
            app.log.info("the app ended", code=child.exit_code)
        await app.drain_egress()
        return 0 if child is None else child.exit_code
    finally:
        await app.stop()


def _app(loaded: Loaded, clock: SystemClock, source: Source | None) -> App:
    """This process alone, or the lead of several."""
    count = worker_count(loaded.config)
    if count == 1:
        return App(loaded, clock, source)
    from sidecar.workers.lead import Lead

    return Lead(loaded, clock, source, count)


def _hang_up(watching: Watching, child: Child) -> None:
    """Both are asked to load their configuration again."""
    watching.now("SIGHUP")
    child.signal(signal.SIGHUP)


def run(loaded: Loaded, command: Sequence[str], source: Source | None = None) -> int:
    """`sidecar run`: 0 after a clean stop, the child's code where there is one, 2 where it cannot start."""
    keep_chunks()
    try:
        return uvloop.run(serve(loaded, command, source))
    except CannotStart as error:
        sys.stderr.write(f"sidecar: {error}\n")
        return 2
    finally:
        # The loop took its handlers with it: told once more to stop, the process would say with its exit
        # code that it was killed, though all is over but the interpreter's own end.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

"""The app as a child of the sidecar: `sidecar run -- COMMAND`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sidecar.clock import Clock

FORWARDED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
"""Signals that are the child's affair; of SIGHUP it is the sidecar's, too."""


class Child:
    """A started command. It shares our terminal and our output."""

    def __init__(self, process: asyncio.subprocess.Process, clock: Clock) -> None:
        self._process = process
        self._clock = clock
        self.exited = asyncio.get_running_loop().create_task(process.wait(), name="child")

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], clock: Clock) -> Child:
        """Raises `OSError` where the command cannot be started."""
        process = await asyncio.create_subprocess_exec(*command, env=dict(environment))
        return cls(process, clock)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, patience: float, *, by_terminal: bool) -> None:
        """SIGTERM, then after `patience` seconds SIGKILL. `by_terminal`: Ctrl-C reached the child too."""
        if self._process.returncode is not None:
            return
        if not by_terminal:
            self.signal(signal.SIGTERM)
        timer = self._clock.arm(self._clock.now() + patience, lambda: self.signal(signal.SIGKILL))
        await self.exited
        timer.cancel()

    @property
    def exit_code(self) -> int:
        """As a shell gives it: 128 and the signal's number for a child that a signal ended."""
        code = self._process.returncode
        if code is None:
            return 0
        return 128 - code if code < 0 else code


def interrupted_from_terminal() -> bool:
    """Ctrl-C is sent to the whole foreground process group, the child included."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False

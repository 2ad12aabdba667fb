"""Ends what a runner started, should the runner die: a process of its own.

    python -m sidecar.drills.guard FOLDER

On standard input, a line for each process: `+PID`, and `-PID` once it has ended. When the input ends, what is
left is killed, a stopped process too, and the runner's folder is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable


def left(lines: Iterable[str]) -> list[int]:
    """The processes that nobody ended, in the order in which they were started."""
    pids: dict[int, None] = {}
    for line in lines:
        pid = int(line[1:])
        if line.startswith("+"):
            pids[pid] = None
        else:
            pids.pop(pid, None)
    return list(pids)


def main() -> None:
    # Ctrl-C is for the runner, which ends all in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for pid in left(sys.stdin):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()

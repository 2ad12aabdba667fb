"""Core files: a crash of the sidecar leaves none, as its memory holds keys. The app's are its own affair.

Only Linux can give the limit back to a process that is there already; elsewhere nothing is changed.
`prlimit --core=unlimited --pid PID` allows one again, for whoever looks for a fault.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

Limits = tuple[int, int]
"""The soft and the hard one, in bytes."""


def forgo() -> Limits:
    """No core file of this process from now on. Returns what was allowed before."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    return limits


def allow(process: int, limits: Limits) -> None:
    """Gives a child that was started meanwhile what was allowed before."""
    if sys.platform == "linux":
        with suppress(OSError):  # it has ended, or become another user
            resource.prlimit(process, resource.RLIMIT_CORE, limits)

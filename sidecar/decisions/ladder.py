"""Which failures a fallback stands in for, and whether another upstream may be asked the same.

A request that one upstream may have acted on is not given to a second one, unless its method is
idempotent (RFC 9110, 9.2.2) or the policy says that it may: nginx's `proxy_next_upstream` draws the same
line.
"""

from __future__ import annotations

from typing import Final

from sidecar.decisions.verdict import Verdict

FALLING: Final = frozenset({Verdict.TRANSIENT, Verdict.RATE_LIMITED, Verdict.QUOTA})
"""There is no good answer. `auth` counts where a policy lists it."""
_ANSWERS: Final = frozenset({Verdict.OK, Verdict.NEGATIVE, Verdict.CLIENT})


def is_answer(verdict: Verdict | None) -> bool:
    """Whether what another upstream said ends the search."""
    return verdict is None or verdict in _ANSWERS


def skipped(method: str, safe: frozenset[str], *, nothing_sent: bool, replayable: bool) -> str:
    """Why another upstream must not be asked; empty where it may be.

    `nothing_sent`: the first one got nothing. `replayable`: the request's body is still here, whole.
    """
    if not nothing_sent and method not in safe:
        return "method"
    return "" if replayable else "body-too-large"

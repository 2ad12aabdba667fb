"""Whether a failed attempt may be repeated.

The facts that decide, in the order in which they are asked (and in which a refusal is explained):
was that kind of failure listed, does the client retry by itself, are attempts left, is the request safe
to repeat, is the body still there, does the upstream's own wish fit, do the wait and the attempt fit
into the time left. The budget is not asked here: it is the last word, and pays only for a retry that
all the rest allows.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from sidecar.decisions.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110, 9.2.2: several identical requests are meant to have the effect of one."""

_QUOTA: Final = Verdict.QUOTA
_TRANSIENT: Final = Verdict.TRANSIENT


class Replay(Enum):
    """GO, or the reason why not; the values are the words of the decision trail and of metrics."""

    GO = "go"
    NOT_LISTED = "not-listed"
    """Not a failure, or none that the route retries."""
    CLIENT_RETRIES = "client-retries"
    """The request is a repetition by the client, which will make the next one too."""
    ATTEMPTS = "attempts"
    """All attempts are used up."""
    METHOD = "method"
    """The upstream may have acted already, and nothing says that twice is as good as once."""
    BODY_TOO_LARGE = "body-too-large"
    """The request body is gone: it was larger than what is kept."""
    ADVISED_AGAINST = "x-should-retry"
    """The upstream says that it is no use."""
    RETRY_AFTER = "retry-after"
    """The upstream asks for more patience than the route has."""
    DEADLINE = "deadline"
    """When the wait is over, too little time is left for an attempt."""


def wait_before(delay: float, retry_after: float | None) -> float:
    """Seconds to wait: the back-off's `delay`, and no less than the upstream asks for."""
    return delay if retry_after is None or retry_after < delay else retry_after


class RetryRule:
    """The retry settings of a route, ready to judge.

    `attempts` counts the first one. `methods` are those that may be repeated after something was
    sent. `errors` holds `UpstreamError.reason` names. `retry_after_max` in seconds.
    """

    __slots__ = ("_errors", "_statuses", "_verdicts", "attempts", "methods", "retry_after_max")

    def __init__(
        self,
        attempts: int,
        methods: Iterable[str] = IDEMPOTENT,
        verdicts: Iterable[Verdict] = (Verdict.TRANSIENT, Verdict.RATE_LIMITED),
        statuses: Iterable[int] = (),
        errors: Iterable[str] = ("connect", "reset", "timeout"),
        retry_after_max: float = 20.0,
    ) -> None:
        self.attempts = attempts
        self.retry_after_max = retry_after_max
        self.methods = frozenset(methods)
        """Two requests of such a method are as good as one, whatever became of the first."""
        # A tuple: `in` finds members by identity, a set would call Enum's slow __hash__.
        self._verdicts = tuple(verdicts)
        self._statuses = frozenset(statuses)
        self._errors = frozenset(errors)

    def listed(self, reason: str | None, verdict: Verdict | None, status: int) -> bool:
        """Whether the route retries such an end of an attempt at all.

        `reason` is the error's, where there was one; else `verdict` and `status` are the answer's. A
        listed status is retried even where the verdict `transient` is not, which it has unless a rule of
        `classify` knows better. A spent quota never is: no repetition mends that.
        """
        if reason is not None:
            return reason in self._errors
        if verdict is _QUOTA:
            return False
        return verdict in self._verdicts or (verdict is _TRANSIENT and status in self._statuses)

    def judge(
        self,
        *,
        method: str,
        reason: str | None,
        verdict: Verdict | None,
        status: int,
        attempts: int,
        client_retries: bool = False,
        keyed: bool = False,
        nothing_sent: bool = False,
        replayable: bool = True,
        advised_against: bool = False,
        delay: float,
        retry_after: float | None = None,
        time_left: float | None = None,
        typical: float = 0.0,
    ) -> Replay:
        """What to do after attempt number `attempts` ended as `reason`, `verdict` and `status` tell.

        `client_retries`: the request says that it is a repetition. `keyed`: it has an idempotency key
        that the upstream honours. `nothing_sent`: no byte of it left, so any method may be repeated.
        `replayable`: its body is all still held, or untouched. `advised_against`: by the answer. `delay`
        (the back-off's), `retry_after` (None: not asked for), `time_left` to the deadline (None: there is
        none) and `typical`, what an attempt usually takes (0: not known), are seconds.
        """
        if not self.listed(reason, verdict, status):
            return Replay.NOT_LISTED
        if client_retries:
            return Replay.CLIENT_RETRIES
        if attempts >= self.attempts:
            return Replay.ATTEMPTS
        if not (nothing_sent or keyed or method in self.methods):
            return Replay.METHOD
        if not replayable:
            return Replay.BODY_TOO_LARGE
        if advised_against:
            return Replay.ADVISED_AGAINST
        if retry_after is not None:
            if retry_after > self.retry_after_max:
                return Replay.RETRY_AFTER
            delay = wait_before(delay, retry_after)
        if time_left is not None and (delay >= time_left or time_left - delay < typical):
            return Replay.DEADLINE
        return Replay.GO

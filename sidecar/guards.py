"""Layers that stand around an attempt without a coroutine of their own.

A guard decides before the attempt, mostly without waiting, and learns from how it ended. Each coroutine on
the way has to be made, and to be woken; so guards that follow one another in the pipeline share one. What
each does, and in which order, is the same as if they were nested.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from sidecar.exchange import Exchange, Response

T = TypeVar("T")
Handler = Callable[["Exchange"], Awaitable["Response"]]


class Guard(NamedTuple, Generic[T]):
    """What one layer does around an attempt. `T`: what it keeps of it in the meantime."""

    enter: Callable[[Exchange, float], T | None]
    """Lets it go, at `Clock.now()`, or raises what it is refused with; None: that cannot be told at once, so
    `wait`. Guards that nobody waits in between share one look at the clock."""
    leave: Callable[[Exchange, T, Response], None]
    """The attempt was answered."""
    fail: Callable[[Exchange, T, BaseException], BaseException]
    """It ended with an error, or was cancelled; returns what those above are to see."""
    wait: Callable[[Exchange], Awaitable[T]] | None = None
    """As `enter`, after a while; None where `enter` always knows."""


class Guarded:
    """A layer that is a guard."""

    __slots__ = ("_now", "bind")

    def __init__(self, bind: Callable[[], Guard[Any]], now: Callable[[], float]) -> None:
        """`bind` is called where the pipeline is composed, with an event loop running."""
        self.bind = bind
        self._now = now

    def __call__(self, inner: Handler) -> Handler:
        return guarded((self.bind(),), inner, self._now)


MOST: Final = 4
"""Guards that share a coroutine."""


def guarded(guards: Sequence[Guard[Any]], inner: Handler, now: Callable[[], float]) -> Handler:
    """`inner` with `guards`, outermost first, around it. `now` is `Clock.now`."""
    if not guards:
        return inner
    return _together(guards[:MOST], guarded(guards[MOST:], inner, now), now)


async def _never(_: Exchange) -> Any:
    raise AssertionError("a guard without `wait` always knows")


def _together(guards: Sequence[Guard[Any]], inner: Handler, now: Callable[[], float]) -> Handler:
    # Written out: a loop over the guards would cost as much as half of their coroutines.
    count = len(guards)
    padded = [*guards, *[guards[0]] * (MOST - count)]
    (
        (enter1, leave1, fail1, wait1),
        (enter2, leave2, fail2, wait2),
        (enter3, leave3, fail3, wait3),
        (enter4, leave4, fail4, wait4),
    ) = ((guard.enter, guard.leave, guard.fail, guard.wait or _never) for guard in padded)

    async def attempt(exchange: Exchange) -> Response:
        held = 0
        one = two = three = four = None
        at = now()
        try:
            one = enter1(exchange, at)
            if one is None:
                one = await wait1(exchange)
                at = now()
            held = 1
            if count > 1:
                two = enter2(exchange, at)
                if two is None:
                    two = await wait2(exchange)
                    at = now()
                held = 2
                if count > 2:
                    three = enter3(exchange, at)
                    if three is None:
                        three = await wait3(exchange)
                        at = now()
                    held = 3
                    if count > 3:
                        four = enter4(exchange, at)
                        if four is None:
                            four = await wait4(exchange)
                        held = 4
            response = await inner(exchange)
            if held == 4:
                held = 3
                leave4(exchange, four, response)
            if held == 3:
                held = 2
                leave3(exchange, three, response)
            if held == 2:
                held = 1
                leave2(exchange, two, response)
            held = 0
            leave1(exchange, one, response)
        except BaseException as error:
            raised = error
            if held == 4:
                raised = fail4(exchange, four, raised)
            if held >= 3:
                raised = fail3(exchange, three, raised)
            if held >= 2:
                raised = fail2(exchange, two, raised)
            if held >= 1:
                raised = fail1(exchange, one, raised)
            if raised is error:
                raise
            raise raised from None
        return response

    return attempt

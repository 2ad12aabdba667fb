"""When the next request to a provider may go, by what its answers say of its quota.

Three sources, the best that there is counts: quotas that the provider states (`quota_window`), else the rate
that its refusals teach (`learnt_rate`, begun at the configured one). What an answer asks for (Retry-After)
holds whatever they say. Interactive requests take what is left of a quota at once; batch requests take an
even share of it over the time to the reset, so that at any moment some of it is left for the others.

A request refused without any word of how long is followed by a pause, which doubles each time (RFC 6298,
5.5), and by one request that finds out.

Where nothing is known yet, batch requests go as a TCP sender starts (RFC 5681, 3.1): one, and with each
answer one more at a time; so the first answer's quota, or the first refusal, meets few of them.
"""

from __future__ import annotations

from math import exp
from typing import Final

from sidecar.decisions.learnt_rate import UNKNOWN, LearntRate
from sidecar.decisions.quota_headers import NOTHING, Stated
from sidecar.decisions.quota_hold import LONGEST, Hold
from sidecar.decisions.quota_window import NEVER, NO_ONE, UNSENT, QuotaWindow
from sidecar.decisions.verdict import Verdict

Mark = tuple[int, int, float, bool]
"""What is kept of a request that has its turn: its number, the answers there were before it, when it was
sent, whether it is a batch request."""

_QUOTA, _RATE_LIMITED, _TRANSIENT = Verdict.QUOTA, Verdict.RATE_LIMITED, Verdict.TRANSIENT
NO_BOUND: Final = float("inf")
STEEP: Final = 16.0
MOST_WINDOWS: Final = 8
"""The names are the provider's: they must not pile up."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
MEMORY: Final = 60.0
"""Seconds over which the rate of interactive requests is averaged."""


class Pacer:
    """`now` is monotonic seconds. What `take` gives is owed one `answered`, `lost` or `give_back`."""

    def __init__(self, rate: float | None, burst: int, *, learn: bool, hold: float | None) -> None:
        """`rate`: turns a second to begin with, None for no limit. Raises ValueError, as `LearntRate`."""
        self.rate = LearntRate(rate, burst, learn=learn)
        self.windows: list[QuotaWindow] = []
        self.hold = Hold(hold)
        self.learn = learn
        self.sent = 0
        self.done = 0
        """Of those sent, how many are answered or lost."""
        self._blocked = float("-inf")
        self._low_open = 0
        self._ramp = 1.0 if rate is None and learn else NO_BOUND
        """Batch requests that may be under way where nothing is known."""
        self._pause = 0.0
        """Seconds of the last pause; 0: none."""
        self._probe = NO_ONE
        self._again = False
        """Nothing was accepted since the last refusal."""
        self._recover = NO_ONE
        """Number of the last request that was sent before the last refusal."""
        self.busy = False
        """Something else than the rate may be in the way of a request."""
        self._last_low = UNSENT
        self._interactive = 0.0
        self._interactive_at = float("-inf")

    # -- turns ---------------------------------------------------------------------------------

    def at_once(self, now: float) -> Mark | None:
        """A turn, where even a batch request could go at once: the short way for the usual case."""
        rate, sent, done = self.rate, self.sent, self.done
        if self.busy or sent - done >= self._ramp or now < rate.tat:
            return None
        rate.take(now)
        self.sent = sent = sent + 1
        return (sent, done, now, False)

    def next_turn(self, now: float, *, low: bool) -> float:
        """When the next request may go: `now` or before, later, or `NEVER`."""
        at = self._blocked
        under_way = self.sent - self.done
        if self.windows:
            interactive = self._interactive_rate(now) if low else 0.0
            for window in self.windows:
                window.refresh(now, self.sent, under_way)
                turn = window.turn(now, low=low, last=self._last_low, interactive=interactive)
                at = max(at, turn)
        else:
            at = max(at, self.rate.turn(low=low))
            if low and self.rate.rate == UNKNOWN and self._low_open >= self._ramp:
                return NEVER
        if self._pause:
            if self._probe != NO_ONE:
                return NEVER
        elif not self.windows and at <= now and not self.hold.active:
            self.busy = False
        return at

    def take(self, now: float, *, low: bool) -> Mark:
        """The next request goes: it has its turn, or is the one that probes."""
        if not self.windows:
            self.rate.take(now)
        mark = self.go_anyway(now, low=low)
        if self._pause and self._probe == NO_ONE:
            self._probe = mark[0]
        if self.hold.active:
            self.hold.probe = mark[0]
        return mark

    def go_anyway(self, now: float, *, low: bool) -> Mark:
        """A request goes out of turn; the rate does not mind, what is stated does."""
        self.sent += 1
        if self.windows:
            for window in self.windows:
                window.spend(self.sent)
            if low:
                self._last_low = now
            else:
                self._interactive = self._interactive_rate(now) + 1 / MEMORY
                self._interactive_at = now
        if low:
            self._low_open += 1
        return (self.sent, self.done, now, low)

    def before(self) -> tuple[float, float]:
        """What `give_back` is to be told if the turn that is taken next is not used."""
        return self.rate.tat, self._last_low

    def give_back(self, mark: Mark, before: tuple[float, float]) -> None:
        """The request is not sent after all."""
        if mark[0] == self.sent:  # else others have had theirs in the meantime: their distances stay
            self.rate.tat, self._last_low = before
        self.lost(mark, sent=False)

    def lost(self, mark: Mark, *, sent: bool) -> None:
        """No answer will come; `sent`: the provider may have got the request all the same."""
        self._close(mark)
        if not sent:
            for window in self.windows:
                window.restore()

    def _close(self, mark: Mark) -> None:
        number, _, _, low = mark
        self.done += 1
        if low:
            self._low_open -= 1
        if number == self._probe:
            self._probe = NO_ONE
        if number == self.hold.probe:
            self.hold.probe = NO_ONE
        for window in self.windows:
            if number == window.finder:
                window.finder = NO_ONE

    # -- what answers teach --------------------------------------------------------------------

    def answered(
        self, mark: Mark, now: float, verdict: Verdict, stated: Stated = NOTHING, asked: float | None = None
    ) -> None:
        """`asked`: seconds that the answer asks to be left alone for; looked at where it is a refusal."""
        number = mark[0]
        holding = number == self.hold.probe
        under_way = self.sent - self.done  # itself included
        self._close(mark)
        if self.learn and stated is not NOTHING:
            self._learn(mark, now, stated, under_way)
        if verdict is _QUOTA:
            if self.hold.begin(now, asked if asked is not None else _longest_reset(stated)):
                self.busy = True
            return
        if verdict is _TRANSIENT:
            return
        if holding:
            self.hold.end()
        if verdict is _RATE_LIMITED:
            self._refused(number, now, stated, asked)
            return
        self._accepted()
        if self._again and number > self._recover:
            self._again = False
            if self._pause:
                self._pause, self._probe = 0.0, NO_ONE
                self._resume(now, now)
        if self.windows and not stated.quotas:
            self._forget_silent(number)

    def passed(self) -> None:
        """`answered`, in short, where `busy` is not set: an answer like most, to an interactive request."""
        self.done += 1
        # As `_accepted`, without the call, which would be a tenth of what a turn costs.
        self.rate.accepted += 1
        ramp = self._ramp
        self._ramp = ramp + (1.0 if ramp < STEEP else 1.0 / ramp)

    def _accepted(self) -> None:
        """One more at a time for each answer, up to `STEEP`; then for each round of answers."""
        self.rate.accepted += 1
        ramp = self._ramp
        self._ramp = ramp + (1.0 if ramp < STEEP else 1.0 / ramp)  # NO_BOUND stays what it is

    def _learn(self, mark: Mark, now: float, stated: Stated, under_way: int) -> None:
        number, before, sent_at, _ = mark
        self.busy = True
        if stated.empty_for is not None:
            self._blocked = max(self._blocked, now + min(stated.empty_for, LONGEST))
        doubt = self.sent - before - 1
        for quota in stated.quotas:
            window = self._window(quota.name)
            window.state(
                quota, now, number=number, sent_at=sent_at, sent=self.sent, doubt=doubt, under_way=under_way
            )

    def _window(self, name: str) -> QuotaWindow:
        for window in self.windows:
            if window.name == name:
                return window
        if len(self.windows) >= MOST_WINDOWS:
            del self.windows[0]
        window = QuotaWindow(name)
        self.windows.append(window)
        return window

    def _forget_silent(self, number: int) -> None:
        """A quota that answers to requests after its reset do not state any more is no longer known."""
        self.windows = [window for window in self.windows if not window.silent(number)]
        if not self.windows and self.rate.rate == UNKNOWN:
            self._ramp = 1.0

    def _refused(self, number: int, now: float, stated: Stated, asked: float | None) -> None:
        self.busy = True
        if asked is not None:
            asked = min(asked, LONGEST)
            self._blocked = max(self._blocked, now + asked)
        again = self._again
        used_up = [quota.name for quota in stated.quotas if quota.remaining == 0] if self.learn else ()
        for name in used_up:
            self._window(name).refused(asked, again=again)
        if number <= self._recover:
            return
        self._recover, self._again = self.sent, True
        if used_up and (asked is not None or not again):
            return  # the window knows how long
        if not self.windows:
            self.rate.refused()
        if asked is None:
            longest = FIRST_PAUSE if self.rate.rate == UNKNOWN else min(FIRST_PAUSE, 2.0 / self.rate.rate)
            self._pause = min(self._pause * 2, LONGEST_PAUSE) if self._pause else longest
            self._blocked = max(self._blocked, now + self._pause)
        else:
            self._pause = 0.0
            self._resume(self._blocked, now)

    def _resume(self, at: float, now: float) -> None:
        if not self.windows:
            self.rate.resume(at, now)
            if self.rate.rate != UNKNOWN:
                self._ramp = NO_BOUND

    # -- what is shown -------------------------------------------------------------------------

    @property
    def probing(self) -> bool:
        """The next request finds out, at its own risk, whether the provider accepts any again."""
        return self._pause > 0 and self._probe == NO_ONE

    def expected(self, now: float, *, low: bool, ahead: int) -> float:
        """When a request that comes now may have its turn, `ahead` others before it; `NEVER`: not known."""
        at = max(self.next_turn(now, low=low), now)
        if ahead and at != NEVER:
            if self.windows:
                interactive = self._interactive_rate(now) if low else 0.0
                for window in self.windows:
                    at = max(at, window.after(now, ahead, low=low, interactive=interactive))
            else:
                at += ahead / self.rate.rate
        return at

    def pace(self, now: float) -> float | None:
        """Requests a second that go on in an even flow; None: as many as come."""
        if self.windows:
            for window in self.windows:
                window.refresh(now, self.sent, self.sent - self.done)
            return min(window.flow(now) for window in self.windows)
        return self.rate.rate if self.rate.rate != UNKNOWN else None

    def remaining(self, now: float) -> float | None:
        """Requests left of the tightest quota that is stated; None: none is."""
        if not self.windows:
            return None
        for window in self.windows:
            window.refresh(now, self.sent, self.sent - self.done)
        return max(min(window.credit for window in self.windows), 0.0)

    def held_for(self, now: float) -> float | None:
        """Seconds until a request may go; None: nothing is held."""
        return self.hold.left(now) if self.hold.active else None

    def _interactive_rate(self, now: float) -> float:
        """Turns a second that interactive requests took lately."""
        return self._interactive * exp(min(self._interactive_at - now, 0.0) / MEMORY)


def _longest_reset(stated: Stated) -> float | None:
    """Seconds until all that is used up is whole again; None where nothing stated is."""
    waits = [quota.reset for quota in stated.quotas if quota.remaining == 0]
    if stated.empty_for is not None:
        waits.append(stated.empty_for)
    return max(waits, default=None)

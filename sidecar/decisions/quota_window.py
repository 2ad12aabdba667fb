"""What is known of one quota that a provider states: how much is left, and when it is whole again.

Facts. A statement is of the moment when the provider counted that request. Of those sent about the same time
it may have counted any number since: `remaining` is the most that can be left, and `remaining` less all in
doubt the least. What was counted from earlier statements lies between, or is put there.

A provider renews its quota in one of these ways, and no field says in which:

* At once, when a window ends. The end stays where it is while the window lasts.
* Little by little, as a token bucket does. `reset` is then the time until it is full, so each request moves
  that away by 1 / rate, and rate is (limit - remaining) / reset. (OpenAI: limit 60, remaining 59, reset 1 s.)
* One by one, as they leave a sliding window. `reset` is then when the next one leaves, as a rule.

The first is taken for granted until the end was seen to move as a bucket's does. Where a reset does not bring
back the whole, what it brought is expected of the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.decisions.quota_headers import Quota

NEVER: Final = float("inf")
"""Not before an answer comes."""
UNSENT: Final = float("-inf")
NO_ONE: Final = -1

COARSE: Final = 1.5
"""Seconds that a stated reset may be wrong by: most are whole seconds, some rounded up and some down."""
MOVES: Final = 3
"""Times that the end must have moved away, by as much as a bucket's, before it is one."""
ALIKE: Final = 3.0
"""Times that two measures of a bucket's rate may differ by: others may use it too."""
SHORTEST: Final = 1.0
"""Seconds of a window whose length is not known."""
LONGEST: Final = 86400.0
"""Seconds: a reset that is further away is looked for earlier, by a single request."""


class QuotaWindow:
    """All times are monotonic seconds. `number` is that of a request, `sent` that of the last one."""

    __slots__ = (
        "_anchor",
        "_anchored",
        "_at",
        "_inherited",
        "_latest",
        "_moves",
        "_newest",
        "_since",
        "_soonest",
        "_told",
        "_told_at",
        "_unheard",
        "alone",
        "credit",
        "finder",
        "length",
        "limit",
        "name",
        "refill",
        "renewal",
        "reset_at",
        "stale",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.credit = 0.0
        """Requests that may be sent now."""
        self.limit = 0.0
        self.reset_at = UNSENT
        self.length = 0.0
        """Seconds from one reset to the next, as far as known."""
        self.refill = 0.0
        """Requests a second that come back, in a bucket; 0: it is none."""
        self.stale = True
        """The reset has passed, and no answer has told yet what it brought."""
        self.alone = False
        """Once the reset has passed, a single request is to find out what it brought: one was refused."""
        self.finder = NO_ONE
        """That request, while it is under way."""
        self.renewal = NEVER
        """What a reset brings back, as last seen."""
        self._at = UNSENT
        self._newest = NO_ONE
        """The request whose answer said the last that counts."""
        self._anchor = self._soonest = self._latest = UNSENT
        """Where the end was said to be at first, and the bounds of where it is."""
        self._anchored = NO_ONE
        self._moves = 0
        self._told, self._told_at = 0.0, UNSENT
        """What was left by that answer, and when it came."""
        self._since = NO_ONE
        """The last request sent before the last reset."""
        self._unheard = 0
        """Requests of which it is not clear on which side of the next reset they count."""
        self._inherited = 0
        """Requests that may have been counted on either side of the last reset."""

    # -- time, and what is sent ----------------------------------------------------------------

    def refresh(self, now: float, sent: int, under_way: int) -> None:
        """Brings it up to `now`. `under_way`: requests sent of which no answer has been looked at."""
        if self.refill:
            if self.credit < self.limit:
                self.credit = min(self.limit, self.credit + self.refill * (now - self._at))
            self._at = now
            self.reset_at = now + (self.limit - self.credit) / self.refill
        elif now >= self.reset_at:
            length = max(self.length, SHORTEST)
            self.reset_at += length * (1.0 + (now - self.reset_at) // length)
            if self.reset_at <= now:  # by what floats lose
                self.reset_at += length
            # Those under way may be counted in the new window, and those that were not listened to.
            inherited = under_way + self._unheard
            whole = max(min(self.limit, self.renewal), 1.0)
            self.credit = max(whole - inherited, 0.0 if under_way else 1.0)
            self.stale = True
            self._since, self._inherited, self._unheard = sent, inherited, 0

    def spend(self, number: int) -> None:
        """Request `number` is sent."""
        self.credit -= 1.0
        if self.alone and self.stale:
            self.finder = number

    def restore(self) -> None:
        """A request that was to be sent was not."""
        self.credit = min(self.credit + 1.0, self.limit)

    # -- what answers say ----------------------------------------------------------------------

    def state(
        self, quota: Quota, now: float, *, number: int, sent_at: float, sent: int, doubt: int, under_way: int
    ) -> None:
        """Learns from the answer to request `number`, which was sent at `sent_at`.

        `doubt`: requests that the provider may have counted after this one. One that it counted before the
        one that was learnt from last, or in a window that is over, says nothing new of what is left.
        """
        if self._newest != NO_ONE:
            self.refresh(now, sent, under_way)
        remaining = float(quota.remaining)
        past = number <= self._since and sent_at + quota.reset <= now
        beside = sent_at <= self._told_at and remaining > self._told and not self.stale
        if number < self._newest or past or beside:
            self._unheard += 1
            if not (self.stale or self.refill):  # all the same it may have been counted later
                self._soonest = max(self._soonest, sent_at + quota.reset)
                self.reset_at = max(self.reset_at, self._soonest)
            return
        self._newest, self._at = number, now
        self._told, self._told_at = remaining, now
        limit = float(quota.limit) if quota.limit is not None else max(self.limit, remaining + 1.0)
        if limit != self.limit:
            self.limit, self.refill, self.length = limit, 0.0, 0.0
        # After a slow answer its window may be over by now: the end that it speaks of brings nothing back.
        over = sent_at + quota.reset <= now and now - sent_at > COARSE
        self._unheard = int(limit - remaining) if over else 0
        self._place(quota, now, number, sent_at)
        if self.stale:
            self.stale = self.alone = False
            self.finder = NO_ONE
            if self._since != NO_ONE:  # the first word after a reset: so much it brought at most
                self.renewal = remaining + (sent - self._since) + self._inherited
            whole = self.renewal > self.limit / 2
            self.length = max(self.length, quota.reset, quota.window or 0.0) if whole else quota.reset
        self.credit = min(max(self.credit, remaining - doubt, 0.0), remaining)
        if self.reset_at > now + LONGEST:
            self.reset_at, self.alone = now + LONGEST, True

    def _place(self, quota: Quota, now: float, number: int, sent_at: float) -> None:
        """Learns when the window ends, or that it is a bucket."""
        if self.refill:
            self._adjust(quota)
            return
        # The provider said it at some moment between these two.
        soonest, latest = sent_at + quota.reset, now + quota.reset
        coarse = COARSE + (now - sent_at)
        earlier = latest < self._anchor - coarse
        if self.stale or earlier or now + coarse >= self.reset_at:
            # Of requests that went at the same time the last one counted may be answered first.
            self._soonest = soonest if self.stale or earlier else max(self._soonest, soonest)
            self._anchor = self._latest = latest
            self._anchored = number
            self._moves = 0
        else:
            self._compare(quota, number, soonest, latest, coarse)
        # A reset that is rounded down puts the latest before the soonest.
        self.reset_at = max(self._soonest, self._latest)

    def _compare(self, quota: Quota, number: int, soonest: float, latest: float, coarse: float) -> None:
        """Learns from where the end was said to be before, and is now."""
        moved, requests = latest - self._anchor, number - self._anchored
        each = quota.reset / max(self.limit - quota.remaining, 1.0)  # that a request moves a bucket's end by
        if moved > coarse:
            alike = quota.limit is not None and each / ALIKE < moved / max(requests, 1) < each * ALIKE
            self._moves = self._moves + 1 if alike else 0
            self._anchor = self._soonest = self._latest = latest
            self._anchored = number
            if self._moves >= MOVES:
                self._adjust(quota)
            return
        self._soonest = max(self._soonest, soonest)
        self._latest = min(self._latest, latest)
        if requests * each > 2 * coarse:
            self._moves = 0

    def _adjust(self, quota: Quota) -> None:
        # `remaining` is rounded down, so one more may be left: of all the answers the highest such rate is
        # the bucket's, or a little less.
        used = self.limit - quota.remaining - 1.0
        if used >= 1.0 and quota.reset >= COARSE and used / quota.reset > self.refill:
            self.refill = used / quota.reset

    def refused(self, asked: float | None, *, again: bool) -> None:
        """A request was refused with nothing left; to be told after what its answer states.

        `asked`: seconds after which the provider wants to be asked again; `again`: so was the one before.
        """
        self.credit = 0.0
        if self.refill:
            # A bucket has the next one soon: who is to wait for longer, or in vain, has met a window.
            if again if asked is None else asked > COARSE + 2.0 / self.refill:
                self.refill = 0.0
                self._moves = 0
        elif asked is not None:
            self.reset_at = self._at + asked
        self.alone = not self.refill

    def silent(self, number: int) -> bool:
        """Whether it has passed without a word on it in the answer to request `number`."""
        return self.stale and number > self._since

    # -- turns; to be asked after `refresh` ----------------------------------------------------

    def turn(self, now: float, *, low: bool, last: float, interactive: float) -> float:
        """When the next request may go: `now` or before, later, or `NEVER`.

        `low`: a batch request; the one before went at `last`. It leaves to others what they are expected to
        use up to the reset, `interactive` requests a second, and takes an even share of the rest.
        """
        if self.credit < 1.0:
            return now + (1.0 - self.credit) / self.refill if self.refill else self.reset_at
        if self.finder != NO_ONE:
            return NEVER
        if not low:
            return now
        spare = self._spare(now, interactive)
        if spare < 1.0:
            return min(now + (1.0 - spare) / (self.refill + interactive), self.reset_at)
        begun = self.reset_at - self.length
        if last < begun <= now and not self.refill:  # that was in an earlier window
            last = begun
        return last + (self.reset_at - last) / (spare + 0.5) if last > UNSENT else now

    def _spare(self, now: float, interactive: float) -> float:
        # Of a single one there is nothing to leave to others but the first place in the queue.
        return self.credit if self.credit < 2.0 else self.credit - interactive * max(self.reset_at - now, 0.0)

    def after(self, now: float, ahead: int, *, low: bool, interactive: float) -> float:
        """When a request may expect its turn, `ahead` others before it."""
        left = max(self.reset_at - now, 0.0)
        spare = max(self._spare(now, interactive), 0.0) if low else self.credit
        if self.refill:
            # An even share of what is in a bucket keeps it half full.
            return now + max(ahead + 1 - (spare / 2 if low else spare), 0.0) / self.refill
        if ahead < spare:
            return now + ahead * left / spare if low else now
        windows = (ahead - spare) / max(min(self.limit, self.renewal), 1.0)
        return self.reset_at + (windows if low else int(windows)) * max(self.length, SHORTEST)

    def flow(self, now: float) -> float:
        """Requests a second that go on evenly."""
        return self.refill or max(self.credit, 0.0) / max(self.reset_at - now, 0.001)

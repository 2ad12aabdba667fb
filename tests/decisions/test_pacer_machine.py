"""The pacer beside providers that count for themselves: whatever happens, in whatever order."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.decisions.pacer import Mark, Pacer
from sidecar.decisions.quota_headers import Quota, Stated
from sidecar.decisions.quota_window import COARSE
from sidecar.decisions.verdict import Verdict
from tests.support.quotas import Count, FixedWindow, TokenBucket


@dataclass
class Sent:
    mark: Mark
    count: Count | None = None
    """What the provider said to it; None while it is on its way there."""


class BesideAProvider(RuleBasedStateMachine):
    """A provider that states its quota, and a pacer that has seen one answer of it.

    Requests take any time to the provider and any time back, in all no longer than a window, and overtake
    one another. A bucket's reset is known to within the time that they take there, so to a bucket they take
    none.
    """

    @initialize(
        limit=st.integers(2, 12),
        seconds=st.sampled_from([1.0, 4.0, 10.0, 60.0]),
        bucket=st.booleans(),
        offset=st.integers(0, 15),
    )
    def build(self, limit: int, seconds: float, bucket: bool, offset: int) -> None:
        self.now = 1000.0 + offset / 16 * seconds
        self.provider = TokenBucket(limit, seconds) if bucket else FixedWindow(limit, seconds)
        self.pacer = Pacer(None, 1, learn=True, hold=60.0)
        self.seconds = seconds
        self.on_the_way: list[Sent] = []
        self.refused = 0
        self.ask(low=True)
        self.arrives(0)
        self.comes_back(0)

    def ask(self, *, low: bool) -> bool:
        if self.pacer.next_turn(self.now, low=low) > self.now:
            return False
        self.on_the_way.append(Sent(self.pacer.take(self.now, low=low)))
        return True

    def arrives(self, at: int) -> None:
        sent = [it for it in self.on_the_way if it.count is None][at]
        sent.count = self.provider.count(self.now)
        self.refused += not sent.count.admitted

    def comes_back(self, at: int) -> None:
        sent = [it for it in self.on_the_way if it.count is not None][at]
        self.on_the_way.remove(sent)
        count = sent.count
        assert count is not None
        verdict = Verdict.OK if count.admitted else Verdict.RATE_LIMITED
        quota = Quota("requests", count.remaining, count.reset, self.provider.limit)
        self.pacer.answered(sent.mark, self.now, verdict, Stated((quota,)))

    # -- what may happen -----------------------------------------------------------------------

    @rule(sixteenths=st.one_of(st.integers(0, 8), st.integers(0, 200)))
    def wait(self, sixteenths: int) -> None:
        self.pass_time(self.now + sixteenths / 16)

    def pass_time(self, until: float) -> None:
        while isinstance(self.provider, TokenBucket) and any(it.count is None for it in self.on_the_way):
            self.arrives(0)
        while self.on_the_way and self.on_the_way[0].mark[2] < until - self.seconds:
            if self.on_the_way[0].count is None:
                self.arrives(0)
            counted = [it for it in self.on_the_way if it.count is not None]
            self.comes_back(counted.index(self.on_the_way[0]))
        self.now = until

    @rule(low=st.booleans(), many=st.integers(1, 15))
    def requests_come(self, low: bool, many: int) -> None:
        for _ in range(many):
            self.ask(low=low)

    @precondition(lambda self: not self.on_the_way)
    @rule(low=st.booleans())
    def one_waits_for_its_turn(self, low: bool) -> None:
        """With nothing under way a turn comes: within three windows, however late the answers were."""
        until = self.now + 3 * self.seconds + 2 * COARSE
        while (at := self.pacer.next_turn(self.now, low=low)) > self.now:
            assert at <= until
            self.now = at
        assert self.ask(low=low)

    @precondition(lambda self: any(it.count is None for it in self.on_the_way))
    @rule(data=st.data())
    def one_arrives(self, data: st.DataObject) -> None:
        waiting = sum(it.count is None for it in self.on_the_way)
        self.arrives(data.draw(st.integers(0, waiting - 1)))

    @precondition(lambda self: any(it.count is not None for it in self.on_the_way))
    @rule(data=st.data(), many=st.integers(1, 5))
    def some_come_back(self, data: st.DataObject, many: int) -> None:
        for _ in range(many):
            counted = sum(it.count is not None for it in self.on_the_way)
            if counted:
                self.comes_back(data.draw(st.integers(0, counted - 1)))

    @precondition(lambda self: any(it.count is None for it in self.on_the_way))
    @rule()
    def one_is_never_sent(self) -> None:
        sent = next(it for it in self.on_the_way if it.count is None)
        self.on_the_way.remove(sent)
        self.pacer.lost(sent.mark, sent=False)

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def nothing_is_refused(self) -> None:
        assert self.refused == 0

    @invariant()
    def the_books_balance(self) -> None:
        assert self.pacer.sent - self.pacer.done == len(self.on_the_way)


BesideAProvider.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
TestBesideAProvider = BesideAProvider.TestCase

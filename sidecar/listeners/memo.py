"""Heads of requests that the cache has answered: one just like them is answered without the pipeline.

A head is known byte for byte, or but for lines that decide about nothing: ids, traces and cookies. Their
values differ from request to request, and are held against the grammar each time, as `heads` does. Who asks
is settled by the listener, the answer comes from the cache's store (`caching/again.py`), and `observe` counts
and logs it: there is no second way to do any of these. What is not as simple goes through the pipeline.

Only what `heads` has read is known here: HTTP/1.1 on a connection that stays open, with no body, no `Expect`,
no `Upgrade`. Only a GET that asks nothing of a cache has an answer that may be repeated (`Repeatable`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from sidecar.exchange import Request
from sidecar.headers import Line
from sidecar.heads import CONTROLS, LONGEST
from sidecar.listeners import reply

if TYPE_CHECKING:
    from sidecar.caching.again import Again
    from sidecar.caching.answers import Repeatable
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange, Response
    from sidecar.heads import Block
    from sidecar.listeners.parser import Head
    from sidecar.listeners.protocol import ServerProtocol, Serving

V = TypeVar("V")

MOST: Final = 1024
"""Heads known, and request lines with heads that are known but for some values."""
MOST_FORMS: Final = 4
"""Such heads of one request line."""
PATIENCE: Final = 16
"""Heads that find no room beside others of their request line before one takes the oldest's place."""
MOST_SEEN: Final = 8192
LARGEST: Final = 32 * 1024
"""Bytes of a body: less than a transport takes before it pauses (64 KiB), so that no answer waits here."""

DIFFERING: Final = frozenset(
    {
        b"b3",
        b"baggage",
        b"cookie",
        b"sentry-trace",
        b"tracestate",
        b"uber-trace-id",
        b"x-amzn-trace-id",
        b"x-b3-parentspanid",
        b"x-b3-sampled",
        b"x-b3-spanid",
        b"x-b3-traceid",
        b"x-client-trace-id",
        b"x-cloud-trace-context",
        b"x-correlation-id",
        b"x-datadog-parent-id",
        b"x-datadog-sampling-priority",
        b"x-datadog-trace-id",
    }
)
"""Fields that mostly differ between requests for the same, besides those that the sidecar itself sets."""
_DEBUG: Final = b"x-sidecar-debug"


class _Varying(Line):
    """A line whose value is another's next time. Owned by one form, and so never shared; has no `wire`."""

    __slots__ = ()

    def __init__(self, line: Line) -> None:
        self.name = line.name
        self.kind = line.kind
        self.tokens = line.tokens
        self.nominates = line.nominates
        self.value = line.value
        self.wire = b""


class Known:
    """A request that the cache answered, and what answers it again."""

    __slots__ = ("_parts", "_tail", "again", "exchange", "on_sent")

    def __init__(self, exchange: Exchange, again: Again, form: Form | None = None) -> None:
        assert exchange.on_sent is not None
        self.exchange = exchange
        """Of all such requests, one after the other."""
        self.on_sent = exchange.on_sent
        self.again = again
        self._parts = () if form is None else tuple(form.parts)
        self._tail = b"" if form is None else form.tail

    def fits(self, data: bytes) -> bool:
        """Whether `data` is this head but for the values of its varying lines, which it then takes over."""
        at = 0
        for before, line in self._parts:
            if not data.startswith(before, at):
                return False
            start = at + len(before)
            at = data.find(b"\r\n", start)
            value = data[start:at]
            if at < 0 or value.translate(None, CONTROLS) != value:
                return False
            line.value = value.strip(b" \t")
        return data[at:] == self._tail

    @property
    def skeleton(self) -> tuple[bytes, ...]:
        """The same for all heads that it fits, and for no others."""
        return (*(before for before, _ in self._parts), self._tail)


class Form:
    """A head, taken apart at the values that may be others next time."""

    def __init__(self, data: bytes, block: Block, literal: frozenset[bytes]) -> None:
        """`literal`: the fields, in lower case, whose values always count."""
        self.parts: list[tuple[bytes, _Varying]] = []
        """What stands before such a value, and its line."""
        names = {line.name for line in block.ours}
        plain: list[Line] = []
        ours: list[Line] = []
        # `heads` has moved the lines that the sidecar replaces to the end.
        others = iter(block.headers[: len(block.headers) - len(block.ours)])
        replaced = iter(block.ours)
        line_of_request, *lines = data[:-4].split(b"\r\n")
        before = line_of_request + b"\r\n"
        for raw in lines:
            written, colon, _ = raw.partition(b":")
            mine = written.lower() in names
            line = next(replaced if mine else others)
            if (mine or line.name in DIFFERING) and line.name not in literal:
                line = _Varying(line)
                self.parts.append((before + written + colon, line))
                before = b"\r\n"
            else:
                before += raw + b"\r\n"
            (ours if mine else plain).append(line)
        self.tail = before + b"\r\n"
        self.headers = [*plain, *ours]
        self.ours = ours


class Memo:
    """Of the routes of one configuration. Bounded; the oldest make room. For one event loop."""

    __slots__ = ("_exact", "_forms", "_looked_at", "_now", "_routing", "_seen", "_turned_away", "_wall")

    def __init__(
        self,
        clock: Clock,
        *,
        looked_at: frozenset[bytes],
        routing: Callable[[str, str], frozenset[bytes]],
    ) -> None:
        """`looked_at` are request headers, in lower case, whose values always count; `routing` tells by
        method and path which others decide about a route.
        """
        self._now = clock.now
        self._wall = clock.wall
        self._looked_at = looked_at
        self._routing = routing
        self._exact: dict[bytes, Known] = {}
        """By the whole head."""
        self._forms: dict[bytes, list[Known]] = {}
        """By the request line."""
        self._seen: set[int] = set()
        """Digests of keys that were hit once: most of a long tail never are again."""
        self._turned_away = 0

    def __len__(self) -> int:
        return len(self._exact) + sum(map(len, self._forms.values()))

    def answer(self, connection: ServerProtocol, listener: Serving, data: bytes, now: float) -> bool:
        """Answers `data`, which came at `now` (`Clock.now()`) on an idle connection, if it is known.

        False: nothing was done about it.
        """
        known = self._exact.get(data)
        if known is None and self._forms:
            known = self._fitting(data)
        if known is None or not connection.idle:
            return False
        transport = connection.transport
        assert transport is not None
        again = known.again
        entry = again.look(self._wall())
        if entry is None:
            return False
        body = entry.body
        exchange = known.exchange
        exchange.started = now
        exchange.client = connection.peer
        listener.identify(exchange, connection)
        exchange.informational = None  # it would keep the connection
        exchange.cached = again.cached
        exchange.sent = len(body)
        exchange.first_byte = self._now()
        transport.write(b"".join((again.head, exchange.id_line, b"\r\n", body)))
        exchange.on_sent = on_sent = known.on_sent
        on_sent(exchange, again.response, "done")
        return True

    def _fitting(self, data: bytes) -> Known | None:
        forms = self._forms.get(data[: data.find(b"\r\n")])
        if forms is None or len(data) > LONGEST:
            return None
        for known in forms:
            if known.fits(data):
                return known
        return None

    # -- learning ------------------------------------------------------------------------------

    def learn(self, exchange: Exchange, response: Repeatable, head: Head | None) -> None:
        """Remembers a request whose answer is on its way, if `head` is its own."""
        request = exchange.request
        if head is None or head[1].target is not request.target or head[2].headers is not request.headers:
            return
        data, start, block = head
        if not self._wanted(exchange) or not _usual(exchange, block):
            return
        again = response.source.again(exchange, self._wall(), _opening)
        if again is None:
            return
        exchange = copy.copy(exchange)
        literal = self._looked_at | again.varies | self._routing(request.method, request.path)
        form = Form(data, block, literal)
        if not form.parts:
            _make_room(self._exact, data)
            self._exact[data] = Known(exchange, again)
            return
        exchange.request = varying = Request(
            request.method, request.target, form.headers, host=request.host, scheme=request.scheme
        )
        varying.ours = form.ours
        if all(line.name != b"x-correlation-id" for line in form.headers):
            varying.correlation = b""
        self._add(start.line[:-2], Known(exchange, again, form))

    def _wanted(self, exchange: Exchange) -> bool:
        """Whether what the cache gave was asked for more than once."""
        assert exchange.cached is not None
        digest = hash(exchange.cached[0])
        if digest in self._seen:
            return True
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen.add(digest)
        return False

    def _add(self, line: bytes, known: Known) -> None:
        forms = self._forms.get(line)
        if forms is None:
            _make_room(self._forms, line)
            forms = self._forms[line] = []
        skeleton = known.skeleton
        for number, other in enumerate(forms):
            if other.skeleton == skeleton:
                forms[number] = known
                return
        if len(forms) >= MOST_FORMS:
            self._turned_away += 1
            if self._turned_away % PATIENCE:
                return
            del forms[0]
        forms.append(known)


def _usual(exchange: Exchange, block: Block) -> bool:
    """Nothing was decided, noted or asked for but what the cache says."""
    return (
        exchange.on_sent is not None
        and exchange.note_list is None
        and not exchange.told
        and exchange.span is None
        and not exchange.rung
        and all(line.name != _DEBUG for line in block.ours)
    )


def _opening(response: Response, size: int) -> bytes | None:
    return None if size > LARGEST else reply.opening(response, size)


def _make_room(memory: dict[bytes, V], key: bytes) -> None:
    if len(memory) >= MOST and key not in memory:
        del memory[next(iter(memory))]

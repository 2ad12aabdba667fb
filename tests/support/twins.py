"""Two sidecars in one process that get the same bytes at the same time: one knows heads, the other does not.

Listeners, routes, pipelines, stores, pools and log are the product's own; the transports at both ends are
lists of bytes, and time stands still until a script moves it. What the two say to their clients and to their
upstreams, log and count must not differ: `Twins.difference` finds what does.
"""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any
from unittest import mock

from sidecar.caching.cache import Caching
from sidecar.caching.control import Control
from sidecar.clock import Ids
from sidecar.config.addresses import Address
from sidecar.config.schema import PolicyFile
from sidecar.generation import Generation
from sidecar.listeners.ingress import Limits, Listener
from sidecar.overlap import Overlaps
from sidecar.pipeline import Handler, Services
from sidecar.state import State
from sidecar.stores.memory import Memory
from sidecar.stores.tiered import Tiered
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.correlation import Fields
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.route_cells import RouteCells
from sidecar.upstreams.connection import UpstreamConnection
from sidecar.upstreams.pool import Upstream
from tests.support.clock import ManualClock, ScriptedRandom, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sidecar.exchange import Exchange
    from sidecar.listeners.memo import Memo
    from sidecar.listeners.protocol import ServerProtocol

TURNS = 4
"""Of the event loop between two looks whether all is answered."""
ROUNDS = 10
"""Looks after which what is not answered waits for more than the event loop."""


class Wire:
    """A transport that keeps what is written."""

    def __init__(self, peer: str = "") -> None:
        self.written = bytearray()
        self.closed = False
        self.paused = False
        self.protocol: Any = None
        self._peer = peer

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (self._peer, 5555) if name == "peername" else default

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.written += data

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.write(b"".join(parts))

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


class _FromUpstream(Wire):
    """The upstream's end: answers each request that came whole, by what `answer` makes of its head."""

    def __init__(self, answer: Callable[[bytes], bytes], seen: bytearray) -> None:
        super().__init__()
        self._answer = answer
        self._seen = seen

    def write(self, data: bytes) -> None:
        super().write(data)
        self._seen += data
        head, end, body = bytes(self.written).partition(b"\r\n\r\n")
        if not end:
            return
        lower = head.lower()
        if b"\r\ntransfer-encoding:" in lower:
            whole = body.endswith(b"0\r\n\r\n")
        else:
            _, _, rest = lower.partition(b"\r\ncontent-length: ")
            whole = len(body) >= int(rest.partition(b"\r\n")[0] or 0)
        if whole:
            self.written.clear()
            asyncio.get_running_loop().call_soon(self._send, self._answer(head))

    def _send(self, data: bytes) -> None:
        if not self.closed:
            self.protocol.data_received(data)


class _Pool(Upstream):
    """A pool whose connections need no network."""

    def __init__(
        self, answer: Callable[[bytes], bytes], clock: ManualClock, ids: Ids, metrics: Metrics
    ) -> None:
        super().__init__(
            "origin", Address("192.0.2.1", 80), clock=clock, ids=ids, cells=metrics.upstream("origin")
        )
        self._by = answer
        self.seen = bytearray()
        """All that was sent to the upstream."""

    async def _connect(self, exchange: Exchange) -> UpstreamConnection:
        connection = UpstreamConnection(self)
        exchange.address = connection.address = self.address.host
        wire = _FromUpstream(self._by, self.seen)
        wire.protocol = connection
        connection.connection_made(wire)  # type: ignore[arg-type]
        self._cells.connections_opened += 1
        self._open.add(connection)
        return connection


class _Lines:
    """A sink that makes lines at once."""

    def __init__(self) -> None:
        self.lines = b""
        self.dropped = 0
        self.is_terminal = False

    def write_made(self, make: Callable[[], bytes], _: int) -> None:
        self.lines += make()


class _Counting:
    """A memo, and how often it had the answer."""

    def __init__(self, memo: Memo, before: int) -> None:
        self._memo = memo
        self.answered = before

    def answer(self, *arguments: Any) -> bool:
        found = self._memo.answer(*arguments)
        self.answered += found
        return found


class Twin:
    """One sidecar."""

    def __init__(
        self,
        policy: Mapping[str, Any],
        answer: Callable[[bytes], bytes],
        *,
        knows: bool,
        memory: int,
        trusted: Sequence[str],
        fields: Sequence[tuple[str, str]],
    ) -> None:
        self.knows = knows
        self.clock = ManualClock(turns=TURNS * ROUNDS)
        ids = Ids()
        ids._prefix = "5ea1ed" * 4  # the twins give the same ids
        ids._turn()
        self.metrics = Metrics()
        self._sink = _Lines()
        self.log = AccessLog(self._sink, self.clock, fields=Fields(fields))  # type: ignore[arg-type]
        store = Tiered(Memory(memory, self.clock), None, self.clock)
        self.caching = Caching(store, self.clock, in_use=True)
        self._services = Services(
            clock=self.clock,
            overlaps=Overlaps(self.clock),
            random=ScriptedRandom(0.5),
            state=State(self.metrics, self.clock),
            metrics=self.metrics,
            access_log=self.log,
            caching=self.caching,
        )
        self._policy = PolicyFile.model_validate(policy)
        self.upstream = _Pool(answer, self.clock, ids, self.metrics)
        self.listener = Listener(
            Limits(head=4096, body=None, connections=64, header_timeout=10.0, idle=75.0, drain=30.0),
            self._route,
            clock=self.clock,
            ids=ids,
            cells=self.metrics.listener("ingress"),
            trusted=[ip_network(network) for network in trusted],
            debug=[ip_network("127.0.0.2")],
        )
        self.memo: _Counting | None = None
        self.reload()
        self.control = Control(self.caching, self._route, ids, "app")
        self.wires: dict[int, Wire] = {}

    def _route(self, exchange: Exchange) -> Handler:
        return self._generation.route(exchange)

    def reload(self) -> None:
        """Another generation of the same routes."""
        with (
            contextlib.nullcontext()
            if self.knows
            else mock.patch("sidecar.generation.Memo", return_value=None)
        ):
            self._generation = Generation(
                [self._policy], {self._policy.name: self.upstream}, self.upstream, self._services
            )
        if self._generation.memo is not None:
            self.memo = _Counting(self._generation.memo, self.by_memo)
            self.listener.memo = self.memo  # type: ignore[assignment]

    @property
    def by_memo(self) -> int:
        """Requests that were answered without the pipeline."""
        return 0 if self.memo is None else self.memo.answered

    def wire(self, number: int) -> Wire:
        """The connection of that number, made anew where it has ended. Its client is 127.0.0.`number`."""
        wire = self.wires.get(number)
        if wire is None or wire.closed:
            wire = self.wires[number] = Wire(f"127.0.0.{number}")
            wire.protocol = protocol = self.listener.protocol()
            protocol.connection_made(wire)  # type: ignore[arg-type]
        return wire

    @property
    def busy(self) -> bool:
        connections: list[ServerProtocol] = [wire.protocol for wire in self.wires.values() if not wire.closed]
        return any(connection._busy for connection in connections) or len(self.caching.fills) > 0

    def shown(self) -> dict[str, object]:
        """All that it has said, logged and counted; what it said since the last look only."""
        self.log.flush()
        said = {number: (bytes(wire.written), wire.closed) for number, wire in self.wires.items()}
        shown: dict[str, object] = {
            "answers": said,
            "upstream": bytes(self.upstream.seen),
            "log": self._sink.lines,
        }
        for wire in self.wires.values():
            wire.written.clear()
        self.upstream.seen.clear()
        self._sink.lines = b""
        return shown

    def counted(self) -> dict[str, object]:
        """Metrics and books."""
        memory = self.caching.store.memory
        cells = self.metrics.upstream("origin")
        return {
            "routes": {
                route.name: _plain(self.metrics.route(route.name, "origin")) for route in self._routes
            },
            "store": self.caching.store.stats(),
            "uses": [(node.key, node.uses, node.main, node.until) for node in memory._nodes.values()],
            "entries": [getattr(node.record, "used", None) for node in memory._nodes.values()],
            "connections": (cells.connections_opened, cells.connections_reused),
            "refused": self.metrics.listener("ingress").bad_requests,
        }

    @property
    def _routes(self) -> Sequence[Any]:
        return self._policy.routes


def _plain(cells: RouteCells) -> dict[str, object]:
    found = {name: getattr(cells, name) for name in cells.__slots__}
    durations = found.pop("durations")
    return {**found, "buckets": list(durations.buckets), "seconds": durations.seconds}


class Twins:
    """A pair, and the script that both follow."""

    def __init__(
        self,
        policy: Mapping[str, Any],
        answer: Callable[[], Callable[[bytes], bytes]],
        *,
        memory: int = 1 << 20,
        trusted: Sequence[str] = ("127.0.0.3",),
        fields: Sequence[tuple[str, str]] = (("tenant", "X-Tenant"),),
    ) -> None:
        """`answer` makes an upstream: from the head of a request to the bytes of a response."""
        self.knowing, self.other = (
            Twin(policy, answer(), knows=knows, memory=memory, trusted=trusted, fields=fields)
            for knows in (True, False)
        )

    @property
    def both(self) -> tuple[Twin, Twin]:
        return self.knowing, self.other

    async def send(self, number: int, *chunks: bytes) -> None:
        """Each chunk is one read of the connection `number`; then all that follows without time passing."""
        for chunk in chunks:
            for twin in self.both:
                wire = twin.wire(number)
                wire.protocol.data_received(chunk)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(ROUNDS):
            await settle(TURNS)
            if not self.knowing.busy and not self.other.busy:
                return

    async def wait(self, seconds: float) -> None:
        for twin in self.both:
            await twin.clock.advance(seconds)
        await self.settle()

    async def purge(self, **what: str) -> None:
        for twin in self.both:
            await twin.control.purge(**what)
        await self.settle()

    def reload(self) -> None:
        for twin in self.both:
            twin.reload()

    async def leave(self, number: int) -> None:
        for twin in self.both:
            twin.wire(number).close()
        await self.settle()

    def difference(self, *, counts: bool = True) -> str:
        """What the two have shown since the last look that is not the same; empty where all is."""
        mine, theirs = ({**twin.shown(), **(twin.counted() if counts else {})} for twin in self.both)
        return "\n".join(
            f"{name}:\n  with:    {mine[name]!r}\n  without: {theirs[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        )

    async def close(self) -> None:
        for twin in self.both:
            for wire in twin.wires.values():
                wire.close()
            twin.upstream.close()
            await settle()
            await twin.caching.close()
            twin.log.close()

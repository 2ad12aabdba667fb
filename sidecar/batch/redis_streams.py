"""Batches in Redis or Valkey, for replicas on several machines: `redis_scripts` says how they are kept.

An answer that got lost may stand for something that was done. All operations may be repeated then: a line has
one first result, and lines that a lost answer would have given are given back before the next claim.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

import psutil

from sidecar.batch import redis_scripts as scripts
from sidecar.batch.jobs import (
    LEASE,
    MOST_BYTES,
    Batch,
    Claimed,
    Counts,
    Duplicate,
    Item,
    Options,
    Result,
    Status,
    StoreFailed,
)
from sidecar.batch.redis_calls import RedisCalls, Refused
from sidecar.batch.worker import host, lives
from sidecar.stores.redis_wire import within
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.stores.redis_url import Target
    from sidecar.stores.resp import Reply

PREFIX: Final = b"sidecar:batch:"
INDEX: Final = PREFIX + b"all"
"""Sorted set: the batches by when they were created."""
PARTING: Final = 1.0
"""Seconds that closing may wait for the server."""
SPARE: Final = 3600.0
"""Seconds that a finished batch outlives its time: the runner forgets it first, where one runs."""
FSYNC_PATIENCE: Final = 5000
"""Milliseconds that the server may take to have its append-only file on the disk."""
_BATCH: Final = (
    *(b"options", b"status", b"created", b"total", b"ok", b"failed", b"unknown"),
    *(b"finished", b"reason"),
)


class Gone(StoreFailed):
    """Another process has deleted the batch, or the server has lost it."""


class RedisStreams:
    """A `JobStore` in a Redis 7 or Valkey, or a cluster of them."""

    def __init__(self, target: Target, clock: Clock, keep: float) -> None:
        """`keep`: seconds after which the server itself forgets what is over."""
        self._clock = clock
        self._calls = RedisCalls(target, clock)
        self._keep = b"%d" % (keep + SPARE)
        me = psutil.Process()
        self._process = b"%d %.3f" % (me.pid, me.create_time())
        self._leases: set[tuple[str, str]] = set()
        """Batches, and workers of this process that have a lease there."""
        self._held: dict[str, set[int]] = {}
        """By batch, the lines that were given to this process."""
        self._astray: set[str] = set()
        """Batches in which lines may have been claimed without anybody being told."""
        self._unwanted: set[str] = set()
        """Batches that were told as not accepted, and may have been."""
        self._log = get_logger("sidecar.batch")

    # -- life ----------------------------------------------------------------------------------

    async def open(self) -> None:
        self._calls.open()
        try:
            await self._check()
            for batch in await self.batches():
                if not batch.over:
                    await self._bury(batch)
        except BaseException:
            self._calls.close()
            raise

    async def close(self) -> None:
        async def forsake() -> None:
            for batch, worker in self._leases:
                with suppress(Gone):
                    await self._run(scripts.FORSAKE, batch, worker.encode())

        with suppress(StoreFailed, TimeoutError):  # the leases run out by themselves
            await within(self._clock, PARTING, forsake())
        self._leases.clear()
        self._held.clear()
        self._calls.close()

    async def _check(self) -> None:
        """Raises StoreFailed for a server that throws batches away when it is full."""
        info = await self._info(b"memory")
        policy = info.get("maxmemory_policy", "")
        if policy.startswith("allkeys") and info.get("maxmemory") != "0":
            raise StoreFailed(
                f"the batch store {self._calls.target} would throw batches away when it is full: its"
                f" maxmemory-policy is {policy} (set noeviction, or a policy that begins with volatile)"
            )
        if (await self._info(b"persistence")).get("aof_enabled") != "1":
            self._log.warning(
                "batches do not outlive their server: it keeps no append-only file",
                store=str(self._calls.target),
                mend="set appendonly yes",
            )

    async def _info(self, section: bytes) -> dict[str, str]:
        try:
            answer = await self._calls.ask(INDEX, b"INFO", section)
        except Refused as error:
            if error.kind == "NOPERM":  # it may not be asked: it is as its owner has set it
                return {}
            raise
        text = answer.decode() if isinstance(answer, bytes) else ""
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    async def _bury(self, batch: Batch) -> None:
        """Takes the claims from workers that died on this machine, and removes what they never submitted."""
        answer = await self._calls.ask(_keys(batch.id)[0], b"HGETALL", _keys(batch.id)[4])
        fields = cast("list[bytes]", answer)
        workers = dict(zip(fields[::2], fields[1::2], strict=True))
        here = f"{host()}:".encode()
        processes = {
            name: (int(value.split()[1]), float(value.split()[2]))
            for name, value in workers.items()
            if name.startswith(here) and (batch.id, name.decode()) not in self._leases
        }

        def dead() -> list[bytes]:
            return [name for name, (process, born) in processes.items() if not lives(process, born)]

        gone = await asyncio.to_thread(dead) if processes else []
        if batch.status is Status.VALIDATING:
            if len(gone) == len(workers):
                await self.delete(batch.id)
        elif gone:
            with suppress(StoreFailed):  # it has ended meanwhile, or the leases run out
                await self._run(scripts.FORSAKE, batch.id, *gone)

    async def _run(self, script: bytes, batch: str, *arguments: bytes, aside: bool = False) -> Reply:
        try:
            return await self._calls.script(script, _keys(batch), *arguments, aside=aside)
        except Refused as error:
            if error.kind == scripts.GONE:
                raise Gone(f"there is no batch {batch} any more") from None
            raise

    async def _durably(self, script: bytes, batch: str, *arguments: bytes) -> Reply:
        """As `_run`, and waits until the server has it, and all before it, on its disk.

        That is only known of a server with an append-only file that knows WAITAOF (Redis 7.2, Valkey).
        """
        answer = await self._run(script, batch, *arguments, aside=True)
        try:
            synced = await self._calls.ask(
                _keys(batch)[0], b"WAITAOF", b"1", b"0", b"%d" % FSYNC_PATIENCE, aside=True
            )
        except Refused as error:
            if error.kind != "ERR":
                raise
        else:
            if cast("list[int]", synced)[0] < 1:
                raise StoreFailed(
                    f"the batch store {self._calls.target} did not have it on its disk"
                    f" after {FSYNC_PATIENCE / 1000:g} s"
                )
        return answer

    def _lease(self, worker: str) -> tuple[bytes, bytes, bytes]:
        return worker.encode(), b"%g" % LEASE, self._process

    # -- batches -------------------------------------------------------------------------------

    async def create(self, batch: Batch, worker: str) -> None:
        self._leases.add((batch.id, worker))
        await self._run(
            scripts.CREATE, batch.id, *self._lease(worker), batch.options.dump(), b"%.6f" % batch.created
        )
        await self._list(batch)

    async def _list(self, batch: Batch) -> None:
        await self._calls.ask(INDEX, b"ZADD", INDEX, b"%.6f" % batch.created, batch.id.encode())

    async def add(self, batch: str, items: Sequence[Item]) -> list[Duplicate]:
        arguments: list[bytes] = [b"%g" % LEASE]
        for it in items:
            arguments += (b"%d" % it.number, it.custom_id.encode(), b"%d" % it.repeatable, it.request)
        found = _numbers(await self._run(scripts.ADD, batch, *arguments))
        return [Duplicate(*pair) for pair in zip(found[::2], found[1::2], strict=True)]

    async def accept(self, batch: str, total: int) -> None:
        known = await self.batch(batch)
        if known is None:
            raise Gone(f"there is no batch {batch} any more")
        try:
            await self._list(known)  # another may have looked before it was there
            await self._durably(scripts.ACCEPT, batch, b"%d" % total)
        except BaseException:
            self._unwanted.add(batch)
            raise

    async def delete(self, batch: str) -> bool:
        there = await self._durably(scripts.DELETE, batch)
        await self._calls.ask(INDEX, b"ZREM", INDEX, batch.encode())
        self._drop(batch)
        self._unwanted.discard(batch)
        return there == 1

    def _drop(self, batch: str) -> None:
        self._leases = {lease for lease in self._leases if lease[0] != batch}
        self._held.pop(batch, None)
        self._astray.discard(batch)

    async def batch(self, batch: str) -> Batch | None:
        meta = _keys(batch)[0]
        return _batch(batch, await self._calls.ask(meta, b"HMGET", meta, *_BATCH))

    async def batches(self) -> list[Batch]:
        listed = cast("list[bytes]", await self._calls.ask(INDEX, b"ZRANGE", INDEX, b"0", b"-1", b"REV"))
        names = [name.decode() for name in listed]
        known = await asyncio.gather(*(self.batch(name) for name in names))
        for name in (name for name, batch in zip(names, known, strict=True) if batch is None):
            self._drop(name)
            await self._calls.ask(INDEX, b"ZREM", INDEX, name.encode())
        return [batch for batch in known if batch is not None]

    async def end(self, batch: str, status: Status, reason: str) -> bool:
        try:
            return await self._durably(scripts.END, batch, status.value.encode(), reason.encode()) == 1
        except Gone:
            return False

    # -- lines ---------------------------------------------------------------------------------

    async def claim(self, batch: str, worker: str, most: int, now: float) -> list[Claimed]:
        held = self._held.setdefault(batch, set())
        if batch in self._astray:
            await self._run(scripts.RECOVER, batch, worker.encode(), *_texts(held))
            self._astray.discard(batch)
        self._leases.add((batch, worker))
        try:
            answer = await self._run(
                scripts.CLAIM, batch, *self._lease(worker), b"%d" % most, b"%d" % MOST_BYTES
            )
        except BaseException:
            self._astray.add(batch)
            raise
        claimed = []
        for row in cast("list[list[Reply]]", answer):
            number, custom_id, repeatable, request = cast("list[bytes]", row[:4])
            item = Item(int(number), custom_id.decode(), request, repeatable == b"1")
            held.add(item.number)
            claimed.append(Claimed(item, row[4] == 1))
        return claimed

    async def begin(self, batch: str, worker: str, numbers: Sequence[int]) -> list[int]:
        still = _numbers(await self._run(scripts.BEGIN, batch, worker.encode(), *_texts(numbers)))
        self._held.get(batch, set()).difference_update(set(numbers).difference(still))
        return still

    async def release(self, batch: str, worker: str, numbers: Sequence[int]) -> None:
        await self._run(scripts.RELEASE, batch, worker.encode(), *_texts(numbers))
        self._held.get(batch, set()).difference_update(numbers)

    async def renew(self, worker: str, now: float) -> None:
        for batch in tuple(self._unwanted):
            await self.delete(batch)
        for batch in [batch for batch, mine in self._leases if mine == worker]:
            try:
                kept = await self._run(scripts.RENEW, batch, *self._lease(worker))
            except Gone:
                kept = []
            known = await self.batch(batch) if kept == 1 else None
            if known is None:
                self._drop(batch)
            else:
                await self._bury(known)

    async def finish(self, batch: str, results: Sequence[Result], now: float) -> list[Result]:
        arguments: list[bytes] = [b"%.6f" % now, self._keep]
        for it in results:
            arguments += (b"%d" % it.number, it.outcome.value.encode(), it.text)
        fresh = set(_numbers(await self._run(scripts.FINISH, batch, *arguments)))
        self._held.get(batch, set()).difference_update(it.number for it in results)
        return [it for it in results if it.number in fresh]

    async def results(self, batch: str, after: int, most: int) -> list[tuple[int, bytes]]:
        answer = await self._run(scripts.RESULTS, batch, b"%d" % after, b"%d" % most, b"%d" % MOST_BYTES)
        return [(int(position), text) for position, text in cast("list[list[bytes]]", answer)]


def _keys(batch: str) -> list[bytes]:
    return [b"%b{%b}:%b" % (PREFIX, batch.encode(), key) for key in scripts.KEYS]


def _texts(numbers: Iterable[int]) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def _numbers(answer: Reply) -> list[int]:
    return [int(number) for number in cast("list[bytes]", answer)]


def _batch(name: str, answer: Reply) -> Batch | None:
    fields = cast("list[bytes | None]", answer)
    if fields[0] is None:
        return None
    options, status, created, total, ok, failed, unknown = cast("list[bytes]", fields[:7])
    finished, reason = fields[7:]
    return Batch(
        name,
        Options.parse(options),
        Status(status.decode()),
        float(created),
        Counts(int(total), int(ok), int(failed), int(unknown)),
        None if finished is None else float(finished),
        (reason or b"").decode(),
    )

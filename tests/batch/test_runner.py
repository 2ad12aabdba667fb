"""How batches run, in virtual time: pace, order, repetition, endings."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.batch.jobs import LEASE, Status, StoreFull
from sidecar.batch.runner import PARTING
from sidecar.decisions.batch_concurrency import Machine
from sidecar.errors import AttemptTimeout, ConnectFailed, ConnectionReset
from sidecar.exchange import Exchange, Response
from tests.support.batch_bench import BatchBench, lines
from tests.support.clock import ManualClock
from tests.support.script import Outcome, after, answer, fail
from tests.support.simulation import Server

TURNS = 12


def ended(results: list[bytes]) -> Counter[object]:
    """Statuses and error codes of results."""
    members = [orjson.loads(text) for text in results]
    return Counter(it["error"]["code"] if "error" in it else it["status"] for it in members)


async def throughput(folder: Path, workers: int, count: int, seed: int = 1) -> float:
    chance = random.Random(seed)
    clock = ManualClock(turns=TURNS)
    server = Server(clock, workers, lambda: chance.expovariate(1 / 0.05))
    bench = BatchBench(folder, server, clock=clock)
    await bench.start()
    await bench.batch(lines(count))
    took = await bench.over()
    assert len(await bench.results()) == count
    await bench.close()
    return count / took


@pytest.mark.parametrize("workers", [4, 12, 32])
async def test_a_short_batch_is_soon_at_speed(tmp_path: Path, workers: int) -> None:
    """Of 1,000 lines none waits for many small steps: the whole batch uses 0.8 of the server."""
    assert await throughput(tmp_path, workers, 1000) > 0.8 * workers / 0.05


@pytest.mark.parametrize("workers", [4, 12, 32])
async def test_concurrency_finds_what_the_server_bears(tmp_path: Path, workers: int) -> None:
    """Of a server whose capacity nobody told, at least 0.9 is used; no fixed concurrency can use more than
    all of it. It is three times as much as a sequential client gets, too.
    """
    rate = await throughput(tmp_path, workers, 150 * workers + 600)
    assert rate > 0.9 * workers / 0.05
    assert rate > 3 / 0.05


@pytest.mark.parametrize("limited", [False, True])
async def test_interactive_requests_go_first(tmp_path: Path, limited: bool) -> None:
    """While a batch runs, the 95th percentile of interactive requests rises by at most 20 %."""
    settings: dict[str, Any] = {"concurrency_limit": {"max": 8, "queue": "5s"}} if limited else {}

    async def p95(*, batch: bool) -> float:
        chance = random.Random(3)
        clock = ManualClock(turns=TURNS)
        server = Server(clock, 8, lambda: chance.uniform(0.04, 0.06))
        folder = tmp_path / str(batch)
        folder.mkdir()
        bench = BatchBench(folder, server, clock=clock, **settings)
        await bench.start()
        times: list[float] = []

        async def drive(seconds: float, *, measured: bool) -> None:
            until = clock.now() + seconds
            while clock.now() < until:
                await clock.advance(chance.expovariate(20))
                began = clock.now()
                task = bench.send()
                exchange = bench.bench.sent[-1]

                def over(
                    task: asyncio.Task[Response], exchange: Exchange = exchange, began: float = began
                ) -> None:
                    assert exchange.on_sent is not None
                    exchange.on_sent(exchange, task.result(), "done")  # as a listener does
                    if measured:
                        times.append(clock.now() - began)

                task.add_done_callback(over)

        await drive(20, measured=False)
        if batch:
            await bench.batch(lines(20_000))
            await drive(20, measured=False)
        await drive(30, measured=True)
        await clock.advance(1)
        if batch:
            assert sum(bench.stats.jobs.values()) > 1000
        await bench.close()
        return sorted(times)[int(0.95 * len(times))]

    alone = await p95(batch=False)
    beside = await p95(batch=True)
    assert beside < 1.2 * alone


async def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    """While nothing can be reached there is a try every few seconds, then all lines are done."""
    up = answer()
    down = fail(ConnectFailed())
    bench = BatchBench(tmp_path, after(0.05, up))
    await bench.start()
    await bench.batch(lines(2000, "POST"))
    await bench.clock.advance(2.0)
    done = sum(bench.stats.jobs.values())
    assert 0 < done < 2000
    bench.bench.script[:] = [down]
    asked = len(bench.bench.calls)
    await bench.clock.advance(10.0)
    assert len(bench.bench.calls) - asked < 60
    assert bench.runner.jobs["b"].paused
    bench.bench.script[:] = [after(0.05, up)]
    await bench.over()
    assert ended(await bench.results()) == {200: 2000}
    await bench.close()


@pytest.mark.parametrize("first", [fail(AttemptTimeout()), answer(503)])
async def test_a_probe_that_says_nothing_is_not_the_last(tmp_path: Path, first: Outcome) -> None:
    """Once a route was left alone, one line asks whether it is well: should that end in a way that says
    neither yes nor no, another asks; and the batch goes on as soon as one is answered.
    """
    bench = BatchBench(tmp_path, fail(ConnectFailed()))
    await bench.start()
    await bench.batch(lines(200), retries=5)
    await bench.clock.advance(2.0)
    assert bench.runner.jobs["b"].paused
    before = bench.bench.script * len(bench.bench.calls)
    bench.bench.script[:] = [*before, first, first, after(0.05, answer())]
    await bench.over(most=60)
    counts = ended(await bench.results())
    assert counts[200] >= 198
    assert sum(counts.values()) == 200
    await bench.close()


async def test_retry_after_is_respected(tmp_path: Path) -> None:
    """Once the server says when to come again, nothing is sent before."""
    slow_down = answer(429, b"", (b"Retry-After", b"7"))
    bench = BatchBench(tmp_path, slow_down)
    await bench.start()
    await bench.batch(lines(40, "POST"))
    await bench.clock.advance(0.5)
    asked = len(bench.bench.calls)
    assert 0 < asked <= 10
    await bench.clock.advance(6.0)
    assert len(bench.bench.calls) == asked
    bench.bench.script[:] = [answer()]
    await bench.over()
    assert ended(await bench.results()) == {200: 40}
    await bench.close()


async def test_only_what_is_safe_is_repeated(tmp_path: Path) -> None:
    """A GET that fails is tried `retries` times more, a POST that may have been done is not."""
    bench = BatchBench(tmp_path, fail(ConnectionReset()))
    await bench.start()
    await bench.batch(lines(1), retries=2)
    await bench.over()
    assert len(bench.bench.calls) == 3
    await bench.batch(lines(1, "POST"), "post", retries=2)
    await bench.over("post")
    assert len(bench.bench.calls) == 4
    assert ended(await bench.results("b") + await bench.results("post")) == {"upstream_reset": 2}
    await bench.close()


async def test_the_deadline_ends_what_has_not_begun(tmp_path: Path) -> None:
    """Lines that have not begun by then fail with `batch_expired`; the batch has failed."""
    bench = BatchBench(tmp_path, after(1.0, answer()))
    await bench.start()
    await bench.batch(lines(500), deadline=5.0)
    await bench.over()
    counts = ended(await bench.results())
    assert counts[200] + counts["batch_expired"] == 500
    assert 40 <= counts[200] < 300
    batch = await bench.store.batch("b")
    assert batch is not None
    assert (batch.status.value, batch.reason) == ("failed", "deadline")
    await bench.close()


async def test_what_was_sent_in_vain_is_not_told_as_unsent(tmp_path: Path) -> None:
    """Of a cancelled batch, lines that had failed and waited to be repeated say that they were sent; only the
    others say that they were not.
    """
    bench = BatchBench(tmp_path, after(0.1, answer(500)))
    await bench.start()
    await bench.batch(lines(40, "PUT"), retries=10)
    await bench.clock.advance(0.45)
    asked = {exchange.request.target for exchange in bench.bench.seen}
    assert await bench.runner.end("b", "cancelled", Status.CANCELLED)
    await bench.over()
    results = [orjson.loads(text) for text in await bench.results()]
    told = {it["custom_id"]: it["error"]["detail"] for it in results if "error" in it}
    sent = {name for name, detail in told.items() if detail != "it was not sent"}
    failed = {it["custom_id"] for it in results if "status" in it}
    assert sent
    assert {f"/{name}".encode() for name in sent | failed} == asked
    assert {it["error"]["code"] for it in results if "error" in it} == {"batch_cancelled"}
    await bench.close()


async def test_failures_stop_the_batch(tmp_path: Path) -> None:
    """After `stop_on` failed lines the rest is not sent."""
    bench = BatchBench(tmp_path, after(0.1, answer(404)))
    await bench.start()
    await bench.batch(lines(500), stop_on=5)
    await bench.over()
    counts = ended(await bench.results())
    assert sum(counts.values()) == 500
    assert 5 <= counts[404] < 40
    assert counts["batch_stopped"] == 500 - counts[404]
    await bench.close()


async def test_a_store_that_fails_pauses_the_batch(tmp_path: Path) -> None:
    """While results cannot be stored nothing more is sent; then nothing is lost, or done twice."""
    bench = BatchBench(tmp_path, after(0.1, answer()))
    await bench.start()
    await bench.batch(lines(400))
    await bench.clock.advance(0.5)
    finish = bench.store.finish

    async def full(*_: object) -> Any:
        raise StoreFull("there is no room")

    bench.store.finish = full  # type: ignore[assignment, method-assign]
    await bench.clock.advance(3.0)
    asked = len(bench.bench.calls)
    await bench.clock.advance(10.0)
    assert len(bench.bench.calls) == asked < 400
    assert bench.runner.jobs["b"].paused == "there is no room"
    bench.store.finish = finish  # type: ignore[method-assign]
    await bench.over()
    assert ended(await bench.results()) == {200: 400}
    assert len(bench.bench.calls) == 400
    await bench.close()


@pytest.mark.parametrize("hangs", [False, True])
async def test_stopping_waits_for_no_store(tmp_path: Path, hangs: bool) -> None:
    """A store that is full, or says nothing, once the lines in flight have ended holds no stop up: it takes
    its patience and a moment; what it stored not is done after the next start.
    """
    bench = BatchBench(tmp_path, after(0.1, answer()))
    await bench.start()
    await bench.batch(lines(100))
    await bench.clock.advance(0.25)
    finish = bench.store.finish

    async def full(*_: object) -> Any:
        if hangs:
            await asyncio.Event().wait()
        await bench.clock.sleep(0.2)
        raise StoreFull("there is no room")

    bench.store.finish = full  # type: ignore[assignment, method-assign]
    began = bench.clock.now()
    stopping = asyncio.ensure_future(bench.runner.stop(2.0))
    while not stopping.done():
        assert bench.clock.now() < began + 60, "it does not end"
        await bench.clock.advance(0.1)
    assert bench.clock.now() - began <= (2.0 + PARTING if hangs else 1.5)
    bench.store.finish = finish  # type: ignore[method-assign]
    await bench.store.close()
    again = BatchBench(tmp_path, answer(), clock=bench.clock, worker="again")
    await again.start()
    await again.over()
    assert ended(await again.results()) == {200: 100}
    await again.close()


async def test_nothing_is_sent_once_it_stops(tmp_path: Path) -> None:
    """POSTs that the store was just about to note as begun are given back: the next start sends each once."""
    bench = BatchBench(tmp_path, answer())
    await bench.start()
    begin = bench.store.begin

    async def slow(*arguments: Any) -> Any:
        noted = await begin(*arguments)
        await bench.clock.sleep(0.5)
        return noted

    bench.store.begin = slow  # type: ignore[assignment, method-assign]
    await bench.batch(lines(20, "POST"))
    await bench.clock.advance(0.25)
    stopping = asyncio.ensure_future(bench.runner.stop(2.0))
    await bench.clock.advance(5.0)
    assert stopping.done()
    assert bench.bench.calls == []
    await bench.store.close()
    again = BatchBench(tmp_path, answer(), clock=bench.clock, worker="again")
    await again.start()
    await again.over()
    assert ended(await again.results()) == {200: 20}
    await again.close()


async def test_lines_of_a_dead_replica_are_taken_over(tmp_path: Path) -> None:
    """Once its lease is over what it held is done; a POST it had begun is `unknown`, not repeated."""
    bench = BatchBench(tmp_path, answer())
    await bench.start()
    posts = [line.replace(b'"custom_id": "', b'"custom_id": "p') for line in lines(4, "POST")]
    batch = await bench.batch([*lines(4), *posts])
    # In the same moment, before the runner's task has begun.
    await bench.store.claim(batch, "other", 6, bench.clock.wall())
    await bench.store.begin(batch, "other", [1, 5, 6])
    await bench.clock.advance(LEASE / 2)
    assert len(await bench.results()) == 2
    await bench.over()
    assert ended(await bench.results()) == {200: 6, "unknown": 2}
    assert len(bench.bench.calls) == 6
    await bench.close()


async def test_the_first_of_several_batches(tmp_path: Path) -> None:
    """A batch of a higher class gets most slots; batches of one class share them."""
    from sidecar.decisions.priority import Priority

    bench = BatchBench(tmp_path, after(0.1, answer()))
    await bench.start()
    await bench.batch(lines(3000), "low1")
    await bench.batch(lines(3000), "low2")
    await bench.clock.advance(5.0)
    counts = [batch.counts.done for batch in await bench.store.batches()]
    assert min(counts) > 0.7 * max(counts)
    await bench.batch(lines(500), "high", priority=Priority.HIGH)
    took = await bench.over("high")
    assert took < 8.0
    await bench.close()


async def test_a_busy_machine_is_spared(tmp_path: Path) -> None:
    """With CPU or memory above their targets fewer lines are in flight and fetched."""
    bench = BatchBench(tmp_path, after(0.1, answer()))
    await bench.start()
    await bench.batch(lines(8000))
    await bench.clock.advance(10.0)
    before = bench.runner.allowed
    bench.machine = Machine(cpu=99.0, cpu_target=85.0, resident=3, memory_target=2, lag=0.0)
    await bench.clock.advance(15.0)
    assert bench.runner.allowed < before / 2
    assert bench.stats.chunk == 10
    await bench.close()


async def test_requests_carry_their_key_and_low_priority(tmp_path: Path) -> None:
    """A POST carries an Idempotency-Key, the line's where it names one; all say that they can wait."""
    seen: list[dict[bytes, bytes]] = []

    async def look(exchange: Exchange) -> Response:
        seen.append({line.name: line.value for line in exchange.request.headers})
        assert exchange.client == "batch"
        return Response(200, [], b"")

    bench = BatchBench(tmp_path, look)
    await bench.start()
    own = orjson.dumps(
        {
            "custom_id": "k",
            "method": "POST",
            "url": "/",
            "headers": {"idempotency-key": "mine", "Priority": "u=0"},
        }
    )
    await bench.batch([*lines(1, "POST"), own])
    await bench.over()
    assert [it[b"priority"] for it in seen] == [b"u=6", b"u=6"]
    assert {it[b"idempotency-key"] for it in seen} == {b'"b-1"', b"mine"}
    await bench.close()


async def test_identical_lines_share_one_call(tmp_path: Path) -> None:
    """Through a route with a cache, lines that ask for the same are answered by one call."""
    bench = BatchBench(tmp_path, after(0.5, answer()), cache={"ttl": "1h"})
    await bench.start()
    same = [line.replace(b'"/', b'"/same?') for line in lines(1)]
    await bench.batch([text.replace(b'"0"', b'"%d"' % number) for number in range(50) for text in same])
    await bench.over()
    assert ended(await bench.results()) == {200: 50}
    assert len(bench.bench.calls) == 1
    assert bench.stats.cached >= 40
    await bench.close()

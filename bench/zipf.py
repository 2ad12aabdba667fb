"""`python -m bench.zipf`: the memory store beside other eviction policies, on the same requests.

`hits` (the default) prints hit ratios of LRU, S3-FIFO, W-TinyLFU and the product's own store on Zipf
traces of several skews, with and without scans; exit code 1 when the store is more than 5 % below the
best. `fill` puts millions of distinct keys through the store, and prints what it takes and how fast it is.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import psutil

from sidecar.clock import SystemClock
from sidecar.decisions.freshness import Lifetime
from sidecar.headers import Line
from sidecar.stores.entry import Entry, Variants
from sidecar.stores.memory import Ghosts, Memory

Trace = Sequence[int]
Policy = Callable[[Trace, int], int]
"""Gives the hits of a trace in a cache of so many objects."""

SKEWS: Final = (0.6, 0.8, 1.0, 1.2)
SIZES: Final = (0.01, 0.1)
"""Of the cache, as shares of the keys."""
SCAN_EVERY: Final = 40_000
SCAN: Final = 8_000
"""Keys of one scan, none of which comes again."""
MIB: Final = 2**20
TOLERANCE: Final = 0.05


def zipf(skew: float, keys: int, requests: int, seed: int) -> list[int]:
    weights = itertools.accumulate(1 / rank**skew for rank in range(1, keys + 1))
    return random.Random(seed).choices(range(keys), cum_weights=list(weights), k=requests)


def with_scans(trace: Trace, keys: int) -> list[int]:
    """After every `SCAN_EVERY` requests, a walk over keys that are seen once."""
    fresh = itertools.count(keys)
    mixed: list[int] = []
    for at in range(0, len(trace), SCAN_EVERY):
        mixed.extend(trace[at : at + SCAN_EVERY])
        mixed.extend(itertools.islice(fresh, SCAN))
    return mixed


def lru(trace: Trace, size: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in held:
            held.move_to_end(key)
            hits += 1
        else:
            if len(held) >= size:
                held.popitem(last=False)
            held[key] = None
    return hits


def s3_fifo(trace: Trace, size: int) -> int:
    """As in the paper: an exact ghost queue, promotion above one use in the small queue."""
    small_size = max(1, size // 10)
    main_size = size - small_size
    uses: dict[int, int] = {}
    small: deque[int] = deque()
    main: deque[int] = deque()
    ghosts: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in uses:
            uses[key] = min(3, uses[key] + 1)
            hits += 1
            continue
        while len(uses) >= size:
            if len(small) >= small_size or not main:
                old = small.popleft()
                if uses[old] > 1:
                    uses[old] = 0
                    main.append(old)
                else:
                    del uses[old]
                    ghosts[old] = None
                    if len(ghosts) > main_size:
                        ghosts.popitem(last=False)
            else:
                old = main.popleft()
                if uses[old]:
                    uses[old] -= 1
                    main.append(old)
                else:
                    del uses[old]
        uses[key] = 0
        if key in ghosts:
            del ghosts[key]
            main.append(key)
        else:
            small.append(key)
    return hits


class Sketch:
    """Count-min with four rows of 4-bit counters, halved after ten times as many additions as objects."""

    SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)

    def __init__(self, size: int) -> None:
        self._mask = (1 << max(8, (size * 4).bit_length())) - 1
        self._rows = [bytearray(self._mask + 1) for _ in self.SEEDS]
        self._left = self._period = 10 * size

    def _places(self, key: int) -> list[int]:
        return [((key + 1) * seed & 0xFFFFFFFFFFFFFFFF) >> 32 & self._mask for seed in self.SEEDS]

    def add(self, key: int) -> None:
        for row, at in zip(self._rows, self._places(key), strict=True):
            if row[at] < 15:
                row[at] += 1
        self._left -= 1
        if not self._left:
            self._left = self._period // 2
            halves = bytes(value // 2 for value in range(256))
            self._rows = [row.translate(halves) for row in self._rows]

    def estimate(self, key: int) -> int:
        return min(row[at] for row, at in zip(self._rows, self._places(key), strict=True))


def w_tinylfu(trace: Trace, size: int) -> int:
    """A window of 1 %, then a segmented LRU (80 % protected) that the sketch admits to (Einziger et al.)."""
    window_size = max(1, size // 100)
    protected_size = (size - window_size) * 8 // 10
    sketch = Sketch(size)
    window: OrderedDict[int, None] = OrderedDict()
    probation: OrderedDict[int, None] = OrderedDict()
    protected: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        sketch.add(key)
        if key in window:
            window.move_to_end(key)
            hits += 1
            continue
        if key in protected:
            protected.move_to_end(key)
            hits += 1
            continue
        if key in probation:
            del probation[key]
            protected[key] = None
            if len(protected) > protected_size:
                probation[protected.popitem(last=False)[0]] = None
            hits += 1
            continue
        window[key] = None
        if len(window) <= window_size:
            continue
        candidate = window.popitem(last=False)[0]
        if len(probation) + len(protected) < size - window_size:
            probation[candidate] = None
            continue
        victim = next(iter(probation))
        if sketch.estimate(candidate) > sketch.estimate(victim):
            del probation[victim]
            probation[candidate] = None
    return hits


def store(trace: Trace, size: int) -> int:
    """`sidecar.stores.memory`, with room for as many records of one size."""
    clock = SystemClock()
    record = Variants([], [], clock.wall() + 86_400)
    capacity = size * (record.size + len(b"zipf:v1:%08d" % 0))
    memory = Memory(capacity + 8 * Ghosts.SLOT, clock)
    memory.capacity += memory.bytes
    hits = 0
    for key in trace:
        name = b"zipf:v1:%08d" % key
        if memory.get(name) is None:
            memory.set(name, record)
        else:
            hits += 1
    return hits


POLICIES: Final[dict[str, Policy]] = {
    "LRU": lru,
    "S3-FIFO": s3_fifo,
    "W-TinyLFU": w_tinylfu,
    "our store": store,
}


def compare(keys: int, requests: int) -> int:
    print(f"{requests} requests for {keys} keys; hit ratios in %")
    print(f"{'skew':>5} {'cache':>7} {'scans':>6}", *(f"{name:>10}" for name in POLICIES), " to the best")
    worst = 0.0
    for skew in SKEWS:
        plain = zipf(skew, keys, requests, seed=7)
        for scans, size in itertools.product((False, True), SIZES):
            trace = with_scans(plain, keys) if scans else plain
            room = int(keys * size)
            ratios = {name: 100 * policy(trace, room) / len(trace) for name, policy in POLICIES.items()}
            below = 1 - ratios["our store"] / max(ratios.values())
            worst = max(worst, below)
            print(
                f"{skew:>5} {room:>7} {'yes' if scans else 'no':>6}",
                *(f"{ratio:>10.2f}" for ratio in ratios.values()),
                f"{-100 * below:>11.2f} %",
                flush=True,
            )
    print(f"our store is at most {100 * worst:.2f} % below the best")
    return 0 if worst <= TOLERANCE else 1


def responses(count: int, until: float, body: int, own: int) -> Iterator[tuple[bytes, Entry]]:
    """Eight header lines each, `own` of which no other response has."""
    shared = [Line(b"X-Shared-%d" % number, b"the same everywhere") for number in range(8 - own)]
    for number in range(count):
        lines = [*shared, *(Line(b"X-Own-%d" % each, b"%032x" % number) for each in range(own))]
        born = until - 100 + number / count
        lifetime = Lifetime(born, until, until, until, until, until, born)
        yield b"fill:v1:%064x" % number, Entry(200, b"OK", lines, b"%0*d" % (body, number), lifetime)


def fill(keys: int, capacity: int, body: int, own: int) -> int:
    process = psutil.Process()
    clock = SystemClock()
    until = clock.wall() + 86_400
    gc.collect()
    before = process.memory_info().rss
    memory = Memory(capacity, clock)
    highest = largest = 0
    spent = 0.0
    last: deque[bytes] = deque(maxlen=200)
    for number, (key, entry) in enumerate(responses(keys, until, body, own)):
        start = time.perf_counter()
        memory.set(key, entry)
        spent += time.perf_counter() - start
        last.append(key)
        if not number % 20_000:
            largest = max(largest, memory.bytes)
            highest = max(highest, process.memory_info().rss)
    start = time.perf_counter()
    for _ in range(500):
        for key in last:
            memory.get(key)
    got = (time.perf_counter() - start) / (500 * len(last))
    resident = highest - before
    print(f"{keys} distinct keys through {capacity / MIB:.0f} MiB, bodies of {body}: {len(memory)} held")
    print(f"at most {largest / MIB:.1f} MiB counted, and {resident / MIB:.1f} MiB more resident than before")
    start = time.perf_counter()
    gc.collect()
    print(f"a full garbage collection of it takes {(time.perf_counter() - start) * 1e3:.1f} ms")
    print(f"set {spent / keys * 1e6:.2f} µs, with making room and 0.1 for the clock; get {got * 1e6:.2f} µs")
    return 0 if largest <= capacity and resident <= capacity * 1.1 else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.zipf", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("hits", "fill"), default="hits")
    parser.add_argument(
        "--keys", type=int, metavar="N", help="default: 100 000 for hits, 10 000 000 for fill"
    )
    parser.add_argument("--requests", type=int, default=500_000, metavar="N", help="default: 500 000")
    parser.add_argument("--capacity", type=int, default=64, metavar="MIB", help="default: 64 MiB")
    parser.add_argument("--body", type=int, default=1024, metavar="BYTES", help="of a fill; default: 1024")
    parser.add_argument(
        "--own",
        type=int,
        default=2,
        metavar="N",
        help="of a fill: header lines, of 8, that differ; default: 2",
    )
    given = parser.parse_args()
    if given.what == "fill":
        return fill(given.keys or 10_000_000, given.capacity * MIB, given.body, given.own)
    return compare(given.keys or 100_000, given.requests)


if __name__ == "__main__":
    sys.exit(main())

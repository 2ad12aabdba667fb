"""What a proxy adds to the time of a request when there is no queue: one connection, at a steady rate."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from bench.inspection import Asker
from bench.processes import PROXY_CPU, Running, started
from bench.proxies import KIB, Bench, Proxy
from bench.report import table

RATE = 500.0
"""Requests a second."""
DIRECT = "no proxy"
PATH = "1k"


def paced(asker: Asker, seconds: float) -> float:
    """The median time of requests sent at `RATE`, in milliseconds."""
    taken = []
    begin = time.perf_counter()
    for number in range(int(seconds * RATE)):
        wait = begin + number / RATE - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        taken.append(asker.ask(PATH, look=False, size=KIB))
    return statistics.median(taken)


def medians(bench: Bench, proxies: Sequence[Proxy], rounds: int, seconds: float) -> Mapping[str, list[float]]:
    """Milliseconds by title, one for each round: all in turn, in each round."""
    with ExitStack() as stack:
        ports = {DIRECT: bench.origin, **dict(_running(stack, bench, proxies))}
        askers = {
            title: stack.enter_context(contextlib.closing(Asker(port))) for title, port in ports.items()
        }
        found: dict[str, list[float]] = {title: [] for title in askers}
        for number in range(rounds + 1):
            for title, asker in askers.items():
                median = paced(asker, seconds)
                if number:  # the first round warms up
                    found[title].append(median)
    return found


def _running(stack: ExitStack, bench: Bench, proxies: Sequence[Proxy]) -> Iterator[tuple[str, int]]:
    for proxy in proxies:
        program = proxy.find()
        assert program is not None
        place = bench.place(proxy.name)
        running: Running = stack.enter_context(
            started(proxy.title, place, proxy.command(program, place), PROXY_CPU, f"/{PATH}")
        )
        yield proxy.title, running.place.port


def report(found: Mapping[str, list[float]], rounds: int, seconds: float) -> str:
    """A table: the time of a request, and what each proxy adds to it, as a median over the rounds."""
    direct = found[DIRECT]
    added = {
        title: [(with_it - without) * 1e3 for with_it, without in zip(times, direct, strict=True)]
        for title, times in found.items()
        if title != DIRECT
    }
    envoy = added.get("Envoy")
    rows = [(DIRECT, f"{statistics.median(direct) * 1e3:.0f}", "–", "–")]
    rows += [
        (
            title,
            f"{statistics.median(found[title]) * 1e3:.0f}",
            f"{statistics.median(more):.0f} ±{(max(more) - min(more)) / 2:.0f}",
            "–"
            if envoy is None or title == "Envoy"
            else f"{statistics.median(a / b for a, b in zip(more, envoy, strict=True)):.2f}",
        )
        for title, more in added.items()
    ]
    return "\n".join(
        (
            "## Added latency",
            "",
            f"One kept connection, GET 1 KiB, {RATE:.0f} requests a second, each sent when it is due. Median",
            f"time of a request in a round of {seconds:.0f} s, and what of it the proxy adds; medians over",
            f"{rounds} rounds.",
            "",
            table(("proxy", "p50, µs", "added, µs", "÷ Envoy's"), rows),
            "",
        )
    )

"""`python -m bench`: the sidecar beside its peers, by CPU per request, throughput, latency and memory."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from bench import added, batches, egress, inspection, limits, log, measure, memory, report
from bench.load import CASES, CONNECTIONS
from bench.proxies import NGINX_VERSION, PROXIES, WRK_VERSION, Bench, Proxy, find_program, origin


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=(__doc__ or "").partition(": ")[2],
        epilog=f"cases: {', '.join(case.name for case in CASES)}; "
        f"proxies: {', '.join(proxy.name for proxy in PROXIES)}",
    )
    what = ("all", "speed", "added", "memory", "egress", "limits", "batch", "inspect", "log")
    parser.add_argument("what", nargs="?", choices=what, default="all")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--seconds",
        type=int,
        metavar="S",
        help="of each run, default: 3, of `batch` 10; of each phase of `limits`, 20",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=400,
        metavar="N",
        help="each way, of a round of `inspect`; default: 400",
    )
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--proxies", nargs="+", choices=[proxy.name for proxy in PROXIES], metavar="PROXY")
    parser.add_argument("--connections", nargs="+", type=int, default=CONNECTIONS, metavar="N")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--quick", action="store_true", help="one round of one second, 16 connections")
    given = parser.parse_args()
    if given.seconds is None:
        given.seconds = {"limits": 20, "batch": 10}.get(given.what, 3)
    if given.quick:
        given.rounds, given.seconds, given.connections = 1, 1, (16,)
    return given


def command() -> str:
    """What to type for the same measurement, without the place of the report."""
    words = sys.argv[1:]
    if "--markdown" in words:
        at = words.index("--markdown")
        del words[at : at + 2]
    return shlex.join(
        ["python", "-m", "bench", *(word for word in words if not word.startswith("--markdown="))]
    )


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def speed(bench: Bench, plan: measure.Plan) -> str:
    samples = []
    cells = sum(plan.takes(proxy, case) for proxy in plan.proxies for case in plan.cases)
    total = cells * len(plan.connections) * plan.rounds
    progress("starting and warming")
    for sample in measure.rounds(bench, plan):
        samples.append(sample)
        progress(
            f"{len(samples)}/{total} {sample.case} {sample.proxy} {sample.connections}: "
            f"{sample.cpu_per_request:.1f} µs"
        )
    progress("")
    return report.Speed(plan, samples).markdown()


def footprints(bench: Bench, proxies: list[Proxy]) -> str:
    return report.memory(list(memory.footprints(bench, proxies)), memory.CLIENTS, memory.SIZE)


def placed(text: str, markdown: Path | None) -> int:
    """Prints it, and puts it into its place in a document."""
    print(text)
    if markdown:
        limits.put(text, markdown)
    return 0


def main() -> int:
    given = arguments()
    if given.what == "limits":
        return placed(limits.measured(given.seconds, progress), given.markdown)
    if given.what == "batch":
        return placed(batches.measured(given.rounds, given.seconds, progress), given.markdown)
    if given.what == "log":
        return publish(log.run(given.seconds), given.markdown)
    nginx, wrk = find_program("nginx")(), find_program("wrk")()
    if nginx is None:
        print("The origin is nginx, which is not installed: apt install nginx", file=sys.stderr)
        return 1
    if given.what == "inspect":
        return publish(looks(nginx, given.rounds, given.requests), given.markdown)
    wanted = ["sidecar"] if given.what == "egress" else given.proxies
    chosen = [proxy for proxy in PROXIES if not wanted or proxy.name in wanted]
    found = [(proxy, program) for proxy in chosen if (program := proxy.find())]
    missing = [(proxy.title, proxy.get) for proxy in chosen if not proxy.find()]
    programs = [(proxy.title, proxy.version(program), proxy.what) for proxy, program in found]
    programs.append(("origin", f"nginx {NGINX_VERSION(nginx)}", "fixed bodies from memory"))
    if wrk:
        programs.append(("load", f"wrk {WRK_VERSION(wrk)}", "one thread, closed loop"))
    else:
        missing.append(("load: wrk, so memory only", "apt install wrk"))
    proxies = [proxy for proxy, _ in found]
    parts = [report.setup(command(), programs, missing)]
    with origin(nginx) as bench:
        if wrk and given.what in ("all", "egress"):
            connections = [count for count in given.connections if count > 1]
            parts.append(egress.run(bench, wrk, nginx, connections, given.rounds, given.seconds))
        if wrk and given.what in ("all", "speed"):
            cases = [case for case in CASES if not given.only or case.name in given.only]
            plan = measure.Plan(wrk, proxies, cases, given.connections, given.rounds, given.seconds)
            plan = replace(
                plan, proxies=[it for it in proxies if any(plan.takes(it, case) for case in cases)]
            )
            parts.append(speed(bench, plan))
        if given.what in ("all", "added"):
            forwarding = [proxy for proxy in proxies if proxy.forwards]
            times = added.medians(bench, forwarding, given.rounds, given.seconds)
            parts.append(added.report(times, given.rounds, given.seconds))
        if given.what in ("all", "memory"):
            parts.append(footprints(bench, [proxy for proxy in proxies if proxy.forwards]))
    return publish("\n".join(parts), given.markdown)


def looks(nginx: str, rounds: int, requests: int) -> str:
    """What a look at the body adds."""
    with origin(nginx, inspection.bodies()) as bench:
        measured = {}
        for path, times in inspection.measure(bench, rounds, requests):
            measured[path] = times
            progress(path)
    progress("")
    return inspection.report(measured, rounds, requests)


def publish(text: str, file: Path | None) -> int:
    print(text)
    if file:
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

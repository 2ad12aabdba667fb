"""What the demo prints."""

from __future__ import annotations

import math
import shlex
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.demo.acts import Result
    from sidecar.demo.load import Measured
    from sidecar.demo.processes import Stage

WIDTH = 96
REASONS = {
    "connect": "after a refused connection",
    "reset": "after a lost one",
    "timeout": "after 1 s without an answer",
    "transient": "after a 5xx",
    "rate_limited": "after a 429",
}

HEADING = f"""\
The same requests, at the same moments, to two copies of the sample app: one alone, one behind the sidecar.

{"":26}{"requests":>9}{"failures":>10}{"wrong":>7}{"marked":>8}{"p50":>10}{"p95":>10}{"calls to the app":>19}
{"-" * 99}"""

NOTE = """\
Failures: what clients saw, anything but a 200. Wrong: a 200 that is not what it is while all is well, and
does not say so; "-" where that was not looked at. Marked: it says by `Sidecar-Degraded` what it was made
without. p50 and p95: of the requests that were answered, from the moment each should have been sent; what
failed at once is in neither. The demo's policies set no retry budget, hence the many calls to an app that
restarts. Measured just now, on this machine, with all processes sharing it."""


def rows(result: Result) -> str:
    lines = [
        result.act.title,
        _row("without the sidecar", result.bare, judged=result.act.prepare is not None),
        _row("with the sidecar", result.beside, judged=result.act.prepare is not None),
        textwrap.fill(
            " ".join([result.said, *_story(result)]), WIDTH, initial_indent="    ", subsequent_indent="    "
        ),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, measured: Measured, *, judged: bool) -> str:
    wrong = measured.wrong if judged else "-"
    return (
        f"  {name:<24}{measured.requests:>9}{measured.failures:>10}{wrong:>7}{measured.marked:>8}"
        f"{_time(measured.percentile(0.5)):>10}{_time(measured.percentile(0.95)):>10}{measured.calls:>19}"
    )


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _story(result: Result) -> list[str]:
    """What the sidecar did, as its metrics tell; then why the failures that are left had to be."""
    story = []
    if result.act.prepare is not None:
        return _truths(result)
    if result.retries:
        causes = ", ".join(
            f"{count} {REASONS.get(reason, reason)}" for reason, count in sorted(result.retries.items())
        )
        story.append(f"The sidecar repeated {sum(result.retries.values())} attempts: {causes}.")
    elif not result.breaker and not result.cache:
        story.append("The sidecar had nothing to do.")
    if result.cache:
        whole = sum(result.cache.values())
        stale = result.cache.get("stale", 0)
        fresh = sum(result.cache.get(outcome, 0) for outcome in ("hit", "updating", "collapsed"))
        story.append(
            f"Its cache gave {fresh} of {whole} answers, and {stale} more that were past their time while "
            "the app failed."
        )
    opened, closed = result.breaker.get("open", 0), result.breaker.get("closed", 0)
    if opened:
        now = "it is still open" if result.still_open else "it is closed now"
        story.append(f"Its circuit breaker opened {_times(opened)} and closed {_times(closed)}: {now}.")
    for side, measured in (("Without it", result.bare), ("With it", result.beside)):
        if measured.failures:
            causes = ", ".join(f"{count} × {cause}" for cause, count in measured.failed.most_common())
            story.append(f"{side} clients saw: {causes}.")
    if opened and set(result.beside.failed) == {"status 503 for a CV"}:
        story.append("It refused those at once, and so every other request was answered.")
    return story


def _truths(result: Result) -> list[str]:
    """What became of the answers while a provider was away."""
    bare, beside = result.bare, result.beside
    right = beside.requests - beside.failures - beside.wrong - beside.marked
    story = [
        f"Without the sidecar {bare.wrong} of {bare.requests} answers were wrong, and nothing told.",
        f"With it {right} were as ever, {beside.marked} say what they were made without, "
        + (f"and {beside.wrong} lied." if beside.wrong else "and none lied."),
    ]
    if stood_in := sum(result.fallbacks.values()):
        story.append(f"{stood_in} calls of the app were answered by a fallback.")
    return story


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def addresses(stage: Stage, sample: Path) -> str:
    """Where everything listens, for those who want to try for themselves."""
    request = shlex.quote(f"@{sample / 'payloads' / 'matching_request.json'}")
    return f"""
Everything goes on running, with five requests a second through the sidecar. Ctrl-C ends it. Try:

  # the dashboard, in a browser
  {stage.admin_url}/
  # a request through the sidecar, and past it
  curl -d {request} -H 'Content-Type: application/json' {stage.sidecar_url}/api/v1/matching/candidate/c1
  curl -d {request} -H 'Content-Type: application/json' {stage.beside_url}/api/v1/matching/candidate/c1
  # break the app behind it: burst503, hang, ok
  curl -d '{{"mode": "burst503"}}' {stage.beside_url}/_fault
  # break the providers: slow, fail, quota, reset, hang, … ok
  curl -d '{{"google": {{"mode": "fail"}}}}' {stage.providers_url}/_switch
  # what the sidecar was told, and what it says
  curl {stage.admin_url}/health
  curl -s {stage.admin_url}/metrics | grep -E 'retries|breaker|requests_total'
  cat {stage.configuration}
  tail -f {stage.sidecar.output}
"""

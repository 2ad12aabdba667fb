"""An alert: when it fires, what it says, and a case of each for `promtool test rules`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["critical", "warning", "info"]
Series = Mapping[str, str]
"""Samples a minute apart, in promtool's notation (`0+60x30`), by series."""

MINUTES: Final = 90
"""How long the series of cases last; enough for the longest window of an alert and its `for`."""


@dataclass(frozen=True, slots=True)
class Case:
    """Series under which an alert fires, and for which labels; and series under which it does not."""

    fires: Series
    labels: Mapping[str, str]
    quiet: Series
    at: int = 45
    """Minutes after the start that the rules are looked at."""
    value: str = ""
    """What `{{ $value | … }}` in the text is then."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule. Texts may have `{{ $labels.NAME }}` and one `{{ $value | … }}`."""

    name: str
    expr: str
    hold: str
    """How long it must be so: `5m`."""
    severity: Severity
    summary: str
    description: str
    runbook: str
    """The first thing to do, in a line."""
    case: Case = field(repr=False)
    tells: Mapping[str, str] = field(default_factory=dict)
    """Labels that tell rules of one name apart."""
    heading: str = ""
    """In the runbook; absent: the name."""

    @property
    def anchor(self) -> str:
        """Of its heading in the runbook, as Markdown makes it."""
        return (self.heading or self.name).lower()

    def rule(self, runbook_url: str) -> dict[str, object]:
        """As a rule file has it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
            "labels": {"severity": self.severity, **self.tells},
            "annotations": self._annotations(runbook_url),
        }

    def _annotations(self, runbook_url: str) -> dict[str, str]:
        return {
            "summary": self.summary,
            "description": self.description,
            "runbook": self.runbook,
            "runbook_url": f"{runbook_url}#{self.anchor}",
        }

    def expected(self, runbook_url: str) -> dict[str, object]:
        """What promtool expects of the case that fires."""
        return {
            "exp_labels": {"severity": self.severity, **self.tells, **self.case.labels},
            "exp_annotations": {
                key: self._said(text) for key, text in self._annotations(runbook_url).items()
            },
        }

    def _said(self, text: str) -> str:
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: self.case.labels.get(found[1], ""), text)
        return re.sub(r"\{\{ \$value [^}]*\}\}", lambda _: self.case.value, text)


def tests_of(alerts: Sequence[Alert], rule_file: str, runbook_url: str) -> dict[str, object]:
    """The file for `promtool test rules`: of each rule one case that fires, and one that does not."""
    tests: list[dict[str, object]] = []
    for alert in alerts:
        expected = alert.expected(runbook_url)
        for series, fires in ((alert.case.fires, [expected]), (alert.case.quiet, [])):
            tests.append(
                {
                    "name": f"{alert.name} {'fires' if fires else 'is quiet'}",
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "alert_rule_test": [
                        {"eval_time": f"{alert.case.at}m", "alertname": alert.name, "exp_alerts": fires}
                    ],
                }
            )
    return {"rule_files": [rule_file], "evaluation_interval": "1m", "tests": tests}


def steady(value: float) -> str:
    """A gauge that stays."""
    return f"{value:g}x{MINUTES}"


def growing(per_minute: float) -> str:
    """A counter."""
    return f"0+{per_minute:g}x{MINUTES}"


def histogram(name: str, labels: str, bounds: Sequence[float], bound: float, per_minute: float) -> Series:
    """A histogram all of whose observations are in the bucket up to `bound`; `labels` as in a selector."""
    comma = "," if labels else ""
    series = {
        f'{name}_bucket{{{labels}{comma}le="{limit}"}}': growing(per_minute if limit >= bound else 0)
        for limit in bounds
    }
    series[f'{name}_bucket{{{labels}{comma}le="+Inf"}}'] = growing(per_minute)
    return series


def bucket_above(bounds: Iterable[float], threshold: float) -> float:
    """The first bucket whose observations alone have a p95 above `threshold`, interpolated."""
    low = 0.0
    for bound in bounds:
        if low + 0.95 * (bound - low) > threshold:
            return bound
        low = bound
    raise ValueError(f"no bucket is above {threshold:g} s")

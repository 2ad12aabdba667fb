"""Pieces of PromQL."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_SPECIAL: Final = re.compile(r"[.+*?()\[\]{}|^$\\]")
"""To RE2. `re.escape` would escape a hyphen too, which a name may have."""
_ESCAPED: Final = r"\\\g<0>"
INSTANCE: Final = 'instance=~"$instance"'
"""A matcher for what a dashboard is asked to show."""
INTERVAL: Final = "$__rate_interval"
"""At least four scrapes, as Grafana computes it."""


def one_of(label: str, values: Iterable[str]) -> str:
    """A matcher for any of `values`. RE2 is fully anchored in Prometheus."""
    names = list(values)
    if len(names) == 1:
        return f"{label}={quoted(names[0])}"
    return f"{label}=~{quoted('|'.join(_SPECIAL.sub(_ESCAPED, name) for name in names))}"


def quoted(text: str) -> str:
    """A string of PromQL."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def seconds(value: float) -> str:
    """As text for people and for PromQL alike: `2.4`, `24`."""
    return f"{value:g}"


def rate(metric: str, by: str, matchers: str = "", window: str = INTERVAL) -> str:
    """Of a counter, a second, by labels."""
    inside = f"{INSTANCE},{matchers}" if matchers else INSTANCE
    return f"sum by ({by}) (rate({metric}{{{inside}}}[{window}]))"


def total(metric: str, matchers: str) -> str:
    """Of a counter, a second, all together."""
    return f"sum(rate({metric}{{{INSTANCE},{matchers}}}[{INTERVAL}]))"


def quantile(share: float, metric: str, by: str, matchers: str = "") -> str:
    """Of a histogram, by labels."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}, le' if by else 'le', matchers)})"

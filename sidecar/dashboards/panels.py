"""Parts of a Grafana dashboard, as its JSON has them (schema of Grafana 10 and later)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

SCHEMA_VERSION: Final = 39
"""Of Grafana 10.4; later ones read it too."""
WIDE: Final = 24
"""Columns of the grid."""

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "state-timeline", "table"]

_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
BREAKER_STATES: Final = (("closed", "green"), ("half-open", "yellow"), ("open", "red"))
"""By the value of the metric: 0, 1 and 2."""


class Query(NamedTuple):
    expr: str
    legend: str = "__auto"


class Panel(NamedTuple):
    """One panel. `text` is what its owner should know before he reads it."""

    title: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    text: str = ""
    stacked: bool = False
    limits: Sequence[tuple[float, str]] = ()
    """Values from which it has a colour."""
    most: float | None = None
    """The top of the axis."""
    states: Sequence[tuple[str, str]] = ()
    """Text and colour of the values 0, 1, 2, …"""
    width: int = 8
    height: int = 8

    def json(self, number: int, x: int, y: int) -> Json:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": _SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _SOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    "editorMode": "code",
                    "range": True,
                }
                for index, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
        }

    def _defaults(self) -> Json:
        steps: list[Json] = [{"color": "green", "value": None}]
        steps += [{"color": color, "value": value} for value, color in self.limits]
        defaults: Json = {
            "unit": self.unit,
            "min": 0,
            "color": {"mode": "palette-classic" if self.kind == "timeseries" else "thresholds"},
            "thresholds": {"mode": "absolute", "steps": steps},
            "mappings": [],
        }
        if self.most is not None:
            defaults["max"] = self.most
        if self.states:
            options = {
                str(value): {"text": text, "color": color, "index": value}
                for value, (text, color) in enumerate(self.states)
            }
            defaults["mappings"] = [{"type": "value", "options": options}]
        if self.kind == "timeseries":
            defaults["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 30 if self.stacked else 8,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if self.limits else "off"},
            }
        elif self.kind == "state-timeline":
            defaults["custom"] = {"lineWidth": 0, "fillOpacity": 80}
        return defaults

    def _options(self) -> Json:
        if self.kind == "stat":
            return {
                "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
                "colorMode": "value",
                "graphMode": "area",
                "textMode": "auto",
                "justifyMode": "auto",
                "orientation": "auto",
            }
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
        if self.kind == "state-timeline":
            return {
                "mergeValues": True,
                "showValue": "auto",
                "alignValue": "left",
                "rowHeight": 0.9,
                "legend": legend,
                "tooltip": {"mode": "single", "sort": "none"},
            }
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def dashboard(
    uid: str, title: str, description: str, panels: Iterable[Panel], variables: Sequence[Json], tag: str
) -> Json:
    """A dashboard whose panels flow from left to right, row by row."""
    placed: list[Json] = []
    x = y = height = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDE:
            x, y, height = 0, y + height, 0
        placed.append(panel.json(number, x, y))
        x, height = x + panel.width, max(height, panel.height)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["sidecar", tag],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "schemaVersion": SCHEMA_VERSION,
        "panels": placed,
        "templating": {"list": [_source_variable(), *variables]},
        "annotations": {"list": []},
        "links": [
            {
                "title": "Sidecar",
                "type": "dashboards",
                "icon": "external link",
                "tooltip": "",
                "tags": ["sidecar", tag],
                "asDropdown": True,
                "targetBlank": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
    }


def _source_variable() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
    }


def variable(name: str, label: str, series: str) -> Json:
    """One that is chosen among the values of the label `name` of `series`; all, at first."""
    query = f"label_values({series}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }

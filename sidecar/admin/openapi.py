"""The OpenAPI document of the admin listener's paths."""

from __future__ import annotations

from collections.abc import Mapping

_STATUS = {"type": "string", "enum": ["healthy", "degraded", "unhealthy", "critical"]}
_CHECK = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": _STATUS,
        "required": {"type": "boolean", "description": "Whether the sidecar is unready while this fails."},
        "reason": {"type": "string"},
        "since": {"type": "string", "format": "date-time"},
        "latency_ms": {"type": "number"},
        "circuit_breaker": {"type": "string", "enum": ["closed", "half_open", "open"]},
        "mode": {"type": "string", "enum": ["shadow"], "description": "Of a breaker that refuses nothing."},
        "active": {"type": "array", "items": {"type": "string"}, "description": "Of injected faults: where."},
        "lag_ms": {"type": "number"},
        "lag_max_ms": {"type": "number"},
    },
}
_READINESS = {
    "type": "object",
    "required": ["status", "ready"],
    "properties": {"status": _STATUS, "ready": {"type": "boolean"}, "reason": {"type": "string"}},
}
_REPORT = {
    "type": "object",
    "required": ["status", "ready", "version", "uptime_seconds", "checks"],
    "properties": {
        "status": _STATUS,
        "ready": {"type": "boolean"},
        "reason": {"type": "string"},
        "version": {"type": "string"},
        "uptime_seconds": {"type": "number"},
        "checks": {"type": "object", "additionalProperties": _CHECK},
        "system": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_PURGE = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {
        "key": {**_TEXT, "description": "One stored answer, as `sidecar explain` prints its key."},
        "prefix": {**_TEXT, "description": "All whose key begins so."},
        "tag": {**_TEXT, "description": "All that carry the tag."},
        "url": {**_TEXT, "description": "All that answer a GET of this URL."},
        "namespace": {**_TEXT, "description": "All of the namespace."},
    },
}
_WARM = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "urls": {
            "type": "array",
            "items": _TEXT,
            "description": "Absent: what is configured, and what was most wanted.",
        }
    },
}


_FAULT = {
    "type": "object",
    "required": ["source", "fault", "expires_in_seconds", "attempts", "injected"],
    "properties": {
        "route": _TEXT,
        "upstream": _TEXT,
        "source": {"type": "string", "enum": ["policy", "admin"]},
        "fault": {"type": "object", "description": "Its keys, as in a policy file."},
        "expires_in_seconds": {"type": ["number", "null"]},
        "attempts": {**_COUNT, "description": "Attempts since it was set."},
        "injected": {**_COUNT, "description": "Of these, the ones that it hit."},
    },
}
_FAULTS = {
    "type": "object",
    "required": ["faults"],
    "properties": {"faults": {"type": "array", "items": _FAULT}, "cleared": _COUNT},
}
_FAULT_ORDER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["fault"],
    "properties": {
        "route": _TEXT,
        "upstream": _TEXT,
        "fault": {
            "anyOf": [{"type": "object"}, {"type": "null"}, {"const": "off"}],
            "description": "The keys of a policy file's fault; null or off ends what is there.",
        },
        "expires": {**_TEXT, "description": "A duration or a time, within an hour."},
    },
}


def _faults() -> Mapping[str, object]:
    problem = {"application/problem+json": {"schema": {"type": "object"}}}
    answer = {"description": "What is in force.", "content": {"application/json": {"schema": _FAULTS}}}
    refusals = {
        "400": "The body cannot be understood; `detail` says why.",
        "401": "The token is missing or wrong.",
        "403": "It comes from a page of another site, or this is production.",
    }
    return {
        "get": {"summary": "The injected faults in force.", "responses": {"200": answer}},
        "post": {
            "summary": "Injects a fault into attempts of a route or an upstream, or ends one.",
            "security": [{}, {"token": []}],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _FAULT_ORDER}}},
            "responses": {
                "200": answer,
                **{code: {"description": text, "content": problem} for code, text in refusals.items()},
            },
        },
    }


def _act(
    summary: str, asked: Mapping[str, object], status: str, count: str, *, required: bool
) -> Mapping[str, object]:
    """A POST that takes `asked` and answers with a count."""
    answer = {"type": "object", "required": [count], "properties": {count: _COUNT}}
    problem = {"application/problem+json": {"schema": {"type": "object"}}}
    refusals = {
        "400": "The body cannot be understood; `detail` says why.",
        "401": "The token is missing or wrong.",
        "403": "It comes from a page of another site.",
        "409": "No route has a cache.",
    }
    done = {"description": "Done, or begun.", "content": {"application/json": {"schema": answer}}}
    return {
        "post": {
            "summary": summary,
            "security": [{}, {"token": []}],
            "requestBody": {"required": required, "content": {"application/json": {"schema": asked}}},
            "responses": {
                status: done,
                **{code: {"description": text, "content": problem} for code, text in refusals.items()},
            },
        }
    }


def describe(version: str) -> Mapping[str, object]:
    """The OpenAPI 3.1 document of these pages."""

    def of(schema: Mapping[str, object]) -> Mapping[str, object]:
        return {"application/json": {"schema": schema}}

    def probe(summary: str, schema: Mapping[str, object], no: str) -> Mapping[str, object]:
        answers: dict[str, object] = {"200": {"description": "Yes.", "content": of(schema)}}
        if no:
            answers["503"] = {"description": no, "content": of(schema)}
        return {"get": {"summary": summary, "responses": answers}}

    live: Mapping[str, object] = {"type": "object", "required": ["status"], "properties": {"status": _STATUS}}
    text = {"schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sidecar admin API", "version": version},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/health": probe("Is it serving, and how well?", _REPORT, "It is starting or draining."),
            "/health/live": probe("Does the process answer at all?", live, ""),
            "/health/ready": probe("Should traffic come here?", _READINESS, "Not now; `reason` says why."),
            "/health/detailed": probe("Every check, with figures.", _REPORT, "It is starting or draining."),
            "/metrics": {
                "get": {
                    "summary": "Metrics for Prometheus, in the format that Accept asks for.",
                    "responses": {
                        "200": {
                            "description": "The exposition.",
                            "content": {"text/plain": text, "application/openmetrics-text": text},
                        }
                    },
                }
            },
            "/admin/cache/stats": {
                "get": {
                    "summary": "What the cache holds and how it is used.",
                    "responses": {
                        "200": {
                            "description": "Counters since the start, by namespace too.",
                            "content": of({"type": "object"}),
                        },
                    },
                }
            },
            "/admin/cache/purge": _act("Drops stored answers.", _PURGE, "200", "purged", required=True),
            "/admin/faults": _faults(),
            "/admin/cache/warm": _act("Fetches URLs ahead of time.", _WARM, "202", "warming", required=False),
            "/openapi.json": {
                "get": {
                    "summary": "This document.",
                    "responses": {
                        "200": {"description": "OpenAPI 3.1.", "content": of({"type": "object"})},
                    },
                }
            },
        },
    }

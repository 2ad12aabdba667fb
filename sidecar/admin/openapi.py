"""The OpenAPI document of the admin listener, from its routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import orjson

from sidecar.admin.route import Answer, Route, problem

PATH: Final = "/openapi.json"

_REFUSALS: Final = {
    "401": problem("The token is missing or wrong."),
    "403": problem("It comes from a page of another site."),
}


def describe(version: str, routes: Iterable[Route]) -> bytes:
    """The OpenAPI 3.1 document of `routes`, in JSON."""
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Sidecar admin API", "version": version},
            "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
            "paths": paths,
        }
    )


def _operation(route: Route) -> Mapping[str, object]:
    answers = {**(_REFUSALS if route.acting else {}), **route.answers}
    operation: dict[str, object] = {
        "summary": route.summary,
        "responses": {status: _response(answers[status]) for status in sorted(answers)},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.variables
    ]
    for name, schema in route.query.items():
        said = {key: value for key, value in schema.items() if key == "description"}
        rest = {key: value for key, value in schema.items() if key != "description"}
        parameters.append({"name": name, "in": "query", **said, "schema": rest})
    if parameters:
        operation["parameters"] = parameters
    if route.acting:
        operation["security"] = [{}, {"token": []}]
    if route.takes is not None:
        operation["requestBody"] = {
            "required": route.takes.required,
            "content": {kind: {"schema": schema} for kind, schema in route.takes.content.items()},
        }
    return operation


def _response(answer: Answer) -> Mapping[str, object]:
    response: dict[str, object] = {"description": answer.description}
    if answer.content:
        response["content"] = {kind: {"schema": schema} for kind, schema in answer.content.items()}
    return response

"""Orders given at run time: JSON bodies whose members are read as the keys of the YAML are."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import orjson

from sidecar.config.base import Model
from sidecar.config.positions import read
from sidecar.config.validate import validate

Asked = TypeVar("Asked", bound=Model)


def members(body: bytes, example: str) -> dict[str, object]:
    """The members of a JSON object. Raises ValueError, in words for whoever asked."""
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error} ({example})") from None
    if not isinstance(asked, dict):
        raise ValueError(f"the body is not a JSON object ({example})")  # noqa: TRY004 - as all here
    return asked


def order(asked: dict[str, object], model: type[Asked]) -> Asked:
    """The members as `model` has them; null is absent. Raises ValueError with all that is wrong."""
    given = {key: value for key, value in asked.items() if value is not None}
    tree, problems = read(orjson.dumps(given).decode(), "")
    read_as, wrong = validate(model, tree, Path())
    problems += wrong
    if problems or read_as is None:
        raise ValueError("; ".join(f"{it.path}: {it.text}" if it.path else it.text for it in problems))
    return read_as

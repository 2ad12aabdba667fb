"""Orders given at run time: JSON bodies whose members are read as the keys of the YAML are."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import orjson

from sidecar.config.base import Model
from sidecar.config.positions import read
from sidecar.config.validate import validate

Asked = TypeVar("Asked", bound=Model)

LONGEST: Final = 86400.0
"""Seconds for which something may be ordered at a time: what nobody remembers must end by itself."""


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


def bounded(reason: str, expires: float | None, *, at_once: str, lasting: str, example: str) -> None:
    """Raises ValueError where an order gives no reason, or no end within `LONGEST` seconds.

    `at_once`: why this order has no end to give, where that is so; `lasting`: what to do for longer.
    """
    if not reason.strip() or not reason.isprintable():
        raise ValueError(f"reason: say why, in one line of text ({example})")
    if at_once:
        if expires is not None:
            raise ValueError(f"expires: {at_once} (leave it out)")
        return
    if expires is None:
        raise ValueError('expires: when does it end? (add for example "expires": "10m")')
    if expires > LONGEST:
        raise ValueError(f"expires: {LONGEST / 3600:g} hours at most ({lasting})")

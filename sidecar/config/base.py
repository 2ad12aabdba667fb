"""What all models of the configuration have in common."""

from __future__ import annotations

from functools import cache
from types import NoneType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Model(BaseModel):
    """Frozen and hashable. `off` turns a key off: it becomes None where the key may be None."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _off(cls, value: object, info: ValidationInfo) -> object:
        return None if value == "off" and info.field_name in nullable(cls) else value


@cache
def nullable(model: type[Model]) -> frozenset[str]:
    """The keys of `model` that can be turned off."""
    return frozenset(
        name for name, field in model.model_fields.items() if NoneType in get_args(field.annotation)
    )


def setting(default: object, description: str, *examples: object) -> Any:
    """A key with a default, which is written here as a user would write it."""
    return Field(default=default, description=description, examples=list(examples) or None)


def section(model: type[Model], description: str) -> Any:
    """A mapping whose keys all have defaults."""
    return Field(default_factory=model, description=description)


def required(description: str, *examples: object) -> Any:
    return Field(description=description, examples=list(examples))


Mode = Literal["enforce", "shadow"]


def mode() -> Any:
    """`mode` of a policy that may refuse requests."""
    return setting("enforce", "`shadow`: records what it would have refused, and refuses nothing.", "shadow")

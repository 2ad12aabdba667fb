"""What a look-up in a shared store gives."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sidecar.stores.entry import Record


class Lost(Enum):
    """Why there is no answer."""

    TIMEOUT = "timeout"
    RESET = "reset"
    """The connection ended, or there was none to ask."""


class Found(NamedTuple):
    record: Record
    stamp: bytes
    """Tells this write from any other."""

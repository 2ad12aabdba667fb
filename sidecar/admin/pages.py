"""The pages of the admin listener that are values, by path: any listener can serve them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sidecar.admin.page import Page
from sidecar.admin.route import Route


class Showing(Protocol):
    """Who has the pages: this process, or the one that started it."""

    async def get(self, path: str, accept: str = "") -> Page | None:
        """The page at `path`, in the format that `Accept` asks for; None where there is none."""
        ...


class Pages:
    """What is shown, and changes nothing. Pages that take more than a path and Accept are not among them."""

    def __init__(self, routes: Iterable[Route]) -> None:
        shown = [route for route in routes if not route.acting]
        self._now = {route.path: route.page for route in shown if route.page is not None}
        self._late = {route.path: route.late_page for route in shown if route.late_page is not None}

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self._now, *self._late)

    async def get(self, path: str, accept: str = "") -> Page | None:
        """The page at `path`, in the format that `Accept` asks for; None where there is none."""
        if (page := self._now.get(path)) is not None:
            return page(accept)
        late = self._late.get(path)
        return None if late is None else await late(accept)

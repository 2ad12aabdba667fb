"""The pages of the admin listener that are values, by path: any listener can serve them."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.admin.page import Page
from sidecar.admin.route import Route


class Pages:
    """What is shown, and changes nothing. Pages that take more than a path and Accept are not among them."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_path = {
            route.path: route.page for route in routes if not route.acting and route.page is not None
        }

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._by_path)

    def get(self, path: str, accept: str = "") -> Page | None:
        """The page at `path`, in the format that `Accept` asks for; None where there is none."""
        page = self._by_path.get(path)
        return None if page is None else page(accept)

"""What the admin listener says and does about feature flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from aiohttp import web

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import TEXT, Route, Schema, audit, in_json, ordering, problem, showing
from sidecar.config.feature_order import read_feature_order
from sidecar.config.features import NAMES, Features

if TYPE_CHECKING:
    from sidecar.features import Flags

FEATURES: Final = "/admin/features"

_FEATURE: Final[Schema] = {
    "type": "object",
    "required": ["feature", "on", "configured"],
    "properties": {
        "feature": {"type": "string", "enum": list(NAMES)},
        "on": {"type": "boolean"},
        "configured": {"type": "boolean", "description": "What the files say."},
        "reason": {**TEXT, "description": "Why an operator switched it."},
        "client": TEXT,
        "expires_in_seconds": {"type": "number"},
    },
}
_LIST: Final[Schema] = {
    "type": "object",
    "required": ["features"],
    "properties": {"features": {"type": "array", "items": _FEATURE}},
}
_ORDER: Final[Schema] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["feature", "on", "reason"],
    "properties": {
        "feature": {"type": "string", "enum": list(NAMES)},
        "on": {
            "anyOf": [{"type": "boolean"}, {"const": "configured"}],
            "description": "`configured`: as the files say again.",
        },
        "reason": {**TEXT, "maxLength": 200},
        "expires": {**TEXT, "description": "A duration, a day at most; not with configured."},
    },
}


class FeaturePages:
    """The pages about the feature flags of one process."""

    def __init__(self, flags: Flags, configured: Callable[[], Features]) -> None:
        self._flags = flags
        self._configured = configured

    def routes(self) -> Iterator[Route]:
        answer = in_json("All features, as they are now.", _LIST)
        yield showing(FEATURES, self._list, "The feature flags.", {"200": answer})
        yield ordering(
            FEATURES,
            self._act,
            "Switches a feature for a time, or leaves it to the files again.",
            _ORDER,
            {"200": answer, "404": problem("There is no such feature.")},
        )

    def _list(self, _: str) -> Page:
        return json_page({"features": self._flags.listed(self._configured())})

    async def _act(self, request: web.Request) -> Page:
        try:
            asked = read_feature_order(await request.read())
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        audit(request, "feature switched", **asked.model_dump(mode="json", exclude_none=True))
        try:
            if asked.on == "configured":
                self._flags.reset(asked.feature, asked.reason)
            else:
                self._flags.set(
                    asked.feature,
                    on=bool(asked.on),
                    reason=asked.reason,
                    seconds=asked.expires or 0.0,
                    client=request.remote or "unix",
                )
        except ValueError as error:
            return problem_page(404, "Not Found", str(error))
        return self._list("")

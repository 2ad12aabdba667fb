"""Answers of the sidecar's own, from the template of a `respond`: compiled once, filled in per request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.decisions.template import (
    QUERY,
    Template,
    decoded,
    header_template,
    json_template,
    parameter,
    text_template,
)
from sidecar.exchange import Response
from sidecar.headers import Line
from sidecar.routing import path_pattern

if TYPE_CHECKING:
    from sidecar.config.schema import Match, Respond
    from sidecar.exchange import Exchange, Request
    from sidecar.pipeline import Handler

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
CONTENT_TYPE: Final = "content-type"


class Responder:
    """One template."""

    __slots__ = ("_body", "_headers", "_lines", "_names", "_path", "_plain", "_status")

    def __init__(self, settings: Respond, match: Match, extra: Sequence[Line] = ()) -> None:
        """`extra`: lines for every answer, each left out where the template has a field of that name."""
        given = {name.lower(): text for name, text in settings.headers}
        headers = [(name.encode(), header_template(text)) for name, text in settings.headers]
        if settings.json is not None:
            self._body = json_template(settings.json)
            usual = JSON
        else:
            usual = TEXT
            self._body = text_template(settings.text or "", given.get(CONTENT_TYPE, usual))
        if CONTENT_TYPE not in given and not (settings.json is None and settings.text is None):
            headers.insert(0, (b"Content-Type", header_template(usual)))
        headers += [
            (line.wire.partition(b":")[0], header_template(line.value.decode("latin-1")))
            for line in extra
            if line.name.decode("latin-1") not in given
        ]
        self._status = settings.status
        self._headers: tuple[tuple[bytes, Template], ...] = tuple(headers)
        names = [name for template in (self._body, *(it for _, it in headers)) for name in template.names]
        self._names = tuple(dict.fromkeys(names))
        self._path = re.compile(path_pattern(match.path), re.DOTALL).fullmatch
        self._lines: list[Line] | None = None
        self._plain: bytes | None = None
        if not any(template.names for _, template in headers):
            self._lines = self._filled({})
            self._plain = b"".join(line.wire for line in self._lines)

    def answer(self, exchange: Exchange) -> Response:
        """The answer for this request. A HEAD gets the head of it (RFC 9110, 9.3.2)."""
        request = exchange.request
        values = self._values(request) if self._names else {}
        body = self._body.render(values)
        lines = self._lines if self._lines is not None else self._filled(values)
        if request.method == "HEAD":
            return Response(self._status, [*lines, Line(b"Content-Length", b"%d" % len(body))])
        return Response(self._status, lines, body, plain=self._plain)

    def handler(self) -> Handler:
        """As a pipeline's innermost handler: no upstream is asked."""
        decision = f"status={self._status}"

        async def respond(exchange: Exchange) -> Response:
            exchange.note("respond", decision)
            return self.answer(exchange)

        return respond

    def _filled(self, values: Mapping[str, str]) -> list[Line]:
        return [Line(name, template.render(values)) for name, template in self._headers]

    def _values(self, request: Request) -> dict[str, str]:
        """What the variables stand for in this request."""
        found = self._path(request.path)
        path = found.groupdict() if found is not None else {}
        return {
            name: parameter(request.query, name.removeprefix(QUERY))
            if name.startswith(QUERY)
            else decoded(path.get(name, "").encode("latin-1"))
            for name in self._names
        }

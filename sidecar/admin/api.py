"""The admin listener: an aiohttp application over the routes of its subjects, apart from the data plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from sidecar.admin.openapi import PATH as OPENAPI
from sidecar.admin.openapi import describe
from sidecar.admin.page import JSON, Page, problem_page
from sidecar.admin.pages import Pages
from sidecar.admin.route import LARGEST, Route, Subject, audited, in_json, showing
from sidecar.admin.stream import HEADERS, OPEN, Open
from sidecar.admin.token import may_act, same_site
from sidecar.config.addresses import Address
from sidecar.telemetry.log import get_logger

_Whole = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """A running admin listener."""

    def __init__(self, runner: web.AppRunner, address: Address, pages: Pages) -> None:
        self._runner = runner
        self.address = address
        """Where it listens, with its real port."""
        self.pages = pages

    async def close(self) -> None:
        """Stops listening; answers in flight get a moment, streams end."""
        await self._runner.cleanup()


async def start(
    address: Address,
    subjects: Iterable[Subject],
    *,
    version: str,
    token: Callable[[], str | None] = lambda: None,
) -> AdminServer:
    """Binds `address` and serves. Raises OSError where it cannot be bound.

    `token` gives what all that acts must carry; None: nothing.
    """
    routes = [route for subject in subjects for route in subject.routes()]
    routes.append(
        showing(OPENAPI, lambda _: document, "This document.", {"200": in_json("OpenAPI 3.1.")}),
    )
    document = Page(200, JSON, describe(version, routes))
    runner = web.AppRunner(
        _application(routes, token),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=1.0,
        keepalive_timeout=75,
    )
    await runner.setup()
    site: web.BaseSite
    if address.unix is not None:
        site = web.UnixSite(runner, address.unix)
    else:
        site = web.TCPSite(runner, address.host, address.port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    if address.unix is None:
        address = Address(address.host, runner.addresses[0][1])
    return AdminServer(runner, address, Pages(routes))


def _application(routes: Iterable[Route], token: Callable[[], str | None]) -> web.Application:
    log = get_logger("sidecar.admin")
    there = ", ".join(dict.fromkeys(route.path for route in routes))

    @web.middleware
    async def rescue(request: web.Request, handler: _Whole) -> web.StreamResponse:
        """Errors of this listener are JSON too."""
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return _response(
                problem_page(404, "Not Found", f"nothing is at {request.path}; there are {there}")
            )
        except web.HTTPMethodNotAllowed as error:
            allow = ", ".join(sorted(error.allowed_methods))
            response = _response(problem_page(405, error.reason, f"{request.path} takes {allow}"))
            response.headers["Allow"] = allow
            return response
        except web.HTTPException as error:
            return _response(problem_page(error.status, error.reason, error.text or ""))
        except Exception:
            log.exception("unexpected error", path=request.path)
            return _response(problem_page(500, "Internal Server Error", "the log says more"))

    def looking(route: Route) -> _Whole:
        async def look(request: web.Request) -> web.StreamResponse:
            return _whole(await route.handler(request))

        return look

    def acting(route: Route) -> _Whole:
        async def act(request: web.Request) -> web.StreamResponse:
            status = 500
            try:
                response = _refusal(request, token()) or _whole(await route.handler(request))
                status = response.status
            except web.HTTPException as error:
                status = error.status
                raise
            finally:
                event, facts = audited(request)
                told: dict[str, Any] = {**request.match_info, **facts, "client": request.remote or "unix"}
                told |= {"act": f"{route.method} {route.path}", "status": status, "outcome": _outcome(status)}
                # A warning, so that `logging.level` hides it only where nobody wants to know anything.
                log.warning(event, **told)
            return response

        return act

    application = web.Application(middlewares=[rescue], client_max_size=LARGEST)
    application[OPEN] = streams = Open()
    application.on_shutdown.append(streams.close)
    for route in routes:
        if route.acting:
            application.router.add_route(route.method, route.path, acting(route))
        else:
            application.router.add_get(route.path, looking(route))
    return application


def _refusal(request: web.Request, token: str | None) -> web.Response | None:
    """The answer to whoever may not act; None for who may."""
    headers = request.headers
    site = (headers.get("Origin", ""), headers.get("Sec-Fetch-Site", ""), headers.get("Host", ""))
    if not same_site(*site, named=token is not None):
        return _response(problem_page(403, "Forbidden", "a page of another site may not act here"))
    if not may_act(headers.get("Authorization", ""), token):
        detail = "this takes the header Authorization: Bearer, with the admin.token of the configuration"
        response = _response(problem_page(401, "Unauthorized", detail))
        response.headers["WWW-Authenticate"] = 'Bearer realm="sidecar admin"'
        return response
    return None


def _outcome(status: int) -> str:
    if status < 400:
        return "done"
    if status in (401, 403):
        return "refused"
    return "invalid" if status < 500 else "failed"


def _whole(answer: Page | web.StreamResponse) -> web.StreamResponse:
    return _response(answer) if isinstance(answer, Page) else answer


def _response(page: Page) -> web.Response:
    return web.Response(
        status=page.status, body=page.body, headers={**HEADERS, "Content-Type": page.content_type}
    )

"""The admin listener: an aiohttp application over `Pages`, beside the data plane and apart from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from sidecar.admin.cache_pages import LARGEST, PURGE, WARM, CacheControl, same_site
from sidecar.admin.fault_pages import FAULTS, FaultControl
from sidecar.admin.page import Page, problem_page
from sidecar.admin.pages import Pages
from sidecar.admin.token import may_act
from sidecar.config.addresses import Address
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.telemetry.collector import Collector
    from sidecar.telemetry.health import Health

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_ACTING = (PURGE, WARM, FAULTS)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """A running admin listener."""

    def __init__(self, runner: web.AppRunner, address: Address, pages: Pages) -> None:
        self._runner = runner
        self.address = address
        """Where it listens, with its real port."""
        self.pages = pages

    async def close(self) -> None:
        """Stops listening; answers in flight get a moment."""
        await self._runner.cleanup()


async def start(
    address: Address,
    *,
    health: Health,
    collector: Collector,
    version: str,
    cache: CacheControl | None = None,
    faults: FaultControl | None = None,
    token: str | None = None,
    production: bool = False,
) -> AdminServer:
    """Binds `address` and serves. Raises OSError where it cannot be bound.

    `token` is what a POST must carry; None: nothing. In `production` no fault can be set.
    """
    pages = Pages(health, collector, version=version, cache=cache, faults=faults, production=production)
    runner = web.AppRunner(
        _application(pages, token),
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
    return AdminServer(runner, address, pages)


def _application(pages: Pages, token: str | None) -> web.Application:
    log = get_logger("sidecar.admin")

    @web.middleware
    async def rescue(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors of this listener are JSON too."""
        try:
            return await handler(request)
        except web.HTTPNotFound:
            there = dict.fromkeys((*pages.paths, *_ACTING))
            detail = f"nothing is at {request.path}; there are {', '.join(there)}"
            return _response(problem_page(404, "Not Found", detail))
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

    async def show(request: web.Request) -> web.StreamResponse:
        page = pages.get(request.path, ",".join(request.headers.getall("Accept", [])))
        if page is None:  # a path that is percent-encoded routes by its decoded form
            raise web.HTTPNotFound
        return _response(page)

    async def act(request: web.Request) -> web.StreamResponse:
        headers = request.headers
        site = (headers.get("Origin", ""), headers.get("Sec-Fetch-Site", ""), headers.get("Host", ""))
        if not same_site(*site, named=token is not None):
            return _response(problem_page(403, "Forbidden", "a page of another site may not act here"))
        if not may_act(headers.get("Authorization", ""), token):
            detail = "this takes the header Authorization: Bearer, with the admin.token of the configuration"
            response = _response(problem_page(401, "Unauthorized", detail))
            response.headers["WWW-Authenticate"] = 'Bearer realm="sidecar admin"'
            return response
        body = await request.read()
        if request.path == FAULTS:
            return _response(pages.faults.act(body, request.remote or "unix"))
        return _response(await pages.cache.act(request.path, body))

    application = web.Application(middlewares=[rescue], client_max_size=LARGEST)
    for path in _ACTING:
        application.router.add_post(path, act)
    for path in pages.paths:
        application.router.add_get(path, show)
    return application


def _response(page: Page) -> web.Response:
    return web.Response(
        status=page.status, body=page.body, headers={**_HEADERS, "Content-Type": page.content_type}
    )

"""How the app is asked whether it lives: a GET of its health path, or a connection where it has none.

A probe tells four things apart, because *busy is not dead*: an app that stands still in a synchronous
call still has its connections accepted (by the kernel, on its behalf) and must not be given up for it.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import aiohttp

if TYPE_CHECKING:
    import ssl

    from sidecar.config.addresses import Url


class Sign(Enum):
    PASSED = "passed"
    ODD = "odd"
    """It answered, but not to the question: the health path is probably wrong."""
    BUSY = "busy"
    """It took the connection and has not answered in time."""
    SILENT = "silent"
    """Nothing took the connection in time: a full backlog, or no machine."""
    FAILED = "failed"
    """It answered that it is not well."""
    DEAD = "dead"
    """Refused, reset or not to be found."""


class Finding(NamedTuple):
    sign: Sign
    reason: str = ""


class Probe(Protocol):
    async def __call__(self) -> Finding:
        """Asks once. Never raises but when cancelled."""
        ...

    async def close(self) -> None: ...


class HttpProbe:
    """GETs `url`, on a new connection each time: a kept one would hide that nobody listens any more."""

    def __init__(
        self,
        url: str,
        *,
        unix_path: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 2.0,
    ) -> None:
        self._url = url
        self._unix_path = unix_path
        self._tls = tls
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if self._unix_path is not None:
            connector = aiohttp.UnixConnector(self._unix_path, force_close=True)
        else:
            connector = aiohttp.TCPConnector(force_close=True, ssl=True if self._tls is None else self._tls)
        timeout = aiohttp.ClientTimeout(
            total=2 * self._timeout, sock_connect=self._timeout, sock_read=self._timeout
        )
        return aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers={"User-Agent": "sidecar-health"}
        )

    async def __call__(self) -> Finding:
        if self._session is None:
            self._session = self._open()
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                status = response.status
        except aiohttp.ConnectionTimeoutError:
            return Finding(Sign.SILENT, f"no connection within {self._timeout:g} s")
        except TimeoutError:
            return Finding(Sign.BUSY, f"no answer within {self._timeout:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Finding(Sign.DEAD, _reason(error))
        if status >= 500:
            return Finding(Sign.FAILED, f"its health path answers {status}")
        if status >= 400:
            return Finding(Sign.ODD, f"its health path answers {status}")
        return Finding(Sign.PASSED)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class ConnectProbe:
    """Opens a connection and closes it."""

    def __init__(
        self, host: str = "", port: int = 0, *, unix_path: str | None = None, timeout: float = 2.0
    ) -> None:
        self._host = host
        self._port = port
        self._unix_path = unix_path
        self._timeout = timeout

    async def _connect(self) -> asyncio.BaseTransport:
        loop = asyncio.get_running_loop()
        if self._unix_path is not None:
            transport, _ = await loop.create_unix_connection(asyncio.Protocol, self._unix_path)
            return transport
        transport, _ = await loop.create_connection(asyncio.Protocol, self._host, self._port)
        return transport

    async def __call__(self) -> Finding:
        attempt = asyncio.ensure_future(self._connect())
        try:
            await asyncio.wait({attempt}, timeout=self._timeout)
            if not attempt.done():
                return Finding(Sign.SILENT, f"no connection within {self._timeout:g} s")
            attempt.result().close()
        except OSError as error:
            return Finding(Sign.DEAD, _reason(error))
        finally:
            attempt.cancel()
        return Finding(Sign.PASSED)

    async def close(self) -> None:
        """Nothing is kept."""


def probe_of(
    url: Url, health: str | None, *, tls: ssl.SSLContext | None = None, timeout: float = 2.0
) -> Probe:
    """The probe for an app at `url`: of its path `health`, else that it takes connections."""
    if health is None:
        return ConnectProbe(url.host, url.port, unix_path=url.unix, timeout=timeout)
    return HttpProbe(f"{url.scheme}://{url.authority}{health}", unix_path=url.unix, tls=tls, timeout=timeout)


def _reason(error: BaseException) -> str:
    """The operating system's word for it, where there is one: it names no address twice."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer"
    cause = getattr(error, "os_error", error)
    return getattr(cause, "strerror", None) or str(error) or type(error).__name__

"""Breaks what a scenario says, and mends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

from sidecar.drills.errors import StandError
from sidecar.drills.names import Validity
from sidecar.drills.scenario import Break, ProviderFault
from sidecar.drills.stand import Stand, Target

_SPARE: Final = 5.0
"""Seconds after its end at which an injected fault ends by itself, if nobody is left to end it."""
_HEAD: Final = b"GET /api/v1/health HTTP/1.1\r\nHost: slow\r\nX-Slow: "


@contextlib.asynccontextmanager
async def broken(fault: Break, target: Target) -> AsyncIterator[None]:
    """Broken inside. Raises StandError."""
    if fault.inject is not None:
        place = {"route": fault.inject.route} if fault.inject.route else {"upstream": fault.inject.upstream}
        settings = fault.inject.fault.model_dump(mode="json", exclude_unset=True)
        expires = f"{fault.duration + _SPARE:g}s"
        await target.set_fault({**place, "fault": settings, "expires": expires})
        try:
            yield
        finally:
            await target.set_fault({**place, "fault": None})
        return
    if fault.slow_clients is not None:
        async with _slow_clients(target.url, fault.slow_clients):
            yield
        return
    if not isinstance(target, Stand):
        raise StandError(f"{fault.told}: it can only be done to the sample app (leave --target out)")
    async with _broken_process(fault, target):
        yield


@contextlib.asynccontextmanager
async def _broken_process(fault: Break, stand: Stand) -> AsyncIterator[None]:
    """Mended also where the scenario is aborted meanwhile."""
    if fault.providers is not None:
        chosen = {"google": fault.providers.google, "openai": fault.providers.openai}
        there = {name: it for name, it in chosen.items() if it is not None}
        await stand.post(f"{stand.providers_url}/_switch", {name: _switch(it) for name, it in there.items()})
        try:
            yield
        finally:
            await stand.post(f"{stand.providers_url}/_switch", {name: {"mode": "ok"} for name in there})
    elif fault.dns is not None:
        assert stand.name_server is not None
        stand.name_server.failing = fault.dns
        try:
            yield
        finally:
            stand.name_server.failing = None
    elif fault.certificate is not None:
        _certify(stand, fault.certificate)
        try:
            yield
        finally:
            _certify(stand, "valid")
    elif fault.redis is not None:
        async with _broken_redis(fault, stand):
            yield
    elif fault.sidecar is not None:
        restart = asyncio.create_task(stand.restart_sidecar())
        try:
            yield
        finally:
            await restart
    elif fault.app == "killed":
        await stand.kill_app()
        try:
            yield
        finally:
            await stand.start_app()
    elif fault.app == "frozen":
        assert stand.app.process is not None
        stand.app.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            stand.app.process.send_signal(signal.SIGCONT)
    else:
        mode: dict[str, object] = {"mode": "hang", "one_in": 1}
        if fault.app == "burst503":
            mode = {"mode": "burst503", "every": 3600.0, "for": 3600.0}
        await stand.post(f"{stand.app_url}/_fault", mode)
        try:
            yield
        finally:
            await stand.post(f"{stand.app_url}/_fault", {"mode": "ok"})


@contextlib.asynccontextmanager
async def _broken_redis(fault: Break, stand: Stand) -> AsyncIterator[None]:
    if stand.redis is None:
        raise StandError("there is no Redis to break (write stand: {redis: own})")
    if fault.redis == "frozen":
        stand.redis.send(signal.SIGSTOP)
        try:
            yield
        finally:
            stand.redis.send(signal.SIGCONT)
    elif fault.redis == "slow":
        assert stand.redis.relay is not None
        stand.redis.relay.delay = fault.delay
        try:
            yield
        finally:
            stand.redis.relay.delay = 0.0
    else:
        await stand.kill_redis()
        try:
            yield
        finally:
            await stand.start_redis()


def _certify(stand: Stand, validity: Validity) -> None:
    """The providers show another certificate from their next connection on."""
    assert stand.certificates is not None
    stand.certificates.write(validity)
    if stand.providers.process is not None:
        stand.providers.process.send_signal(signal.SIGHUP)


def _switch(fault: ProviderFault) -> dict[str, object]:
    return {"mode": fault.mode, "delay": fault.delay, "share": fault.share}


@contextlib.asynccontextmanager
async def _slow_clients(url: str, count: int) -> AsyncIterator[None]:
    """Connections that send a request's head byte by byte, until they are thrown out."""
    parts = urlsplit(url)
    tasks = [asyncio.create_task(_slow_client(parts.hostname or "", parts.port or 80)) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _slow_client(host: str, port: int) -> None:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return
    try:
        writer.write(_HEAD)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1.0)
    except OSError:
        return  # thrown out
    finally:
        writer.transport.abort()

"""A question to a name server, given up at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from sidecar.upstreams.dns_wire import Family, ask
from tests.support.dns import DnsServer, silence
from tests.support.harness import eventually


def sockets() -> int:
    return sum(1 for it in Path("/proc/self/fd").iterdir() if _is_socket(it))


def _is_socket(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith("socket:")
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("turns", range(5))
async def test_a_question_given_up_leaves_no_socket(turns: int) -> None:
    """However soon a look-up is cancelled, its socket is closed: a loop waits for one in the making."""
    async with DnsServer(silence) as server:
        before = sockets()
        question = asyncio.ensure_future(ask(server.address, "example.com", Family.V4))
        await eventually(lambda: sockets() > before)
        for _ in range(turns):
            await asyncio.sleep(0)
        question.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await question
        assert sockets() == before

"""The openai package before version 1, as the app has it: the real one, over real TLS, by the door that fits.

It does not go with the newer one that other tests use: `make test-all` puts it in a folder of its own, which
only the scripts of these tests look into.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.doors import running
from tests.support.processes import ROOT
from tests.support.world import OPENAI, World, finished, need_namespaces

pytestmark = pytest.mark.system

PACKAGES = Path(sys.prefix) / "clients"
"""Where the Makefile installs requirements/clients.lock."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    if not (PACKAGES / "openai").is_dir():
        pytest.fail(f"openai 0.28 is not in {PACKAGES} (make test-all puts it there)", pytrace=False)
    made = World(tmp_path)
    async with running(*made.providers.values()):
        yield made


def seeing_it() -> dict[str, str]:
    """The environment in which `import openai` finds the old one."""
    return {"PYTHONPATH": os.pathsep.join((str(PACKAGES), str(ROOT)))}


CHAT = """\
import asyncio, json, sys, openai
assert openai.VERSION == "0.28.1", openai.VERSION
openai.api_key = "sk-none"
ask = {"model": "gpt-4", "messages": [{"role": "user", "content": "Analyse this CV: Jean Dupont"}]}

whole = openai.ChatCompletion.create(**ask)
pieces = [it.choices[0].delta.get("content") or "" for it in openai.ChatCompletion.create(stream=True, **ask)
          if it.choices]
later = asyncio.run(openai.ChatCompletion.acreate(**ask)) if sys.argv[2:] else whole
json.dump([whole.choices[0].message.content, "".join(pieces), later.choices[0].message.content, len(pieces)],
          open(sys.argv[1], "w"))
"""
HARD_CODED = f'"sk-none"; openai.api_base = "https://{OPENAI}/v1"'


async def test_by_its_base_url(world: World) -> None:
    """Unchanged under `sidecar run`: OPENAI_API_BASE leads it; whole answers, streams, and by aiohttp."""
    out = world.folder / "out.json"
    script = CHAT.replace('"sk-none"', '"sk-none"; assert openai.api_base.startswith("http://127.0.0.1:")')
    sidecar = await world.run(sys.executable, "-c", script, str(out), "async", **seeing_it())
    whole, streamed, later, pieces = json.loads(out.read_text())
    assert whole == streamed == later
    assert pieces > 2
    assert [line["route"] for line in sidecar.requests()] == ["chat", "chat", "chat"]


async def test_by_the_proxy(world: World) -> None:
    """With its URL hard-coded it heeds HTTPS_PROXY, by a CONNECT of HTTP/1.0, and REQUESTS_CA_BUNDLE."""
    out = world.folder / "out.json"
    script = CHAT.replace('"sk-none"', HARD_CODED)
    sidecar = await world.run(sys.executable, "-c", script, str(out), **seeing_it())
    whole, streamed, _, _ = json.loads(out.read_text())
    assert whole == streamed
    assert [line["route"] for line in sidecar.requests()] == ["chat", "chat"]


async def test_its_async_calls_by_the_hosts_override(world: World, tmp_path: Path) -> None:
    """They are a bare aiohttp session, which heeds no proxy: with a hard-coded URL the override has them."""
    need_namespaces(tmp_path)
    out = world.folder / "out.json"
    script = CHAT.replace('"sk-none"', HARD_CODED)
    sidecar = await world.run(sys.executable, "-c", script, str(out), "async", **seeing_it())
    whole, _, later, _ = json.loads(out.read_text())
    assert whole == later
    assert [line["route"] for line in sidecar.requests()] == ["chat", "chat", "chat"]


async def test_it_sees_no_failure_that_a_retry_mends(world: World) -> None:
    """A provider that answers every other call with 500 is whole to it: it does not retry by itself."""
    provider = world.providers[OPENAI]
    await provider.switch(openai={"mode": "fail", "share": 0.5})
    out = world.folder / "out.json"
    sidecar = await world.run(sys.executable, "-c", CHAT, str(out), **seeing_it())
    whole, streamed, _, _ = json.loads(out.read_text())
    assert whole == streamed
    assert max(line["attempts"] for line in sidecar.requests()) == 2


async def test_doctor_calls_by_it(world: World, tmp_path: Path) -> None:
    """`doctor` finds its doors by real calls: the base URL first, then the proxy; and what it trusts by."""
    need_namespaces(tmp_path)  # for aiohttp to have a door too
    doctor = [sys.executable, "-m", "sidecar", "doctor", "-c", str(world.folder / "sidecar.yaml")]
    for before, code, found in (
        ((), 0, "base URL"),
        (("env", "-u", "OPENAI_API_BASE"), 0, "forward proxy"),
        # requests, on which it stands, takes the one variable for the other.
        (("env", "-u", "OPENAI_API_BASE", "-u", "REQUESTS_CA_BUNDLE", "-u", "CURL_CA_BUNDLE"), 1, "none:"),
    ):
        sidecar = world.sidecar(*before, *doctor, policies=("openai",))
        sidecar.environment |= seeing_it()
        assert await finished(sidecar) == code, sidecar.output.read_text()
        printed = [line for line in sidecar.output.read_text().splitlines() if not line.startswith("{")]
        (row,) = [line for line in printed if line.startswith(OPENAI) and "openai 0.28" in line]
        assert found in row
        missing = f"export REQUESTS_CA_BUNDLE={world.folder / 'ca' / 'bundle.pem'}"
        assert (missing in printed) is (code == 1)
        sidecar.output.unlink()

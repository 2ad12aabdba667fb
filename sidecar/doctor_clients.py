"""The clients whose way `sidecar doctor` tries: each a small program, in the environment as it is.

A program gets the URL to call as its argument, prints the body of the answer and ends with 0; with
`ABSENT` where the client is not installed. It sets nothing that an app would not set.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from typing import Final, Literal

from sidecar.child_environment import OPENAI_HOST

ABSENT: Final = 3
PATIENCE: Final = 10
"""Seconds a client may take."""

_PYTHON: Final = """\
import sys
try:
    import {package}
except ImportError:
    sys.exit({absent})
url = sys.argv[1]
{script}
"""
_AIOHTTP: Final = """\
import asyncio
async def main():
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        print(await reply.text())
asyncio.run(main())
"""
_SPLIT: Final = """\
from urllib.parse import urlsplit
parts = urlsplit(url)
path = parts.path + "?" + parts.query
"""
_OPENAI: Final = (
    _SPLIT
    + """\
if not hasattr(openai, "OpenAI"):
    sys.exit({absent})
print(openai.OpenAI(api_key="none", max_retries=0).get(path, cast_to=str))
"""
)
_OPENAI_0: Final = (
    _SPLIT
    + """\
if hasattr(openai, "OpenAI"):
    sys.exit({absent})
import json
from openai.api_requestor import APIRequestor
print(json.dumps(APIRequestor(key="none").request("get", path)[0].data))
"""
)
_NODE: Final = """\
if (typeof fetch !== 'function') process.exit(%d);
fetch(process.argv[1]).then((reply) => reply.text()).then(console.log, (error) => {
  console.error(String(error.cause || error)); process.exit(1);
});
"""


@dataclass(frozen=True)
class Client:
    """A kind of client. `trusts` is the variable that names what it trusts."""

    name: str
    program: Literal["python", "node", "curl"]
    arguments: tuple[str, ...]
    """Before the URL."""
    trusts: str
    heeds_proxy: bool
    """Whether `HTTPS_PROXY` leads it; else the hosts file alone does."""
    only: str | None = None
    """The one host that it calls."""


def _python(package: str, script: str) -> tuple[str, ...]:
    program = _PYTHON.replace("{script}", script)
    return ("-c", program.replace("{package}", package).replace("{absent}", str(ABSENT)))


CLIENTS: Final = (
    Client("aiohttp", "python", _python("aiohttp", _AIOHTTP), "SSL_CERT_FILE", heeds_proxy=False),
    Client(
        "requests",
        "python",
        _python("requests", "print(requests.get(url).text)"),
        "REQUESTS_CA_BUNDLE",
        heeds_proxy=True,
    ),
    Client(
        "httpx", "python", _python("httpx", "print(httpx.get(url).text)"), "SSL_CERT_FILE", heeds_proxy=True
    ),
    Client(
        "openai",
        "python",
        _python("openai", _OPENAI),
        "SSL_CERT_FILE",
        heeds_proxy=True,
        only=OPENAI_HOST,
    ),
    Client(
        "openai 0.28",
        "python",
        _python("openai", _OPENAI_0),
        "REQUESTS_CA_BUNDLE",
        heeds_proxy=True,
        only=OPENAI_HOST,
    ),
    Client("node", "node", ("-e", _NODE % ABSENT), "NODE_EXTRA_CA_CERTS", heeds_proxy=False),
    Client("curl", "curl", ("-sS",), "CURL_CA_BUNDLE", heeds_proxy=True),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a call."""

    code: int
    out: str
    err: str


async def call(client: Client, url: str, python: str) -> Outcome | None:
    """Calls `url` by the client; None where it is not installed."""
    program = python if client.program == "python" else shutil.which(client.program)
    if program is None:
        return None
    process = await asyncio.create_subprocess_exec(
        program,
        *client.arguments,
        url,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    timer = asyncio.get_running_loop().call_later(PATIENCE, process.kill)
    out, err = await process.communicate()
    late = timer.when() <= asyncio.get_running_loop().time()
    timer.cancel()
    if process.returncode == ABSENT:
        return None
    told = err.decode(errors="replace").strip()
    if late:
        told = f"no answer in {PATIENCE} s"
    return Outcome(process.returncode or 0, out.decode(errors="replace"), told)

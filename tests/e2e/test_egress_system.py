"""The app's own calls by clients that Python packages do not bring: curl and node."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.doors import HOST, Doors, opened

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with opened(tmp_path_factory.mktemp("egress")) as doors:
        yield doors


async def run(program: str, *arguments: str, **environment: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is not on the PATH", pytrace=False)
    process = await asyncio.create_subprocess_exec(
        path,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return out.decode()


def seen(text: str) -> dict[str, str]:
    found = json.loads(text)["headers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("option", ["--proxy", "--proxy1.0"])
async def test_curl_by_proxy(doors: Doors, option: str) -> None:
    """By the proxy, with CONNECT of either version, trusting by the variable that `sidecar ca` prints."""
    out = await run("curl", "-sS", option, doors.proxy, f"https://{HOST}/echo", CURL_CA_BUNDLE=doors.bundle)
    assert seen(out)["host"] == HOST


async def test_curl_by_the_environment(doors: Doors) -> None:
    """By HTTPS_PROXY alone, twice over one connection."""
    url = f"https://{HOST}/shared/curl"
    environment = {"HTTPS_PROXY": doors.proxy, "CURL_CA_BUNDLE": doors.bundle}
    out = await run("curl", "-sSi", url, url, **environment)
    assert out.count("HTTP/1.1 200 Connection established") == 1
    assert out.lower().count("cache-status: sidecar; hit") == 1


async def test_curl_by_a_hosts_override(doors: Doors) -> None:
    """Led to the intercept listener, it meets a certificate that it accepts, and HTTP/1.1."""
    lead = f"{HOST}:443:127.0.0.1:{doors.intercept}"
    out = await run(
        "curl", "-sSi", "--http2", "--connect-to", lead, f"https://{HOST}/echo", CURL_CA_BUNDLE=doors.bundle
    )
    assert out.startswith("HTTP/1.1 200 OK")


async def test_curl_without_the_ca(doors: Doors) -> None:
    """It refuses, and the log says what is missing."""
    with pytest.raises(AssertionError, match="SSL certificate problem"):
        await run("curl", "-sS", "--proxy", doors.proxy, f"https://{HOST}/echo")
    said = [line for line in doors.sidecar.log() if line["message"] == "no tls"]
    assert "the client does not trust the local CA" in said[-1]["reason"]
    assert said[-1]["host"] == f"{HOST}:443"


NODE = """\
const https = require('https');
const [host, port] = process.argv.slice(1);
const here = {address: '127.0.0.1', family: 4};
const lookup = (name, options, done) =>
  options.all ? done(null, [here]) : done(null, here.address, here.family);
https.get({host, port, path: '/echo', lookup}, (reply) => reply.pipe(process.stdout));
"""


async def test_node_by_a_hosts_override(doors: Doors) -> None:
    """Node trusts by NODE_EXTRA_CA_CERTS, which adds to its own roots."""
    ca = str(doors.sidecar.folder / "ca" / "ca.pem")
    out = await run("node", "-e", NODE, HOST, str(doors.intercept), NODE_EXTRA_CA_CERTS=ca)
    assert seen(out)["host"] == HOST

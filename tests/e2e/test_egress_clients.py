"""Unchanged scripts with hard-coded URLs under `sidecar run -- COMMAND`, with the shipped policies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar import private_namespace
from tests.support.doors import running
from tests.support.processes import Program
from tests.support.world import GOOGLE, OPENAI, World, finished, need_namespaces

HOSTS = Path("/etc/hosts")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    async with running(*made.providers.values()):
        yield made


@pytest.fixture
def _namespaces(tmp_path: Path) -> None:
    need_namespaces(tmp_path)


URL = f"https://{GOOGLE}/maps/api/geocode/json?address=Paris&key=AIzaSecret"

AIOHTTP = """\
import asyncio, json, os, sys, time
import aiohttp

async def fetch():
    async with aiohttp.ClientSession() as session:
        async with session.get(sys.argv[1]) as reply:
            return [reply.headers.get("Cache-Status", ""), await reply.json()]

async def main():
    seen = [await fetch(), await fetch()]
    open(sys.argv[2] + ".warm", "w").close()
    while os.path.exists(sys.argv[2] + ".warm"):
        await asyncio.sleep(0.02)
    seen.append(await fetch())
    sys.argv[1] = sys.argv[1].replace("Paris", "Lyon")
    seen.append(await fetch())
    json.dump(seen, open(sys.argv[2], "w"))

asyncio.run(main())
"""


@pytest.mark.usefixtures("_namespaces")
async def test_a_bare_aiohttp_session(world: World) -> None:
    """It heeds no proxy, and is caught: the second call is a hit, and it sees no outage of the provider."""
    script, out = world.folder / "script.py", world.folder / "out.json"
    script.write_text(AIOHTTP)
    warm = Path(f"{out}.warm")
    sidecar = world.sidecar(sys.executable, str(script), URL, str(out))
    running_ = asyncio.create_task(finished(sidecar))
    while not await asyncio.to_thread(warm.exists):
        assert not running_.done(), sidecar.output.read_text()
        await asyncio.sleep(0.02)
    await world.providers[GOOGLE].end(signal.SIGKILL)
    await asyncio.to_thread(warm.unlink)
    assert await running_ == 0, sidecar.output.read_text()
    (first, one), (second, two), (third, three), (_, cold) = json.loads(out.read_text())
    assert "fwd=uri-miss" in first
    assert second.startswith("sidecar; hit")
    assert third.startswith("sidecar; hit")
    assert one == two == three
    assert cold["status"] == "OK"


REQUESTS = """\
import json, sys, requests
seen = []
for _ in range(2):
    reply = requests.get(sys.argv[1])
    seen.append([reply.headers.get("Cache-Status", ""), reply.json()["status"]])
json.dump(seen, open(sys.argv[2], "w"))
"""
GOOGLEMAPS = """\
import json, sys, googlemaps
seen = []
keep = lambda reply, *_, **__: seen.append([reply.headers.get("Cache-Status", ""), reply.json()["status"]])
client = googlemaps.Client(key="AIzaSecret", requests_kwargs={"hooks": {"response": keep}})
for _ in range(2):
    assert client.geocode("Paris")[0]["geometry"]["location"]
json.dump(seen, open(sys.argv[2], "w"))
"""


@pytest.mark.parametrize("script", [
    pytest.param(REQUESTS, id="requests"),
    pytest.param(REQUESTS.replace("requests", "httpx"), id="httpx"),
    pytest.param(GOOGLEMAPS, id="googlemaps"),
])  # fmt: skip
async def test_a_client_of_google_maps(world: World, script: str) -> None:
    """Unchanged, its second call is a hit."""
    out = world.folder / "out.json"
    await world.run(sys.executable, "-c", script, URL, str(out))
    (first, status), (second, again) = json.loads(out.read_text())
    assert "fwd=uri-miss" in first
    assert second.startswith("sidecar; hit")
    assert status == again == "OK"


CHAT = """\
import json, sys, openai
client = openai.OpenAI(api_key="sk-none"%s)
ask = {"model": "gpt-4", "messages": [{"role": "user", "content": "Analyse this CV: Jean Dupont"}]}
whole = client.chat.completions.with_raw_response.create(**ask)
text = whole.parse().choices[0].message.content
chunks = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(stream=True, **ask)
          if chunk.choices]
json.dump([text, "".join(chunks), len(chunks)], open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize("base", ["", f', base_url="https://{OPENAI}/v1"'], ids=["base URL", "proxy"])
async def test_the_openai_package(world: World, base: str) -> None:
    """By its base URL from the environment, and with one hard-coded; streams come in pieces."""
    out = world.folder / "out.json"
    sidecar = await world.run(sys.executable, "-c", CHAT % base, str(out))
    text, streamed, pieces = json.loads(out.read_text())
    assert text == streamed
    assert pieces > 2
    assert [line["route"] for line in sidecar.requests()] == ["chat", "chat"]


NODE = """\
const fs = require('fs');
(async () => {
  const seen = [];
  for (let n = 0; n < 2; n++) {
    const reply = await fetch(process.argv[1]);
    seen.push([reply.headers.get('cache-status'), (await reply.json()).status]);
  }
  fs.writeFileSync(process.argv[2], JSON.stringify(seen));
})();
"""


@pytest.mark.system
@pytest.mark.usefixtures("_namespaces")
async def test_nodes_fetch(world: World) -> None:
    """Unchanged, its second call is a hit."""
    out = world.folder / "out.json"
    await world.run("node", "-e", NODE, URL, str(out))
    (_, status), (second, again) = json.loads(out.read_text())
    assert second.startswith("sidecar; hit")
    assert status == again == "OK"


@pytest.mark.system
async def test_curl(world: World) -> None:
    """Unchanged, its second call is a hit."""
    out = world.folder / "heads.txt"
    await world.run("curl", "-sS", "-D", str(out), "-o", "/dev/null", URL, "-o", "/dev/null", URL)
    heads = out.read_text().lower()
    assert heads.count("cache-status: sidecar; hit") == 1


# -- the namespace -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_namespaces")
async def test_the_namespace_is_the_childs_alone(world: World) -> None:
    """It sees the override in /etc/hosts and the CA among the system's roots; others see neither."""
    before = await asyncio.to_thread(HOSTS.read_text)
    out = world.folder / "out.json"
    script = (
        "import json, sys, os\n"
        "json.dump([open('/etc/hosts').read(), os.getcwd(), os.getuid()], open(sys.argv[1], 'w'))\n"
    )
    await world.run(sys.executable, "-c", script, str(out))
    hosts, folder, uid = json.loads(out.read_text())
    lines = hosts.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("127.66.0.")] == [GOOGLE, OPENAI]
    assert set(before.splitlines()) <= set(lines)
    assert await asyncio.to_thread(HOSTS.read_text) == before
    assert (folder, uid) == (str(Path.cwd()), os.getuid())


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize(("script", "code"), [
    ("raise SystemExit(7)", 7),
    ("import os; os.kill(os.getpid(), 9)", 137),
    ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143),
])  # fmt: skip
async def test_exit_codes_in_a_namespace(world: World, script: str, code: int) -> None:
    """They are the child's, as without one."""
    assert await finished(world.sidecar(sys.executable, "-c", script)) == code


@pytest.mark.usefixtures("_namespaces")
async def test_a_command_that_is_not_there(world: World) -> None:
    """It says so and ends with 2, as without a namespace."""
    sidecar = world.sidecar("no-such-program")
    assert await finished(sidecar) == 2
    assert "sidecar: no-such-program: No such file" in sidecar.output.read_text()


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_rights(tmp_path: Path) -> None:
    """By a user namespace it works for anybody, who stays who he is."""
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    launcher = Path("/tmp") / f"sidecar-test-{os.getpid()}"  # where pytest's folders are, nobody may read
    launcher.mkdir(mode=0o755)
    try:
        for file in (Path(private_namespace.__file__), ca):
            shutil.copyfile(file, launcher / file.name)
        python = _interpreter_for_all()
        arguments = ["--address", "127.66.0.9", "--host", "a.example", "--ca", str(launcher / "ca.pem")]
        command = [python, "-I", "-S", str(launcher / "private_namespace.py"), *arguments, "--"]
        found = subprocess.run(
            [*command, "sh", "-c", "id -u; tail -1 /etc/hosts"],
            capture_output=True,
            text=True,
            check=False,
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
        )
    finally:
        shutil.rmtree(launcher)
    if "no private namespace after all" in found.stderr:
        pytest.skip(f"user namespaces are not for anybody here: {found.stderr.strip()}")
    assert found.stdout == "65534\n127.66.0.9 a.example\n", found.stderr


def _interpreter_for_all() -> str:
    """A Python that other users may start too."""
    for name in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            tried = subprocess.run(
                [name, "-c", ""], user=65534, group=65534, cwd="/", capture_output=True, check=False
            )
            if tried.returncode == 0:
                return name
    pytest.skip("no Python that another user may start")


@pytest.mark.skipif(shutil.which("setpriv") is None or os.getuid() != 0, reason="needs root and setpriv")
async def test_where_port_443_is_not_allowed(world: World) -> None:
    """It says once what cannot be done and what to do instead, and the other doors are open."""
    out = world.folder / "out.json"
    sidecar = world.sidecar(sys.executable, "-c", REQUESTS, URL, str(out))
    sidecar.command = ["setpriv", "--bounding-set", "-net_bind_service,-sys_admin", *sidecar.command]
    assert await finished(sidecar) == 0, sidecar.output.read_text()
    (said,) = [line for line in sidecar.log() if line["message"] == "no private namespace for the app"]
    assert "listen.intercept" in said["mend"]
    assert json.loads(out.read_text())[1][0].startswith("sidecar; hit")


# -- doctor ------------------------------------------------------------------------------------------


def doctor(world: World) -> list[str]:
    return [sys.executable, "-m", "sidecar", "doctor", "-c", str(world.folder / "sidecar.yaml")]


async def diagnosed(world: World, *before: str) -> tuple[int, str]:
    """`sidecar run -- BEFORE… sidecar doctor`: its exit code and what it prints, without the log."""
    sidecar = world.sidecar(*before, *doctor(world))
    code = await finished(sidecar)
    return code, "".join(
        line + "\n" for line in sidecar.output.read_text().splitlines() if not line.startswith("{")
    )


@pytest.mark.usefixtures("_namespaces")
async def test_doctor_under_run(world: World) -> None:
    """Each client has a door; it is named; exit 0; and the providers were not called."""
    code, text = await diagnosed(world)
    assert code == 0, text
    found = {tuple(line.split()[:2]): line.split(maxsplit=2)[2] for line in text.splitlines()}
    assert found[GOOGLE, "aiohttp"] == "hosts override"
    assert found[GOOGLE, "requests"] == found[GOOGLE, "httpx"] == "forward proxy"
    assert found[OPENAI, "openai"] == "base URL"
    for provider in world.providers.values():
        assert "sidecar-doctor" not in provider.output.read_text()


@pytest.mark.usefixtures("_namespaces")
async def test_doctor_without_the_ca(world: World) -> None:
    """With SSL_CERT_FILE unset it prints the exact line that is missing, and ends with 1."""
    code, text = await diagnosed(world, "env", "-u", "SSL_CERT_FILE")
    assert code == 1, text
    bundle = world.folder / "ca" / "bundle.pem"
    assert f"export SSL_CERT_FILE={bundle}" in text.splitlines()
    assert "REQUESTS_CA_BUNDLE" not in text


async def test_doctor_without_a_proxy(world: World) -> None:
    """Nothing set at all: for each client the lines that are missing."""
    sidecar = world.sidecar()
    async with running(sidecar):
        found = Program(doctor(world), world.folder / "doctor.out")
        assert await finished(found) == 1
    lines = found.output.read_text().splitlines()
    assert f"export HTTPS_PROXY=http://127.0.0.1:{sidecar.port}" in lines
    assert f"export REQUESTS_CA_BUNDLE={world.folder / 'ca' / 'bundle.pem'}" in lines
    assert any(line.startswith("sidecar run -- COMMAND") for line in lines)


async def test_doctor_without_a_sidecar(world: World) -> None:
    """It says how to start one."""
    world.sidecar()  # writes its files
    found = Program(doctor(world), world.folder / "doctor.out")
    assert await finished(found) == 1
    assert "(start it: sidecar run)" in found.output.read_text()

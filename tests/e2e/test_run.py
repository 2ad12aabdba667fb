"""`sidecar run` as a process: the child, signals, draining, exit codes."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes import Program, Sidecar, TinyApp, free_port, until_connects

Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a sidecar; what still runs at the end is killed."""
    programs: list[Program] = []

    async def run(app_port: int, *command: str, **settings: Any) -> Sidecar:
        sidecar = Sidecar(tmp_path, app_port, settings.pop("policies", None), *command, **settings)
        programs.append(sidecar)
        await sidecar.start()
        return sidecar

    yield run
    for program in programs:  # not killed: a child would outlive it
        if program.process is not None and program.process.returncode is None:
            await program.end()


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(url) as reply:
        return reply.status, await reply.text()


async def until_status(url: str, wanted: int) -> None:
    for _ in range(500):
        try:
            if (await get(url))[0] == wanted:
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.02)
    raise AssertionError(f"{url} never answered {wanted}")


def app_command(port: int) -> list[str]:
    return [sys.executable, str(Path(__file__).parents[1] / "support" / "tiny_app.py"), str(port)]


async def test_it_starts_the_app_and_stops_it(start: Start) -> None:
    """It is ready once the app answers; SIGTERM ends both."""
    port = free_port()
    sidecar = await start(port, *app_command(port))
    await until_status(sidecar.admin + "/health/ready", 200)
    assert (await get(sidecar.url + "/x"))[0] == 200
    assert await sidecar.end() in (0, 128 + signal.SIGTERM)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_it_is_unready_until_the_app_answers(start: Start) -> None:
    """Without an app it serves, and says that it is not ready."""
    sidecar = await start(free_port())
    status, text = await get(sidecar.admin + "/health/ready")
    assert status == 503
    assert "app" in text
    assert (await get(sidecar.admin + "/health/live"))[0] == 200


@pytest.mark.parametrize(("script", "code"), [
    ("raise SystemExit(7)", 7),
    ("import os; os.kill(os.getpid(), 9)", 137),
    ("print('done')", 0),
])  # fmt: skip
async def test_it_exits_with_the_childs_code(start: Start, script: str, code: int) -> None:
    """The child need not be a server; its exit code is ours, 128 + n after a signal."""
    sidecar = await start(free_port(), sys.executable, "-c", f"import time; time.sleep(1); {script}")
    assert sidecar.process is not None
    assert await asyncio.wait_for(sidecar.process.wait(), 15) == code


async def test_signals_reach_the_child(start: Start, tmp_path: Path) -> None:
    """SIGUSR1 and SIGHUP are the child's affair: it gets them, and the sidecar goes on."""
    heard = tmp_path / "heard"
    script = (
        "import signal, sys, time\n"
        f"write = lambda number, _: open({str(heard)!r}, 'a').write(f'{{number}}\\n')\n"
        "signal.signal(signal.SIGUSR1, write); signal.signal(signal.SIGHUP, write)\n"
        f"open({str(heard)!r}, 'a').write('ready\\n')\n"
        "while True: time.sleep(0.05)\n"
    )
    sidecar = await start(free_port(), sys.executable, "-c", script)
    await _until_lines(heard, 1)
    sidecar.send(signal.SIGUSR1)
    await _until_lines(heard, 2)
    sidecar.send(signal.SIGHUP)
    await _until_lines(heard, 3)
    assert heard.read_text().split() == ["ready", str(int(signal.SIGUSR1)), str(int(signal.SIGHUP))]
    assert (await get(sidecar.admin + "/health/live"))[0] == 200


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


async def _until_lines(file: Path, count: int) -> None:
    for _ in range(500):
        if _lines(file) >= count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{file} has not {count} lines")


async def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    """It says so and ends with 2."""
    sidecar = Sidecar(tmp_path, free_port(), None, "no-such-program")
    assert await ends(sidecar) == 2
    assert "sidecar: no-such-program: No such file" in sidecar.output.read_text()


async def ends(program: Program) -> int:
    """Starts what is to end by itself; its exit code."""
    await Program.start(program)
    assert program.process is not None
    return await asyncio.wait_for(program.process.wait(), 15)


async def test_a_listener_that_cannot_bind(tmp_path: Path) -> None:
    """Exit 2, with the key and the mend, and no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sidecar = Sidecar(tmp_path, free_port(), None)
        text = (tmp_path / "sidecar.yaml").read_text()
        port = taken.getsockname()[1]
        (tmp_path / "sidecar.yaml").write_text(text.replace(str(sidecar.port), str(port)))
        assert await ends(sidecar) == 2
    output = sidecar.output.read_text()
    assert f"listen.ingress: cannot listen on 127.0.0.1:{port}: another process listens there" in output
    assert "Traceback" not in output


async def test_sigterm_lets_requests_finish(start: Start, tmp_path: Path) -> None:
    """What is in flight is answered, with Connection: close; new connections are refused; exit 0."""
    app = TinyApp(tmp_path)
    await app.start()
    sidecar = await start(app.port)
    slow = asyncio.create_task(_get_with_headers(sidecar.url + "/gated/x"))
    for _ in range(500):
        if "/gated/x" in (await get(f"http://127.0.0.1:{app.port}/calls"))[1]:
            break
        await asyncio.sleep(0.02)
    sidecar.send(signal.SIGTERM)
    await until_status(sidecar.admin + "/health/ready", 503)
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(sidecar.url + "/x")
    async with aiohttp.ClientSession() as http:  # past the sidecar: now it may answer
        assert (await http.post(f"http://127.0.0.1:{app.port}/gated/x")).status == 204
    status, headers = await slow
    assert (status, headers["Connection"]) == (200, "close")
    assert await sidecar.end() == 0
    await app.end()
    assert sidecar.requests()[-1]["path"] == "/gated/x"


async def _get_with_headers(url: str) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession() as http, http.get(url) as reply:
        await reply.read()
        return reply.status, dict(reply.headers)


async def test_an_app_on_a_unix_socket(start: Start, tmp_path: Path) -> None:
    """`app.url: unix:/path` reaches an app that listens on a socket file."""
    path = tmp_path / "app.sock"

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_unix_server(hello, path):
        sidecar = await start(0, app={"url": f"unix:{path}"})
        assert await get(sidecar.url + "/") == (200, "hello")


async def test_everything_passes_without_any_file(tmp_path: Path) -> None:
    """`run --app URL` needs no file: all requests pass as `unmatched`."""
    app = TinyApp(tmp_path)
    await app.start()
    port, admin = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "sidecar", "run", "--app", f"http://127.0.0.1:{app.port}"),
        *("--set", f"listen.ingress=127.0.0.1:{port}", "--set", f"listen.admin=127.0.0.1:{admin}"),
    ]
    sidecar = Program(["env", "-C", str(tmp_path), *command], tmp_path / "run.out")
    await sidecar.start()
    await until_connects(port)
    assert (await get(f"http://127.0.0.1:{port}/any"))[0] == 200
    assert 'route="unmatched"' in (await get(f"http://127.0.0.1:{admin}/metrics"))[1]
    assert await sidecar.end() == 0
    await app.end()

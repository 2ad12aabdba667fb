"""What the running product holds in memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.origin import Origin, OriginConnection

CLIENTS = 20
SIZE = 10_000_000
MAY_GROW = 20_000_000
POLICY = """\
name: app
routes:
  - name: all
    deadline: 60s
    attempt_timeout: 10s
    retry: {attempts: 2}
    circuit_breaker: {}
    concurrency_limit: {max: 64}
"""


@asynccontextmanager
async def sidecar(directory: Path, origin: Origin) -> AsyncIterator[tuple[int, int]]:
    """`sidecar run` as a process: its pid, and the port it listens on."""
    (directory / "policy.yaml").write_text(POLICY)
    (directory / "sidecar.yaml").write_text(
        f"app: {{url: 'http://{origin.address}'}}\n"
        "listen: {ingress: '127.0.0.1:0', admin: '127.0.0.1:0'}\n"
        "policies: [policy.yaml]\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "run", "-c", str(directory / "sidecar.yaml")),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            while (line := json.loads(await process.stdout.readline()))["message"] != "listening":
                pass
        yield process.pid, int(line["ingress"].rpartition(":")[2])
    finally:
        process.kill()
        await process.communicate()


def resident(pid: int, field: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most (proc(5))."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    """`VmHWM` starts anew from here (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")


async def read_slowly(port: int) -> int:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    sock.setblocking(False)  # its only parameter
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=32 * 1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    size = 0
    while data := await reader.read(65536):
        size += len(data)
        await asyncio.sleep(0.003)
    writer.close()
    return size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads proc(5)")
async def test_slow_readers(tmp_path: Path) -> None:
    """20 clients that read 10 MB slowly, all at once, cost at most 20 MB."""

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE, bytes(SIZE))

    async with Origin(script) as origin, sidecar(tmp_path, origin) as (pid, port):
        assert await read_slowly(port) == SIZE
        before = resident(pid, "VmRSS")
        forget_peak(pid)
        assert await asyncio.gather(*(read_slowly(port) for _ in range(CLIENTS))) == [SIZE] * CLIENTS
        grown = resident(pid, "VmHWM") - before
        assert grown <= MAY_GROW, f"{grown / 1e6:.1f} MB"

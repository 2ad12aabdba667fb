"""The thread that writes log lines, on real descriptors."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.telemetry.sink import Sink


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        try:
            os.close(end)
        except OSError:
            assert end == read  # a test may have closed the reader


def everything(read: int) -> bytes:
    data = b""
    os.set_blocking(read, False)
    try:
        while part := os.read(read, 65536):
            data += part
    except BlockingIOError:
        pass
    return data


def test_nothing_is_lost_on_a_clean_stop(tmp_path: Path) -> None:
    """All lines handed over before `close` are in the file, in order."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    sink = Sink(fd)
    for number in range(1000):
        sink.write(b"line %d\n" % number)
    sink.close()
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == b"".join(b"line %d\n" % number for number in range(1000))
    assert sink.dropped == 0


def test_a_reader_that_does_not_read_stops_nobody(pipe: tuple[int, int]) -> None:
    """A full pipe costs lines, counted and complained of once, never time; memory stays bounded."""
    said: list[str] = []
    sink = Sink(pipe[1], on_trouble=said.append, most_pending=100_000)
    line = b"x" * 999 + b"\n"
    for _ in range(1000):
        sink.write(line)
    assert 0 < sink.dropped < 1000
    assert said == ["its reader is too slow"]
    taken = b""
    while taken.count(b"\n") < 1000 - sink.dropped:
        taken += os.read(pipe[0], 65536)
    sink.close()
    assert taken == line * (1000 - sink.dropped)


def test_a_closed_reader_is_complained_of_once(pipe: tuple[int, int]) -> None:
    """EPIPE on each batch: every line counts as dropped, and it is said once."""
    os.close(pipe[0])
    said: list[str] = []
    sink = Sink(pipe[1], on_trouble=said.append)
    sink.write(b"a\nb\n", 2)
    sink.write(b"c\n")
    sink.close()
    assert sink.dropped == 3
    assert said[:1] == ["Broken pipe"]


def test_a_full_disk_drops_lines() -> None:
    """ENOSPC neither raises nor ends the thread."""
    fd = os.open("/dev/full", os.O_WRONLY)
    said = threading.Event()
    sink = Sink(fd, on_trouble=lambda reason: said.set() if reason == "No space left on device" else None)
    sink.write(b"a\n")
    assert said.wait(5)
    sink.write(b"b\n")
    sink.close()
    os.close(fd)
    assert sink.dropped == 2


def test_writing_goes_on_after_trouble(tmp_path: Path) -> None:
    """When the descriptor takes data again, so does the log."""
    fd = os.open("/dev/full", os.O_WRONLY)
    failed = threading.Event()
    sink = Sink(fd, on_trouble=lambda _: failed.set())
    sink.write(b"lost\n")
    assert failed.wait(5)
    disk = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(disk, fd)
    sink.write(b"kept\n")
    sink.close()
    os.close(fd)
    os.close(disk)
    assert (tmp_path / "log").read_bytes() == b"kept\n"
    assert sink.dropped == 1


def test_a_non_blocking_descriptor_loses_nothing(pipe: tuple[int, int]) -> None:
    """Whoever shares stdout may have set O_NONBLOCK: EAGAIN is waited out in the thread."""
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, fcntl.fcntl(pipe[1], fcntl.F_GETFL) | os.O_NONBLOCK)
    sink = Sink(pipe[1])
    data = b"y" * 299_999 + b"\n"
    sink.write(data)
    taken = b""
    while len(taken) < len(data):
        taken += os.read(pipe[0], 65536)
    sink.close()
    assert taken == data
    assert sink.dropped == 0


def test_after_close_lines_are_dropped(pipe: tuple[int, int]) -> None:
    """Late lines are counted, and `close` may be called again."""
    sink = Sink(pipe[1])
    sink.write(b"a\n")
    sink.close()
    sink.write(b"b\n")
    sink.close()
    assert everything(pipe[0]) == b"a\n"
    assert sink.dropped == 1


PROGRAM = """
import os, socket
from sidecar.telemetry.sink import standard_output
sink = standard_output()
left, right = socket.socketpair()
{say}
right.setblocking(False)
try:
    leaked = right.recv(100)
except BlockingIOError:
    leaked = b""
os._exit(len(leaked)) if leaked else None
"""


def run(say: str, redirections: str = "") -> subprocess.CompletedProcess[bytes]:
    """A process with `standard_output`."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$0" -c "$1" {redirections}', sys.executable, PROGRAM.format(say=say)],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=30,
    )


def test_a_process_that_ends_without_close_loses_nothing() -> None:
    """The end of the interpreter flushes what is pending."""
    done = run("sink.write(b'a\\n'); sink.write(b'b\\n')")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nb\n", b"")


def test_a_closed_stdout_is_not_mistaken_for_a_socket() -> None:
    """Started with `>&-`, lines go nowhere: not into the first connection that gets descriptor 1."""
    done = run("sink.write(b'secret\\n'); sink.close()", ">&-")
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_full_disk_is_said_on_stderr() -> None:
    """Once, with the reason, while the process goes on."""
    done = run("[sink.write(b'x\\n') for _ in range(9)]; sink.close()", ">/dev/full")
    assert done.returncode == 0
    assert done.stderr == b"sidecar: log lines are dropped: No space left on device\n"

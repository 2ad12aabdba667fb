"""Log files: rotated by size, begun anew when moved away, and a disk that is full in between."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sidecar.telemetry.log_file import LogFile
from sidecar.telemetry.sink import Sink, file_sink

LINE = b"x" * 99 + b"\n"


def test_files_rotate_by_size_and_the_oldest_go(tmp_path: Path) -> None:
    """None is larger than `size`, `keep` older ones stay, and the newest lines are in the current one."""
    sink = file_sink(tmp_path / "log", 1000, 2)
    for number in range(55):
        sink.write(b"%099d\n" % number)
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    kept = b"".join((tmp_path / name).read_bytes() for name in ("log.2", "log.1", "log"))
    assert kept == b"".join(b"%099d\n" % number for number in range(30, 55))
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """A restart goes on where the last process ended, and may rotate at once."""
    (tmp_path / "log").write_bytes(LINE * 10)
    sink = file_sink(tmp_path / "log", 1050, 1)
    sink.write(LINE)
    sink.close()
    assert (tmp_path / "log.1").read_bytes() == LINE * 10
    assert (tmp_path / "log").read_bytes() == LINE


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path, *, gone: bool) -> None:
    """As logrotate does it (`create`, or nothing): no signal, no line lost."""
    path = tmp_path / "log"
    file = LogFile(path)
    sink = Sink(file.fd, file=file)
    wrote = threading.Event()
    sink.write(LINE)

    def made() -> bytes:
        wrote.set()
        return LINE

    sink.write_made(made, 1)
    assert wrote.wait(10)
    while path.stat().st_size < 2 * len(LINE):
        pass
    path.rename(tmp_path / "old")
    if not gone:
        path.touch()
    sink.write(b"new\n")
    sink.close()
    assert (tmp_path / "old").read_bytes() == LINE * 2
    assert path.read_bytes() == b"new\n"
    assert sink.dropped == 0


def test_where_no_new_file_can_be_begun_the_old_one_is_written_on(tmp_path: Path) -> None:
    """A directory that is gone loses no line of a file that is still open."""
    directory = tmp_path / "logs"
    directory.mkdir()
    file = LogFile(directory / "log", 100, 1)
    kept = os.dup(file.fd)
    sink = Sink(file.fd, file=file)
    (directory / "log").unlink()
    directory.rmdir()
    sink.write(b"a\n")
    sink.write(b"b\n")
    sink.close()
    assert os.fstat(kept).st_size == 4
    os.close(kept)
    assert sink.dropped == 0


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    """At the start, where somebody can mend it."""
    with pytest.raises(OSError, match="No such file"):
        file_sink(tmp_path / "none" / "log", None, 1)


def test_a_batch_that_cannot_be_made_costs_its_lines_only(tmp_path: Path) -> None:
    """Whatever goes wrong in the thread is counted and said, and the next batch is written."""
    said: list[str] = []
    file = LogFile(tmp_path / "log")
    sink = Sink(file.fd, file=file, on_trouble=said.append)

    def broken() -> bytes:
        raise ZeroDivisionError

    sink.write_made(broken, 7)
    sink.write(b"next\n")
    sink.close()
    assert (tmp_path / "log").read_bytes() == b"next\n"
    assert sink.dropped == 7
    assert said == ["ZeroDivisionError()"]

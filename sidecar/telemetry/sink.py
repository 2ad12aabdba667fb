"""Where log lines leave the process: a file descriptor behind a thread of its own.

The event loop never waits for a disk or for whoever reads a pipe. Setting O_NONBLOCK instead is no way
out: the flag belongs to the open file, which the app started beside us shares. What the descriptor does
not take in time is dropped and counted: traffic goes first.
"""

from __future__ import annotations

import atexit
import os
import select
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from queue import SimpleQueue

from sidecar.telemetry.log_file import LogFile

MOST_PENDING = 4 * 1024 * 1024
"""Bytes that may wait for the descriptor; more are dropped."""
LINE = 1024
"""Bytes that a line is taken for which is not made yet."""
CLOSE_SECONDS = 2.0
"""How long `close` waits for the descriptor to take what is pending."""


Make = Callable[[], bytes]
"""Makes a batch of lines, in the sink's thread."""


class Sink:
    """Writes whole batches of lines to `fd`, in order. Safe to use from any thread."""

    def __init__(
        self,
        fd: int,
        *,
        on_trouble: Callable[[str], None] | None = None,
        most_pending: int = MOST_PENDING,
        file: LogFile | None = None,
    ) -> None:
        """`file`: what `fd` is of, where that is more than a descriptor; it is closed with the sink.

        `on_trouble` hears once of each stretch of trouble, in the thread that ran into it.
        """
        self.fd = fd
        self._file = file
        self.dropped = 0
        """Lines that were lost."""
        self.turn: Callable[[], AbstractContextManager[object]] = nullcontext
        """Entered for each batch, in the thread: where other processes write to the same descriptor too."""
        self._on_trouble = on_trouble
        self._most_pending = most_pending
        self._lock = threading.Lock()
        self._pending = 0
        self._queue: SimpleQueue[tuple[bytes | Make, int, int] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._troubled = False
        self._torn = False

    @property
    def is_terminal(self) -> bool:
        try:
            return os.isatty(self.fd)
        except OSError:
            return False

    def write(self, data: bytes, lines: int = 1) -> None:
        """Hands over `lines` whole lines. Returns at once; never raises."""
        self._put_in(data, lines, len(data))

    def write_made(self, make: Make, lines: int) -> None:
        """Hands over what makes `lines` whole lines: the thread has more time than whoever calls this."""
        self._put_in(make, lines, lines * LINE)

    def _put_in(self, data: bytes | Make, lines: int, size: int) -> None:
        with self._lock:
            fits = not self._closed and self._pending + size <= self._most_pending
            if fits:
                self._pending += size
                self._queue.put((data, lines, size))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=f"log sink {self.fd}", daemon=True)
                    self._thread.start()
                    atexit.register(self.close)
            else:
                self.dropped += lines
        if not fits:
            self._complain("its reader is too slow")

    def close(self) -> None:
        """Waits until all that was handed over is written, at most `CLOSE_SECONDS`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(CLOSE_SECONDS)
            atexit.unregister(self.close)
        if self._file is not None and (thread is None or not thread.is_alive()):
            self._file.close()

    def _complain(self, reason: str) -> None:
        """Says it once for each stretch of trouble."""
        with self._lock:
            first, self._troubled = not self._troubled, True
        if first and self._on_trouble is not None:
            self._on_trouble(reason)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            data, lines, size = batch
            try:
                if not isinstance(data, bytes):
                    data = data()
                if self._file is not None and self._file.ready(len(data)):
                    self.fd, self._torn = self._file.fd, False
                with self.turn():
                    self._put(b"\n" + data if self._torn else data)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one batch, the next gets its chance
                with self._lock:
                    self._pending -= size
                    self.dropped += lines
                self._complain((isinstance(error, OSError) and error.strerror) or repr(error))
            else:
                with self._lock:
                    self._pending -= size
                    # Only a drained queue ends the trouble: a slow reader takes a batch now and then.
                    self._troubled = self._troubled and self._pending > 0

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                written = os.write(self.fd, rest)
            except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
                poller = select.poll()
                poller.register(self.fd, select.POLLOUT)
                poller.poll()
                continue
            except OSError:
                self._torn = self._torn or 0 < len(rest) < len(data)
                raise
            rest = rest[written:]
        self._torn = False


def standard_output() -> Sink:
    """A sink for stdout; what becomes of its troubles is said on stderr, which must not block either.

    To be made before any socket: where stdout is closed, the first one would get its number, and the log.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    return Sink(1, on_trouble=_complain_on_stderr())


def file_sink(path: Path, size: int | None, keep: int) -> Sink:
    """A sink for a file, as `LogFile`; its troubles are said on stderr. Raises OSError."""
    file = LogFile(path, size, keep)
    return Sink(file.fd, on_trouble=_complain_on_stderr(), file=file)


def _complain_on_stderr() -> Callable[[str], None]:
    complaints = Sink(2)

    def complain(reason: str) -> None:
        complaints.write(f"sidecar: log lines are dropped: {reason}\n".encode())

    return complain

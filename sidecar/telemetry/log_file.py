"""A log file: rotated by size, and begun anew where others have moved it away.

All of it happens in the sink's thread, before a batch is written. A look at the path costs two microseconds
a batch; so there is no signal to send after a rotation, and none that is taken from the app.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

# A FIFO without a reader fails at once instead of standing still; files do not mind.
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
_MODE: Final = 0o640


class LogFile:
    """An open file. Used by one thread at a time."""

    def __init__(self, path: Path, size: int | None = None, keep: int = 1) -> None:
        """`size`: bytes that the file does not grow beyond, None: any; `keep`: older files that stay.

        Raises OSError where it cannot be opened.
        """
        self.path = path
        self._size = size
        self._keep = keep
        self.fd = -1
        self._open()

    def ready(self, length: int) -> bool:
        """Sees to it that `length` bytes may be written to `fd`. Returns whether that is a new file.

        Where no new file can be begun the old one is written on: better too large than lost.
        """
        try:
            now = self.path.stat()
        except OSError:
            return self._anew()
        if (now.st_dev, now.st_ino) != self._identity:
            return self._anew()
        if self._size is None or not stat.S_ISREG(now.st_mode):
            return False
        if not now.st_size or now.st_size + length <= self._size:
            return False
        try:
            for number in range(self._keep - 1, 0, -1):
                older = self._numbered(number)
                if older.exists():
                    older.replace(self._numbered(number + 1))
            self.path.replace(self._numbered(1))
        except OSError:
            return False
        return self._anew()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _anew(self) -> bool:
        before = self.fd
        try:
            self._open()
        except OSError:
            return False
        os.close(before)
        return True

    def _open(self) -> None:
        self.fd = fd = os.open(self.path, _FLAGS, _MODE)
        found = os.fstat(fd)
        self._identity = (found.st_dev, found.st_ino)

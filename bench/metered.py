"""`python -m bench.metered FILE ARGUMENTS…`: the sidecar, with the CPU that OpenSSL takes counted in FILE.

Counted are the calls that encrypt or decrypt records (SSL_read, SSL_write), by the thread's own CPU clock,
whose reading costs much of what it measures and is taken off. What moves the bytes to and from OpenSSL's
buffers is the sidecar's. Only shares come from here: a process that looks at a clock so often is slower.
"""

from __future__ import annotations

import mmap
import ssl
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEAR, FAR = 0, 1
"""Where the nanoseconds of a side stand: TLS to the app, and to the provider."""
_LAYOUT = struct.Struct("2q")


def read(file: Path) -> tuple[int, int]:
    """Nanoseconds of CPU so far: near, far."""
    near, far = _LAYOUT.unpack(file.read_bytes())
    return near, far


def _clock_cost() -> int:
    """Nanoseconds between two looks at the clock with nothing between them."""
    clock = time.thread_time_ns
    return min(-clock() + clock() for _ in range(10_000))


def meter(file: Path) -> None:
    """From now on all TLS of this process is counted."""
    file.write_bytes(bytes(_LAYOUT.size))
    with file.open("r+b") as opened:
        cells = memoryview(mmap.mmap(opened.fileno(), _LAYOUT.size)).cast("q")
    cost, clock = _clock_cost(), time.thread_time_ns

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: ssl.SSLObject, *arguments: Any) -> Any:
            started = clock()
            try:
                return call(self, *arguments)
            finally:
                cells[NEAR if self.server_side else FAR] += max(0, clock() - started - cost)

        return wrapped

    class Metered(ssl.SSLObject):
        read = counted(ssl.SSLObject.read)
        write = counted(ssl.SSLObject.write)

    ssl.SSLContext.sslobject_class = Metered


def main() -> int:
    from sidecar.cli import main as sidecar

    meter(Path(sys.argv[1]))
    sys.argv[1:] = sys.argv[2:]
    return sidecar()


if __name__ == "__main__":
    sys.exit(main())

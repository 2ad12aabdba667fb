"""What keeps a listener from being bound, in words."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from sidecar.config.addresses import Address


class CannotStart(Exception):
    """Something outside the configuration's text is wrong; the message says what, and the mend."""


@contextlib.contextmanager
def binding(key: str, address: Address) -> Iterator[None]:
    """Turns the failure to bind into words."""
    if address.unix is not None:
        with contextlib.suppress(OSError):
            _remove_dead_socket(address.unix)
    try:
        yield
    except OSError as error:
        mend = {
            errno.EADDRINUSE: "another process listens there: stop it, or choose another port",
            errno.EACCES: "not allowed: choose a port above 1023, or give the right to bind it",
            errno.EADDRNOTAVAIL: "this machine has no such address: 0.0.0.0 stands for all that it has",
        }.get(error.errno or 0, error.strerror or str(error))
        raise CannotStart(f"{key}: cannot listen on {address}: {mend}") from error


def _remove_dead_socket(path: str) -> None:
    """A socket that a killed process left is removed; one that somebody listens on is not."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()

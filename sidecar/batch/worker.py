"""Who a process is to the others that share a store."""

from __future__ import annotations

import os
import socket
from typing import Final

import psutil

from sidecar.clock import Ids

_BOOT: Final = "/proc/sys/kernel/random/boot_id"


def host() -> str:
    """The machine as one run of it, and where Linux has them the namespace of process ids.

    Process ids of another namespace mean nothing here: containers of one machine may share a file.
    """
    name = socket.gethostname()
    try:
        with open(_BOOT) as file:  # noqa: PTH123 - as short as that
            return f"{name}/{file.read(8)}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - likewise
    except OSError:
        return name


def worker_name(ids: Ids) -> str:
    """Never the same twice."""
    return f"{host()}:{ids.request_id()}"


def lives(process: int, born: float) -> bool:
    """Whether this machine's process of that number is there, and was born then (Unix seconds)."""
    try:
        return abs(psutil.Process(process).create_time() - born) < 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True

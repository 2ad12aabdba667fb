"""How commands call the admin listener of the sidecar that runs with the same configuration."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sidecar.config.schema import Config

PATIENCE: Final = 10.0
"""Seconds for an answer."""


class Failed(Exception):
    """There was no answer, or it was a refusal; the message says which."""


class _Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def called(config: Config, path: str, order: dict[str, object] | None = None) -> Any:
    """The JSON at `path` of the admin listener, after `order` was posted there if there is one.

    The token is the configuration's own, so that it stands in no list of processes. Raises `Failed`.
    """
    listener = config.listen.admin
    connection: http.client.HTTPConnection
    if listener.unix is not None:
        connection = _Unix(listener.unix)
    else:
        reached = listener.reached
        connection = http.client.HTTPConnection(reached.host, reached.port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json"}
    if config.admin.token is not None:
        headers["Authorization"] = f"Bearer {config.admin.token.get_secret_value()}"
    try:
        if order is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(order), headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(f"no sidecar answers at {listener}: {error} (is it running?)") from error
    finally:
        connection.close()
    if answer.status >= 400:
        raise Failed(str(told.get("detail", answer.reason)))
    return told

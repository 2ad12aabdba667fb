"""Pictures of the dashboard under the demo's load, while the app and OpenAI have a bad day.

python scripts/screenshot.py           writes docs/img/dashboard.png, as the README shows it
python scripts/screenshot.py FOLDER    writes it there, and besides the whole page: light, dark, on a phone

It takes a minute and more, the demo's packages and a Chromium.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sidecar.clock import SystemClock
from sidecar.demo.load import Clients, Payloads, arrive
from sidecar.demo.processes import Stage, examples
from tests.support.browser import Page

SECONDS = 30
"""Of load, before things break and after."""


async def _load(clients: Clients, payloads: Payloads, clock: SystemClock) -> None:
    """The demo's mix at 20 requests a second: matchings, some of them asked again, and CVs to be read."""
    while True:
        mix = [
            payloads.asked_again(number) if number % 3 == 0 else payloads.with_cvs(number)
            for number in range(100)
        ]
        await arrive([clients], mix, 20.0, clock)


async def main(folder: Path, *, all_of_them: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        sample = examples()
        stage = Stage(Path(directory), sample)
        page = Page(Path(directory))
        clients: Clients | None = None
        loads: list[asyncio.Task[None]] = []
        try:
            await stage.start()
            await page.start()
            await page.size(1280, 1120)
            await page.go(stage.admin_url)
            payloads = Payloads(sample / "payloads")
            clients = Clients(stage.sidecar_url, 15.0, stage.clock)
            loads = [asyncio.create_task(_load(clients, payloads, stage.clock))]
            await stage.clock.sleep(SECONDS)
            await stage.break_providers({"openai": {"mode": "slow", "delay": 0.4}})
            await stage.break_apps({"mode": "burst503", "every": 5.0, "for": 0.4})
            await stage.clock.sleep(SECONDS)
            (folder / "dashboard.png").write_bytes(await page.picture())
            if all_of_them:
                (folder / "full.png").write_bytes(await page.picture(whole=True))
                await page.scheme("dark")
                (folder / "dark.png").write_bytes(await page.picture(whole=True))
                await page.scheme("light")
                await page.size(390, 844, phone=True)
                (folder / "phone.png").write_bytes(await page.picture(whole=True))
        finally:
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
            if clients is not None:
                await clients.close()
            await page.close()
            problems = await stage.stop()
    for problem in problems:
        print(problem, file=sys.stderr)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "img"
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(folder, all_of_them=len(sys.argv) > 1))

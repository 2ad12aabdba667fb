"""`sidecar demo`: the same traffic to the sample app with and without the sidecar, while things break.

All of it is real: the app, the fake providers and the sidecar are processes of their own, the requests
go over loopback sockets, and the figures printed are those measured.
"""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from sidecar.demo.acts import ACTS as APP_ACTS
from sidecar.demo.acts import Result, perform
from sidecar.demo.load import Payloads, trickle
from sidecar.demo.processes import DemoError, Stage, examples
from sidecar.demo.provider_acts import PROVIDER_ACTS
from sidecar.demo.table import HEADING, NOTE, addresses, rows

ACTS = (*APP_ACTS, *PROVIDER_ACTS)
NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "requests": "requests",
    "python_multipart": "python-multipart",
}
"""Modules that the sample app imports, and the names they are installed by."""


def run(once: bool, policy: Path | None = None) -> int:
    """Runs the acts; then, unless `once`, keeps everything running until Ctrl-C.

    `policy` is a policy file for the app, in the place of the demo's own.

    Returns the exit code: 0; 1 when the sidecar's clients saw more failures than the others in any act, or
    a wrong answer that was not marked, or when a process did not start or end as it should; 2 when the demo's
    packages are not installed.
    """
    missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
    if missing:
        _complain(f"the demo needs {', '.join(missing)}: pip install 'nextvision-sidecar[demo]'")
        return 2
    try:
        complaints = asyncio.run(_run(once, policy))
    except KeyboardInterrupt:
        complaints = ["interrupted while it was stopping"]
    except DemoError as error:
        complaints = [str(error)]
    for complaint in complaints:
        _complain(complaint)
    return 1 if complaints else 0


async def _run(once: bool, policy: Path | None) -> list[str]:
    """Returns all there is to complain of."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="sidecar-demo-") as directory:
        sample = examples()
        stage = Stage(Path(directory), sample, policy)
        results: list[Result] = []
        complaints: list[str] = []
        try:
            await stage.start()
            payloads = Payloads(sample / "payloads")
            _say(HEADING)
            for act in ACTS:
                result = await perform(act, stage, payloads)
                results.append(result)
                _say(rows(result))
            _say(NOTE)
            if not once:
                _say(addresses(stage, sample))
                await trickle(stage.sidecar_url, payloads)
        except asyncio.CancelledError:
            if once:
                complaints.append("interrupted")
        except DemoError as error:
            complaints.append(str(error))
        finally:
            complaints += await stage.stop()
    return complaints + _worse(results, by_chance=policy is not None)


def _worse(results: list[Result], *, by_chance: bool) -> list[str]:
    """The acts in which the sidecar did harm, or did not keep what it promises.

    `by_chance`: its policy may not be meant to help in each act. Then the same failures are counted on both
    sides, and counts of the same differ by chance: by less than three standard deviations, nearly always.
    """

    def bearable(result: Result) -> float:
        failures = result.bare.failures
        return failures + (3 * math.sqrt(failures) if by_chance else 0.0)

    worse = [
        f'in "{result.act.title}" clients of the sidecar saw {result.beside.failures} failures, '
        f"the others {result.bare.failures}"
        for result in results
        if result.beside.failures > bearable(result)
    ]
    return worse + [
        f'in "{result.act.title}" {result.beside.wrong} answers of the sidecar were wrong and did not say so'
        for result in results
        if result.beside.wrong
    ]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"sidecar demo: {text}\n")

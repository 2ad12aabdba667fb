"""A secret of the configuration is left nowhere: processes, logs, answers, history, commands, crashes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.e2e.test_features import command
from tests.e2e.test_reload import json_of, policies, said, until, write
from tests.support.processes import Sidecar, TinyApp, until_connects

MARK = "MARKED-9b1e77c2-secret"
TYPED = "MARKED-typed-into-the-file"


async def test_a_marked_secret_is_found_nowhere(tmp_path: Path) -> None:
    """By reference, by file, by variable, typed into a file; through reloads, good and bad, and a crash."""
    app = TinyApp(tmp_path)
    await app.start()
    (tmp_path / "token").write_text(MARK)
    inject = {"query": {"key": "${KEY}"}, "headers": {"X-Key": TYPED}}
    policy: dict[str, Any] = {**policies(), "inject": inject, "direction": "egress", "hosts": ["a.example"]}
    sidecar = Sidecar(
        tmp_path, app.port, policy, logging={"format": "json", "level": "debug"},
        admin={"token": f"${{file:{tmp_path / 'token'}}}"}, ca={"dir": "ca"},
    )  # fmt: skip
    sidecar.environment |= {
        "KEY": MARK,
        "SIDECAR__CACHE__REDIS": f"redis://:{MARK}@127.0.0.1:1",
        "SIDECAR__LISTEN__EGRESS": "off",
        "PYTHONFAULTHANDLER": "1",
    }
    seen: list[str] = []
    try:
        await sidecar.start()
        await until_connects(sidecar.admin_port)
        seen += psutil.Process(sidecar.pid).cmdline()
        (tmp_path / "token").write_text(f"{MARK}-2")
        await until(lambda: said(sidecar, "configuration loaded"))
        broken = {**policy, "inject": {"query": {"key": "${KEY}"}, "headers": {"X Key": TYPED}}}
        write(tmp_path / "policy.yaml", broken)
        await until(lambda: said(sidecar, "configuration refused, the last good one serves"))
        seen += [(await command(sidecar, "check"))[1]]
        write(tmp_path / "policy.yaml", {**policy, "routes": [{"name": "all", "retry": {"attempts": 4}}]})
        await until(lambda: len(said(sidecar, "configuration loaded")) >= 2)
        for arguments in (
            ["features", "set", "cache", "off", "--reason", "test", "--for", "1s"],
            ["features", "list"],
            ["config", "history"],
            ["config", "diff", "2"],
            ["explain", "GET", "https://a.example/x"],
            ["routes"],
        ):
            seen.append((await command(sidecar, *arguments))[1])
        _, page = await json_of(sidecar, "/openapi.json")
        async with aiohttp.ClientSession() as http:
            for path in page["paths"]:
                if "get" in page["paths"][path] and "{" not in path and "stream" not in path:
                    try:
                        async with http.get(sidecar.admin + path, timeout=aiohttp.ClientTimeout(1)) as reply:
                            seen.append(await reply.text())
                    except TimeoutError:
                        continue  # a stream of events
    finally:
        await sidecar.end(signal.SIGABRT)
        await app.end()
    output = sidecar.output.read_text()
    assert "Fatal Python error: Aborted" in output
    kept = [it.read_text() for it in (tmp_path / ".sidecar" / "history").iterdir()]  # short
    assert len(kept) >= 2
    for text in (*seen, output, *kept):
        assert "MARKED" not in text, text[max(text.index("MARKED") - 300, 0) :][:400]
    assert sys.executable in seen
    assert any('"generation":' in text for text in seen)

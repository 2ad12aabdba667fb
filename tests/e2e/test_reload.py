"""Reloading as its user sees it: a process, its files, its log, its admin listener."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

from tests.support.processes import Sidecar, TinyApp, total, until_connects

PATIENCE = 20.0


def policies(*, attempts: int = 2, **route: Any) -> dict[str, Any]:
    rest = {"name": "all", "match": {"path": "/*"}, "retry": {"attempts": attempts}, **route}
    return {"name": "app", "routes": [rest]}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[TinyApp]:
    program = TinyApp(tmp_path)
    await program.start()
    yield program
    await program.end()


@pytest.fixture
async def sidecar(tmp_path: Path, app: TinyApp) -> AsyncIterator[Sidecar]:
    program = Sidecar(tmp_path, app.port, policies(), logging={"format": "json"})
    await program.start()
    await until_connects(program.admin_port)
    yield program
    if program.process is not None and program.process.returncode is None:
        await program.end()


async def until(holds: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `holds` gives once that is true."""
    for _ in range(int(seconds / 0.05)):
        found = holds()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it never came true")


def said(sidecar: Sidecar, message: str) -> list[dict[str, Any]]:
    return [line for line in sidecar.log() if line["message"] == message]


async def json_of(sidecar: Sidecar, path: str, method: str = "GET") -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.request(method, sidecar.admin + path) as reply:
        return reply.status, await reply.json(content_type=None)


def write(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))


async def test_a_signal_loads_the_files_again(sidecar: Sidecar) -> None:
    """SIGHUP: the new generation serves; number and difference are in the log, health and metrics."""
    before = sidecar.folder / "policy.yaml"
    write(before, policies(attempts=4))
    sidecar.send(signal.SIGHUP)
    [line] = await until(lambda: said(sidecar, "configuration loaded"))
    assert line["changes"] == ["~ policies.app.routes.all.retry.attempts: 2 -> 4"]
    _, health = await json_of(sidecar, "/health/detailed")
    assert health["checks"]["configuration"]["generation"] == 2
    metrics = await sidecar.metrics()
    assert metrics["nextvision_config_generation"] == 2
    assert total(metrics, "nextvision_config_reloads_total", result="applied") == 1
    _, told = await json_of(sidecar, "/admin/config")
    assert told["generation"] == 2


async def test_a_bad_file_keeps_the_last_good_one(sidecar: Sidecar) -> None:
    """It says so with file, line and column: log, answer, metrics, health, which is degraded but ready."""
    file = sidecar.folder / "policy.yaml"
    good = file.read_text()
    write(file, good.replace("retry:", "retires:"))
    status, answer = await json_of(sidecar, "/admin/reload", "POST")
    assert status == 409
    assert "policy.yaml:" in answer["detail"]
    assert "retires: unknown key" in answer["detail"]
    line, *_ = await until(lambda: said(sidecar, "configuration refused, the last good one serves"))
    assert "policy.yaml:" in line["problem"]
    assert (await json_of(sidecar, "/health/ready"))[0] == 200
    _, health = await json_of(sidecar, "/health/detailed")
    assert health["checks"]["configuration"]["status"] == "degraded"
    assert "retires" in health["checks"]["configuration"]["reason"]
    async with aiohttp.ClientSession() as http, http.get(sidecar.url + "/x") as reply:
        assert reply.status == 200
    write(file, good)
    assert (await json_of(sidecar, "/admin/reload", "POST"))[1]["result"] == "unchanged"
    _, health = await json_of(sidecar, "/health/detailed")
    assert health["checks"]["configuration"]["status"] == "healthy"
    metrics = await sidecar.metrics()
    assert total(metrics, "nextvision_config_reloads_total", result="failed") >= 1


async def test_what_takes_a_restart_is_said(sidecar: Sidecar) -> None:
    """A listener's address stays as it is, and the answer says that; the rest is in force."""
    file = sidecar.folder / "sidecar.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["listen"]["ingress"] = "127.0.0.1:1"
    settings["limits"] = {"body": "1KiB"}
    write(file, settings)
    _, answer = await json_of(sidecar, "/admin/reload", "POST")
    [needed] = answer["restart_needed"]
    assert needed.startswith("~ listen.ingress: ")
    assert answer["changes"] == ["~ limits.body: off -> 1KiB"]
    async with aiohttp.ClientSession() as http, http.post(sidecar.url + "/x", data=b"x" * 2000) as reply:
        assert reply.status == 413


async def changed(sidecar: Sidecar) -> float:
    return total(await sidecar.metrics(), "nextvision_config_reloads_total")


async def test_a_rename_and_a_half_written_file_count_once(sidecar: Sidecar) -> None:
    """An editor's rename-save is one reload; a file that is being written is none until it is whole."""
    folder, file = sidecar.folder, sidecar.folder / "policy.yaml"
    write(folder / ".policy.yaml.swp", policies(attempts=3))
    (folder / ".policy.yaml.swp").rename(file)
    await until(lambda: said(sidecar, "configuration loaded"))
    assert await changed(sidecar) == 1
    whole = yaml.safe_dump(policies(attempts=5, deadline="7s"))
    with file.open("w") as half:
        half.write(whole[: whole.index("name: app")])  # valid YAML by itself, but no policy file
        half.flush()
        await asyncio.sleep(2.0)  # longer than files have to stand still
        assert await changed(sidecar) == 1
        half.write(whole[whole.index("name: app") :])
    await until(lambda: len(said(sidecar, "configuration loaded")) == 2)
    file.touch()
    await asyncio.sleep(1.0)
    assert await changed(sidecar) == 2


async def test_a_swap_of_symbolic_links_counts_once(tmp_path: Path, app: TinyApp) -> None:
    """Kubernetes replaces `..data`, through which all files of a volume lead: one reload, the new files."""
    volume = tmp_path / "volume"
    volume.mkdir()
    sidecar = Sidecar(tmp_path, app.port, policies(), logging={"format": "json"})
    for number, attempts in ((1, 2), (2, 6)):
        version = volume / f"..2026_{number}"
        version.mkdir()
        write(version / "policy.yaml", policies(attempts=attempts))
        write(version / "sidecar.yaml", (tmp_path / "sidecar.yaml").read_text())
    (volume / "..data").symlink_to("..2026_1")
    for name in ("policy.yaml", "sidecar.yaml"):
        (volume / name).symlink_to(f"..data/{name}")
    sidecar.command[sidecar.command.index("-c") + 1] = str(volume / "sidecar.yaml")
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    try:
        (volume / "..data_tmp").symlink_to("..2026_2")
        (volume / "..data_tmp").rename(volume / "..data")
        [line] = await until(lambda: said(sidecar, "configuration loaded"))
        assert line["changes"] == ["~ policies.app.routes.all.retry.attempts: 2 -> 6"]
        await asyncio.sleep(1.0)
        assert await changed(sidecar) == 1
    finally:
        await sidecar.end()


async def test_a_folder_that_was_replaced_is_watched_on(tmp_path: Path, app: TinyApp) -> None:
    """Another folder under the same name, as after a checkout: what changes in it counts, too."""
    home = tmp_path / "home"
    home.mkdir()
    folder = home / "policies"
    for name, attempts in (("policies", 2), ("next", 3)):
        (home / name).mkdir()
        write(home / name / "app.yaml", policies(attempts=attempts))
    sidecar = Sidecar(home, app.port, logging={"format": "json"})
    sidecar.output = tmp_path / "sidecar.out"  # its writes show in no folder that is watched
    main = home / "sidecar.yaml"
    write(main, main.read_text().replace("policies: []", "policies: [policies/*.yaml]"))
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    try:
        folder.rename(home / "before")
        (home / "next").rename(folder)
        await until(lambda: len(said(sidecar, "configuration loaded")) == 1)
        await asyncio.sleep(1.0)  # so that the change comes after the look that found the folder
        write(folder / "app.yaml", policies(attempts=4))
        await until(lambda: len(said(sidecar, "configuration loaded")) == 2)
    finally:
        await sidecar.end()


async def test_a_replaced_secret_file_is_picked_up(tmp_path: Path, app: TinyApp) -> None:
    """A token that was rotated counts at once, and neither of the two is shown."""
    secret = tmp_path / "token"
    secret.write_text("first-token-of-many-letters")
    sidecar = Sidecar(tmp_path, app.port, logging={"format": "json"}, admin={"token": f"${{file:{secret}}}"})
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    try:
        (tmp_path / "token.new").write_text("second-token-of-many-letters")
        (tmp_path / "token.new").rename(secret)
        [line] = await until(lambda: said(sidecar, "configuration loaded"))
        assert line["changes"] == ["~ admin.token: *** (another)"]
        async with aiohttp.ClientSession() as http:
            for token, status in (("first", 401), ("second", 200)):
                headers = {"Authorization": f"Bearer {token}-token-of-many-letters"}
                async with http.post(sidecar.admin + "/admin/reload", headers=headers) as reply:
                    assert reply.status == status
        assert "token-of-many" not in sidecar.output.read_text()
    finally:
        await sidecar.end()


async def test_fifty_reloads_under_load(sidecar: Sidecar) -> None:
    """No request fails, memory does not grow, every fifth file is broken and named."""
    failed: list[Any] = []
    count = 0
    running = True

    async def client(http: aiohttp.ClientSession) -> None:
        nonlocal count
        while running:
            try:
                async with http.get(sidecar.url + "/x") as reply:
                    await reply.read()
                    if reply.status != 200:
                        failed.append(reply.status)
            except aiohttp.ClientError as error:
                failed.append(error)
            count += 1
            await asyncio.sleep(0.004)

    file = sidecar.folder / "policy.yaml"
    process = psutil.Process(sidecar.pid)
    sizes = []
    async with aiohttp.ClientSession() as http:
        clients = [asyncio.create_task(client(http)) for _ in range(4)]
        for number in range(1, 51):
            broken = number % 5 == 0
            write(
                file, "routes: [" if broken else policies(attempts=2 + number % 3, deadline=f"{number + 9}s")
            )
            status, _ = await json_of(sidecar, "/admin/reload", "POST")
            assert status == (409 if broken else 200)
            if number in (15, 50):
                sizes.append(process.memory_info().rss)
        running = False
        await asyncio.gather(*clients)
    assert failed == []
    assert count > 200
    assert sizes[1] - sizes[0] < 8 * 1024 * 1024
    metrics = await sidecar.metrics()
    assert total(metrics, "nextvision_config_reloads_total", result="applied") == 40
    assert metrics["nextvision_config_generation"] == 41
    kept = list((sidecar.folder / ".sidecar" / "history").iterdir())  # short
    assert len(kept) == 41

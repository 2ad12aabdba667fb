"""The dashboard in a real Chromium: it lives, acts, survives a restart, fits phones and dark rooms."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.batches import BatchClient, CountingApp, batch_sidecar, jobs, ndjson, started
from tests.support.browser import Page
from tests.support.processes import Sidecar, TinyApp

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
TOKEN = "open sesame"
POLICY = {
    "name": "tiny",
    "direction": "ingress",
    "classify": [{"json": {"path": "/doubtful"}, "verdict": "ok", "degraded": "maps"}],
    "routes": [
        {
            "name": "broken",
            "match": {"path": "/status/*"},
            "circuit_breaker": {"consecutive": 1000, "failure_ratio": "off"},
            "fault": {"respond": {"status": 503}},
        },
        {"name": "rest", "match": {"path": "/*"}},
    ],
}


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    app = TinyApp(tmp_path)
    await app.start()
    sidecar = Sidecar(
        tmp_path, app.port, POLICY, admin={"token": TOKEN}, logging={"format": "json", "level": "info"}
    )
    await sidecar.start()
    yield sidecar
    await sidecar.end()
    await app.end()


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    page = Page(tmp_path)
    await page.start()
    yield page
    await page.close()


async def ask(sidecar: Sidecar, path: str, times: int) -> None:
    async with aiohttp.ClientSession() as http:
        for _ in range(times):
            async with http.get(sidecar.url + path) as response:
                await response.read()


def text(selector: str) -> str:
    return f"document.querySelector('{selector}').innerText"


LIVE = "document.getElementById('live').dataset.state === 'live'"
STATE = "document.querySelector('#breakers td[data-state]').dataset.state"


async def test_it_shows_what_happens_and_acts(sidecar: Sidecar, page: Page) -> None:
    """Figures and decisions appear by themselves; a breaker is forced open by keyboard, the token asked once.

    Nothing comes from elsewhere, and the console stays silent.
    """
    await page.go(sidecar.admin)
    await page.until(LIVE)
    await ask(sidecar, "/status/503", 20)
    await page.until(f"{text('#headline')}.includes('20 requests to broken failed')")
    await page.until(f"{text('#routes')}.includes('100 %')")
    await page.until("document.querySelectorAll('#decisions tr').length >= 20")
    assert "/status/503" in await page.run(text("#decisions"))
    assert "circuit_breaker;" in await page.run(text("#decisions .trail"))
    await ask(sidecar, "/doubtful", 1)
    await page.until(f"{text('#decisions .trail')}.includes('degraded=maps')")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", await page.run(text("#decisions td")))
    shown = await page.run("document.body.innerText")
    # What JavaScript says of a member that is not there.
    assert not [word for word in ("Invalid", "undefined", "NaN", "[object") if word in shown]

    await page.run("document.querySelector('[data-action=force_open]').focus()")
    await page.press("Enter")
    await page.until("document.getElementById('act').open")
    await page.type("a planned move")
    await page.run("document.getElementById('act-token').focus()")
    await page.type(TOKEN)
    await page.press("Enter")
    await page.until(f"!document.getElementById('act').open && {STATE} === 'forced_open'")
    assert "a planned move" in await page.run(text("#breakers"))
    async with aiohttp.ClientSession() as http, http.get(sidecar.url + "/status/200") as response:
        assert response.status == 503
        assert response.headers["Sidecar-Error"] == "circuit_open"
    assert TOKEN not in await page.run("document.documentElement.outerHTML + JSON.stringify(localStorage)")

    await page.run("document.querySelector('[data-action=reset]').click()")
    await page.until("document.getElementById('act').open && document.getElementById('act-token-row').hidden")
    await page.type("it is over")
    await page.press("Enter")
    await page.until(f"{STATE} === 'closed'")
    assert page.complaints == []
    assert page.hosts == {f"127.0.0.1:{sidecar.admin_port}"}
    audit = [line for line in sidecar.log() if line["message"] == "circuit breaker overruled"]
    assert [line["action"] for line in audit] == ["force_open", "reset"]
    assert TOKEN not in sidecar.output.read_text()


async def test_a_wrong_token_is_asked_for_again(sidecar: Sidecar, page: Page) -> None:
    """It says so, and is not kept."""
    await page.go(sidecar.admin)
    await page.until(LIVE)
    await page.run("document.querySelector('[data-action=force_close]').click()")
    await page.type("why not")
    await page.run("document.getElementById('act-token').focus()")
    await page.type("guess")
    await page.press("Enter")
    await page.until(f"{text('#act-error')} === 'The token is missing or wrong.'")
    assert await page.run("sessionStorage.length") == 0
    await page.press("Escape")
    await page.until("!document.getElementById('act').open")
    assert await page.run(STATE) == "closed"


async def test_it_survives_a_restart(sidecar: Sidecar, page: Page) -> None:
    """It says that it is stale, aloud too, and lives again when the sidecar is back, without a reload."""
    await page.go(sidecar.admin)
    await page.until(LIVE)
    await page.run("window.same = true")
    assert page.complaints == []
    await sidecar.end()
    await page.until("document.getElementById('live').dataset.state === 'stale'")
    assert "Stale: figures of" in await page.run(text("#live"))
    assert "stale" in await page.run("document.getElementById('announce').textContent")
    await asyncio.sleep(0.5)
    await sidecar.start()
    await page.until(LIVE, 60)
    assert await page.run("window.same") is True
    # That nobody answered is what a browser's console says of any such moment.
    assert all("net::ERR_" in complaint for complaint in page.complaints)


async def test_the_policy_for_content_is_strict(sidecar: Sidecar, page: Page) -> None:
    """What is written into the page does not run."""
    await page.go(sidecar.admin)
    await page.until(LIVE)
    await page.run(
        "{const it = document.createElement('script'); it.textContent = 'window.bad = 1'; "
        "document.body.append(it)}"
    )
    await page.run(
        "{const i = document.createElement('img'); i.src = 'http://127.0.0.1:1/x'; document.body.append(i)}"
    )
    assert await page.run("window.bad === undefined")
    await page.until("true")
    for _ in range(100):
        if len(page.complaints) >= 2:
            break
        await asyncio.sleep(0.05)
    assert len(page.complaints) >= 2
    assert all("Content Security Policy" in complaint for complaint in page.complaints)


async def test_it_fits_a_phone_and_a_dark_room(sidecar: Sidecar, page: Page) -> None:
    """390 pixels do without scrolling sideways, with long names too; dark colours are dark, and readable."""
    await page.size(390, 844, phone=True)
    await page.go(sidecar.admin)
    await page.until(LIVE)
    await ask(sidecar, "/status/503/" + "a-very-long-path" * 20, 6)
    await page.until("document.querySelectorAll('#decisions tr').length >= 6")
    assert await page.run("document.documentElement.scrollWidth") <= 390
    ink = "getComputedStyle(document.documentElement).color"
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    for scheme in ("light", "dark"):
        await page.scheme(scheme)
        colours = await page.run(f"[{ink}, {paper}].map((c) => c.match(/[0-9]+/g).map(Number))")
        bright = [sum(colour[:3]) / 3 for colour in colours]
        assert (bright[0] > bright[1]) == (scheme == "dark")
        assert abs(bright[0] - bright[1]) > 150
    assert page.complaints == []


async def test_who_cannot_see_it_can_use_it(sidecar: Sidecar, page: Page) -> None:
    """Landmarks, a first heading, headers of columns, names of buttons and fields, a visible focus."""
    await page.go(sidecar.admin)
    await page.until(f"{LIVE} && document.querySelectorAll('#breakers tr').length")
    assert await page.run("['header', 'main', 'footer'].every((it) => document.querySelector(it))")
    assert await page.run("document.querySelectorAll('h1').length") == 1
    assert await page.run("[...document.querySelectorAll('thead th')].every((it) => it.scope === 'col')")
    unnamed = "[...document.querySelectorAll('input, select')].filter((it) => !it.labels.length).length"
    assert await page.run(unnamed) == 0
    name = await page.run("document.querySelector('[data-action=reset]').getAttribute('aria-label')")
    assert name == "Reset the circuit breaker of app"
    await page.press("Tab")
    assert await page.run("document.activeElement.className") == "skip"
    assert await page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert await page.run("document.querySelector('[role=status]').getAttribute('aria-live')") == "polite"


async def test_batches_are_seen_while_they_run(page: Page, tmp_path: Path) -> None:
    """A batch appears by its name, its bar grows, lines that fail are counted; one that is held says why."""
    policies = {
        "name": "counted",
        "routes": [
            {"name": "jobs", "match": {"path": "/jobs/*"}},
            {
                "name": "held",
                "match": {"path": "/held"},
                "fault": {"respond": {"status": 503}},
                "circuit_breaker": {"consecutive": 1, "open_for": "60s", "scope": "route"},
            },
        ],
    }
    async with CountingApp(seconds=0.5) as app:
        sidecar = batch_sidecar(tmp_path, app, policies=policies)
        await started(sidecar)
        try:
            await page.go(sidecar.admin)
            await page.until(f"{LIVE} && {text('#batches-none')} === 'None yet.'")
            async with BatchClient(sidecar) as client:
                lines = jobs(80, "GET") + ndjson(
                    [{"custom_id": "lost", "method": "GET", "url": "/jobs/un/known"}]  # the app answers 404
                )
                await client.accepted(lines, name="nightly", max_concurrency="5", retries="0")
                bar = "document.querySelector('#batches progress').value"
                await page.until(f"{text('#batches th')}.startsWith('nightly') && {bar} > 0 && {bar} < 1")
                assert await page.run(text("#batches td .state")) == "running"
                assert " a second" in await page.run(text("#batches td:last-child"))
                assert await page.run("document.getElementById('batches-none').hidden")
                seen = await page.run(bar)
                await page.until(f"{bar} > {seen}")
                label = "document.querySelector('#batches progress').ariaLabel"
                assert await page.run(label) == "Progress of batch nightly"
                await page.until(f"{text('#batches td .state')} === 'completed'", 60)
                assert await page.run(text("#batches td small")) == "81 of 81, 1 failed"
                await client.accepted(
                    ndjson({"custom_id": str(n), "method": "GET", "url": "/held"} for n in range(3))
                )
                await page.until(f"{text('#batches td .state')} === 'paused'")
                assert "held" in await page.run(text("#batches td .why"))
        finally:
            await sidecar.end()
    assert page.complaints == []


async def test_without_a_batch_store_there_is_no_panel(page: Page, tmp_path: Path) -> None:
    """And nothing asks for batches over and over."""
    async with CountingApp() as app:
        sidecar = batch_sidecar(tmp_path, app, batch={"store": "off"})
        await started(sidecar)
        try:
            await page.go(sidecar.admin)
            await page.until(LIVE)
            asked = "performance.getEntriesByType('resource').filter((it) => it.name.includes('batch/stats'))"
            await page.until(f"{asked}.some((it) => it.responseEnd)")
            assert await page.run("document.getElementById('batches-panel').hidden")
        finally:
            await sidecar.end()
    assert page.complaints == []

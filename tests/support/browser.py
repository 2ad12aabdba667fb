"""A real Chromium, led through the Chrome DevTools Protocol.

`selenium` and `playwright` bring a server or a driver of their own, and neither can be asked here for what a
page's console said without one; the protocol itself is JSON over a WebSocket, which aiohttp speaks.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = "chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)
PATIENCE = 30.0
_POLL = 0.05


class Page:
    """One tab of a Chromium of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = count(1)
        self.complaints: list[str] = []
        """Errors and warnings of the console, uncaught exceptions, breaches of the policy for content."""
        self.hosts: set[str] = set()
        """Of all that was asked for over HTTP."""

    async def start(self) -> None:
        program = shutil.which(PROGRAM)
        assert program is not None, f"{PROGRAM} is not there: scripts/system_programs.py says how to get it"
        with (self._folder / "chromium.out").open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                program,
                *FLAGS,
                f"--user-data-dir={self._folder / 'profile'}",
                "about:blank",
                stdout=output,
                stderr=output,
            )
        port = self._folder / "profile" / "DevToolsActivePort"
        lines = await self._until(lambda: port.read_text().split() if port.exists() else [])
        self._http = aiohttp.ClientSession()
        async with self._http.get(f"http://127.0.0.1:{lines[0]}/json/list") as reply:
            [target] = [it for it in await reply.json() if it["type"] == "page"]
        self._socket = await self._http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.create_task(self._read(self._socket))
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def _until(self, find: Any) -> Any:
        for _ in range(int(PATIENCE / _POLL)):
            if found := find():
                return found
            await asyncio.sleep(_POLL)
        raise AssertionError((self._folder / "chromium.out").read_text()[-2000:])

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            with suppress(aiohttp.ClientError, OSError):
                await self._socket.send_json({"id": 0, "method": "Browser.close"})
            await self._socket.close()
        if self._http is not None:
            await self._http.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), 10)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            told = json.loads(message.data)
            if "id" in told:
                answer = self._answers.pop(told["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(told)
                continue
            self._hear(told["method"], told["params"])

    def _hear(self, method: str, told: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"{told['type']}: {[it.get('value') for it in told['args']]}")
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.complaints.append(f"{details['text']} {details.get('exception', {}).get('description', '')}")
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['source']}: {told['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if url.startswith("http"):  # no data: and none of the browser's own
                self.hosts.add(url.split("/")[2])

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Gives an order and waits for what it came to."""
        assert self._socket is not None
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        told = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in told, f"{method}: {told['error']}"
        result = told["result"]
        assert isinstance(result, dict)
        return result

    async def go(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        told = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, script: str, patience: float = PATIENCE) -> Any:
        """Waits until the expression is true; its value. Raises AssertionError."""
        for _ in range(int(patience / _POLL)):
            with suppress(AssertionError):  # the page may be between two documents
                if value := await self.run(script):
                    return value
            await asyncio.sleep(_POLL)
        shown = await self.run("document.body.innerText")
        raise AssertionError(f"never true: {script}\ncomplaints: {self.complaints}\n{shown[:3000]}")

    async def press(self, key: str, code: str | None = None, text: str = "") -> None:
        """A key of the keyboard goes down and up."""
        virtual = {"Tab": 9, "Enter": 13, "Escape": 27}.get(key, 0)
        keys = {"key": key, "code": code or key, "windowsVirtualKeyCode": virtual}
        down = {**keys, "text": text or ("\r" if key == "Enter" else "")}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **{k: v for k, v in down.items() if v})
        await self.send("Input.dispatchKeyEvent", type="keyUp", **keys)

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def size(self, width: int, height: int, *, phone: bool = False, scale: float = 1.0) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )

    async def scheme(self, name: str) -> None:
        """What the user prefers: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        told = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(told["data"])

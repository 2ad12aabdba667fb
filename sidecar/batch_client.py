"""What `sidecar batch` does: a client of the admin listener's `/batches`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, Final, Self, TextIO

import aiohttp

from sidecar.clock import Clock, SystemClock

PIECE: Final = 1 << 16
"""Bytes of a file that are sent at a time."""
PLAIN_EVERY: Final = 5.0
"""Seconds between two lines of progress where no terminal shows a bar."""
WIDE: Final = 24
"""Characters of the bar."""
AGAIN: Final = 1.0
"""Seconds before a stream of events that broke is asked for again."""
TRIES: Final = 30
"""Times in a row that it is, while nothing answers."""


class BatchError(Exception):
    """It was refused, or nothing answers. The message is for people, with its line breaks."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        """`passing`: it may be well again a moment later."""
        super().__init__(message)
        self.passing = passing


class CannotWrite(BatchError):
    """Results have no place, on this side. Its cause is the OSError."""


class BatchClient:
    """With `async with`. Raises BatchError."""

    def __init__(self, url: str, token: str | None, clock: Clock | None = None) -> None:
        """`url` is that of the admin listener."""
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._clock = clock or SystemClock()
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._http = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    @asynccontextmanager
    async def _ask(self, method: str, path: str, **settings: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._http is not None
        try:
            async with self._http.request(method, self._url + path, **settings) as reply:
                if reply.status >= 400:
                    raise BatchError(_told(reply.status, await reply.read()), passing=reply.status >= 500)
                yield reply
        except (aiohttp.ClientError, OSError) as error:
            raise BatchError(
                f"{self._url}: {error} (is the sidecar running? --admin names its admin listener)",
                passing=True,
            ) from error

    async def _json(self, method: str, path: str, **settings: Any) -> dict[str, Any]:
        async with self._ask(method, path, **settings) as reply:
            members = json.loads(await reply.read())
        if not isinstance(members, dict):
            raise BatchError(f"{self._url} is no admin listener of a sidecar")
        return members

    async def submit(self, file: BinaryIO, options: Mapping[str, str]) -> dict[str, Any]:
        """Sends a file, piece by piece, as it can be read."""

        async def pieces() -> AsyncIterator[bytes]:
            loop = asyncio.get_running_loop()
            while piece := await loop.run_in_executor(None, file.read1, PIECE):  # type: ignore[attr-defined]
                yield piece

        headers = {"Content-Type": "application/x-ndjson"}
        return await self._json("POST", "/batches", data=pieces(), params=options, headers=headers)

    async def status(self, batch: str) -> dict[str, Any]:
        return await self._json("GET", f"/batches/{batch}")

    async def listed(self) -> list[dict[str, Any]]:
        batches: list[dict[str, Any]] = (await self._json("GET", "/batches"))["batches"]
        return batches

    async def cancel(self, batch: str) -> dict[str, Any]:
        return await self._json("POST", f"/batches/{batch}/cancel")

    async def results(self, batch: str, to: BinaryIO) -> None:
        """Writes all results, those too that are still to come. Waits for a sidecar that restarts.

        Their order stays, so that one that is asked again is read on where it broke off.
        """
        written = tries = 0
        begun = False
        while True:
            seen = 0
            try:
                async with self._ask("GET", f"/batches/{batch}/results") as reply:
                    begun = True
                    async for piece in reply.content.iter_any():
                        fresh = piece[max(0, written - seen) :]
                        seen += len(piece)
                        written += len(fresh)
                        tries = 0
                        _write(to, fresh)
                    return
            except BatchError as error:
                if not begun or not error.passing or tries >= TRIES:
                    raise
            tries += 1
            await self._clock.sleep(AGAIN)

    async def watch(self, batch: str, progress: Progress) -> dict[str, Any]:
        """Shows the progress until the batch is over; what it is then. Waits for a sidecar that restarts."""
        last: dict[str, Any] = await self.status(batch)
        tries = 0
        while True:
            progress.show(last)
            try:
                async with self._ask("GET", f"/batches/{batch}/events") as reply:
                    event = ""
                    async for raw in reply.content:
                        line = raw.decode().rstrip("\n")
                        if line.startswith("event: "):
                            event = line.removeprefix("event: ")
                        elif line.startswith("data: "):
                            tries = 0
                            last = json.loads(line.removeprefix("data: "))
                            if event == "end":
                                progress.end(last)
                                return last
                            progress.show(last)
            except BatchError as error:
                if not error.passing or tries >= TRIES:
                    raise
            tries += 1
            await self._clock.sleep(AGAIN)


class Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, to: TextIO | None = None, clock: Clock | None = None) -> None:
        self._to = to or sys.stderr
        self._now = (clock or SystemClock()).now
        self._bar = self._to.isatty()
        self._shown: float | None = None
        self._width = 0

    def show(self, batch: Mapping[str, Any]) -> None:
        now = self._now()
        if not self._bar and self._shown is not None and now - self._shown < PLAIN_EVERY:
            return
        self._shown = now
        self._write(batch)

    def end(self, batch: Mapping[str, Any]) -> None:
        """The last state, whenever the one before was shown."""
        self._write(batch)
        if self._bar:
            self._to.write("\n")
            self._to.flush()

    def _write(self, batch: Mapping[str, Any]) -> None:
        text = line_of(batch, bar=self._bar)
        if self._bar:
            self._to.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._to.write(text + "\n")
        self._to.flush()


def _write(to: BinaryIO, data: bytes) -> None:
    try:
        to.write(data)
        to.flush()
    except OSError as error:
        raise CannotWrite(f"the results cannot be written: {error.strerror}") from error


def line_of(batch: Mapping[str, Any], *, bar: bool = False) -> str:
    """A batch in one line: done, failed, rate, time left, concurrency."""
    counts = batch["counts"]
    total = counts["total"]
    done = counts["completed"] + counts["failed"] + counts["unknown"]
    share = done / total if total else 0.0
    parts = [f"{done}/{total} ({share:.0%})", f"{counts['failed']} failed"]
    if counts["unknown"]:
        parts.append(f"{counts['unknown']} unknown")
    if "jobs_per_second" in batch:
        parts.append(f"{batch['jobs_per_second']:g}/s {batch['rating']}")
    if batch.get("eta_seconds") is not None:
        parts.append(f"{_span(batch['eta_seconds'])} left")
    if "in_flight" in batch:
        parts.append(f"{batch['in_flight']} of {batch['concurrency']} in flight")
    status = batch["status"] + (f" ({batch['reason']})" if batch.get("reason") else "")
    drawn = f"[{('#' * int(share * WIDE)).ljust(WIDE, '.')}] " if bar else f"{batch['id']} "
    return f"{drawn}{status}: {', '.join(parts)}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _told(status: int, body: bytes) -> str:
    """What an error answer says, with all the bad lines that it names."""
    try:
        members = json.loads(body)
        detail = str(members["detail"])
        lines = [f"line {it['line']}: {it['detail']}" for it in members.get("errors", ())]
    except (ValueError, KeyError, TypeError):
        return f"the answer was {status}"
    return "\n".join([detail, *lines])

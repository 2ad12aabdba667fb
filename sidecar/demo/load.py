"""The clients of the demo: an open-model load, the same to both sides at the same moments."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from sidecar.clock import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

BOUNDARY = "----sidecar-demo"
JSON = "application/json"
READING = "/api/v3/intelligent-matching"


Told = tuple[object, ...]
"""What an answer comes down to: score, confidence, distance, and whom it is about."""


class Call(NamedTuple):
    method: str
    path: str
    body: bytes = b""
    content_type: str = JSON
    cold: bool = False
    """About an address that nobody has asked for before."""
    truth: Told | None = None
    """What the answer comes down to while all is well, where that was found out."""


def told(content: bytes) -> Told:
    """What the answer to a matching comes down to. Raises `ValueError` or `LookupError` for anything else."""
    answer = json.loads(content)
    results = answer["matching_results"]
    return (
        results["total_score"],
        results["confidence"],
        answer["transport_intelligence"]["distance_km"],
        answer["candidate_summary"]["name"],
    )


class Payloads:
    """The requests that clients send, made from the sample payloads."""

    def __init__(self, folder: Path) -> None:
        self._matching = (folder / "matching_request.json").read_bytes()
        self._asked = json.loads(self._matching)
        self._transport = json.loads((folder / "matching_transport_request.json").read_text("utf-8"))
        field = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
        self._cv_form = b"".join(
            (
                f'{field}"cv_file"; filename="cv.txt"\r\n\r\n'.encode(),
                (folder / "cv.txt").read_bytes(),
                f'\r\n{field}"pourquoi_ecoute"\r\n\r\nPoste trop loin de mon domicile\r\n'.encode(),
                f"--{BOUNDARY}--\r\n".encode(),
            )
        )

    def matching(self, number: int) -> Call:
        """Request `number` of the usual mix: 1 in 10 reads, the rest matchings, 1 in 50 to a new address."""
        if number % 10 == 9:
            return Call("GET", "/api/v1/health")
        if number % 5 == 0:
            address = f"{number} Rue Nouvelle, Paris" if number % 50 == 0 else self._transport["job_address"]
            body = json.dumps({**self._transport, "job_address": address}).encode()
            return Call("POST", f"/api/v3/matching/candidate/c{number}/transport", body)
        return Call("POST", f"/api/v1/matching/candidate/c{number}", self._matching)

    def with_cvs(self, number: int) -> Call:
        """The usual mix, with one in 25 a CV to be read by OpenAI."""
        return self.cv() if number % 25 == 12 else self.matching(number)

    def places(self, number: int, street: str = "Rue Jamais Vue") -> Call:
        """Matchings about nine addresses, over and over; one in ten about an address that is new."""
        cold = number % 10 == 9
        address = f"{number} {street}, Lyon" if cold else f"{number % 10} Rue Connue, Paris"
        body = json.dumps({**self._asked, "job_address": address}).encode()
        return Call("POST", f"/api/v1/matching/candidate/c{number}", body, cold=cold)

    def places_later(self, number: int) -> Call:
        """The same, with other new addresses."""
        return self.places(number, "Rue Encore Neuve")

    def cvs(self, number: int) -> Call:
        """CVs to be read by OpenAI, each by itself."""
        return self.cv()

    def asked_again(self, number: int) -> Call:
        """Twenty questions, asked over and over; each time with other white space in the JSON."""
        body = json.dumps(self._asked, indent=number % 3 or None).encode()
        return Call("POST", f"/api/v1/matching/candidate/again-{number % 20}", body)

    def cv(self) -> Call:
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        return Call("POST", READING, self._cv_form, content_type)


@dataclass(slots=True)
class Measured:
    """What the clients of one side saw."""

    requests: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of the requests that were answered, each from the moment it should have been sent."""
    failed: Counter[str] = field(default_factory=Counter)
    """By what the client saw."""
    calls: int = 0
    """Requests that the app received meanwhile."""
    wrong: int = 0
    """Answers that are not what they are while all is well, and do not say so."""
    marked: int = 0
    """Answers that say by `Sidecar-Degraded` that they were made without something."""

    @property
    def failures(self) -> int:
        return self.failed.total()

    def percentile(self, share: float) -> float:
        """Seconds within which that share of the answered requests was answered (nearest rank)."""
        ordered = sorted(self.seconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


class Clients:
    """The clients of one side. They give up after `patience` seconds, and never repeat a POST."""

    def __init__(self, url: str, patience: float, clock: SystemClock) -> None:
        self._url = url
        self._clock = clock
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=patience)
        )
        self.measured = Measured()

    async def send(self, call: Call, due: float) -> None:
        """Sends a request that was due at `due`. Anything but a 200 read to its end is a failure."""
        self.measured.requests += 1
        headers = {"Content-Type": call.content_type} if call.body else {}
        try:
            async with self._http.request(
                call.method, self._url + call.path, data=call.body or None, headers=headers
            ) as reply:
                content = await reply.read()
                failure = "" if reply.status == 200 else f"status {reply.status}"
                if not failure and "Sidecar-Degraded" in reply.headers:
                    self.measured.marked += 1
                elif not failure and call.truth is not None and told(content) != call.truth:
                    self.measured.wrong += 1
        except TimeoutError:
            failure = "no answer in time"
        except aiohttp.ClientConnectorError:
            failure = "connection refused"
        except aiohttp.ClientError:
            failure = "connection lost"
        if failure:
            what = " for a CV" if call.path == READING else ""
            self.measured.failed[failure + what] += 1
        else:
            self.measured.seconds.append(self._clock.now() - due)

    async def ask(self, call: Call) -> tuple[bytes, bool]:
        """What a 200 holds, and whether it is marked. Raises aiohttp.ClientError, TimeoutError."""
        headers = {"Content-Type": call.content_type}
        async with self._http.request(
            call.method, self._url + call.path, data=call.body, headers=headers, raise_for_status=True
        ) as reply:
            return await reply.read(), "Sidecar-Degraded" in reply.headers

    async def close(self) -> None:
        await self._http.close()


async def arrive(sides: list[Clients], calls: list[Call], rate: float, clock: SystemClock) -> None:
    """Sends each call to every side at its time, `rate` a second, whatever became of those before."""
    start = clock.now()
    async with asyncio.TaskGroup() as group:
        for number, call in enumerate(calls):
            due = start + number / rate
            wait = due - clock.now()
            if wait > 0:
                await clock.sleep(wait)
            for side in sides:
                group.create_task(side.send(call, due))


async def trickle(url: str, payloads: Payloads) -> None:
    """Five requests a second, until cancelled."""
    clock = SystemClock()
    clients = Clients(url, 15.0, clock)
    try:
        while True:
            await arrive([clients], [payloads.matching(number) for number in range(50)], 5.0, clock)
    finally:
        await clients.close()

"""The acts in which Google and OpenAI break, while the app goes on answering 200.

The app hides their failures: it makes up what it was not told. So each answer is compared with what it is
while all is well, which the app itself is asked for before the act.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import aiohttp

from sidecar.demo.acts import Act
from sidecar.demo.load import Call, Clients, Payloads, Told, told
from sidecar.demo.processes import DemoError

if TYPE_CHECKING:
    from sidecar.demo.acts import Prepare
    from sidecar.demo.processes import Stage

PATIENCE = 10.0
SECONDS_UNTIL_WELL = 20.0
WELL: dict[str, object] = {"google": {"mode": "ok"}, "openai": {"mode": "ok"}}


def broken(providers: dict[str, object]) -> Prepare:
    """All is asked for once while all is well; then the apps start anew, and `providers` break."""

    async def prepare(stage: Stage, calls: list[Call]) -> list[Call]:
        await stage.break_providers(WELL)
        await stage.crash_apps()  # or the app's own breaker would still be open from the act before
        truths = await _truths(stage, calls)
        await _hear(stage, calls)
        # What the apps remember is gone, as after a deployment: they have to ask again.
        await stage.crash_apps()
        await stage.break_providers(providers)
        return [call._replace(truth=truths[call.body]) for call in calls]

    return prepare


async def _truths(stage: Stage, calls: list[Call]) -> dict[bytes, Told]:
    """What each answer comes down to, by the request's body: the candidate's number has no part in it."""
    clients = Clients(stage.bare_url, PATIENCE, stage.clock)
    known: dict[bytes, Told] = {}
    try:
        for call in calls:
            if call.body not in known:
                content, _ = await clients.ask(call)
                known[call.body] = told(content)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoError(f"the app failed while all was well: {error!r}") from error
    finally:
        await clients.close()
    return known


async def _hear(stage: Stage, calls: list[Call]) -> None:
    """Asks through the sidecar for what is not to be new to it, until nothing is missing in its answers."""
    clients = Clients(stage.sidecar_url, PATIENCE, stage.clock)
    waiting = list({call.body: call for call in calls if not call.cold}.values())
    give_up = stage.clock.now() + SECONDS_UNTIL_WELL
    try:
        while waiting:
            _, marked = await clients.ask(waiting[-1])
            if not marked:
                waiting.pop()
            elif stage.clock.now() > give_up:
                raise DemoError("the sidecar still marks its answers, though the providers are well again")
            else:
                await stage.clock.sleep(0.3)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoError(f"the sidecar failed while all was well: {error!r}") from error
    finally:
        await clients.close()


def saying(what: str) -> Callable[[Stage], Awaitable[str]]:
    """A script with nothing left to do: it all broke before the traffic."""

    async def script(_: Stage) -> str:
        return what

    return script


_ADDRESSES = "Nine in ten requests were about addresses asked for before the apps were started anew."

# Google comes last: after a fallback for an address, answers to uploads are marked: nobody looks into them.
PROVIDER_ACTS = (
    Act(
        "OpenAI: no credit left",
        3.0,
        PATIENCE,
        saying("CVs alone, 5 a second; OpenAI answered 429 insufficient_quota to every call."),
        Payloads.cvs,
        rate=5.0,
        prepare=broken({"openai": {"mode": "daily_quota"}}),
    ),
    Act(
        "Google down",
        4.0,
        PATIENCE,
        saying(f"Google answered 500 to every call. {_ADDRESSES}"),
        Payloads.places,
        rate=40.0,
        prepare=broken({"google": {"mode": "fail"}}),
    ),
    Act(
        "Google says 200 OVER_QUERY_LIMIT",
        4.0,
        PATIENCE,
        saying(f"Google answered 200 to every call, and no more than its quota in the body. {_ADDRESSES}"),
        Payloads.places_later,
        rate=40.0,
        prepare=broken({"google": {"mode": "quota"}}),
    ),
)

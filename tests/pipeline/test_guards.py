"""Guards that share a coroutine: the same as if each had its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sidecar.exchange import Exchange, Request, Response
from sidecar.guards import Guard, Guarded, Handler, guarded

COUNTS = range(1, 7)


class Told(Exception):
    """Names those it went through."""


def guard(
    name: str, log: list[str], *, waits: bool = False, refuses: bool = False, leaves: bool = True
) -> Guard[str]:
    def enter(_: Exchange, __: float) -> str | None:
        log.append(f"enter {name}")
        if refuses:
            raise Told(name)
        return None if waits else name

    async def wait(_: Exchange) -> str:
        await asyncio.sleep(0)
        log.append(f"wait {name}")
        return name

    def leave(_: Exchange, token: str, response: Response) -> None:
        log.append(f"leave {token} {response.status}")
        if not leaves:
            raise Told(name)

    def fail(_: Exchange, token: str, error: BaseException) -> BaseException:
        log.append(f"fail {token} {error}")
        return Told(f"{error} {token}") if isinstance(error, Told) else error

    return Guard(enter, leave, fail, wait)


def now() -> float:
    return 0.0


def nested(guards: Sequence[Guard[str]], inner: Handler) -> Handler:
    """Each with a coroutine of its own."""
    for each in reversed(guards):
        inner = Guarded(lambda each=each: each, now)(inner)  # type: ignore[misc]
    return inner


def together(guards: Sequence[Guard[str]], inner: Handler) -> Handler:
    return guarded(guards, inner, now)


async def outcome(handler: Handler) -> str:
    exchange = Exchange(Request("GET", b"/", ()), "192.0.2.1", 0.0)
    try:
        return str((await handler(exchange)).status)
    except Told as error:
        return f"{type(error).__name__} {error}"


async def answers(_: Exchange) -> Response:
    return Response(200, ())


async def fails(_: Exchange) -> Response:
    raise Told("upstream")


@pytest.mark.parametrize("odd", [None, "waits", "refuses", "leaves"])
@pytest.mark.parametrize("inner", [answers, fails])
@pytest.mark.parametrize("count", COUNTS)
async def test_together_they_do_what_they_do_nested(count: int, inner: Handler, odd: str | None) -> None:
    """In the same order, whichever of them waits, refuses, or breaks on the way back."""
    for which in range(count):
        seen: list[tuple[str, list[str]]] = []
        for compose in (nested, together):
            log: list[str] = []
            options = {} if odd is None else {odd: odd != "leaves"}
            guards = [guard(str(at), log, **(options if at == which else {})) for at in range(count)]
            seen.append((await outcome(compose(guards, inner)), log))
        assert seen[0] == seen[1]


async def test_the_way_in_and_out() -> None:
    """The outermost decides first and hears of the end last."""
    log: list[str] = []
    assert await outcome(together([guard("a", log), guard("b", log, waits=True)], answers)) == "200"
    assert log == ["enter a", "enter b", "wait b", "leave b 200", "leave a 200"]


async def test_who_has_not_let_it_in_hears_of_no_end() -> None:
    """A refusal is told to those above, each of which may make another error of it."""
    log: list[str] = []
    guards = [guard("a", log), guard("b", log), guard("c", log, refuses=True), guard("d", log)]
    assert await outcome(together(guards, answers)) == "Told c b a"
    assert log == ["enter a", "enter b", "enter c", "fail b c", "fail a c b"]


async def test_a_cancellation_goes_through() -> None:
    """While it waits for one guard, those that let it in hear of it."""
    log: list[str] = []

    async def forever(_: Exchange) -> str:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    waiting = guard("b", log, waits=True)._replace(wait=forever)
    task = asyncio.ensure_future(outcome(together([guard("a", log), waiting], answers)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["enter a", "enter b", "fail a "]


async def test_who_waited_is_let_in_at_a_later_time() -> None:
    """Those after it are told when that was; those between whom nobody waits are told the same."""
    told: list[float] = []

    def at(token: str) -> Guard[str]:
        def enter(_: Exchange, moment: float) -> str:
            told.append(moment)
            return token

        return guard(token, [])._replace(enter=enter)

    moments = iter((1.0, 2.0))
    guards = [at("a"), at("b"), guard("c", [], waits=True), at("d")]
    assert await outcome(guarded(guards, answers, lambda: next(moments))) == "200"
    assert told == [1.0, 1.0, 2.0]

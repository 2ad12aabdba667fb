"""`sidecar doctor`: which door leads the calls of which client to the sidecar, found by calling.

Every call goes where the client takes it in the environment as it is. One that comes to the sidecar is
answered by its listener (`listeners.probe`); one that does not is a GET of `/.well-known/sidecar-doctor`
to the provider, without a key.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.child_environment import Trust
from sidecar.doctor_clients import CLIENTS, Client, Outcome, call
from sidecar.listeners.authority import BUNDLE, CERTIFICATE
from sidecar.listeners.probe import PATH
from sidecar.trust import variables

if TYPE_CHECKING:
    from sidecar.config.addresses import Address
    from sidecar.config.load import Loaded

HTTPS: Final = 443
AT_ONCE: Final = 4
"""Clients that are started at a time."""
_UNTRUSTED: Final = (
    "certificate verify failed",  # Python's ssl, and all that stands on it
    "certificate_verify_failed",
    "ssl certificate problem",  # curl
    "self-signed certificate",  # node
    "self signed certificate",
    "unable to verify the first certificate",
    "unable to get local issuer certificate",
)


class NoSidecar(Exception):
    """There is nothing to examine; the message says why, and the mend."""


@dataclass(frozen=True)
class Finding:
    """What was found for one host and one client."""

    host: str
    client: str
    door: str | None
    """None: none works."""
    missing: tuple[str, ...] = ()
    """Lines that would open one."""
    reason: str = ""
    """What the client said."""


@dataclass(frozen=True)
class Place:
    """Where the running sidecar is, and what its clients need."""

    proxy: Address | None
    """The egress listener, as the app calls it."""
    override: Address | None
    """The address of `listen.intercept` with port 443, as the app calls it."""
    trust: Trust


def place(loaded: Loaded) -> Place:
    """Finds the sidecar that runs with this configuration. Raises `NoSidecar`."""
    if not loaded.hosts:
        raise NoSidecar("no policy file lists hosts, so there is no call to examine")
    egress = loaded.egress
    proxy = egress.reached if egress is not None and egress.unix is None else None
    override = next((it.reached for it in loaded.config.listen.intercept if it.port == HTTPS), None)
    trust = Trust(loaded.ca_directory / CERTIFICATE, loaded.ca_directory / BUNDLE)
    at = proxy or override
    if at is None:
        raise NoSidecar(
            "neither listen.egress nor listen.intercept is a TCP address that clients can call (set one)"
        )
    if proxy is not None:
        name = next(it.name for it in loaded.policies if it.direction == "egress" and it.hosts)
        _ask(proxy, f"/{name}{PATH}")
    if not trust.bundle.exists():
        raise NoSidecar(f"{trust.bundle} is missing (start the sidecar here, or run `sidecar ca`)")
    return Place(proxy, override, trust)


def _ask(proxy: Address, path: str) -> None:
    """Raises `NoSidecar` unless a sidecar with the policy file answers."""
    nonce = secrets.token_hex(8)
    connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=5)
    try:
        connection.request("GET", f"{path}?nonce={nonce}")
        answer = connection.getresponse().read(4096).decode("latin-1")
    except (OSError, http.client.HTTPException) as error:
        raise NoSidecar(
            f"nothing answers on {proxy} (listen.egress): {error} (start it: sidecar run)"
        ) from error
    finally:
        connection.close()
    if door_of(answer, nonce) is None:
        raise NoSidecar(
            f"what listens on {proxy} (listen.egress) is no sidecar with these policy files (start it again: "
            "sidecar run)"
        )


def door_of(answer: str, nonce: str) -> str | None:
    """The door that the sidecar's own answer names; None: the answer is somebody else's."""
    try:
        told = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(told, dict) or told.get("sidecar_doctor") != nonce:
        return None
    return str(told.get("door"))


async def examine(loaded: Loaded, python: str) -> list[Finding]:
    """Calls each host by each client there is; `python` is the interpreter. Raises `NoSidecar`."""
    where = place(loaded)
    listed = dict.fromkeys(name for policy in loaded.policies for name in policy.hosts)
    wanted = [
        (host, client) for host in listed for client in CLIENTS if client.only is None or client.only == host
    ]
    turn = asyncio.Semaphore(AT_ONCE)

    async def examined(host: str, client: Client) -> Finding | None:
        async with turn:
            return await _examined(host, client, where, python)

    return [it for it in await asyncio.gather(*(examined(*pair) for pair in wanted)) if it is not None]


async def _examined(host: str, client: Client, where: Place, python: str) -> Finding | None:
    nonce = secrets.token_hex(8)
    outcome = await call(client, f"https://{host}{PATH}?nonce={nonce}", python)
    return None if outcome is None else judged(host, client, outcome, nonce, where, os.environ)


def judged(
    host: str, client: Client, outcome: Outcome, nonce: str, where: Place, environment: Mapping[str, str]
) -> Finding:
    """What the outcome of a call means."""
    door = door_of(outcome.out, nonce) if outcome.code == 0 else None
    if door is not None:
        return Finding(host, client.name, door)
    lines = [_trusting(client, where.trust, environment)]
    said = (outcome.err or outcome.out).strip().splitlines()
    reason = said[-1][:200] if said else "an empty answer"
    if not any(sign in outcome.err.lower() for sign in _UNTRUSTED) or lines == [None]:
        lines.append(_leading(host, client, where, environment))
    missing = tuple(line for line in lines if line is not None)
    if outcome.code == 0:
        reason = "the call went past the sidecar"
    return Finding(host, client.name, None, missing, reason)


def _trusting(client: Client, trust: Trust, environment: Mapping[str, str]) -> str | None:
    """The line by which the client trusts the authority; None: it is there."""
    if certificate_in(environment.get(client.trusts), trust.certificate):
        return None
    file = variables(trust.certificate, trust.bundle)[client.trusts]
    return f"export {client.trusts}={shlex.quote(file)}"


def certificate_in(file: str | None, certificate: Path) -> bool:
    """Whether the file that a variable names has the authority's certificate."""
    try:
        return bool(file) and certificate.read_bytes() in Path(file or "").read_bytes()
    except OSError:
        return False


def _leading(host: str, client: Client, where: Place, environment: Mapping[str, str]) -> str | None:
    """The line by which the client's calls come here; None: it is there, or there is none for it."""
    if client.heeds_proxy and where.proxy is not None:
        url = f"http://{where.proxy}"
        said = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
        return None if said.rstrip("/") == url else f"export HTTPS_PROXY={url}"
    name, _, port = host.partition(":")
    if port and int(port) != HTTPS:
        return None
    if where.override is not None:
        return f"{where.override.host} {name}    # in /etc/hosts"
    return "sidecar run -- COMMAND    # or listen: {intercept: 127.0.0.1:443} and a line in /etc/hosts"


def table(findings: list[Finding]) -> Iterator[str]:
    """The lines to print."""
    rows = [("host", "client", "door")]
    rows += ((it.host, it.client, it.door or f"none: {it.reason}") for it in findings)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for host, client, door in rows:
        yield f"{host:{widths[0]}}  {client:{widths[1]}}  {door}"
    missing = dict.fromkeys(line for found in findings for line in found.missing)
    if missing:
        yield ""
        yield "missing:"
        yield from missing


def run(loaded: Loaded, python: str) -> tuple[list[str], bool]:
    """What to print, and whether every client has a door. Raises `NoSidecar`."""
    findings = asyncio.run(examine(loaded, python))
    return list(table(findings)), all(found.door is not None for found in findings)

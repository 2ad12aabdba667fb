"""How `sidecar run -- COMMAND` starts an app so that its calls come to the sidecar."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar import private_namespace
from sidecar.child_environment import OPENAI_HOST, Trust, foreign_roots, led
from sidecar.listeners.binding import CannotStart
from sidecar.trust import USUAL

if TYPE_CHECKING:
    from sidecar.app import App
    from sidecar.config.load import Loaded
    from sidecar.listeners.authority import Authority

MEND: Final = (
    "clients that heed no proxy (a bare aiohttp.ClientSession) are not led here: set listen.intercept and a "
    "line in /etc/hosts for each host; `sidecar doctor` tells which"
)


async def led_child(
    app: App, loaded: Loaded, command: Sequence[str], given: Mapping[str, str]
) -> tuple[Sequence[str], Mapping[str, str]]:
    """The command and the environment to start, from those that were given.

    Unchanged where no policy file lists hosts. Says once, in the log, what cannot be done and what to do
    instead. Raises `OSError` where the command is not there.
    """
    plane = app.egress
    authority = plane.authority
    if authority is None:
        return command, given
    trust = Trust(authority.file, authority.bundle)
    hosts = [host for host in loaded.hosts if plane.routes.owns(f"{host}:443")]
    launcher: list[str] = []
    reason = ""
    if hosts:
        try:
            launcher = await _launcher(app, authority, hosts, command[0], given)
        except CannotStart as error:
            reason = str(error)
    proxy = next(iter(plane.addresses.get("egress", ())), None)
    if proxy is not None:
        proxy = proxy.reached if proxy.unix is None else None
    based = plane.routes.based_for(OPENAI_HOST)
    result = led(given, proxy, trust, openai=based, hosts=hosts if launcher else ())
    for name, file in foreign_roots(given, trust).items():
        merged = _merged(name, file, authority)
        if merged is None:
            app.log.warning("roots that cannot be read are replaced", variable=name, file=file)
        else:
            result.environment[name] = str(merged)
    if result.own_proxy is not None:
        app.log.warning(
            "the app keeps its own proxy",
            variable=result.own_proxy,
            mend="calls come here by the hosts override, past that proxy"
            if launcher
            else "unset it for the app's calls to come here: the sidecar itself calls out by no proxy",
        )
    if reason:
        app.log.warning("no private namespace for the app", reason=reason, mend=MEND)
    app.log.info(
        "the app's calls are led here",
        proxy=None if proxy is None or result.own_proxy else str(proxy),
        override=launcher[launcher.index("--address") + 1] if launcher else None,
        hosts=" ".join(loaded.hosts),
        kept=" ".join(result.kept) or None,
    )
    return [*launcher, *command], result.environment


async def _launcher(
    app: App, authority: Authority, hosts: Sequence[str], program: str, given: Mapping[str, str]
) -> list[str]:
    """What goes before the command. Raises `CannotStart` where it would not work.

    Raises `OSError` where the command is not there: with the launcher in between nobody else would see it.
    """
    if shutil.which(program, path=given.get("PATH")) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    if not sys.platform.startswith("linux"):
        raise CannotStart("this system has no mount namespaces")
    try:
        override = await app.egress.override()
    except CannotStart as error:
        raise CannotStart(
            f"port 443 of a loopback address: {error} (as root, with CAP_NET_BIND_SERVICE, or with "
            "sysctl net.ipv4.ip_unprivileged_port_start=443 it is allowed)"
        ) from error
    start = [sys.executable, "-I", "-S", private_namespace.__file__, "--address", override.host]
    start += (word for host in hosts for word in ("--host", host))
    start += ("--ca", str(authority.file.absolute()))
    start += (word for bundle in _system_bundles() for word in ("--bundle", bundle))
    probe = await asyncio.create_subprocess_exec(
        *start, "--probe", stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await probe.communicate()
    if probe.returncode != 0:
        raise CannotStart(
            f"{said.decode(errors='replace').strip()} (it needs CAP_SYS_ADMIN, or user namespaces that "
            "anybody may make)"
        )
    return [*start, "--"]


def _system_bundles() -> Iterable[str]:
    return dict.fromkeys(str(Path(name).resolve()) for name in USUAL if Path(name).is_file())


def _merged(name: str, file: str, authority: Authority) -> Path | None:
    """The user's roots with our certificate: his file if it has it, else a file in `ca.dir`."""
    try:
        text = Path(file).read_bytes()
        ours = authority.file.read_bytes()
        if ours in text:
            return Path(file)
        merged = (authority.directory / f"{name.lower()}.pem").absolute()
        merged.write_bytes(text.rstrip(b"\n") + b"\n" + ours)
    except OSError:
        return None
    return merged

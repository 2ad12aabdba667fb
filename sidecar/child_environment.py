"""The environment of an app that `sidecar run -- COMMAND` starts: what leads its calls to the sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.trust import ADDS_ROOTS, REPLACES_ROOTS, variables

if TYPE_CHECKING:
    from sidecar.config.addresses import Address

PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY")
"""Set in lower case too: some clients read only one of the two (curl: `http_proxy`)."""
ALL_PROXY: Final = "ALL_PROXY"
NO_PROXY: Final = "NO_PROXY"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
OPENAI_HOST: Final = "api.openai.com"
OPENAI: Final = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
"""Base URLs of the openai package: version 1 and later, and before it."""


@dataclass(frozen=True)
class Trust:
    """The files of the local authority."""

    certificate: Path
    bundle: Path


@dataclass(frozen=True)
class Led:
    """What the child is to be given."""

    environment: dict[str, str]
    kept: tuple[str, ...]
    """Names of variables that were set already and stay as they were."""
    own_proxy: str | None
    """The name of a variable that leads to a proxy of the user's."""


def led(
    given: Mapping[str, str],
    proxy: Address | None,
    trust: Trust,
    *,
    openai: str | None = None,
    hosts: Sequence[str] = (),
) -> Led:
    """`given`, with what leads calls to the egress listener at `proxy`; None: there is none.

    `openai`: the policy file that has the calls to OpenAI.
    `hosts`: those that a hosts override leads to the sidecar. A proxy of the user's stays in force: his
    app may reach other hosts by it alone, and the sidecar's calls would not go through it. Then `hosts`
    are taken out of it.
    """
    environment = {**given, **variables(trust.certificate, trust.bundle)}
    if proxy is None:
        return Led(environment, (), None)
    url = f"http://{proxy}"
    names = [case for name in (*PROXIES, ALL_PROXY) for case in (name, name.lower())]
    own = next((name for name in names if given.get(name, "").rstrip("/") not in ("", url)), None)
    kept = [name for name in names if own and given.get(name)]
    if own is None:
        for name in PROXIES:
            environment[name] = environment[name.lower()] = url
    _no_proxy(environment, (*LOOPBACK, *(hosts if own else ())))
    environment.setdefault("NODE_USE_ENV_PROXY", "1")  # node 22.21, 24 and later
    if openai is not None:
        for name in OPENAI:
            if given.get(name):
                kept.append(name)
            else:
                environment[name] = f"{url}/{openai}/v1"
    return Led(environment, tuple(kept), own)


def _no_proxy(environment: dict[str, str], more: Sequence[str]) -> None:
    """Both cases, one text: all that either of them said, and `more`."""
    said = (environment.get(name, "") for name in (NO_PROXY, NO_PROXY.lower()))
    entries = [entry.strip() for text in said for entry in text.split(",")]
    text = ",".join(dict.fromkeys(entry for entry in (*entries, *more) if entry))
    environment[NO_PROXY] = environment[NO_PROXY.lower()] = text


def foreign_roots(given: Mapping[str, str], trust: Trust) -> dict[str, str]:
    """Variables that name roots of the user's own, other than those that our bundle was made with."""
    ours = {str(trust.bundle.absolute()), str(trust.certificate.absolute()), given.get("SSL_CERT_FILE")}
    names = (name for name in (*REPLACES_ROOTS, *ADDS_ROOTS) if name != "SSL_CERT_FILE")
    return {name: given[name] for name in names if given.get(name) and given[name] not in ours}

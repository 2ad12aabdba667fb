"""What may be in development and may not be in production."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sidecar.config.place import Place
from sidecar.config.problems import Problem
from sidecar.config.schema import Config

SHORTEST: Final = 16
"""Characters of a token: NIST SP 800-63B, 3.1.1.2, asks for 15 where it is the only factor."""
_USUAL: Final = frozenset(
    {"admin", "changeme", "default", "example", "password", "secret", "sidecar", "test", "token"}
)
"""What stands in examples: with digits and signs around it, it is no better."""


def config(settings: Config, place: Place) -> Iterator[Problem]:
    """Findings about sidecar.yaml where customers are."""
    if settings.environment != "production":
        return
    token = settings.admin.token
    if token is not None:
        secret = token.get_secret_value()
        mend = "write one of `openssl rand -hex 32`"
        if _plain(secret) in _USUAL:
            yield place.error("admin.token", f"the one of examples is no secret in production ({mend})")
        elif len(secret) < SHORTEST or len(set(secret)) < SHORTEST // 2:
            yield place.error(
                "admin.token", f"too short or too uniform for production: {SHORTEST} characters ({mend})"
            )
    if settings.logging.level == "debug":
        yield place.error("logging.level", "no debug in production (write info)")


def _plain(secret: str) -> str:
    """Letters alone, without what people put between and around words."""
    letters = "".join(it for it in secret.lower() if it.isalpha())
    for word in ("my", "your", "the", "please", "token"):
        if letters != word:
            letters = letters.removeprefix(word)
    return letters.removesuffix("token") or letters

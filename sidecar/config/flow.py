"""A setting as YAML's flow style writes it, on one line, with secrets left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from sidecar.config.json_value import json_value
from sidecar.config.problems import SECRET, Origin

_PLAIN: Final = re.compile(r"[A-Za-z0-9_/](?:[A-Za-z0-9_/.@%+()*$ -]*[A-Za-z0-9_/.%+()*$-])?")
"""What needs no quotes within `{…}` and `[…]` either."""


def flow(value: Any, path: str, origins: Mapping[str, Origin]) -> str:
    """`path` is where the value is in `origins`: what is secret there is not shown."""
    if path in origins and origins[path].secret:
        return SECRET
    if isinstance(value, dict):
        members = [
            f"{_text(str(key))}: {flow(inner, f'{path}.{key}', origins)}" for key, inner in value.items()
        ]
        return f"{{{', '.join(members)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(flow(inner, f'{path}.{at}', origins) for at, inner in enumerate(value))}]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(text: str) -> str:
    """Quoted where it would not be the same text without."""
    plain = _PLAIN.fullmatch(text) is not None and isinstance(json_value(text), str)
    return text if plain else json.dumps(text, ensure_ascii=False)

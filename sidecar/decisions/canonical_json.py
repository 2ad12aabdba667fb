"""One spelling for every JSON text that means the same.

Two texts mean the same when they differ in white space, in the order of members, in how characters
are escaped, or in how a number is written: 1, 1.0, 1e0 and 10E-1 are one number, -0 is 0, and digits
count to the last, however many (RFC 8259, 6 leaves precision open; JSON Schema calls 1.0 an integer too).
Strings are compared code point by code point, without Unicode normalisation, arrays in order.

What is ambiguous has no canonical form: an object with a name twice (RFC 8259, 4), `NaN`, another
encoding than UTF-8, nesting beyond all reason.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

_LONGEST: Final = 400
"""Digits up to which a whole number is written out."""
_NOT_JSON: Final = float("nan")
"""Begins the form of a number that is not whole: no JSON text can spell it."""


class _AmbiguousError(ValueError):
    """The text may mean different things to different readers."""


def canonical_json(body: bytes) -> bytes | None:
    """The canonical form, in ASCII; None for what is not JSON, or ambiguous.

    It is a name of the value, to be compared and digested: not JSON itself.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse,
            object_pairs_hook=_members,
        )
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError):
        return None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _AmbiguousError
    return members


def _refuse(_constant: str) -> NoReturn:
    raise _AmbiguousError


def _integer(text: str) -> Any:
    return int(text) if len(text) <= _LONGEST else _number(text)


def _number(text: str) -> Any:
    """Exactly: as a whole number, or else as sign and digits without zeros at the ends, and an exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    power = int(exponent or "0") - len(fraction)
    significant = digits.rstrip("0")
    if not significant:
        return 0
    power += len(digits) - len(significant)
    sign = "-" if text.startswith("-") else ""
    if power >= 0 and len(significant) + power <= _LONGEST:
        return int(sign + significant + "0" * power)
    return [_NOT_JSON, sign + significant, power]

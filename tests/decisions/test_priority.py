"""Which class a request belongs to."""

from __future__ import annotations

import pytest

from sidecar.decisions.priority import Priority, priority_of
from sidecar.headers import Line

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW

FIELDS: list[tuple[list[bytes], Priority, Priority]] = [
    ([], HIGH, HIGH),
    ([], NORMAL, NORMAL),
    ([], LOW, LOW),
    ([b"u=5"], HIGH, LOW),
    ([b"u=6"], NORMAL, LOW),
    ([b"u=7, i"], NORMAL, LOW),
    ([b"i, u=7"], NORMAL, LOW),
    ([b"u=4"], NORMAL, NORMAL),
    ([b"u=3"], HIGH, HIGH),
    ([b"u=0"], NORMAL, NORMAL),
    ([b"u=0"], LOW, LOW),
    ([b"i"], NORMAL, NORMAL),
    ([b"u=5, u=1"], NORMAL, NORMAL),
    ([b"u=1", b"u=5"], NORMAL, LOW),
    ([b"u=5", b"i"], NORMAL, LOW),
    ([b"u=8"], NORMAL, NORMAL),
    ([b"u=-7"], NORMAL, NORMAL),
    ([b"u=5.5"], NORMAL, NORMAL),
    ([b'u="7"'], NORMAL, NORMAL),
    ([b"u"], NORMAL, NORMAL),
    ([b"u=7,"], NORMAL, NORMAL),
    ([b"u=7; \xff"], NORMAL, NORMAL),
    ([b""], NORMAL, NORMAL),
]


@pytest.mark.parametrize(("values", "default", "expected"), FIELDS)
def test_a_field_lowers_the_class_and_never_raises_it(
    values: list[bytes], default: Priority, expected: Priority
) -> None:
    """Urgency 5 to 7 makes a request LOW; any other field, malformed ones included, changes nothing."""
    headers = [Line(b"Accept", b"*/*"), *(Line(b"Priority", value) for value in values)]
    assert priority_of(headers, default) is expected


def test_high_comes_first() -> None:
    """Classes compare: the smaller goes first."""
    assert sorted([LOW, HIGH, NORMAL]) == [HIGH, NORMAL, LOW]

"""Bringing a stored response up to date by a 304 or by the answer to a HEAD (RFC 9111, 3.2, 4.3.4, 4.3.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.decisions.conditional import opaque
from sidecar.decisions.storage import storable_headers

if TYPE_CHECKING:
    from sidecar.headers import Line

KEPT: Final = frozenset({b"content-encoding", b"content-length", b"content-md5", b"content-range", b"etag"})
"""Describe the stored bytes themselves, which an update does not change (RFC 9111, 3.2)."""


def selects(stored: Iterable[Line], answer: Iterable[Line]) -> bool:
    """Whether a 304 to a validation of ours speaks of this stored response (RFC 9111, 4.3.4).

    With an entity tag, when it is the same; else by `Last-Modified`. A 304 that names neither, though
    it should (RFC 9110, 15.4.5), answers what we asked of this response alone. Weakness aside: servers
    that compress on the way weaken the tags of their answers, not those of their 304s.
    """
    ours, theirs = _validators(stored), _validators(answer)
    if theirs[0] is not None:
        return ours[0] is not None and opaque(ours[0]) == opaque(theirs[0])
    return theirs[1] is None or theirs[1] == ours[1]


def freshen(stored: Sequence[Line], answer: Sequence[Line]) -> list[Line]:
    """The lines of the response that a 304 validates: its fields take the place of those with their names.

    They hold the `Age` of the 304, if any: make a `Reply` of them, and store their `storable_headers`.
    A 304 that does not select the stored response changes none of its fields but `Date`: the origin has
    said "not modified" to its validator, in an answer with the metadata of another response.
    """
    if selects(stored, answer):
        return _merged(stored, answer)
    return _merged(stored, [line for line in answer if line.name in {b"date", b"age"}])


def freshen_by_head(stored: Sequence[Line], length: int, answer: Sequence[Line]) -> list[Line] | None:
    """The stored lines of a 200 to GET after a 200 to HEAD; None when it shows that the content changed.

    Every validator that came has to be the stored one, and a `Content-Length` that of the stored
    content, `length` bytes (RFC 9111, 4.3.5). None makes the stored response stale.
    """
    ours, theirs = _validators(stored), _validators(answer)
    for our, their in zip(ours, theirs, strict=True):
        if their is not None and their != our:
            return None
    for line in answer:
        if line.name == b"content-length" and line.value != b"%d" % length:
            return None
    return _merged(stored, answer)


def _merged(stored: Sequence[Line], answer: Sequence[Line]) -> list[Line]:
    new = [line for line in storable_headers(answer) if line.name not in KEPT]
    new += [line for line in answer if line.name == b"age"]
    replaced = {line.name for line in new}
    return [line for line in stored if line.name not in replaced] + new


def _validators(lines: Iterable[Line]) -> tuple[bytes | None, bytes | None]:
    """Entity tag and `Last-Modified`."""
    etag: bytes | None = None
    modified: bytes | None = None
    for line in lines:
        if line.name == b"etag" and etag is None:
            etag = line.value
        elif line.name == b"last-modified" and modified is None:
            modified = line.value
    return etag, modified

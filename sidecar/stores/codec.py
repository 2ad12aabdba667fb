"""How a record looks in a shared store: bytes that any version may read, and none may choke on.

    magic "NV" · version · flags · schema · when and which write     20 bytes
    the lifetime                                                      its slots, in order
    checksum of the lifetime                                          4 bytes
    length of the payload · checksum of the payload                   8 bytes
    the payload, compressed where that helps

All up to the checksum of the lifetime has one length, so a store can read it alone (is my copy still
the one?) and replace a lifetime in place. The schema is a fingerprint of the lifetime's slots: a
version that has others writes another one, and what it wrote is a miss here.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from struct import Struct
from typing import TYPE_CHECKING, Final

from sidecar.decisions.freshness import Lifetime
from sidecar.stores.entry import MOST_VARIANTS, Entry, Record, Variants

if TYPE_CHECKING:
    from sidecar.headers import Line, Lines

MAGIC: Final = b"NV"
VERSION: Final = 1
COMPRESSED: Final = 1
VARIANTS: Final = 2
COMPRESS_ABOVE: Final = 1024
"""Bytes of a payload below which compressing it is not tried."""
LEVEL: Final = 1
WORTH: Final = 0.9
"""A compressed payload longer than this share of the plain one is not used: reading it would cost more."""
SAMPLE: Final = 16 * 1024
"""Bytes that are tried first of a long payload: most that do not compress are images or zipped already."""
LARGEST: Final = 256 * 1024 * 1024
"""Bytes of a payload, once decompressed, above which it is not believed."""

_FORMATS: Final = {"float": "d", "int": "q", "bool": "?"}
_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Lifetime))
_LIFETIME: Final = Struct(">" + "".join(_FORMATS[str(each.type)] for each in dataclasses.fields(Lifetime)))
_SCHEMA: Final = zlib.crc32(f"{_LIFETIME.format} {' '.join(_FIELDS)}".encode())
_HEAD: Final = Struct(">2sBBIdI")
_SUM: Final = Struct(">I")
_PAYLOAD: Final = Struct(">II")
_ENTRY: Final = Struct(">HHHHIHHI")
"""Status; lengths of reason, method, verdict; `unchanged`; counts of tags, of lines; length of the body."""
_LINE: Final = Struct(">HI")
_VARIANTS: Final = Struct(">dHH")
_LENGTH: Final = Struct(">H")

LIFETIME_AT: Final = _HEAD.size
STAMP: Final = _HEAD.size + _LIFETIME.size + _SUM.size
"""Bytes at the front that tell one write, and one lifetime, from another."""
_PAYLOAD_AT: Final = STAMP + _PAYLOAD.size
SIGNATURE: Final = Struct(">2sBBI").pack(MAGIC, VERSION, 0, _SCHEMA)
"""How an uncompressed entry of this version begins."""


class _Damaged(ValueError):
    """The payload does not say what it should."""


def encode(record: Record, stored: float, write: int) -> bytes:
    """`stored` in Unix seconds and `write`, a number below 2**32, tell this write from others.

    Raises ValueError for what is too long to be written down: a header line above 4 GiB, say.
    """
    try:
        if isinstance(record, Entry):
            flags = 0
            lifetime = lifetime_block(record.lifetime)
            payload = _entry_payload(record)
        else:
            flags = VARIANTS
            lifetime = _with_sum(bytes(_LIFETIME.size))
            payload = _variants_payload(record)
        payload, compressed = _compress(payload)
        if compressed:
            flags |= COMPRESSED
        head = _HEAD.pack(MAGIC, VERSION, flags, _SCHEMA, stored, write)
        checksum = _PAYLOAD.pack(len(payload), zlib.crc32(payload, flags))
    except struct.error as error:
        raise ValueError(f"cannot be written down: {error}") from None
    return b"".join((head, lifetime, checksum, payload))


def decode(data: bytes, lines: Lines) -> Record | None:
    """The record, or None for anything but what `encode` of this version made. Never raises."""
    try:
        return _decode(data, lines)
    except (ValueError, OverflowError, struct.error, zlib.error):  # all that damage can cause in here
        return None


def lifetime_block(lifetime: Lifetime) -> bytes:
    """What stands at `LIFETIME_AT`, its checksum included."""
    return _with_sum(_LIFETIME.pack(*[getattr(lifetime, name) for name in _FIELDS]))


def _decode(data: bytes, lines: Lines) -> Record | None:
    if len(data) < _PAYLOAD_AT:
        return None
    magic, version, flags, schema, _, _ = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION or schema != _SCHEMA or flags & ~(COMPRESSED | VARIANTS):
        return None
    (lifetime_sum,) = _SUM.unpack_from(data, STAMP - _SUM.size)
    length, checksum = _PAYLOAD.unpack_from(data, STAMP)
    block = data[LIFETIME_AT : STAMP - _SUM.size]
    payload = data[_PAYLOAD_AT:]
    if len(payload) != length or zlib.crc32(payload, flags) != checksum or zlib.crc32(block) != lifetime_sum:
        return None
    if flags & COMPRESSED:
        payload = _decompress(payload)
    if flags & VARIANTS:
        return _read_variants(payload)
    return _read_entry(payload, Lifetime(*_LIFETIME.unpack(block)), lines)


def _with_sum(block: bytes) -> bytes:
    return block + _SUM.pack(zlib.crc32(block))


def _compress(payload: bytes) -> tuple[bytes, bool]:
    if len(payload) <= COMPRESS_ABOVE:
        return payload, False
    if len(payload) > 4 * SAMPLE:
        # From the middle: the front of an image or a PDF often compresses when the rest does not.
        middle = len(payload) // 2
        sample = payload[middle : middle + SAMPLE]
        if len(zlib.compress(sample, LEVEL)) > WORTH * len(sample):
            return payload, False
    packed = zlib.compress(payload, LEVEL)
    return (packed, True) if len(packed) <= WORTH * len(payload) else (payload, False)


def _decompress(packed: bytes) -> bytes:
    machine = zlib.decompressobj()
    payload = machine.decompress(packed, LARGEST)
    if not machine.eof or machine.unused_data:
        raise _Damaged
    return payload


def _entry_payload(entry: Entry) -> bytes:
    method, verdict = entry.method.encode(), entry.verdict.encode()
    parts = [
        _ENTRY.pack(
            entry.status,
            len(entry.reason),
            len(method),
            len(verdict),
            entry.unchanged,
            len(entry.tags),
            len(entry.headers),
            len(entry.body),
        ),
        entry.reason,
        method,
        verdict,
    ]
    for tag in entry.tags:
        encoded = tag.encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    for line in entry.headers:
        # The name as it was spelled stands only in the wire form.
        size = len(line.name)
        parts += (_LINE.pack(size, len(line.value)), line.wire[:size], line.value)
    parts.append(entry.body)
    return b"".join(parts)


def _read_entry(payload: bytes, lifetime: Lifetime, lines: Lines) -> Entry:
    status, reason_size, method_size, verdict_size, unchanged, tag_count, line_count, body_size = (
        _ENTRY.unpack_from(payload)
    )
    at = _ENTRY.size
    reason = payload[at : at + reason_size]
    at += reason_size
    method = payload[at : at + method_size].decode()
    at += method_size
    verdict = payload[at : at + verdict_size].decode()
    at += verdict_size
    tags = []
    for _ in range(tag_count):
        (size,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        tags.append(payload[at : at + size].decode())
        at += size
    headers: list[Line] = []
    for _ in range(line_count):
        name_size, value_size = _LINE.unpack_from(payload, at)
        at += _LINE.size
        value_at = at + name_size
        end = value_at + value_size
        headers.append(lines[payload[at:value_at], payload[value_at:end]])
        at = end
    body = payload[at:]
    if at > len(payload) or len(body) != body_size:
        raise _Damaged
    return Entry(status, reason, headers, body, lifetime, method, tuple(tags), verdict, unchanged)


def _variants_payload(variants: Variants) -> bytes:
    parts = [_VARIANTS.pack(variants.lifetime_end, len(variants.names), len(variants.keys))]
    for names in variants.names:
        parts.append(_LENGTH.pack(len(names)))
        for name in names:
            parts += (_LENGTH.pack(len(name)), name)
    for key in variants.keys:
        parts += (_LENGTH.pack(len(key)), key)
    return b"".join(parts)


def _read_variants(payload: bytes) -> Variants:
    end, names_count, keys_count = _VARIANTS.unpack_from(payload)
    if names_count > MOST_VARIANTS or keys_count > MOST_VARIANTS:
        raise _Damaged
    at = _VARIANTS.size
    names: list[tuple[bytes, ...]] = []
    for _ in range(names_count):
        (count,) = _LENGTH.unpack_from(payload, at)
        group, at = _read_list(payload, at + _LENGTH.size, count)
        names.append(tuple(group))
    keys, at = _read_list(payload, at, keys_count)
    if at != len(payload):
        raise _Damaged
    return Variants(names, keys, end)


def _read_list(payload: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    items = []
    for _ in range(count):
        (size,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        items.append(payload[at : at + size])
        at += size
    return items, at

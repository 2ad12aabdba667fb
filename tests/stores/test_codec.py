"""A value comes back as it was, or not at all."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.decisions.freshness import Lifetime
from sidecar.headers import RESPONSE_KINDS, Line, Lines
from sidecar.stores import codec
from sidecar.stores.entry import Entry, Record, Variants
from tests.stores.records import described, entry, lifetime, variants

TOKEN = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b":\r\n \t"))
VALUE = st.binary(max_size=50).filter(lambda value: not set(value) & set(b"\r\n"))
TIMES = st.floats(allow_nan=False)
FLAGS = st.booleans()
LIFETIMES = st.builds(Lifetime, TIMES, TIMES, TIMES, TIMES, TIMES, TIMES, TIMES, FLAGS, FLAGS, FLAGS)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
ENTRIES = st.builds(
    Entry,
    st.integers(100, 999),
    st.binary(max_size=20),
    st.lists(st.builds(Line, TOKEN, VALUE), max_size=5),
    st.one_of(st.binary(max_size=300), st.binary(max_size=20).map(lambda body: body * 200)),
    LIFETIMES,
    TEXT,
    st.lists(TEXT, max_size=3).map(tuple),
    TEXT,
    st.integers(0, 1000),
)
VARIANTS = st.builds(
    Variants,
    st.lists(st.lists(TOKEN, max_size=3).map(tuple), max_size=4),
    st.lists(st.binary(max_size=40), max_size=5),
    TIMES,
)
RECORDS = st.one_of(ENTRIES, VARIANTS)


def decode(data: bytes) -> Record | None:
    return codec.decode(data, Lines(RESPONSE_KINDS))


@given(RECORDS)
def test_round_trip(record: Record) -> None:
    """Every record comes back equal: header lines in order and spelling, lifetime, tags."""
    assert described(decode(codec.encode(record, 1.5, 7))) == described(record)


@given(st.binary(max_size=400))
def test_foreign_bytes_are_none(data: bytes) -> None:
    """What another program wrote is no record, and no exception."""
    assert decode(data) is None


@given(RECORDS, st.data())
def test_a_cut_value_is_none(record: Record, data: st.DataObject) -> None:
    """However much of the end is missing, and with anything added."""
    raw = codec.encode(record, 1.5, 7)
    assert decode(raw[: data.draw(st.integers(0, len(raw) - 1))]) is None
    assert decode(raw + data.draw(st.binary(min_size=1, max_size=9))) is None


@settings(max_examples=300)
@given(RECORDS, st.data())
def test_a_changed_byte_never_gives_another_record(record: Record, data: st.DataObject) -> None:
    """Only what tells writes apart may change and go unnoticed."""
    raw = bytearray(codec.encode(record, 1.5, 7))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    found = decode(bytes(raw))
    if found is not None:
        assert 8 <= at < codec.LIFETIME_AT
        assert described(found) == described(record)


@given(RECORDS, st.binary(max_size=60), st.booleans())
def test_a_payload_that_lies_about_itself_is_none(record: Record, payload: bytes, compress: bool) -> None:
    """Checksums that fit do not make sense of nonsense."""
    raw = codec.encode(record, 1.5, 7)
    packed = zlib.compress(payload) if compress else payload
    flags = (raw[3] & codec.VARIANTS) | (codec.COMPRESSED if compress else 0)
    forged = raw[:3] + bytes((flags,)) + raw[4 : codec.STAMP]
    forged += len(packed).to_bytes(4, "big") + zlib.crc32(packed, flags).to_bytes(4, "big") + packed
    found = decode(forged)
    assert found is None or codec.encode(found, 1.5, 7)


@pytest.mark.parametrize(
    ("at", "what"), [(0, "magic"), (2, "version"), (3, "flags"), (4, "schema"), (7, "schema")]
)
def test_another_version_is_none(at: int, what: str) -> None:
    """Whatever of the front differs, the value is of somebody else."""
    raw = bytearray(codec.encode(entry(), 1.5, 7))
    raw[at] ^= 0x40
    assert decode(bytes(raw)) is None, what


def test_small_values_are_not_compressed() -> None:
    """Up to 1 KiB it costs more than it saves."""
    assert b"a" * 500 in codec.encode(entry(b"a" * 500), 1.5, 7)


def test_large_values_are_compressed_where_that_helps() -> None:
    """Text shrinks; what does not shrink is left as it is."""
    text = b'{"status": "OK", "distance": 1234}' * 200
    assert len(codec.encode(entry(text), 1.5, 7)) < len(text) / 5
    noise = random.Random(1).randbytes(20_000)
    assert noise in codec.encode(entry(noise), 1.5, 7)
    assert noise * 10 in codec.encode(entry(noise * 10), 1.5, 7)


def test_a_bomb_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that would decompress to more than is believed is not read."""
    monkeypatch.setattr(codec, "LARGEST", 10_000)
    assert decode(codec.encode(entry(bytes(9_000)), 1.5, 7)) is not None
    assert decode(codec.encode(entry(bytes(11_000)), 1.5, 7)) is None


def test_what_cannot_be_written_down() -> None:
    """A tag longer than 64 KiB is a ValueError, not half a value."""
    with pytest.raises(ValueError, match="written down"):
        codec.encode(entry(tags=("t" * 70_000,)), 1.5, 7)


def test_lines_come_from_the_memo() -> None:
    """Two responses with the same line share one object."""
    lines = Lines(RESPONSE_KINDS)
    raw = codec.encode(entry(), 1.5, 7)
    one, two = codec.decode(raw, lines), codec.decode(raw, lines)
    assert isinstance(one, Entry)
    assert isinstance(two, Entry)
    assert one.headers[0] is two.headers[0]


def test_the_front_has_one_length() -> None:
    """A store reads and replaces it alone."""
    for record in (entry(), entry(bytes(5000), tags=("a",)), variants(b"k")):
        raw = codec.encode(record, 1.5, 7)
        assert len(codec.lifetime_block(lifetime())) == codec.STAMP - codec.LIFETIME_AT
        assert raw[:3] == codec.SIGNATURE[:3]
        assert raw[4:8] == codec.SIGNATURE[4:]


def test_a_replaced_lifetime_is_read() -> None:
    """In place, the rest untouched."""
    raw = codec.encode(entry(b"body"), 1.5, 7)
    longer = lifetime(9999)
    found = decode(raw[: codec.LIFETIME_AT] + codec.lifetime_block(longer) + raw[codec.STAMP :])
    assert isinstance(found, Entry)
    assert (found.lifetime, found.body) == (longer, b"body")


def test_two_writes_differ_in_their_stamp() -> None:
    """Also of equal records at the same time."""
    record = entry()
    assert codec.encode(record, 1.5, 7)[: codec.STAMP] != codec.encode(record, 1.5, 8)[: codec.STAMP]

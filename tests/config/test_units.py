"""Values with a unit: what is read, what is written, and that the two agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from sidecar.config.units import (
    format_duration,
    format_rate,
    format_share,
    format_size,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("10s", 10),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h", 3600),
        ("30d", 2592000),
        ("0", 0),
        ("10 s", 10),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    """Each unit counts as it should."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7B", 7),
        ("64KiB", 65536),
        ("1MiB", 1048576),
        ("1.5KiB", 1536),
        ("50MB", 50_000_000),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    """KiB counts by 1024, KB by 1000."""
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "rate"), [("50/s", 50), ("90/m", 1.5), ("3600/h", 1), ("86400/d", 1)])
def test_rates_are_per_second(text: str, rate: float) -> None:
    """The period is divided out."""
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("text", "share"), [("20%", 0.2), ("0.2", 0.2), ("100%", 1), ("1", 1), ("0%", 0), ("0.5%", 0.005)]
)
def test_percentages_are_shares(text: str, share: float) -> None:
    """A percentage and a number of 0 to 1 mean the same."""
    assert parse_share(text) == share


@pytest.mark.parametrize("parse", [parse_duration, parse_size, parse_rate, parse_share])
@pytest.mark.parametrize("value", [True, None, "", "x", "-1s", "1e3s", "٣s", "nan", float("nan"), -1])
def test_anything_else_is_refused(parse: Callable[[object], object], value: object) -> None:
    """No value is read as something that it does not say."""
    with pytest.raises(PydanticCustomError):
        parse(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.025, "25ms"),
        (0.0001, "0.1ms"),
        (1.5, "1.5s"),
        (60, "1m"),
        (90, "90s"),
        (86400, "1d"),
        (300, "5m"),
    ],
)
def test_durations_are_shown_as_users_write_them(seconds: float, text: str) -> None:
    """The largest unit that leaves a whole number."""
    assert format_duration(seconds) == text


@given(st.integers(0, 10**10).map(lambda milliseconds: milliseconds / 1000))
def test_durations_survive_being_shown(seconds: float) -> None:
    """What is shown reads back as the same duration."""
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.integers(1, 1 << 50))
def test_sizes_survive_being_shown(size: int) -> None:
    """What is shown reads back as the same size."""
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10_000).map(lambda hundredths: hundredths / 10_000))
def test_percentages_survive_being_shown(share: float) -> None:
    """What is shown reads back as the same share."""
    assert parse_share(format_share(share)) == pytest.approx(share)


@given(st.integers(1, 10_000), st.sampled_from(["s", "m", "h", "d"]))
def test_rates_survive_being_shown(count: int, period: str) -> None:
    """What is shown reads back as the same rate."""
    rate = parse_rate(f"{count}/{period}")
    assert parse_rate(format_rate(rate)) == pytest.approx(rate)


@given(st.text(max_size=12))
def test_no_text_makes_a_reader_fail_otherwise(text: str) -> None:
    """Whatever is written, the answer is a value or a finding."""
    readers: tuple[Callable[[object], object], ...] = (parse_duration, parse_size, parse_rate, parse_share)
    for parse in readers:
        with contextlib.suppress(PydanticCustomError):
            parse(text)

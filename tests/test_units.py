"""Sizes, shares and times."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.errors import InvalidValueError
from cachefs.units import (
    MAX_BYTES,
    Amount,
    format_seconds,
    format_size,
    human_size,
    parse_seconds,
    parse_size,
)

SIZES = st.integers(0, MAX_BYTES)
NO_SIZES = (
    *("", " ", "-1", "+1", "nan", "inf", "1e3", "G", "10X", "1 2", "1..5G", "٣", "0x10", "10Gi"),
    *("5%", "10KB", "10GB", "10gb", "8192P", "9223372036854775808", "9" * 5000, "1\x00", "\udcff"),
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1025", 1025),
        ("17B", 17),
        ("1k", 1024),
        ("512M", 512 * 2**20),
        ("10G", 10 * 2**30),
        ("10GiB", 10 * 2**30),
        ("10 gib", 10 * 2**30),
        ("1.5T", 3 * 2**39),
        ("0.3K", 307),
        (" 10G\n", 10 * 2**30),
        ("9223372036854775807", MAX_BYTES),
    ],
)
def test_a_size_is_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_size(text)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 200


@given(SIZES)
def test_a_formatted_size_is_read_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(1, 1023), st.sampled_from(sorted(UNITS)))
def test_whole_units_are_formatted_as_they_are_typed(number: int, unit: str) -> None:
    assert format_size(number * UNITS[unit]) == f"{number}{unit}"


@given(st.text())
def test_any_text_is_an_amount_or_an_error(text: str) -> None:
    try:
        amount = Amount.parse(text)
    except InvalidValueError:
        return
    assert Amount.parse(str(amount)) == amount
    assert 0 <= amount.of(2**40) <= MAX_BYTES


@given(st.decimals(0, 100, allow_nan=False, places=6) | st.integers(0, 100).map(Decimal))
def test_a_percentage_is_read_back_as_it_is_written(percent: Decimal) -> None:
    amount = Amount(percent=percent)
    assert Amount.parse(str(amount)) == amount


@given(SIZES)
def test_bytes_are_the_same_of_any_filesystem(size: int) -> None:
    assert Amount(size=size).of(0) == size


def test_no_amount_at_all_is_0_bytes() -> None:
    assert Amount() == Amount.parse("0")
    assert str(Amount()) == "0"


def test_an_amount_is_never_both_a_size_and_a_percentage() -> None:
    with pytest.raises(InvalidValueError):
        Amount(size=1, percent=Decimal(1))


def test_a_percentage_is_of_the_filesystem_and_rounded_down() -> None:
    assert Amount.parse("5%").of(1019) == 50
    assert Amount.parse("12.5%").of(2**62 + 7) == 2**59
    assert str(Amount.parse("5.0%")) == "5%"
    assert str(Amount.parse("100%")) == "100%"


@pytest.mark.parametrize("text", ["101%", "-5%", "%", "100.0001%", "nan%", "5%%"])
def test_a_percentage_beyond_100_or_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError):
        Amount.parse(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (10 * 2**30, "10.0 GiB"),
        (2**63 - 1, "8192.0 PiB"),
    ],
)
def test_a_size_for_people_has_one_decimal(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("86400", 86400), ("90s", 90), ("5m", 300), ("1h", 3600), ("1d", 86400), ("0.5w", 302400)],
)
def test_a_time_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1y", "h", "1e3", "1h30m", "9" * 400])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_seconds(text)


@given(st.floats(0, 1e9).map(lambda seconds: round(seconds, 3)))
def test_plain_seconds_are_read_exactly(seconds: float) -> None:
    assert math.isclose(parse_seconds(f"{seconds:.3f}"), seconds)


@given(st.floats(0, 1e9))
def test_any_time_is_written_as_it_is_read(seconds: float) -> None:
    if seconds == 0 or seconds > 1e-6:
        assert parse_seconds(format_seconds(seconds)) == seconds

"""Sizes, shares, times, the configuration file and the default cache directory."""

import math
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config import (
    MAX_BYTES,
    Amount,
    absolute_source,
    default_cache_dir,
    format_size,
    human_size,
    load_config,
    parse_seconds,
    parse_size,
)
from cachefs.errors import InvalidValueError

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


def _config_file(directory: Path, text: str) -> Path:
    path = directory / "cachefs.toml"
    path.write_text(text)
    return path


def test_a_file_sets_the_fields_that_it_names(tmp_path: Path) -> None:
    path = _config_file(
        tmp_path,
        'max-size = "10%"\nmin-free = 1048576\nfallback = ["https://a/", "https://b/"]\n'
        'cache-dir = "cache"\nforeground = true\nstall-time = "1h"\nmax-fetches = 2\n',
    )
    assert load_config(path) == {
        "max_size": Amount(percent=Decimal(10)),
        "min_free": Amount(size=2**20),
        "fallbacks": ("https://a/", "https://b/"),
        "cache_dir": tmp_path / "cache",
        "foreground": True,
        "stall_time": 3600.0,
        "max_fetches": 2,
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_size = 1\n", "max_size"),
        ("source = 'x'\n", "source"),
        ("max-size = true\n", "max-size"),
        ("max-size = '10GB'\n", "max-size"),
        ("driver = 'mysql'\n", "sqlite, xattr"),
        ("on-miss = []\n", "on-miss"),
        ("fallback = [1]\n", "fallback"),
        ("max-fetches = 0\n", "max-fetches"),
        ("foreground = 1\n", "foreground"),
        ("[mount]\n", "mount"),
        ("= 1\n", "not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_together_with_it(
    tmp_path: Path, text: str, named: str
) -> None:
    path = _config_file(tmp_path, text)
    with pytest.raises(InvalidValueError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="No such file"):
        load_config(tmp_path / "missing.toml")


def test_two_sources_never_share_a_cache_directory() -> None:
    sources = ["/srv/images", "/srv/images2", "https://h/images", "https://h:81/images", "s3://b/x"]
    assert len({default_cache_dir(source, root=True) for source in sources}) == len(sources)


@pytest.mark.parametrize("same", ["/srv/images/", "file:///srv/images", "/srv/../srv/images"])
def test_spellings_of_one_source_share_a_cache_directory(same: str) -> None:
    assert default_cache_dir(same) == default_cache_dir("/srv/images")


def test_a_relative_source_depends_on_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("images") == str(tmp_path / "images")
    assert default_cache_dir("images") == default_cache_dir(f"{tmp_path}/images")


def test_a_password_in_a_url_is_not_in_the_directory_name() -> None:
    path = default_cache_dir("https://user:secret@host.example/a/images/?sig=hidden", root=True)
    assert path.parent == Path("/var/cache/cachefs")
    assert path.name.startswith("host.example-a-images-")
    assert "secret" not in path.name
    assert "hidden" not in path.name


@pytest.mark.parametrize(
    ("environ", "parent"),
    [
        ({"HOME": "/home/u"}, "/home/u/.cache/cachefs"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "/fast"}, "/fast/cachefs"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "fast"}, "/home/u/.cache/cachefs"),
    ],
)
def test_a_user_has_his_own_cache_directory(environ: dict[str, str], parent: str) -> None:
    assert default_cache_dir("/srv/images", root=False, environ=environ).parent == Path(parent)


@given(st.text(min_size=1))
def test_any_source_has_a_plain_directory_name(source: str) -> None:
    if "\0" in source:
        return
    try:
        name = default_cache_dir(source, root=True).name
    except InvalidValueError:
        return
    assert name.isascii()
    assert not name.startswith((".", "-"))

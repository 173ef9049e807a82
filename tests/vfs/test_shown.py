"""What is kept of control files that are being read."""

import os
from collections.abc import Iterator

import pytest

from cachefs.errors import StaleError
from cachefs.vfs.shown import SLOT_BYTES, SLOTS, Shown, create

HANDLE = 8 << 56 | 1_750_000_000_000_001 % 2**40 << 16 | 20


@pytest.fixture
def fd() -> Iterator[int]:
    fd = create()
    yield fd
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 700, SLOT_BYTES - 16])
def test_a_text_is_kept_for_the_next_process(fd: int, size: int) -> None:
    text = os.urandom(size)
    Shown(fd).keep(HANDLE, text)
    assert Shown(fd).kept(HANDLE, 3) == text


def test_of_a_longer_text_the_end_is_kept(fd: int) -> None:
    Shown(fd).keep(HANDLE, bytes(SLOT_BYTES))
    with pytest.raises(StaleError):
        Shown(fd).kept(HANDLE, SLOT_BYTES - 1)
    assert Shown(fd).kept(HANDLE, SLOT_BYTES) == b""


def test_what_is_shown_anew_is_what_is_kept(fd: int) -> None:
    shown = Shown(fd)
    shown.keep(HANDLE, b"a longer one")
    shown.keep(HANDLE, b"short")
    assert shown.kept(HANDLE, 1) == b"short"


def test_of_another_handle_nothing_is_known(fd: int) -> None:
    shown = Shown(fd)
    shown.keep(HANDLE, b"x")
    assert shown.kept(HANDLE + 2**16, 1) is None
    assert shown.kept(0, 1) is None


def test_the_last_texts_are_kept(fd: int) -> None:
    """Handles are given by the clock: a slot is not the next one's soon."""
    shown = Shown(fd)
    handles = [HANDLE + (number << 16) for number in range(SLOTS)]
    for handle in handles:
        shown.keep(handle, b"%d" % handle)
    assert [shown.kept(handle, 1) for handle in handles] == [b"%d" % handle for handle in handles]


def test_without_a_file_nothing_is_kept() -> None:
    shown = Shown()
    shown.keep(HANDLE, b"x")
    assert shown.kept(HANDLE, 1) is None

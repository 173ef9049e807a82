"""Files that stay readable for open handles, by number, whatever becomes of their names."""

import os
from pathlib import Path

import pytest
from support.place import Place, put

from cachefs.cache import Held, Layout
from cachefs.cache.lock import is_held


@pytest.fixture
def held(place: Place) -> Held:
    place.store().close()  # makes the directories
    return Held(Layout(place.path))


def directory(place: Place) -> Path:
    return place.path / ".cachefs" / "held"


def content(held: Held, number: int) -> bytes:
    fd = held.open(number)
    assert fd is not None
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_a_held_image_outlives_its_name(place: Place, held: Held) -> None:
    cache = place.cache()
    data = put(cache, "a", 100)
    held.keep("a", 7)
    assert held.is_published(7, "a")
    cache.delete_cached_image("a")
    assert not held.is_published(7, "a")
    assert content(held, 7) == data


def test_an_image_that_has_gone_is_not_held(place: Place, held: Held) -> None:
    put(place.cache(), "a", 100)
    held.keep("a", 7)
    held.keep("b", 7)
    assert held.open(7) is None
    assert list(directory(place).iterdir()) == []


def test_an_open_file_is_held_by_its_descriptor(place: Place, held: Held) -> None:
    with place.opened() as store, store.begin("a", 4) as transaction:
        transaction.write(b"data")
        assert held.keep_open(transaction.fd, 7)
        assert held.is_incomplete(7, "a")
        assert not held.is_published(7, "a")
        transaction.commit()
        assert not held.is_incomplete(7, "a")
        assert held.is_published(7, "a")


def test_an_open_file_without_a_name_cannot_be_held(place: Place, held: Held) -> None:
    with (place.path / "a").open("wb") as file:
        (place.path / "a").unlink()
        assert not held.keep_open(file.fileno(), 7)
    assert held.open(7) is None


def test_a_held_file_that_is_open_is_shared(place: Place, held: Held) -> None:
    put(place.cache(), "a", 100)
    held.keep("a", 7)
    fd = held.open(7)
    assert fd is not None
    assert is_held(place.path / "a")
    os.close(fd)
    assert not is_held(place.path / "a")


def test_a_held_file_that_a_writer_owns_is_not_opened(place: Place, held: Held) -> None:
    with place.opened() as store, store.begin("a", 4) as transaction:
        assert held.keep_open(transaction.fd, 7)
        with pytest.raises(BlockingIOError):
            held.open(7)


def test_notes_and_files_go_together(place: Place, held: Held) -> None:
    put(place.cache(), "a", 100)
    for number in (7, 8, 9):
        held.keep("a", number)
        held.note(number, {"number": number})
    held.release(7)
    assert held.noted(7) is None
    held.keep_only([8])
    assert held.noted(8) == {"number": 8}
    assert sorted(path.name for path in directory(place).iterdir()) == ["8", "8.json"]
    held.clear()
    assert list(directory(place).iterdir()) == []

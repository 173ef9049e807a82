"""An error at any step of a transaction leaves no map and no reservation that is nobody's."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.cache import CHUNK, Held, Layout, Limits, Store, Transaction, Version
from cachefs.cache.transaction import abandoned_map
from cachefs.errors import CacheFSError, ChecksumError
from cachefs.units import Amount

SIZE = 3 * CHUNK
VERSION = Version(SIZE, "tag", None)
CALLS = ["open", "ftruncate", "pwrite", "fsync", "fdatasync", "rename", "unlink", "link"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, Limits(Amount(size=10 * SIZE)), driver="xattr")


class Fault:
    """The *number*-th of the named system calls fails, of those that this test makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
        self.left = number
        really = getattr(os, name)

        def call(*args: object, **rest: object) -> object:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.EIO, "injected")
            return really(*args, **rest)

        monkeypatch.setattr(os, name, call)

    @property
    def struck(self) -> bool:
        return self.left <= 0


def publish(transaction: Transaction) -> None:
    transaction.commit()


def reject(transaction: Transaction) -> None:
    transaction.reject(ChecksumError("wrong"))


ENDS = [publish, Transaction.keep, Transaction.abort, reject]


def write(store: Store, end: Callable[[Transaction], None]) -> None:
    """A whole transaction with a map, as a fetch has one."""
    with store.begin("img", SIZE, VERSION) as transaction:
        assert transaction.partial is not None
        os.pwrite(transaction.fd, bytes(SIZE), 0)
        transaction.partial.mark_written(0, 3)
        end(transaction)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_an_error_at_any_step_leaves_no_map_without_its_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, end: Callable[[Transaction], None]
) -> None:
    layout = Layout(store.cache_dir)
    number, struck = 0, True
    while struck:
        number += 1
        with monkeypatch.context() as patch:
            fault = Fault(patch, name, number)
            with contextlib.suppress(OSError, CacheFSError):
                write(store, end)
            struck = fault.struck
        store.clean_stalled(1e9)  # what could not be removed at the time is found later
        maps = {path.name for path in layout.maps_dir.iterdir()}
        bytes_of = {path.name for path in layout.incomplete_dir.iterdir()}
        assert maps <= bytes_of, f"{name} {number}"
        store.clean(0)
        if store.is_cached("img"):
            store.evict("img", force=True)
        assert list(layout.maps_dir.iterdir()) == [], f"{name} {number}"
        assert store.usage().reserved == 0, f"{name} {number}"
    store.close()


def test_a_map_that_cannot_be_made_is_not_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.begin("img", SIZE, VERSION)
    layout = Layout(store.cache_dir)
    assert list(layout.maps_dir.iterdir()) == list(layout.incomplete_dir.iterdir()) == []
    store.close()


def test_a_map_that_cannot_be_removed_leaves_no_writer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = sorted(Path("/proc/self/fd").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("cachefs.cache.transaction.remove", fail)
        with pytest.raises(OSError, match="Input"):
            store.begin("img", SIZE, VERSION)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    write(store, publish)
    assert store.is_cached("img")
    store.close()


def test_a_map_does_not_outlive_bytes_that_go_while_it_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is there would be holes of a new file."""
    write(store, Transaction.keep)
    layout = Layout(store.cache_dir)

    def read_and_remove(*values: object) -> object:
        found = abandoned_map(*values)  # type: ignore[arg-type]
        layout.incomplete("img").unlink()
        return found

    monkeypatch.setattr("cachefs.cache.publishing.abandoned_map", read_and_remove)
    with store.begin("img", SIZE, VERSION) as transaction:
        assert transaction.partial is not None
        assert transaction.partial.present() == []
    store.close()


def test_a_map_goes_with_the_transaction_though_its_bytes_were_taken_away(store: Store) -> None:
    layout = Layout(store.cache_dir)
    with store.begin("img", SIZE, VERSION):
        layout.incomplete("img").unlink()
    assert list(layout.maps_dir.iterdir()) == []
    store.close()


def test_a_map_of_the_next_writer_is_left_alone(store: Store) -> None:
    layout = Layout(store.cache_dir)
    first = store.begin("img", SIZE, VERSION)
    layout.incomplete("img").unlink()
    second = store.begin("img", SIZE, VERSION)
    first.abort()
    assert [path.name for path in layout.maps_dir.iterdir()] == ["img"]
    second.abort()
    assert list(layout.maps_dir.iterdir()) == []
    store.close()


@pytest.mark.parametrize("name", ["fdopen", "rename"])
def test_a_note_that_cannot_be_written_leaves_nothing_held(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    layout = Layout(store.cache_dir)
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="No space"):
        Held(layout).note(5, {"a": 1})
    assert list(layout.held_dir.iterdir()) == []
    store.close()


# Room, and who has it


def put(store: Store, image_id: str, size: int) -> None:
    with store.begin(image_id, size) as transaction:
        transaction.write(bytes(size))
        transaction.commit()


def test_what_would_fit_is_told_without_evicting_anything(tmp_path: Path) -> None:
    store = Store(tmp_path, Limits(Amount(size=100)))
    put(store, "a", 40)
    put(store, "pinned", 40)
    store.pin("pinned", True)
    assert store.fitting({"small": 20, "middle": 60, "large": 61}) == {"small", "middle"}
    image = store.quick.open_image("a")
    assert store.fitting({"small": 20, "middle": 60}) == {"small"}
    image.close()
    assert store.fitting({"never": 101}) == {"never"}  # it would fail at once
    assert sorted(entry.image_id for entry in store.entries()) == ["a", "pinned"]
    store.close()


def test_no_room_names_what_holds_it(tmp_path: Path) -> None:
    store = Store(tmp_path, Limits(Amount(size=100)))
    put(store, "open", 30)
    put(store, "pinned", 30)
    store.pin("pinned", True)
    image = store.quick.open_image("open")
    with store.begin("fetched", 20), pytest.raises(CacheFSError) as caught:
        store.begin("img", 90)
    image.close()
    text = str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    for words in ("'img' (90 B)", "open 'open' (30 B)", "pinned 'pinned' (30 B)", "'fetched' (20"):
        assert words in text
    store.close()

"""The index is a convenience: lost, it is made anew of the files, and hits are lost at most."""

import errno
import hashlib
import logging
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from support.place import Place, content

from cachefs.cache import Store
from cachefs.drivers import Entry
from cachefs.errors import DriverError, ImageNotFoundError, IndexBusyError, NoRoomError
from cachefs.image import Digest

DATA = content("a", 5000)


def commit(store: Store, data: bytes = DATA, *, verified: bool = True) -> Entry:
    digest = Digest("sha256", hashlib.sha256(data).hexdigest())
    with store.begin("a", len(data)) as transaction:
        transaction.write(data)
        return transaction.commit(
            checksum=digest if verified else None, verified=verified, source="https://origin/a"
        )


def known(entry: Entry | None) -> tuple[object, ...]:
    assert entry is not None
    return entry.pinned, entry.checksum, entry.verified, entry.fetched, entry.source, entry.size


def lose_index(place: Place) -> None:
    (place.path / "cache.db").unlink(missing_ok=True)
    for path in (place.path / ".cachefs").glob("cache.db*"):
        path.unlink()
    (place.path / ".cachefs/inodes").unlink(missing_ok=True)


def read(store: Store) -> bytes:
    with closing(store.open_image("a")) as image:
        return os.pread(image.fd, 10000, 0)


def test_a_lost_index_loses_nothing_that_was_known_of_an_image(place: Place) -> None:
    with place.opened() as store:
        commit(store)
        store.pin("a", True)
        before = known(store.get("a"))
    lose_index(place)
    with place.opened() as store:
        assert known(store.get("a")) == before
        assert before[:3] == (True, f"sha256:{hashlib.sha256(DATA).hexdigest()}", True)
        assert read(store) == DATA


def test_an_image_that_was_to_be_pinned_is_pinned_after_a_lost_index(place: Place) -> None:
    with place.opened() as store:
        store.pin_when_cached("a")
        commit(store)
    lose_index(place)
    with place.opened() as store:
        assert [entry.image_id for entry in store.pinned()] == ["a"]


@pytest.mark.parametrize("data", [b"wrong", DATA[:-1] + b"x"])
def test_wrong_bytes_are_found_out_though_the_index_is_lost(place: Place, data: bytes) -> None:
    with place.opened() as store:
        commit(store)
    lose_index(place)
    path = place.path / "a"
    path.write_bytes(data)
    os.utime(path, ns=(5, path.stat().st_mtime_ns + 1))
    with place.opened() as store:
        with pytest.raises(ImageNotFoundError):
            read(store)
        failure = store.failure("a")
        assert failure is not None
        assert (place.path / "invalid/a").exists()


def test_a_file_of_another_program_is_not_verified_after_a_lost_index(place: Place) -> None:
    with place.opened() as store:
        commit(store)
    lose_index(place)
    new = place.path / "incomplete/new"
    new.write_bytes(b"another's")
    new.rename(place.path / "a")
    with place.opened() as store:
        assert read(store) == b"another's"
        assert known(store.get("a")) == (False, None, False, None, None, 9)


def test_a_changed_file_without_a_digest_is_taken_as_it_is_after_a_lost_index(
    place: Place,
) -> None:
    with place.opened() as store:
        commit(store, verified=False)
    lose_index(place)
    (place.path / "a").write_bytes(b"another")
    with place.opened() as store:
        assert read(store) == b"another"
        entry = store.get("a")
        assert entry is not None
        assert not entry.verified


def test_an_index_made_anew_says_that_hits_are_lost_at_most(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path / "cache", "sqlite")
    with place.opened() as store:
        commit(store)
        before = known(store.get("a"))
        (place.path / ".cachefs/cache.db").unlink()
        assert known(store.get("a")) == before
    [warning] = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "hits may be lost" in warning.getMessage()
    assert "pins" not in warning.getMessage()


def test_without_attributes_an_index_made_anew_says_what_else_is_lost(
    no_xattrs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(no_xattrs / "cache", "sqlite")
    with place.opened() as store:
        commit(store)
        store.pin("a", True)
        (place.path / ".cachefs/cache.db").unlink()
        assert known(store.get("a")) == (False, None, False, None, None, len(DATA))
        assert read(store) == DATA
    [warning] = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "hits, pins and checksums" in warning.getMessage()


def test_what_an_earlier_version_has_recorded_is_written_on_the_files_once(tmp_path: Path) -> None:
    place = Place(tmp_path / "cache", "sqlite")
    with place.opened() as store:
        commit(store)
        before = known(store.get("a"))
    path = place.path / "a"
    for name in os.listxattr(path):
        os.removexattr(path, name)
    with closing(sqlite3.connect(place.path / "cache.db")) as connection:
        connection.execute("DROP TABLE cachefs_described")
    with place.opened():
        pass
    lose_index(place)
    with place.opened() as store:
        assert known(store.get("a")) == before


def test_an_immutable_image_is_pinned_in_the_index_alone(tmp_path: Path) -> None:
    place = Place(tmp_path / "cache", "sqlite")  # xattr's index is the file
    with place.opened() as store:
        commit(store)
        subprocess.run(["chattr", "+i", place.path / "a"], check=True)
        try:
            store.pin("a", True)
            assert known(store.get("a"))[0] is True
        finally:
            subprocess.run(["chattr", "-i", place.path / "a"], check=True)


def test_a_lost_private_directory_is_no_more_than_a_lost_index(place: Place) -> None:
    with place.opened() as store:
        commit(store)
        before = known(store.get("a"))
    shutil.rmtree(place.path / ".cachefs")
    with place.opened() as store:
        assert known(store.get("a")) == before


def fail(path: object) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


def put(store: Store, image_id: str) -> None:
    with store.begin(image_id, 1000) as transaction:
        transaction.write(bytes(1000))
        transaction.commit(source="https://origin/")


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the files that cannot be looked at, to be added to: each is EIO."""
    names: set[str] = set()
    really = os.lstat

    def lstat(path: str) -> os.stat_result:
        return fail(path) if Path(path).name in names else really(path)

    monkeypatch.setattr(os, "lstat", lstat)
    return names


def test_a_file_that_cannot_be_looked_at_keeps_no_index_from_being_made_anew(
    tmp_path: Path, unreadable: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path / "cache", "sqlite")
    with place.opened() as store:
        for image_id in "abcd":
            put(store, image_id)
        unreadable |= {"b", "c"}
        (place.path / ".cachefs/cache.db").unlink()
        assert (store.totals().images, store.totals().size) == (2, 2000)
        assert store.quick.get("d") == store.get("d") is not None
    [_, told] = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "cannot be looked at, and are left out: 2" in told.getMessage()
    unreadable.clear()
    with place.opened() as store:
        assert store.totals().images == 4


def test_the_record_of_a_file_that_cannot_be_looked_at_stays(
    tmp_path: Path, unreadable: set[str]
) -> None:
    place = Place(tmp_path / "cache", "sqlite")
    with place.opened() as store:
        commit(store)
        store.pin("a", True)
        before = known(store.get("a"))
    unreadable.add("a")
    with place.opened() as store:
        unreadable.clear()
        assert known(store.get("a")) == before


@pytest.mark.parametrize("back_in_its_place", [False, True])
def test_an_index_that_could_not_be_filled_is_filled_before_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back_in_its_place: bool
) -> None:
    place = Place(tmp_path / "cache", "sqlite")
    monkeypatch.setattr("cachefs.drivers.database.RETURN", 0.0)
    with place.opened(max_size=4500) as store:
        for image_id in "abcd":
            put(store, image_id)
        (place.path / ".cachefs/cache.db").unlink()
        if back_in_its_place:  # of a temporary one
            store._driver._database.give_up(NoRoomError("no room"))
        with monkeypatch.context() as broken:
            broken.setattr("cachefs.drivers.sqlite.scan_images", fail)
            for _ in range(2):
                with pytest.raises(DriverError, match="cannot be made of the files"):
                    store.totals()
                with pytest.raises(IndexBusyError):
                    store.quick.get("a")
        assert store.totals().images == 4
        assert store.quick.get("a") is not None
        put(store, "e")
        assert store.totals().images == 4

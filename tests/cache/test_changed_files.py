"""No file is believed on its name alone: images whose files others change, while the cache is open
and between two times."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.place import Place, content

from cachefs.cache import Store, checking
from cachefs.errors import ImageExistsError, ImageNotFoundError, IndexBusyError
from cachefs.image import Digest

DATA = content("a", 5000)


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"wrong")


def rename_over(path: Path) -> None:
    """With all that ``cp --preserve=all`` would carry over."""
    other = path.with_name(".other")
    subprocess.run(["cp", "-a", path, other], check=True)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    overwrite(other)
    os.utime(other, ns=times)
    other.rename(path)


CHANGES = [truncate, empty, extend, overwrite, rename_over]
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@pytest.fixture
def path(place: Place) -> Path:
    """An image that is cached and verified."""
    assert place.cache().cache_image_iter("a", [DATA], md5(DATA))
    return place.path / "a"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def read(store: Store, image_id: str = "a") -> bytes:
    """The image as a reader gets it from whichever part of the store answers."""
    image = store.open_image(image_id)
    try:
        return os.pread(image.fd, 10000, 0)
    finally:
        image.close()


def check_dropped(store: Store) -> None:
    with pytest.raises(ImageNotFoundError):
        read(store)
    assert store.get("a") is None
    assert not store.is_cached("a")
    failure = store.failure("a")
    assert failure is not None
    assert "'a'" in failure.error
    assert (store.cache_dir / "invalid/a").exists()
    assert store.totals().size == 0


@changes
def test_a_file_changed_while_the_cache_is_open_is_not_served(
    place: Place, path: Path, change: Callable[[Path], None]
) -> None:
    with place.opened() as store:
        assert read(store) == DATA
        change(path)
        with pytest.raises(IndexBusyError):
            store.quick.open_image("a")
        check_dropped(store)


@changes
def test_a_file_changed_between_two_times_is_not_served(
    place: Place, path: Path, change: Callable[[Path], None]
) -> None:
    change(path)
    with place.opened() as store:
        check_dropped(store)


@changes
def test_what_is_cached_counts_with_the_length_that_its_file_has(
    place: Place, path: Path, change: Callable[[Path], None]
) -> None:
    change(path)
    with place.opened() as store:
        assert store.totals().size == path.stat().st_size


@changes
def test_a_changed_image_can_be_queued_and_cached_again(
    place: Place, path: Path, change: Callable[[Path], None]
) -> None:
    cache = place.cache()
    change(path)
    assert cache.queue_image("a")
    assert cache.cache_image_iter("a", [DATA], md5(DATA))
    with cache.open_for_read("a") as file:
        assert file.read() == DATA


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_was_only_touched_is_served_and_verified_still(
    place: Place, path: Path, restart: bool
) -> None:
    with place.opened() as store:
        path.touch()
        before = store.get("a")
        if not restart:
            assert read(store) == DATA
    with place.opened() as store:
        assert read(store) == DATA
        entry = store.get("a")
        assert before is not None
        assert entry is not None
        assert entry.verified
        assert entry.inode == before.inode
        assert entry.checksum == md5(DATA)


def test_a_directory_that_was_restored_is_served_as_before(place: Place, path: Path) -> None:
    other = place.path / "incomplete/copy"
    subprocess.run(["cp", "-a", path, other], check=True)
    other.rename(path)
    with place.opened() as store:
        assert read(store) == DATA
        entry = store.get("a")
        assert entry is not None
        assert entry.verified


def test_links_and_attributes_are_no_change(
    place: Place, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_digest_in", None)  # nothing is read
    with place.opened() as store:
        (place.path / ".cachefs/link").hardlink_to(path)
        os.setxattr(path, "user.another", b"1")
        path.chmod(0o444)
        store.hit("a", store.now())
        assert read(store) == DATA


def test_a_file_put_there_by_another_program_is_not_verified(place: Place, path: Path) -> None:
    """As Glance does it: the record of ours is dropped, and a new file gets the name."""
    with place.opened() as store:
        store.evict("a")
        new = place.path / "incomplete/a"
        new.write_bytes(b"Glance's")
        new.rename(path)
        assert read(store) == b"Glance's"
        entry = store.get("a")
        assert entry is not None
        assert not entry.verified
        assert entry.size == 8


def test_a_changed_file_whose_digest_nobody_knows_is_taken_as_it_is(place: Place) -> None:
    path = place.path / "b"
    with place.opened() as store:
        path.write_bytes(b"one")
        assert read(store, "b") == b"one"
        before = store.get("b")
        path.write_bytes(b"another")
        assert read(store, "b") == b"another"
        after = store.get("b")
        assert before is not None
        assert after is not None
        assert after.inode > before.inode
        assert not after.verified
        assert store.totals().size == 7


def test_a_start_reads_no_images(place: Place, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overwrite(path)
    monkeypatch.setattr(checking, "_digest_in", None)
    with place.opened() as store:
        assert store.get("a") is not None


def test_an_image_is_compared_once_for_all_who_open_it(
    place: Place, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    really = checking._digest_in
    monkeypatch.setattr(
        checking, "_digest_in", lambda *args: compared.append(args) or really(*args)
    )
    path.touch()
    with place.opened() as store:
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(compared) == 1


def test_the_directorys_lock_is_free_while_an_image_is_compared(
    place: Place, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = checking._digest_in

    def others_go_on(fd: int, algorithm: str) -> Digest:
        assert place.run("with place.opened() as store: store.prune()")[0] == 0
        return really(fd, algorithm)

    monkeypatch.setattr(checking, "_digest_in", others_go_on)
    path.touch()
    with place.opened() as store:
        assert read(store) == DATA


def test_a_file_that_changes_while_it_is_compared_is_compared_again(
    place: Place, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = checking._digest_in
    times = iter([overwrite])

    def changed_meanwhile(fd: int, algorithm: str) -> Digest:
        digest = really(fd, algorithm)
        for change in times:
            change(path)
        return digest

    monkeypatch.setattr(checking, "_digest_in", changed_meanwhile)
    path.touch()
    with place.opened() as store:
        check_dropped(store)


def test_a_record_of_a_time_without_this_knowledge_is_taken_up_once(
    place: Place, path: Path
) -> None:
    with place.opened() as store:
        forget_file(place, store)
    with place.opened() as store:
        assert read(store) == DATA
        entry = store.get("a")
        assert entry is not None
        assert entry.verified
        overwrite(path)
        check_dropped(store)


def test_an_old_record_of_another_length_is_not_taken_up(tmp_path: Path) -> None:
    place = Place(tmp_path, "sqlite")  # of xattr's the length is the file's
    place.cache().cache_image_iter("a", [DATA], md5(DATA))
    with place.opened() as store:
        forget_file(place, store)
    truncate(place.path / "a")
    with place.opened() as store:
        check_dropped(store)


def test_a_doubtful_image_is_cached_to_who_would_cache_it(place: Place, path: Path) -> None:
    path.touch()
    with place.opened() as store, pytest.raises(ImageExistsError):
        store.begin("a")


def forget_file(place: Place, store: Store) -> None:
    if place.driver == "xattr":
        os.removexattr(place.path / "a", "user.cachefs.file")
    else:
        store._driver._database.connections().main.run("UPDATE cachefs_images SET file = NULL")

"""A disk that is full to the last byte, or cannot be written: what is cached is found, read and
evicted."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.place import Place, content

MIB = 2**20


def fill(path: Path) -> None:
    """Write until nothing fits any more."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    subprocess.run(["chattr", "+i", *paths], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *paths], check=True)


def test_a_cache_on_a_full_disk_is_opened_read_and_evicted_from(small: Place) -> None:
    for name in ("a", "b"):
        small.cache().cache_image_iter(name, [content(name, MIB)])
    fill(small.path.parent / "foreign")
    with small.opened() as store:
        assert store.totals().images == 2
        image = store.open_image("a")
        image.close()
        store.evict("a")
        assert not store.is_cached("a")
    with small.opened() as store:
        assert [entry.image_id for entry in store.entries()] == ["b"]


def test_a_disk_that_fills_up_while_the_cache_is_open_is_evicted_from(small: Place) -> None:
    with small.opened() as store:
        for name in ("a", "b"):
            small.cache().cache_image_iter(name, [content(name, MIB)])
        store.tidy()
        fill(small.path.parent / "foreign")
        assert store.is_cached("a")
        store.evict("a")
        assert [entry.image_id for entry in store.entries()] == ["b"]


def test_an_index_that_cannot_be_written_is_no_reason_not_to_read(tmp_path: Path) -> None:
    place = Place(tmp_path / "cache", "sqlite")
    place.cache().cache_image_iter("a", [b"data"])
    database = place.path / ".cachefs/cache.db"
    with immutable(database), place.opened() as store:
        image = store.open_image("a")
        image.close()
        store.hit("a", store.now())
        entry = store.get("a")
        assert entry is not None
        assert entry.hits == 1


def test_an_image_with_garbage_for_attributes_that_cannot_be_written_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path / "cache", "xattr")
    place.cache().cache_image_iter("a", [b"data"])
    bad = place.path / "bad"
    bad.write_bytes(b"x")
    os.setxattr(bad, "user.cachefs.inode", b"x")
    with immutable(bad), place.opened() as store:
        assert [entry.image_id for entry in store.entries()] == ["a"]
        assert store.get("bad") is None
        store.prune()
        store.open_image("a").close()

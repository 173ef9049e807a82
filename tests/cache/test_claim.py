"""A directory becomes a cache only when it may, and nothing in it is written through a link."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.place import Place, ids, put, read

from cachefs import ImageCache
from cachefs.cache import Layout, PartialMap, Version
from cachefs.cache.claim import claim
from cachefs.errors import CacheDirectoryError

STRANGER = 12345
"""A user who owns nothing here."""


def tree(path: Path) -> dict[str, bytes]:
    """Every file below, with its bytes; directories have none."""
    return {
        str(each.relative_to(path)): each.read_bytes() if each.is_file() else b""
        for each in path.rglob("*")
    }


def glance_table(path: Path) -> None:
    with closing(sqlite3.connect(path / "cache.db")) as database:
        database.execute("CREATE TABLE cached_images (image_id TEXT PRIMARY KEY)")


def glance_directories(path: Path) -> None:
    for name in ("incomplete", "invalid", "queue"):
        (path / name).mkdir()


MAKERS: list[Callable[[Path], None]] = [
    lambda path: None,
    lambda path: (path / "lost+found").mkdir(),
    lambda path: (path / ".cachefs").mkdir(),
    glance_directories,
    glance_table,
]


@pytest.mark.parametrize(
    "make", MAKERS, ids=["empty", "new filesystem", "ours", "Glance's", "its index"]
)
def test_a_directory_that_may_be_a_cache_becomes_one(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path)
    claim(Layout(tmp_path))
    assert all(each.is_dir() for each in Layout(tmp_path).directories)


@pytest.mark.parametrize("name", ["mine", "queue", "cache.db", ".hidden"])
def test_a_directory_with_other_files_is_refused_and_nothing_is_made(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(CacheDirectoryError, match="--adopt"):
        ImageCache(tmp_path, max_size=1)
    assert tree(tmp_path) == {name: b"mine"}


def test_two_of_glances_directories_are_not_enough(tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "invalid").mkdir()
    with pytest.raises(CacheDirectoryError):
        claim(Layout(tmp_path))


def test_a_directory_is_adopted_by_who_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    cache = ImageCache(tmp_path, adopt=True)
    assert read(cache, "mine") == b"mine"
    assert ids(ImageCache(tmp_path)) == ["mine"]


def test_processes_that_start_at_once_in_an_empty_directory_all_find_a_cache(
    place: Place,
) -> None:
    processes = [place.start("sys.stdin.readline(); place.cache(); print('ok')") for _ in range(6)]
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    answers = [each.communicate(timeout=60)[0] for each in processes]
    assert answers == ["ok\n"] * 6


def test_the_private_directory_is_the_owners_alone_also_one_of_an_earlier_version(
    tmp_path: Path,
) -> None:
    layout = Layout(tmp_path)
    layout.maps_dir.mkdir(mode=0o750, parents=True)
    layout.private_dir.chmod(0o750)
    os.chown(tmp_path, STRANGER, STRANGER)
    claim(layout)
    for each in layout.directories:
        status = each.stat()
        assert (status.st_uid, status.st_gid) == (STRANGER, STRANGER)
        if layout.private_dir in (each, *each.parents):
            assert stat.S_IMODE(status.st_mode) == 0o700


@pytest.mark.parametrize("name", [each.name for each in Layout(Path()).directories])
def test_a_link_instead_of_a_directory_is_refused_and_not_followed(
    tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    layout = Layout(tmp_path / "cache")
    claim(layout)
    [directory] = [each for each in layout.directories if each.name == name]
    directory.rename(tmp_path / "moved")
    directory.symlink_to(victim)
    with pytest.raises(CacheDirectoryError):
        ImageCache(layout.base)
    assert tree(victim) == {}


def test_a_private_directory_of_a_stranger_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".cachefs").mkdir()
    os.chown(tmp_path / ".cachefs", STRANGER, STRANGER)
    with pytest.raises(CacheDirectoryError, match=str(STRANGER)):
        claim(Layout(tmp_path))


@pytest.mark.parametrize("name", ["lock", "maps/a", "priorities/a", "failed/a"])
def test_a_link_below_the_private_directory_is_not_written_through(
    place: Place, name: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 1000)
    os.chown(victim, STRANGER, STRANGER)
    claim(Layout(place.path))
    (place.path / ".cachefs" / name).symlink_to(victim)
    with place.opened() as store:
        store.enqueue("a")
        store.set_priority("a", 3)
        store.fail("a", OSError("no"))
        store.begin("a", 5, Version(5, "v", None)).abort()
    assert victim.read_bytes() == b"precious" * 1000


def test_a_map_is_never_made_in_a_file_that_is_there(tmp_path: Path) -> None:
    claim(Layout(tmp_path / "cache"))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = Layout(tmp_path / "cache").map("a")
    path.hardlink_to(victim)
    assert PartialMap.open(path) is None
    PartialMap.create(path, Version(1, "v", None)).close()
    assert victim.read_bytes() == b"precious"


def test_a_file_of_a_user_who_is_not_trusted_is_no_image_and_stays(place: Place) -> None:
    cache = place.cache()
    put(cache, "ours", 10)
    theirs = place.path / "theirs"
    theirs.write_bytes(b"theirs")
    os.chown(theirs, STRANGER, STRANGER)
    os.chown(place.path / "ours", STRANGER, STRANGER)
    cache = place.cache()
    assert ids(cache) == []
    with pytest.raises(FileNotFoundError), cache.open_for_read("ours"):
        pass
    cache.cache_image_iter("theirs", [b"from the source"])
    assert theirs.read_bytes() == b"theirs"
    assert not cache.is_cached("theirs")


@pytest.mark.parametrize("name", ["incomplete", ".cachefs/maps", ".cachefs/scratch", "queue"])
def test_a_link_that_replaces_a_directory_later_is_not_followed(
    place: Place, name: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    with place.opened() as store:
        (place.path / name).rename(tmp_path / "moved")
        (place.path / name).symlink_to(victim)
        with contextlib.suppress(OSError):
            store.begin("a", 5, Version(5, "v", None), beside=True).abort()
        with contextlib.suppress(OSError):
            store.enqueue("b")
        with contextlib.suppress(OSError):
            store.fail("c", OSError("no"))
    assert tree(victim) == {}

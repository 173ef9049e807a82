"""What somebody else has put into a cache directory keeps no cache from starting, and no image from
being looked up, cached, read and removed."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.place import Place, put, read

from cachefs.cache import Layout
from cachefs.cache.claim import claim

DIRECTORIES = [each.relative_to("x") for each in Layout(Path("x")).directories]


def directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


def link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def hard_link(path: Path) -> None:
    original = path.parent / "original"
    original.write_bytes(b"x" * 100)
    path.hardlink_to(original)


KINDS: list[Callable[[Path], None]] = [directory, link, os.mkfifo, listening, sparse, hard_link]
NAMES = ["a", "not an \x01 ID", "..hidden", "7", "7.json"]


@pytest.fixture(params=KINDS, ids=lambda each: each.__name__)
def kind(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    made: Callable[[Path], None] = request.param
    return made


@pytest.mark.parametrize("where", DIRECTORIES, ids=str)
def test_garbage_in_a_directory_of_ours_is_in_nobodys_way(
    place: Place, kind: Callable[[Path], None], where: Path
) -> None:
    claim(Layout(place.path))
    for name in NAMES:
        kind(place.path / where / name)
        (place.path / where / "original").unlink(missing_ok=True)
        os.utime(place.path / where / name, (1, 1), follow_symlinks=False)  # of long ago
    with place.opened(max_size=2**50) as store:
        assert not store.is_cached("a")
        store.queued_ids()
        store.failed_ids()
        store.failure("a")
        store.usage()
    cache = place.cache(max_size=2**50)
    assert put(cache, "b", 10) == read(cache, "b")
    if cache.cache_image_iter("a", [b"bytes"]):
        assert read(cache, "a") == b"bytes"
    cache.delete_all_cached_images()
    cache.clean(0)
    cache.prune()
    place.cache()


def test_garbage_among_the_images_is_in_nobodys_way(
    place: Place, kind: Callable[[Path], None]
) -> None:
    claim(Layout(place.path))
    for name in NAMES:
        kind(place.path / name)
        (place.path / "original").unlink(missing_ok=True)
    cache = place.cache(max_size=2**50)
    assert put(cache, "b", 10) == read(cache, "b")
    with place.opened(max_size=2**50) as store:
        store.is_cached("a")
        store.prune()
        list(store.entries())
    assert os.path.lexists(place.path / "a")


@pytest.fixture
def immutable(place: Place) -> Iterator[Callable[[Path], None]]:
    """Makes files immutable; the test ends with them mutable."""
    made: list[Path] = []

    def make(path: Path) -> None:
        subprocess.run(["chattr", "+i", path], check=True, capture_output=True)
        made.append(path)

    yield make
    for path in made:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.parametrize(
    "where", ["", "incomplete", "invalid", "queue", ".cachefs/maps", ".cachefs/failed"]
)
def test_an_immutable_file_is_in_nobodys_way(
    place: Place, where: str, immutable: Callable[[Path], None]
) -> None:
    claim(Layout(place.path))
    path = place.path / where / "a"
    path.write_bytes(b"fixed")
    try:
        immutable(path)
    except subprocess.CalledProcessError:
        assert os.statvfs(path)  # a filesystem without such files: nothing to be in the way
        return
    cache = place.cache()
    cache.cache_image_iter("a", [b"bytes"])
    assert put(cache, "b", 10) == read(cache, "b")
    cache.clean(0)
    with place.opened() as store:
        store.is_cached("a")
        store.failure("a")
        store.prune()

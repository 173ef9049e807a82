"""The faults measured in Glance's own image cache, none of which is ours."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.place import Place, content, fill, ids, put, read

from cachefs import ImageCache


@pytest.fixture
def immutable(place: Place) -> Iterator[Path]:
    """Image ``a`` that even root cannot remove; needs root."""
    path = place.path / "a"
    put(place.cache(), "a", 10)
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def foreign(place: Place, image_id: str, size: int, accessed: float = 1.0) -> None:
    """A file among the images that nobody has recorded."""
    (place.path / image_id).write_bytes(content(image_id, size))
    os.utime(place.path / image_id, (accessed, accessed))


# A file without a row


def test_a_file_without_a_row_is_adopted_at_start(place: Place) -> None:
    place.cache()
    foreign(place, "orphan", 10)
    cache = place.cache()
    assert cache.is_cached("orphan")
    assert read(cache, "orphan") == content("orphan", 10)


def test_a_file_without_a_row_is_counted(place: Place) -> None:
    put(place.cache(), "a", 5)
    foreign(place, "orphan", 10)
    assert place.cache().get_cache_size() == 15


def test_a_file_without_a_row_is_evicted_and_the_good_image_is_not(place: Place) -> None:
    put(place.cache(), "good", 10)
    foreign(place, "orphan", 10)
    cache = place.cache(max_size=10)
    assert cache.prune() == (1, 10)
    assert ids(cache) == place.names() == ["good"]


def test_pruning_with_only_files_without_rows_ends_and_keeps_the_limit(place: Place) -> None:
    place.cache()
    for number in range(5):
        foreign(place, f"orphan{number}", 10, accessed=number + 1)
    cache = place.cache(max_size=25)
    assert cache.prune() == (3, 30)
    assert place.names() == ["orphan3", "orphan4"]


def test_a_file_that_appears_while_the_cache_runs_is_cached(place: Place) -> None:
    cache = place.cache()
    foreign(place, "orphan", 10)
    assert cache.is_cached("orphan")
    assert not cache.queue_image("orphan")
    cache.delete_cached_image("orphan")
    assert place.names() == []


# A delete that fails


def test_an_image_that_cannot_be_deleted_is_cached_still(place: Place, immutable: Path) -> None:
    cache = place.cache()
    with pytest.raises(PermissionError) as caught:
        cache.delete_cached_image("a")
    assert caught.value.errno == errno.EPERM
    assert cache.is_cached("a")
    assert cache.get_cache_size() == 10
    assert read(cache, "a") == content("a", 10)


def test_pruning_steps_over_an_image_that_cannot_be_deleted(place: Place, immutable: Path) -> None:
    fill(place.cache(), "bc", 10)
    cache = place.cache(max_size=20)
    assert cache.prune() == (1, 10)
    assert ids(cache) == ["a", "c"]
    assert cache.get_cache_size() == 20


def test_pruning_ends_when_nothing_can_be_deleted(place: Place, immutable: Path) -> None:
    cache = place.cache(max_size=5)
    assert cache.prune() == (0, 0)
    assert cache.get_cache_size() == 10


def test_no_image_is_cached_over_the_limit_when_nothing_can_be_deleted(
    place: Place, immutable: Path
) -> None:
    cache = place.cache(max_size=15)
    assert not cache.cache_image_iter("b", [bytes(10)])
    assert place.bytes_taken() == 10


def test_deleting_all_images_goes_on_after_one_that_cannot_be_deleted(
    place: Place, immutable: Path
) -> None:
    cache = place.cache()
    fill(cache, "bc", 10)
    assert cache.delete_all_cached_images() == 2
    assert ids(cache) == ["a"]


def test_a_delete_that_fails_at_the_last_moment_goes_on_counting(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def failing(path: Path, missing_ok: bool = False) -> None:
        if path == place.path / "a":
            raise OSError(errno.EIO, "the disk is tired")
        unlink(path, missing_ok)

    fill(place.cache(), "abc", 10)
    cache = place.cache(max_size=20)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing)
        assert cache.prune() == (1, 10)
    assert ids(cache) == ["a", "c"]
    assert cache.get_cache_size() == 20
    assert cache.delete_all_cached_images() == 2


# What is no image


def test_deleting_all_images_counts_images_only(place: Place) -> None:
    cache = place.cache()
    put(cache, "a", 5)
    (place.path / "image_cache_db_init").touch()  # oslo.concurrency's lock, as Glance leaves it
    (place.path / ".lock").touch()
    (place.path / "directory").mkdir()
    cache = place.cache()
    assert ids(cache) == ["a"]
    assert cache.delete_all_cached_images() == 1
    assert (place.path / "image_cache_db_init").exists()


def test_no_probe_file_is_left_among_the_images(place: Place) -> None:
    place.cache()
    assert place.names() == place.names("incomplete") == place.names("invalid") == []


# The order of eviction


def test_the_least_recently_used_image_goes_by_fractions_of_a_second(place: Place) -> None:
    cache = place.cache(max_size=40)
    fill(cache, "abcd", 10)
    for image_id in "dbca":
        read(cache, image_id)
    gone = []
    for new in "wxyz":
        before = set(ids(cache))
        put(cache, new, 10)
        gone += sorted(before - set(ids(cache)), key=str)
    assert gone == list("dbca")


def test_neither_size_nor_name_decides_what_is_evicted(place: Place) -> None:
    cache = place.cache(max_size=60)
    for image_id, size in (("m", 20), ("a", 10), ("z", 30)):
        put(cache, image_id, size)
    put(cache, "n", 5)
    assert ids(cache) == ["a", "n", "z"]


def test_the_order_survives_a_restart(place: Place) -> None:
    cache = place.cache()
    fill(cache, "abc", 10)
    read(cache, "a")
    assert place.cache(max_size=20).prune() == (1, 10)
    assert place.names() == ["a", "c"]


# What a dead writer leaves


def test_a_leftover_partial_file_does_not_block_its_image(place: Place) -> None:
    cache = place.cache()
    (place.path / "incomplete/a").write_bytes(b"half")
    os.utime(place.path / "incomplete/a", (0, 0))  # not just now: its writer is gone
    assert cache.queue_image("a")
    assert put(cache, "a", 10) == read(cache, "a")


def test_a_leftover_partial_file_is_gone_after_a_restart(place: Place) -> None:
    place.cache()
    (place.path / "incomplete/a").write_bytes(b"half")
    os.utime(place.path / "incomplete/a", (0, 0))
    place.cache()
    assert place.names("incomplete") == []


def test_a_leftover_partial_file_gives_way_before_any_image(place: Place) -> None:
    cache = place.cache(max_size=100)
    put(cache, "a", 40)
    (place.path / "incomplete/b").write_bytes(bytes(60))
    os.utime(place.path / "incomplete/b", (0, 0))
    put(cache, "c", 60)
    assert ids(cache) == ["a", "c"]
    assert place.names("incomplete") == []


def test_a_record_of_a_dead_publisher_does_not_block_its_image(
    place: Place, cache: ImageCache
) -> None:
    code = """
cache = place.cache()
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cache.cache_image_iter("a", [b"abc"])
"""
    assert place.run(code)[0] == -9
    assert not cache.is_cached("a")
    assert cache.queue_image("a")
    assert put(cache, "a", 10) == read(cache, "a")
    assert cache.get_cache_size() == 10

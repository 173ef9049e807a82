"""Every method of ``ImageCache``, with the meaning that DESIGN gives it, on both drivers."""

import errno
import gc
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.place import Place, content, fill, ids, put, read

from cachefs import ImageCache
from cachefs.errors import ChecksumError, ImageNotFoundError, InvalidImageIDError

METHODS = {
    "init_driver",
    "configure_driver",
    "is_cached",
    "is_queued",
    "get_cache_size",
    "get_hit_count",
    "get_cached_images",
    "delete_all_cached_images",
    "delete_cached_image",
    "delete_all_queued_images",
    "delete_queued_image",
    "prune",
    "clean",
    "queue_image",
    "get_caching_iter",
    "cache_tee_iter",
    "cache_image_iter",
    "cache_image_file",
    "open_for_read",
    "get_image_size",
    "get_queued_images",
}
CHUNKS = [b"one ", b"two ", b"", b"three"]
DATA = b"".join(CHUNKS)
MD5 = hashlib.md5(DATA).hexdigest()


def trace(place: Place, image_id: str = "a") -> list[Path]:
    """What is left of an image that is not cached."""
    found = [place.path / d / image_id for d in ("", "incomplete", "invalid", ".cachefs/maps")]
    return [path for path in found if path.exists()]


def test_exactly_the_methods_of_the_contract_are_public() -> None:
    public = {name for name in dir(ImageCache) if not name.startswith("_")}
    assert public == METHODS | {"driver_name", "max_size", "stall_time"}


# What there is


def test_a_new_cache_is_empty(cache: ImageCache) -> None:
    assert not cache.is_cached("a")
    assert cache.get_cache_size() == cache.get_hit_count("a") == 0
    assert cache.get_cached_images() == cache.get_queued_images() == []
    assert cache.prune() == (0, 0)


def test_a_cached_image_has_a_record_with_exactly_glances_keys(cache: ImageCache) -> None:
    cache.cache_image_iter("a", CHUNKS, MD5)
    [image] = cache.get_cached_images()
    assert list(image) == ["image_id", "size", "hits", "last_accessed", "last_modified", "checksum"]
    assert (image["image_id"], image["size"], image["hits"]) == ("a", len(DATA), 0)
    assert image["checksum"] == MD5


def test_the_checksum_is_md5_though_none_was_promised(cache: ImageCache) -> None:
    cache.cache_image_iter("a", CHUNKS)
    assert cache.get_cached_images()[0]["checksum"] == MD5


def test_cached_images_are_listed_by_id(cache: ImageCache) -> None:
    fill(cache, "cab", 1)
    assert ids(cache) == ["a", "b", "c"]


def test_the_cache_size_is_the_sum_of_its_images(cache: ImageCache) -> None:
    put(cache, "a", 10)
    put(cache, "b", 5)
    assert cache.get_cache_size() == 15


def test_the_size_of_an_image_is_known(cache: ImageCache) -> None:
    put(cache, "a", 7)
    assert cache.get_image_size("a") == 7


def test_the_size_of_an_uncached_image_is_an_error(cache: ImageCache) -> None:
    with pytest.raises(ImageNotFoundError):
        cache.get_image_size("a")


@pytest.mark.parametrize("image_id", ["a b", "~%#", "日本語", "a" * 255, "-rf", "cache.db2", "*"])
def test_odd_but_good_ids_are_cached_and_read(cache: ImageCache, image_id: str) -> None:
    put(cache, image_id, 9)
    assert read(cache, image_id) == content(image_id, 9)


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.is_cached("../a"),
        lambda cache: cache.is_queued("../a"),
        lambda cache: cache.get_hit_count("../a"),
        lambda cache: cache.get_image_size("../a"),
        lambda cache: cache.delete_cached_image("../a"),
        lambda cache: cache.delete_queued_image("../a"),
        lambda cache: cache.queue_image("../a"),
        lambda cache: cache.get_caching_iter("../a", None, []),
        lambda cache: cache.cache_tee_iter("../a", [], None),
        lambda cache: cache.cache_image_iter("../a", []),
        lambda cache: cache.cache_image_file("../a", io.BytesIO()),
        lambda cache: cache.open_for_read("../a").__enter__(),
    ],
)
def test_a_bad_id_is_refused_at_once(
    cache: ImageCache, call: Callable[[ImageCache], object]
) -> None:
    with pytest.raises(InvalidImageIDError):
        call(cache)


# The queue


def test_queued_images_come_in_the_order_of_queueing(cache: ImageCache) -> None:
    for image_id in ("b", "c", "a"):
        assert cache.queue_image(image_id)
    assert cache.get_queued_images() == ["b", "c", "a"]


def test_the_queue_survives_a_restart(place: Place, cache: ImageCache) -> None:
    for image_id in ("b", "a"):
        cache.queue_image(image_id)
    assert place.cache().get_queued_images() == ["b", "a"]


def test_queueing_a_queued_image_is_false_and_keeps_its_place(cache: ImageCache) -> None:
    cache.queue_image("a")
    cache.queue_image("b")
    assert not cache.queue_image("a")
    assert cache.get_queued_images() == ["a", "b"]


def test_queueing_a_cached_image_is_false(cache: ImageCache) -> None:
    put(cache, "a", 1)
    assert not cache.queue_image("a")
    assert not cache.is_queued("a")


def test_queueing_an_image_that_is_being_cached_is_false(cache: ImageCache) -> None:
    tee = cache.get_caching_iter("a", None, CHUNKS)
    next(iter(tee))
    assert not cache.queue_image("a")


def test_a_queued_image_leaves_the_queue_when_it_is_cached(cache: ImageCache) -> None:
    cache.queue_image("a")
    put(cache, "a", 1)
    assert not cache.is_queued("a")


def test_deleting_a_queued_image_takes_it_out_of_the_queue(cache: ImageCache) -> None:
    cache.queue_image("a")
    cache.delete_queued_image("a")
    cache.delete_queued_image("never queued")
    assert not cache.is_queued("a")


def test_deleting_all_queued_images_says_how_many(cache: ImageCache) -> None:
    for image_id in "abc":
        cache.queue_image(image_id)
    assert cache.delete_all_queued_images() == 3
    assert cache.get_queued_images() == []


def test_queueing_an_invalid_image_forgets_its_failure(place: Place, cache: ImageCache) -> None:
    with pytest.raises(ChecksumError):
        cache.cache_image_iter("a", CHUNKS, "0" * 32)
    assert cache.queue_image("a")
    assert trace(place) == []


# Caching


def test_caching_an_iterator_keeps_its_bytes(cache: ImageCache) -> None:
    assert cache.cache_image_iter("a", iter(CHUNKS), MD5)
    assert read(cache, "a") == DATA


def test_an_empty_image_is_cached(cache: ImageCache) -> None:
    assert cache.cache_image_iter("a", [])
    assert read(cache, "a") == b""


def test_caching_a_file_keeps_its_bytes_from_where_it_stands(cache: ImageCache) -> None:
    file = io.BytesIO(DATA)
    file.seek(4)
    assert cache.cache_image_file("a", file)
    assert read(cache, "a") == DATA[4:]


def test_a_pipe_can_be_cached_as_a_file(cache: ImageCache) -> None:
    reading, writing = os.pipe()
    os.write(writing, DATA)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert cache.cache_image_file("a", file)
    assert read(cache, "a") == DATA


def test_a_checksum_of_another_algorithm_is_taken_with_its_name(cache: ImageCache) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    assert cache.cache_image_iter("a", CHUNKS, f"sha256:{digest}")


def test_a_checksum_that_is_none_raises_after_the_bytes(place: Place) -> None:
    cache = place.cache()
    chunks = iter(cache.get_caching_iter("a", "no checksum", CHUNKS))
    passed = [next(chunks) for _ in CHUNKS]
    with pytest.raises(ChecksumError, match="'no checksum'"):
        next(chunks)
    assert passed == CHUNKS
    assert not cache.is_cached("a")
    assert place.names("invalid") == ["a"]


def test_a_missing_image_is_a_missing_file(cache: ImageCache) -> None:
    with pytest.raises(FileNotFoundError), cache.open_for_read("a"):
        pass
    with pytest.raises(FileNotFoundError):
        cache.get_image_size("a")


def test_the_limits_can_be_read_and_written(cache: ImageCache) -> None:
    fill(cache, "abc", 10)
    cache.max_size, cache.stall_time = 20, 0.0
    assert (cache.max_size, cache.stall_time) == (20, 0.0)
    assert cache.prune() == (1, 10)


def test_caching_a_cached_image_is_false_and_changes_nothing(cache: ImageCache) -> None:
    put(cache, "a", 3)
    assert not cache.cache_image_iter("a", [b"other"])
    assert not cache.cache_image_file("a", io.BytesIO(b"other"))
    assert read(cache, "a") == content("a", 3)


def test_caching_an_image_that_is_being_cached_is_false_and_reads_nothing(
    cache: ImageCache,
) -> None:
    tee = iter(cache.get_caching_iter("a", None, CHUNKS))
    next(tee)
    source = iter(CHUNKS)
    assert not cache.cache_image_iter("a", source)
    assert next(source) == CHUNKS[0]


def test_the_caching_iterator_passes_every_chunk_as_it_is(cache: ImageCache) -> None:
    assert list(cache.get_caching_iter("a", MD5, iter(CHUNKS))) == CHUNKS
    assert read(cache, "a") == DATA


def test_the_caching_iterator_gives_a_chunk_before_it_asks_for_the_next(cache: ImageCache) -> None:
    asked: list[int] = []

    def source() -> Iterator[bytes]:
        for number, chunk in enumerate(CHUNKS):
            asked.append(number)
            yield chunk

    next(iter(cache.get_caching_iter("a", None, source())))
    assert asked == [0]


def test_an_image_is_not_cached_before_its_last_chunk_has_passed(cache: ImageCache) -> None:
    tee = iter(cache.get_caching_iter("a", None, CHUNKS))
    for _ in CHUNKS:
        next(tee)
        assert not cache.is_cached("a")
    assert list(tee) == []
    assert cache.is_cached("a")


def test_a_cached_image_is_passed_through(cache: ImageCache) -> None:
    put(cache, "a", 3)
    assert list(cache.get_caching_iter("a", None, iter([b"other"]))) == [b"other"]
    assert read(cache, "a") == content("a", 3)


def test_an_image_that_is_being_cached_is_passed_through(cache: ImageCache) -> None:
    first = iter(cache.get_caching_iter("a", None, CHUNKS))
    next(first)
    assert list(cache.get_caching_iter("a", None, iter(CHUNKS))) == CHUNKS
    assert list(first) == CHUNKS[1:]
    assert read(cache, "a") == DATA


def test_of_two_tees_begun_at_once_both_pass_everything(cache: ImageCache) -> None:
    tees = [iter(cache.cache_tee_iter("a", CHUNKS, MD5)) for _ in range(2)]
    assert [list(chunks) for chunks in zip(*tees, strict=True)] == [[c, c] for c in CHUNKS]
    assert read(cache, "a") == DATA


def test_a_wrong_checksum_raises_after_the_last_chunk(cache: ImageCache) -> None:
    passed: list[bytes] = []
    with pytest.raises(ChecksumError) as caught:
        passed.extend(cache.get_caching_iter("a", "0" * 32, CHUNKS))
    assert caught.value.errno == errno.EIO
    tee, passed = iter(cache.cache_tee_iter("b", CHUNKS, "0" * 32)), []
    with pytest.raises(ChecksumError):  # noqa: PT012 - the loop is what raises
        while True:
            passed.append(next(tee))
    assert passed == CHUNKS


def test_bytes_with_a_wrong_checksum_land_in_invalid(place: Place, cache: ImageCache) -> None:
    with pytest.raises(ChecksumError):
        cache.cache_image_iter("a", CHUNKS, "0" * 32)
    assert not cache.is_cached("a")
    assert (place.path / "invalid/a").read_bytes() == DATA
    assert place.names("incomplete") == []


def test_an_invalid_image_can_be_cached_again(place: Place, cache: ImageCache) -> None:
    with pytest.raises(ChecksumError):
        cache.cache_image_iter("a", CHUNKS, "0" * 32)
    assert cache.cache_image_iter("a", CHUNKS, MD5.upper())
    assert place.names("invalid") == []


def test_an_iterator_dropped_half_way_leaves_nothing(place: Place, cache: ImageCache) -> None:
    tee = iter(cache.get_caching_iter("a", None, CHUNKS))
    next(tee)
    assert (place.path / "incomplete/a").exists()
    del tee
    gc.collect()
    assert trace(place) == []
    assert cache.queue_image("a")


def test_an_iterator_dropped_in_a_garbage_cycle_leaves_nothing(
    place: Place, cache: ImageCache
) -> None:
    tee = iter(cache.get_caching_iter("a", None, CHUNKS))
    next(tee)
    cycle: list[object] = [tee]
    cycle.append(cycle)
    del tee, cycle
    gc.collect()
    assert trace(place) == []


def test_an_iterator_that_is_never_begun_leaves_nothing(place: Place, cache: ImageCache) -> None:
    cache.get_caching_iter("a", None, CHUNKS)
    assert trace(place) == []


def test_what_the_source_raises_goes_through_and_leaves_nothing(
    place: Place, cache: ImageCache
) -> None:
    def source() -> Iterator[bytes]:
        yield b"one"
        raise LookupError("the source is tired")

    with pytest.raises(LookupError, match="tired"):
        list(cache.get_caching_iter("a", None, source()))
    with pytest.raises(LookupError, match="tired"):
        cache.cache_image_iter("a", source())
    assert trace(place) == []


# A failing cache and its readers


def test_no_room_does_not_break_the_reader(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    cache = place.cache(max_size=8)
    assert list(cache.get_caching_iter("a", MD5, CHUNKS)) == CHUNKS
    assert trace(place) == []
    assert not cache.is_cached("a")
    assert len(caplog.records) == 1


def test_a_full_disk_does_not_break_the_reader(small: Place) -> None:
    cache = small.cache(max_size=2**30)
    chunks = [bytes(2**20)] * 20
    assert list(cache.get_caching_iter("a", None, chunks)) == chunks
    assert trace(small) == []


def test_caching_on_a_full_disk_is_false(small: Place) -> None:
    cache = small.cache(max_size=2**30)
    assert not cache.cache_image_iter("a", [bytes(2**20)] * 20)
    assert cache.cache_image_iter("b", [bytes(2**20)])


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
def test_a_failing_disk_does_not_break_the_reader(
    place: Place, cache: ImageCache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is tired")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert list(cache.get_caching_iter("a", MD5, CHUNKS)) == CHUNKS
    assert trace(place) == []
    assert cache.cache_image_iter("a", CHUNKS)


def test_an_index_that_fails_does_not_break_the_reader(
    place: Place, cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for the record")

    with monkeypatch.context() as patch:
        patch.setattr(cache._store._driver, "put", fail)
        assert list(cache.get_caching_iter("a", MD5, CHUNKS)) == CHUNKS
    with monkeypatch.context() as patch:
        patch.setattr(cache._store._driver, "get", fail)
        assert list(cache.get_caching_iter("a", MD5, CHUNKS)) == CHUNKS
    assert trace(place) == []


def test_a_name_taken_by_a_directory_does_not_break_the_reader(
    place: Place, cache: ImageCache
) -> None:
    (place.path / "a").mkdir()
    assert list(cache.get_caching_iter("a", MD5, CHUNKS)) == CHUNKS
    assert place.names("incomplete") == []
    assert not cache.is_cached("a")
    assert cache.get_cache_size() == 0


def test_a_file_that_is_taken_away_while_written_is_never_published(
    place: Place, cache: ImageCache
) -> None:
    tee = iter(cache.get_caching_iter("a", None, CHUNKS))
    next(tee)
    (place.path / "incomplete/a").unlink()
    (place.path / "incomplete/a").write_bytes(b"somebody else's")
    assert list(tee) == CHUNKS[1:]
    assert not cache.is_cached("a")


# Reading


def test_leaving_a_read_without_error_counts_one_hit(cache: ImageCache) -> None:
    put(cache, "a", 3)
    with cache.open_for_read("a") as file:
        assert file.read() == content("a", 3)
        assert cache.get_hit_count("a") == 0
    assert cache.get_hit_count("a") == 1


def test_leaving_a_read_with_an_error_counts_no_hit(cache: ImageCache) -> None:
    put(cache, "a", 3)
    with pytest.raises(LookupError), cache.open_for_read("a"):
        raise LookupError
    assert cache.get_hit_count("a") == 0


def test_reading_an_uncached_image_is_an_error(cache: ImageCache) -> None:
    with pytest.raises(ImageNotFoundError) as caught, cache.open_for_read("a"):
        pass
    assert caught.value.errno == errno.ENOENT


def test_a_hit_that_cannot_be_counted_does_not_break_the_reader(
    cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room for the hit")

    put(cache, "a", 3)
    monkeypatch.setattr(cache._store._driver, "hit", fail)
    assert read(cache, "a") == content("a", 3)


def test_a_reader_reads_on_to_the_end_of_a_deleted_image(cache: ImageCache) -> None:
    put(cache, "a", 3)
    with cache.open_for_read("a") as file:
        cache.delete_cached_image("a")
        assert not cache.is_cached("a")
        assert file.read() == content("a", 3)
    assert cache.get_hit_count("a") == 0


def test_hits_survive_a_restart(place: Place, cache: ImageCache) -> None:
    put(cache, "a", 1)
    read(cache, "a")
    assert place.cache().get_hit_count("a") == 1


def test_an_image_truncated_under_a_running_cache_is_never_read(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)  # the xattr driver has no size to compare with but the file's
    put(cache, "a", 9)
    os.truncate(tmp_path / "a", 5)
    with pytest.raises(ImageNotFoundError), cache.open_for_read("a"):
        pass
    assert (tmp_path / "invalid/a").exists()


def test_a_record_whose_file_was_removed_by_hand_is_dropped(
    place: Place, cache: ImageCache
) -> None:
    put(cache, "a", 9)
    (place.path / "a").unlink()
    assert not cache.is_cached("a")
    assert cache.get_cache_size() == 0
    put(cache, "a", 9)


# Removing


def test_deleting_an_image_removes_record_and_file(place: Place, cache: ImageCache) -> None:
    fill(cache, "ab", 5)
    cache.delete_cached_image("a")
    cache.delete_cached_image("never cached")
    assert ids(cache) == place.names() == ["b"]
    assert cache.get_cache_size() == 5


def test_deleting_all_images_says_how_many(place: Place, cache: ImageCache) -> None:
    fill(cache, "abc", 5)
    assert cache.delete_all_cached_images() == 3
    assert ids(cache) == place.names() == []
    assert cache.get_cache_size() == 0


def test_pruning_gives_files_and_bytes(place: Place) -> None:
    fill(place.cache(), "abcd", 10)
    cache = place.cache(max_size=25)
    assert cache.prune() == (2, 20)
    assert ids(cache) == ["c", "d"]


def test_pruning_what_fits_does_nothing(place: Place) -> None:
    cache = place.cache(max_size=20)
    fill(cache, "ab", 10)
    assert cache.prune() == (0, 0)


def test_cleaning_removes_invalid_images(place: Place, cache: ImageCache) -> None:
    with pytest.raises(ChecksumError):
        cache.cache_image_iter("a", CHUNKS, "0" * 32)
    cache.clean()
    assert trace(place) == []


def test_cleaning_removes_what_has_stalled(place: Place, cache: ImageCache) -> None:
    (place.path / "incomplete/a").write_bytes(b"part")
    cache.clean()
    assert trace(place) != []
    cache.clean(stall_time=0)
    assert trace(place) == []


def test_cleaning_takes_the_stall_time_of_the_cache(place: Place) -> None:
    cache = ImageCache(place.path, driver=place.driver, stall_time=0)
    (place.path / "incomplete/a").write_bytes(b"part")
    cache.clean()
    assert trace(place) == []


def test_cleaning_leaves_a_living_writer_alone(cache: ImageCache) -> None:
    tee = iter(cache.get_caching_iter("a", None, CHUNKS))
    next(tee)
    cache.clean(stall_time=0)
    list(tee)
    assert read(cache, "a") == DATA


# The driver


def test_a_cache_can_be_configured_anew(cache: ImageCache) -> None:
    put(cache, "a", 5)
    cache.init_driver()
    cache.configure_driver()
    assert read(cache, "a") == content("a", 5)


def test_a_tee_of_a_cache_configured_anew_still_passes_everything(cache: ImageCache) -> None:
    tee = iter(cache.get_caching_iter("a", None, CHUNKS))
    next(tee)
    cache.configure_driver()
    assert list(tee) == CHUNKS[1:]


def test_many_caches_opened_and_dropped_leave_no_descriptor(place: Place) -> None:
    place.cache()
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        place.cache()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_without_user_attributes_sqlite_serves_after_one_warning(
    no_xattrs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ImageCache(no_xattrs, driver="xattr")
    assert cache.driver_name == "sqlite"
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "extended attributes" in record.getMessage()
    put(cache, "a", 5)


def test_a_driver_that_nobody_knows_is_sqlite_after_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ImageCache(tmp_path, driver="papyrus").driver_name == "sqlite"
    [record] = caplog.records
    assert record.levelno == logging.WARNING

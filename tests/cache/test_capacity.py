"""The hard limit, the free disk, and what may be evicted for them."""

import io
import os
import threading
from pathlib import Path

import pytest
from support.place import Place, content, fill, ids, put, read
from support.processes import wait_for

from cachefs.cache import Store, Version
from cachefs.errors import ChecksumError, ImageBusyError, NoRoomError

MIB = 2**20


# Reservation


def test_room_is_reserved_before_a_byte_is_written(place: Place) -> None:
    with place.opened(max_size=100) as store, store.begin("a", 70):
        assert store.usage().reserved == 70
        assert (place.path / "incomplete/a").stat().st_blocks == 0


def test_a_reservation_keeps_others_out(place: Place) -> None:
    with (
        place.opened(max_size=100) as store,
        place.opened(max_size=100) as other,
        store.begin("a", 70),
        pytest.raises(NoRoomError),
    ):
        other.begin("b", 40)


def test_room_is_given_back_by_an_abort(place: Place) -> None:
    with place.opened(max_size=100) as store:
        store.begin("a", 70).abort()
        assert store.usage().reserved == 0
        store.begin("b", 100).abort()


def test_an_image_larger_than_max_size_is_refused_with_nothing_evicted(place: Place) -> None:
    fill(place.cache(), "abc", 30)
    with place.opened(max_size=100) as store:
        with pytest.raises(NoRoomError):
            store.begin("d", 101)
        assert store.quick.totals().images == 3
    assert place.names("incomplete") == []


def test_a_file_larger_than_max_size_is_refused_with_nothing_evicted(place: Place) -> None:
    cache = place.cache(max_size=100)
    fill(cache, "abc", 30)
    assert not cache.cache_image_file("d", io.BytesIO(bytes(101)))
    assert ids(cache) == ["a", "b", "c"]


def test_a_chunk_larger_than_max_size_is_refused_with_nothing_evicted(place: Place) -> None:
    cache = place.cache(max_size=100)
    fill(cache, "abc", 30)
    assert not cache.cache_image_iter("d", [bytes(5), bytes(96)])
    assert ids(cache) == ["a", "b", "c"]


def test_what_cannot_be_made_to_fit_evicts_nothing(place: Place) -> None:
    cache = place.cache(max_size=100)
    fill(cache, "abc", 30)
    cache._store.pin("b", True)
    assert not cache.cache_image_iter("d", [bytes(71)])
    assert ids(cache) == ["a", "b", "c"]


def test_an_image_of_unknown_size_evicts_no_more_than_it_needs(place: Place) -> None:
    cache = place.cache(max_size=100 * MIB)
    fill(cache, "abcde", 16 * MIB)
    put(cache, "f", 30 * MIB)
    assert ids(cache) == ["b", "c", "d", "e", "f"]


def test_an_image_of_unknown_size_leaves_most_of_the_room_to_others(place: Place) -> None:
    cache = place.cache(max_size=100 * MIB)
    tees = [iter(cache.get_caching_iter(name, None, [bytes(10 * MIB)])) for name in "abcdefgh"]
    for tee in tees:
        next(tee)
    assert place.bytes_taken() <= 100 * MIB
    for tee in tees:
        assert list(tee) == []
    assert ids(cache) == list("abcdefgh")


def test_the_reservation_of_an_unknown_size_is_cut_to_the_image(place: Place) -> None:
    cache = place.cache(max_size=100 * MIB)
    assert cache.cache_image_iter("a", [bytes(MIB)] * 5)
    assert (place.path / "a").stat().st_size == cache.get_cache_size() == 5 * MIB


def test_more_bytes_than_promised_are_refused(place: Place) -> None:
    with place.opened() as store, store.begin("a", 5) as transaction, pytest.raises(NoRoomError):
        transaction.write(b"123456")
    assert place.names("incomplete") == []


def test_invalid_bytes_count_and_go_first(place: Place) -> None:
    cache = place.cache(max_size=100)
    put(cache, "a", 40)
    with pytest.raises(ChecksumError):
        cache.cache_image_iter("b", [bytes(50)], "0" * 32)
    assert place.bytes_taken() == 90
    put(cache, "c", 20)
    assert ids(cache) == ["a", "c"]
    assert place.names("invalid") == []


def test_a_lower_limit_is_kept_by_the_next_image(place: Place) -> None:
    fill(place.cache(), "abcd", 25)
    cache = place.cache(max_size=50)
    put(cache, "e", 25)
    assert ids(cache) == ["d", "e"]


# What may go


def test_an_image_that_another_process_reads_is_never_chosen(place: Place) -> None:
    cache = place.cache(max_size=40)
    fill(cache, "ab", 20)
    code = """
with place.cache().open_for_read("a"):
    print("open", flush=True)
    sys.stdin.read()
"""
    with place.start(code) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        put(cache, "c", 20)
        assert ids(cache) == ["a", "c"]
        assert not cache.cache_image_iter("d", [bytes(40)])
        reader.communicate(timeout=20)
    assert reader.returncode == 0
    put(cache, "d", 40)


def test_an_image_open_here_is_never_chosen(place: Place) -> None:
    cache = place.cache(max_size=40)
    fill(cache, "ab", 20)
    with cache.open_for_read("a") as file:
        put(cache, "c", 20)
        assert file.read() == content("a", 20)
    assert ids(cache) == ["a", "c"]


def test_an_image_that_cannot_be_looked_into_is_passed_over(place: Place) -> None:
    """Another user's, in a cache that an ordinary user runs, or another kind of file by now."""
    cache = place.cache(max_size=40)
    fill(cache, "ab", 20)
    with place.opened(40) as store:
        (place.path / "a").rename(place.path.parent / "a")
        (place.path / "a").symlink_to("/etc/hostname")
        with store.begin("c", 20) as transaction:
            transaction.write(content("c", 20))
            transaction.commit()
        assert (place.path / "a").is_symlink()


def test_what_has_its_room_goes_on_though_the_cache_is_over_a_limit(small: Place) -> None:
    """Another program has filled the disk: nothing of it is to be thrown away."""
    version = Version(2**20, "v1", None)
    with small.opened(min_free=2**20) as store:
        store.begin("a", 2**20, version).keep()
    with small.opened(min_free=2**40) as store:
        with pytest.raises(NoRoomError):
            store.begin("b", 1)
        with store.begin("a", 2**20, version) as transaction:
            transaction.write(content("a", 2**20))
            transaction.commit()
        assert store.is_cached("a")


def test_an_image_opened_after_it_was_chosen_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = place.cache(max_size=40)
    fill(cache, "ab", 20)
    monkeypatch.setattr("cachefs.cache.capacity.is_held", lambda _: False)  # a look, just before
    with cache.open_for_read("a"):
        put(cache, "c", 20)
    assert ids(cache) == ["a", "c"]


def test_a_reader_that_is_killed_holds_nothing(place: Place) -> None:
    cache = place.cache(max_size=20)
    put(cache, "a", 20)
    code = """
with place.cache().open_for_read("a"):
    print("open", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert place.run(code) == (-9, "open\n")
    put(cache, "b", 20)
    assert ids(cache) == ["b"]


def test_a_pinned_image_is_never_chosen(place: Place) -> None:
    cache = place.cache(max_size=40)
    fill(cache, "ab", 20)
    cache._store.pin("a", True)
    put(cache, "c", 20)
    assert ids(cache) == ["a", "c"]


def test_a_pin_survives_a_restart(place: Place) -> None:
    cache = place.cache()
    fill(cache, "ab", 20)
    cache._store.pin("a", True)
    assert place.cache(max_size=20).prune() == (1, 20)
    assert place.names() == ["a"]


def test_a_pinned_image_is_evicted_by_force_only(place: Place) -> None:
    put(place.cache(), "a", 20)
    with place.opened() as store:
        store.pin("a", True)
        with pytest.raises(ImageBusyError):
            store.evict("a")
        assert store.evict("a", force=True).image_id == "a"


def test_who_listens_hears_of_every_eviction(place: Place) -> None:
    fill(place.cache(), "abc", 10)
    gone: list[str] = []
    with place.opened(max_size=10) as store:
        store.on_evicted(lambda entry: gone.append(entry.image_id))
        store.prune()
        assert store.quick.evictions == 2
        store.evict("c")
    assert gone == ["a", "b", "c"]


# The disk


def test_the_free_disk_is_kept(small: Place) -> None:
    with small.opened(max_size=2**30, min_free=6 * MIB) as store:
        for name in "abcdef":
            with store.begin(name, 3 * MIB) as transaction:
                transaction.write(bytes(3 * MIB))
                transaction.commit()
            disk = os.statvfs(small.path)
            assert disk.f_bavail * disk.f_frsize >= 6 * MIB
        assert store.quick.totals().images == 3


def test_what_other_programs_write_makes_images_go(small: Place) -> None:
    put(small.cache(), "a", 5 * MIB)
    put(small.cache(), "b", 3 * MIB)
    (small.path.parent / "foreign").write_bytes(bytes(3 * MIB))
    with small.opened(max_size=2**30, min_free=6 * MIB) as store:
        assert store.prune() == (1, 5 * MIB)
        assert store.prune() == (0, 0)
        assert [entry.image_id for entry in store.entries()] == ["b"]


def test_bytes_reserved_and_not_yet_written_count_against_the_free_disk(small: Place) -> None:
    with (
        small.opened(max_size=2**30, min_free=6 * MIB) as store,
        store.begin("a", 8 * MIB),
        pytest.raises(NoRoomError),
    ):
        store.begin("b", 4 * MIB)


def test_an_image_larger_than_the_disk_is_refused_with_nothing_evicted(small: Place) -> None:
    cache = small.cache(max_size=2**30)
    put(cache, "a", MIB)
    assert not cache.cache_image_file("b", io.BytesIO(bytes(17 * MIB)))
    assert ids(cache) == ["a"]


# Several writers

LIMIT = 4 * MIB
WRITE = f"""
random.seed(int(sys.stdin.readline()))
cache = place.cache(max_size={LIMIT})
for _ in range(25):
    image_id = random.choice("abcdefghijkl")
    size = random.choice([10, 70_000, 300_000, 900_000])
    data = content(image_id, size)
    chunks = [data[i : i + 100_000] for i in range(0, size, 100_000)]
    wrong = "0" * 32 if random.random() < 0.2 else None
    try:
        assert b"".join(cache.get_caching_iter(image_id, wrong, chunks)) == data
    except Exception as error:
        assert wrong and type(error).__name__ == "ChecksumError", error
"""


def watch(place: Place, until: threading.Event, seen: list[int]) -> None:
    wait_for(lambda: seen.append(place.bytes_taken()) or until.is_set(), "the writers", 50)


def check_whole(store: Store, path: Path) -> None:
    for entry in store.entries():
        data = (path / entry.image_id).read_bytes()
        assert data == content(entry.image_id, entry.size)


def test_writers_in_several_processes_never_exceed_the_limit(place: Place) -> None:
    cache = place.cache(max_size=LIMIT)
    over, seen = threading.Event(), [0]
    watcher = threading.Thread(target=watch, args=(place, over, seen))
    watcher.start()
    writers = [place.start(WRITE) for _ in range(4)]
    try:
        for number, writer in enumerate(writers):
            assert writer.stdin is not None
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
        assert [writer.wait(50) for writer in writers] == [0] * 4
    finally:
        over.set()
        watcher.join()
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert LIMIT // 2 < max(seen) <= LIMIT
    assert place.names("incomplete") == []
    assert cache.get_cache_size() == sum((place.path / n).stat().st_size for n in place.names())
    check_whole(cache._store, place.path)


def test_writers_in_several_threads_never_exceed_the_limit(place: Place) -> None:
    cache = place.cache(max_size=LIMIT)
    over, seen = threading.Event(), [0]
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(15):
                image_id = "abcdefghijkl"[(number * 5 + turn) % 12]
                data = content(image_id, 1 + (number * 7 + turn) * 5003 % 900_000)
                chunks = [data[i : i + 100_000] for i in range(0, len(data), 100_000)]
                assert b"".join(cache.get_caching_iter(image_id, None, chunks)) == data
                if cache.is_cached(image_id):
                    cache.queue_image(image_id)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    watcher = threading.Thread(target=watch, args=(place, over, seen))
    watcher.start()
    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    watcher.join()
    assert errors == []
    assert max(seen) <= LIMIT
    assert place.names("incomplete") == []
    assert cache.get_cache_size() == sum((place.path / n).stat().st_size for n in place.names())
    check_whole(cache._store, place.path)


def test_reading_needs_no_room(place: Place) -> None:
    cache = place.cache(max_size=20)
    put(cache, "a", 20)
    assert read(cache, "a") == content("a", 20)

"""Many threads and processes on one directory: nothing is lost, nothing is counted twice."""

import threading
from collections.abc import Callable

import pytest
from support.place import Place, content, fill, ids, put

WORK = """
random.seed(int(sys.stdin.readline()))
cache = place.cache(max_size=200_000)
from cachefs.errors import ImageNotFoundError
for _ in range(60):
    image_id = random.choice("abcdefgh")
    match random.randrange(6):
        case 0 | 1:
            cache.cache_image_iter(image_id, [content(image_id, 40_000)])
        case 2:
            try:
                with cache.open_for_read(image_id) as file:
                    assert file.read() == content(image_id, 40_000)
            except ImageNotFoundError:
                pass
        case 3:
            cache.delete_cached_image(image_id)
        case 4:
            cache.queue_image(image_id)
        case 5:
            tee = iter(cache.get_caching_iter(image_id, None, [b"never", b"whole"]))
            next(tee)
            del tee
"""


def check_consistent(place: Place) -> None:
    cache = place.cache()
    assert ids(cache) == place.names()
    assert cache.get_cache_size() == sum((place.path / n).stat().st_size for n in place.names())
    assert place.names("incomplete") == []
    assert not set(cache.get_queued_images()) & set(place.names())
    for name in place.names():
        assert (place.path / name).read_bytes() == content(name, 40_000)


def test_several_processes_at_once_leave_files_and_index_together(place: Place) -> None:
    cache = place.cache(max_size=200_000)
    workers = [place.start(WORK) for _ in range(4)]
    for number, worker in enumerate(workers):
        worker.communicate(f"{number}\n", timeout=50)
    assert [worker.returncode for worker in workers] == [0] * 4
    assert cache.get_cache_size() == sum((place.path / n).stat().st_size for n in place.names())
    check_consistent(place)


def in_threads(count: int, work: Callable[[int], object]) -> None:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_several_threads_at_once_leave_files_and_index_together(place: Place) -> None:
    cache = place.cache(max_size=200_000)

    def work(number: int) -> None:
        for turn in range(20):
            image_id = "abcdefgh"[(number * 3 + turn) % 8]
            cache.cache_image_iter(image_id, [content(image_id, 40_000)])
            cache.queue_image("abcdefgh"[turn % 8])
            if turn % 5 == 0:
                cache.delete_cached_image(image_id)

    in_threads(8, work)
    check_consistent(place)


def test_no_hit_of_several_threads_is_lost(place: Place) -> None:
    cache = place.cache()
    put(cache, "a", 10)

    def work(_: int) -> None:
        for _ in range(25):
            with cache.open_for_read("a"):
                pass

    in_threads(8, work)
    assert cache.get_hit_count("a") == 200


def test_no_hit_of_several_processes_is_lost(place: Place) -> None:
    cache = place.cache()
    put(cache, "a", 10)
    code = """
cache = place.cache()
for _ in range(25):
    with cache.open_for_read("a"):
        pass
"""
    readers = [place.start(code) for _ in range(3)]
    for reader in readers:
        reader.communicate(timeout=50)
    assert [reader.returncode for reader in readers] == [0] * 3
    assert cache.get_hit_count("a") == 75


def test_of_many_writers_of_one_image_exactly_one_caches_it(place: Place) -> None:
    cache = place.cache()
    gate, won = threading.Barrier(8), []

    def work(_: int) -> None:
        gate.wait(20)
        won.append(cache.cache_image_iter("a", [content("a", 40_000)]))

    in_threads(8, work)
    assert won.count(True) == 1


def test_of_many_who_queue_one_image_exactly_one_is_told_so(place: Place) -> None:
    cache = place.cache()
    gate, won = threading.Barrier(8), []

    def work(_: int) -> None:
        gate.wait(20)
        won.append(cache.queue_image("a"))

    in_threads(8, work)
    assert won.count(True) == 1


def test_the_queue_is_in_order_whenever_it_is_looked_at(place: Place) -> None:
    """Between the creation of its file and the time it is given, an image would stand anywhere."""
    cache, names = place.cache(), [f"image-{number:03}" for number in reversed(range(300))]
    done, seen = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            seen.append(cache.get_queued_images())

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for name in names:
            cache.queue_image(name)
    finally:
        done.set()
        looker.join()
    assert all(listing == names[: len(listing)] for listing in seen)


def test_of_many_who_delete_all_images_each_image_is_counted_once(place: Place) -> None:
    cache = place.cache()
    fill(cache, "abcdefgh", 10)
    gone: list[int] = []
    in_threads(4, lambda _: gone.append(cache.delete_all_cached_images()))
    assert sum(gone) == 8


@pytest.mark.parametrize("victim", ["a", "b"])
def test_what_another_process_changes_is_seen_at_once(place: Place, victim: str) -> None:
    cache, other = place.cache(), place.cache()
    fill(cache, "ab", 10)
    assert ids(other) == ["a", "b"]
    other.delete_cached_image(victim)
    assert not cache.is_cached(victim)
    assert cache.get_cache_size() == 10

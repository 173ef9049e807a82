"""A living Glance in the same directory: what it has open for writing is not abandoned, and its
bytes and ours never mix.

Glance writes as ``glance/image_cache/drivers`` does: ``open(incomplete/ID, "wb")``, no lock, then
rename."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from support.place import Place, content, ids, put, read
from support.processes import wait_for

from cachefs.cache import PartialMap, Store, Version, lease
from cachefs.errors import ChecksumError, ImageBusyError, NoRoomError

SIZE = 1000
THEIRS = content("theirs", SIZE)
OURS = content("ours", SIZE)
VERSION = Version(SIZE, "v1", None)


@contextmanager
def glance(place: Place, image_id: str = "a", data: bytes = THEIRS[:100]) -> Iterator[BinaryIO]:
    """Glance has begun to cache an image, and is alive; kept until the block ends."""
    with (place.path / "incomplete" / image_id).open("wb") as file:
        file.write(data)
        file.flush()
        yield file


def finish(place: Place, file: BinaryIO, image_id: str = "a") -> None:
    """Glance writes the rest and publishes."""
    file.write(THEIRS[100:])
    file.close()
    (place.path / "incomplete" / image_id).rename(place.path / image_id)


def write(store: Store, *, beside: bool, data: bytes = OURS) -> None:
    with store.begin("a", SIZE, VERSION, beside=beside) as transaction:
        transaction.write(data)
        transaction.commit()


@contextmanager
def opened(place: Place, max_size: int = 10 * SIZE) -> Iterator[Store]:
    with place.opened(max_size) as store:
        yield store


def test_a_living_writer_is_not_replaced(place: Place) -> None:
    with opened(place) as store, glance(place) as file:
        for version in (VERSION, None):
            with pytest.raises(ImageBusyError):
                store.begin("a", SIZE, version)
        finish(place, file)
        assert store.is_cached("a")
    assert read(place.cache(), "a") == THEIRS


def test_a_living_writer_survives_our_start(place: Place) -> None:
    place.cache()
    with glance(place) as file:
        cache = place.cache()
        assert not cache.queue_image("a")
        finish(place, file)
    assert read(cache, "a") == THEIRS


def test_a_living_writer_survives_cleaning_however_slow(place: Place) -> None:
    cache = place.cache()
    with glance(place) as file:
        os.utime(file.fileno(), (1, 1))
        cache.clean(stall_time=0)
        finish(place, file)
    assert read(cache, "a") == THEIRS


def test_a_living_writer_keeps_its_room(place: Place) -> None:
    with opened(place, max_size=SIZE) as store, glance(place, data=THEIRS[: SIZE - 1]) as file:
        with pytest.raises(NoRoomError):
            store.begin("b", SIZE // 2)
        assert Path(f"/proc/self/fd/{file.fileno()}").exists()
        assert place.names("incomplete") == ["a"]


def test_a_writer_that_is_gone_does_not_block_its_image(place: Place) -> None:
    with opened(place) as store:
        with glance(place):
            pass
        age(place)
        write(store, beside=False)
    assert read(place.cache(), "a") == OURS


def test_what_glance_has_just_closed_it_renames_in_a_moment(place: Place) -> None:
    """What we put in its place meanwhile it would publish."""
    with opened(place) as store, glance(place, data=THEIRS) as file:
        file.close()
        for _ in range(2):
            with pytest.raises(ImageBusyError):
                store.begin("a", SIZE, VERSION)
            with store.begin("a", SIZE, VERSION, beside=True):
                pass
        (place.path / "incomplete" / "a").rename(place.path / "a")
        assert read(place.cache(), "a") == THEIRS


@pytest.mark.parametrize("who", ["our start", "another image's room"])
def test_what_glance_has_just_closed_is_left_to_it_by(place: Place, who: str) -> None:
    """With it gone, our next writer would put its own file in the place."""
    place.cache()
    with glance(place, data=THEIRS) as file:
        file.close()
        with opened(place, max_size=SIZE) as store:
            if who != "our start":
                with pytest.raises(NoRoomError):
                    store.begin("b", SIZE)
            with pytest.raises(ImageBusyError):
                store.begin("a", SIZE, VERSION)
        (place.path / "incomplete" / "a").rename(place.path / "a")
    assert read(place.cache(), "a") == THEIRS


def test_a_writer_whose_file_was_emptied_keeps_nothing_of_it(place: Place) -> None:
    """Its mark would say that the file is ours, when Glance is about to rename it."""
    with opened(place) as store:
        transaction = store.begin("a", SIZE, VERSION)
        with glance(place, data=THEIRS):
            transaction.keep()
        with pytest.raises(ImageBusyError):
            store.begin("a", SIZE, VERSION)
        (place.path / "incomplete" / "a").rename(place.path / "a")
        assert read(place.cache(), "a") == THEIRS


def test_a_writer_that_leaves_off_looks_again_once_its_bytes_are_on_the_disk(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes long: a Glance may have begun meanwhile."""
    others = ExitStack()
    sync = PartialMap.sync

    def slow(partial: PartialMap, fd: int) -> int:
        others.enter_context(glance(place, data=THEIRS))
        return sync(partial, fd)

    monkeypatch.setattr(PartialMap, "sync", slow)
    with opened(place) as store, others:
        transaction = store.begin("a", SIZE, VERSION)
        transaction.write(OURS)
        transaction.keep()
        others.close()
        with pytest.raises(ImageBusyError):
            store.begin("a", SIZE, VERSION)


def test_without_a_descriptor_to_spare_what_has_come_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*values: object, **rest: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with opened(place) as store:
        transaction = store.begin("a", SIZE, VERSION)
        transaction.write(OURS)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", none_left)
            transaction.keep()
        assert store.abandoned() == ["a"]


def age(place: Place, image_id: str = "a") -> None:
    """Glance has written it some time ago."""
    os.utime(place.path / "incomplete" / image_id, (0, time.time() - 2 * lease.CLOSING))


def test_a_map_of_ours_does_not_make_another_programs_file_ours(place: Place) -> None:
    """Taken over under our map, its holes would be published: by Glance, once it is done."""
    with opened(place) as store:
        store.begin("a", SIZE, VERSION).keep()
        (place.path / "incomplete" / "a").unlink()
        with glance(place) as file:
            os.ftruncate(file.fileno(), SIZE)
            with pytest.raises(ImageBusyError):
                store.begin("a", SIZE, VERSION)
            os.ftruncate(file.fileno(), 100)
            finish(place, file)
    assert read(place.cache(), "a") == THEIRS


@pytest.mark.parametrize("open_still", [False, True])
def test_what_was_begun_of_an_image_that_another_has_cached_since_goes_at_the_next_start(
    place: Place, open_still: bool
) -> None:
    """Nobody would go on with it, and its room would be taken until somebody wants that; but a
    reader that has it open reads on through the next worker."""
    with opened(place) as store:
        store.begin("a", SIZE, VERSION).keep()
    incomplete = place.path / "incomplete" / "a"
    held = place.path / ".cachefs" / "held" / "7"
    if open_still:
        held.hardlink_to(incomplete)
    (place.path / "a").write_bytes(THEIRS)
    with opened(place) as store:
        assert store.quick.get("a") is not None
        assert incomplete.exists() == open_still
        assert store.usage().reserved == (SIZE if open_still else 0)
        assert (
            list((place.path / ".cachefs" / "maps").iterdir())
            == [place.path / ".cachefs" / "maps" / "a"] * open_still
        )


def test_beside_a_living_writer_an_image_can_be_written_and_published(place: Place) -> None:
    with opened(place) as store, glance(place) as file:
        write(store, beside=True)
        assert (place.path / "a").read_bytes() == OURS
        assert place.names("incomplete") == ["a"]
        finish(place, file)
    assert read(place.cache(), "a") == THEIRS  # it has published last, as it may
    assert place.names(".cachefs/beside") == place.names(".cachefs/beside-maps") == []


def test_of_two_writers_the_first_publication_stays(place: Place) -> None:
    with (
        opened(place) as store,
        glance(place) as file,
        store.begin("a", SIZE, VERSION, beside=True) as transaction,
    ):
        transaction.write(OURS)
        finish(place, file)
        assert transaction.commit().size == SIZE
    cache = place.cache()
    assert read(cache, "a") == THEIRS
    assert place.names(".cachefs/beside") == place.names(".cachefs/beside-maps") == []


def test_what_is_written_beside_counts_and_goes_when_its_writer_is_gone(place: Place) -> None:
    with opened(place, max_size=3 * SIZE) as store, glance(place):
        store.begin("a", SIZE, VERSION, beside=True).keep()
        assert store.usage().reserved == SIZE + 100
        store.begin("b", 2 * SIZE + 500).abort()  # which needs the room
        assert place.names(".cachefs/beside") == []
        store.begin("a", SIZE, VERSION, beside=True).keep()
    with opened(place):
        assert place.names(".cachefs/beside") == place.names(".cachefs/beside-maps") == []


def test_a_writer_whose_file_was_emptied_publishes_nothing(place: Place) -> None:
    """Glance looks whether the image is being cached, we begin, Glance opens our file: "wb"."""
    with opened(place) as store, store.begin("a", SIZE, VERSION) as transaction:
        transaction.write(OURS[:500])
        with glance(place):
            with pytest.raises(ImageBusyError):
                transaction.write(OURS[500:])
            with pytest.raises(ImageBusyError):
                transaction.commit()
        assert not store.is_cached("a")


def test_what_another_has_open_for_writing_is_not_published(place: Place) -> None:
    """However long it is: at this moment it may be emptied."""
    with opened(place) as store, store.begin("a", SIZE, VERSION) as transaction:
        transaction.write(OURS)
        with (place.path / "incomplete" / "a").open("r+b"), pytest.raises(ImageBusyError):
            transaction.commit()
        assert not store.is_cached("a")
        assert transaction.commit().size == SIZE
    assert read(place.cache(), "a") == OURS


@pytest.mark.parametrize("end", ["abort", "reject"])
def test_what_another_writes_to_keeps_its_name(place: Place, end: str) -> None:
    """Else it would publish what we begin to write there next."""
    with opened(place) as store:
        transaction = store.begin("a", SIZE, VERSION)
        transaction.write(OURS)
        with (place.path / "incomplete" / "a").open("r+b") as file:
            file.write(THEIRS[:100])
            transaction.abort() if end == "abort" else transaction.reject(ChecksumError("wrong"))
            with pytest.raises(ImageBusyError):
                store.begin("a", SIZE, VERSION)
            write(store, beside=True)
            store.evict("a")
            with store.begin("a", SIZE, VERSION, beside=True):
                finish(place, file)
            assert store.is_cached("a")
            assert read(place.cache(), "a") == THEIRS


@pytest.mark.parametrize("step", ["put", "rename"])
def test_what_another_opens_while_it_is_published_is_not(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It waits in open(2), by the name that the file had, and empties the file then."""
    opening: list[threading.Thread] = []

    def empty(fd: int) -> None:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC))

    def stepped(original: Callable[..., object], fd: int) -> Callable[..., object]:
        def run(*values: object) -> object:
            result = original(*values)
            if opening:  # the name is given back
                return result
            opening.append(threading.Thread(target=empty, args=(fd,)))
            opening[0].start()
            wait_for(lambda: is_waiting(opening[0].native_id), "the open to wait")
            return result

        return run

    with opened(place) as store, store.begin("a", SIZE, VERSION) as transaction:
        transaction.write(OURS)
        owner, name = (store._driver, "put") if step == "put" else (Path, "rename")
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, stepped(getattr(owner, name), transaction.fd))
            with pytest.raises(ImageBusyError):
                transaction.commit()
        opening[0].join(10)
        assert not store.is_cached("a")
        assert not (place.path / "a").exists()
        assert (place.path / "incomplete" / "a").stat().st_size == 0
        assert list(store.entries()) == []


def is_waiting(thread: int | None) -> bool:
    """Whether a thread of this process is in openat(2)."""
    return Path(f"/proc/self/task/{thread}/syscall").read_text().split()[0] == "257"


def test_a_library_writer_whose_file_was_emptied_passes_its_image_through(place: Place) -> None:
    cache = place.cache()
    tee = iter(cache.get_caching_iter("a", None, [OURS[:400], OURS[400:700], OURS[700:]]))
    passed = [next(tee)]
    with glance(place):
        passed += tee
    assert b"".join(passed) == OURS
    assert not cache.is_cached("a")


def test_without_leases_a_recent_write_is_the_sign_of_life(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def none(fd: int, what: int, *rest: object) -> object:
        if what == fcntl.F_SETLEASE:
            raise OSError(22, "Invalid argument")
        return real(fd, what, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(lease.fcntl, "fcntl", none)
    with opened(place) as store:
        with glance(place) as file:
            with pytest.raises(ImageBusyError):
                store.begin("a", SIZE)
            os.utime(file.fileno(), (1, 1))
        write(store, beside=False)
    assert read(place.cache(), "a") == OURS


def test_looking_for_a_writer_does_not_end_the_process_that_opens_the_file(place: Place) -> None:
    """The signal that a lease is wanted back is SIGIO by default, which kills."""
    code = """
from cachefs.cache.lease import has_writer
path = place.path / "incomplete/a"
done = threading.Event()
def look():
    while not done.is_set():
        has_writer(path)
threads = [threading.Thread(target=look) for _ in range(4)]
[each.start() for each in threads]
for _ in range(300):
    path.open("r+b").close()
done.set()
[each.join() for each in threads]
print("alive")
"""
    put(place.cache(), "b", 1)
    (place.path / "incomplete" / "a").write_bytes(b"x")
    assert place.run(code) == (0, "alive\n")


def test_glances_reason_of_a_failure_is_told(place: Place) -> None:
    place.cache()
    path = place.path / "invalid" / "a"
    path.write_bytes(b"wrong")
    os.setxattr(path, "user.error", b"Checksum verification\nfailed. \xff")
    with opened(place) as store:
        failure = store.failure("a")
    assert failure is not None
    assert failure.error == "Checksum verification failed. \N{REPLACEMENT CHARACTER}"


def test_glances_probe_is_no_image(place: Place) -> None:
    cache = place.cache()
    (place.path / "checkme").write_bytes(b"XXX")
    assert not cache.is_cached("checkme")
    assert ids(place.cache()) == []
    assert cache.cache_image_iter("checkme", [b"an image of that name"])
    assert ids(cache) == ["checkme"]


def test_hits_of_the_other_driver_are_taken_over_once(tmp_path: Path) -> None:
    def hits(driver: str) -> dict[object, object]:
        cache = Place(tmp_path / "cache", driver).cache()
        return {each["image_id"]: each["hits"] for each in cache.get_cached_images()}

    for driver, other in (("sqlite", "xattr"), ("xattr", "sqlite")):
        cache = Place(tmp_path / "cache", driver).cache()
        put(cache, f"of {driver}", 10)
        put(cache, f"unread {driver}", 10)
        read(cache, f"of {driver}")
        read(cache, f"of {driver}")
        before = hits(driver)
        assert hits(other) == before
        assert hits(other) == before
        assert before[f"of {driver}"] == 2

"""Opening an image while another thread evicts it, and files that wait for the next open: step by
step, without a mount."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support.disturb import descriptors

from cachefs import vfs
from cachefs.cache import Held, ImageCache, Layout, Limits, OpenImage, Store
from cachefs.cache.lock import is_held
from cachefs.errors import DriverError, StaleError
from cachefs.units import Amount
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.inodes import NodeKind, Serials, join
from cachefs.vfs.open_files import Grant, OpenFiles


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    ImageCache(tmp_path).cache_image_iter("a", [b"data"])
    store = Store(tmp_path, Limits(Amount(2**20)))
    yield store
    store.close()


@pytest.fixture
def files(store: Store, tmp_path: Path) -> ImageFiles:
    registry, hits = OpenFiles(Serials()), Hits(store.quick)
    files = ImageFiles(store.quick, Held(Layout(tmp_path)), registry, hits, lasting=True)
    store.on_evicting(files.hold)
    return files


def test_an_image_evicted_while_it_is_opened_is_stale_and_nothing_of_it_stays(
    store: Store, files: ImageFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry, before = store.quick.get("a"), descriptors_of(tmp_path)
    assert entry is not None
    really = store.quick.open_image

    def evicted_just_then(image_id: str) -> OpenImage:
        image = really(image_id)
        store.evict(image_id)
        return image

    monkeypatch.setattr(store.quick, "open_image", evicted_just_then)
    with pytest.raises(StaleError):
        files.cached(join(NodeKind.CACHED, entry.inode))
    assert descriptors_of(tmp_path) == before
    assert list((tmp_path / ".cachefs" / "held").iterdir()) == []


def test_an_image_opened_just_before_its_name_goes_is_held(
    store: Store, files: ImageFiles, tmp_path: Path
) -> None:
    entry = store.quick.get("a")
    assert entry is not None
    files.hold(entry)  # the evicting thread has found it closed
    inode = join(NodeKind.CACHED, entry.inode)
    file = open_image(files, inode)
    held = tmp_path / ".cachefs" / "held" / str(inode)
    assert held.samefile(tmp_path / "a")
    store.evict("a")
    assert held.read_bytes() == b"data"
    file.close()
    assert list((tmp_path / ".cachefs" / "held").iterdir()) == []


def test_an_image_closed_and_opened_again_while_it_is_held_stays_held(
    store: Store, files: ImageFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = store.quick.get("a")
    assert entry is not None
    inode = join(NodeKind.CACHED, entry.inode)
    grants = [open_image(files, inode)]
    keep, release, releases = Held.keep, Held.release, 0

    def closed_just_then(held: Held, image_id: str, number: int) -> None:
        keep(held, image_id, number)
        if len(grants) == 1:
            grants.append(grants[0])
            grants[0].close()

    def opened_just_then(held: Held, number: int) -> None:
        nonlocal releases
        releases += 1
        if releases == 2:  # the first is the close's, the second the evicting thread's
            grants.append(open_image(files, inode))
        release(held, number)

    monkeypatch.setattr(Held, "keep", closed_just_then)
    monkeypatch.setattr(Held, "release", opened_just_then)
    assert store.evict("a")
    assert (tmp_path / ".cachefs" / "held" / str(inode)).read_bytes() == b"data"
    grants[-1].close()
    assert list((tmp_path / ".cachefs" / "held").iterdir()) == []


def open_image(files: ImageFiles, inode: int) -> Grant:
    grant = files.open(inode, os.O_RDONLY)
    assert grant is not None
    assert grant.handle == inode
    return grant


def open_and_close(files: ImageFiles, store: Store) -> int:
    """The image's node, after an open and a close of it by the relay."""
    entry = store.quick.get("a")
    assert entry is not None
    inode = join(NodeKind.CACHED, entry.inode)
    open_image(files, inode).close()
    return inode


def test_a_closed_file_waits_for_the_next_open(
    store: Store, files: ImageFiles, tmp_path: Path
) -> None:
    inode = open_and_close(files, store)
    assert len(descriptors_of(tmp_path)) == 1
    assert not is_held(tmp_path / "a"), "an evictor may take it"
    open_image(files, inode)
    assert len(descriptors_of(tmp_path)) == 1
    assert is_held(tmp_path / "a")


def test_evicting_an_image_closes_the_file_that_waits(
    store: Store, files: ImageFiles, tmp_path: Path
) -> None:
    inode = open_and_close(files, store)
    assert store.evict("a")
    assert descriptors_of(tmp_path) == []
    assert files.open(inode, os.O_RDONLY) is None


def test_a_file_that_another_process_evicted_is_not_opened_again(
    store: Store, files: ImageFiles, tmp_path: Path
) -> None:
    inode = open_and_close(files, store)
    ImageCache(tmp_path).delete_cached_image("a")
    ImageCache(tmp_path).cache_image_iter("a", [b"atad"])
    assert files.open(inode, os.O_RDONLY) is None
    assert descriptors_of(tmp_path) == []


def test_a_file_closed_while_its_image_is_evicted_does_not_wait(
    store: Store, files: ImageFiles, tmp_path: Path
) -> None:
    entry = store.quick.get("a")
    assert entry is not None
    inode = join(NodeKind.CACHED, entry.inode)
    grant = open_image(files, inode)
    store.evict("a")
    grant.close()
    assert descriptors_of(tmp_path) == []


async def test_files_do_not_wait_for_ever(
    store: Store, files: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vfs.idle, "IDLE_SECONDS", 0.05)
    open_and_close(files, store)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(files.idle.close_old)
            while descriptors_of(tmp_path):  # noqa: ASYNC110 - nobody tells us
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_of_opens_that_overlap_in_threads_one_file_waits_and_the_other_is_closed(
    store: Store, files: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.quick.get("a")
    assert entry is not None
    inode = join(NodeKind.CACHED, entry.inode)
    really, opened, go_on = store.open_image, threading.Event(), threading.Event()

    def open_and_pause(image_id: str) -> OpenImage:
        image = really(image_id)
        if not opened.is_set():
            opened.set()
            assert go_on.wait(10)
        return image

    async def open_and_close_when_free() -> None:
        file = await files.cached_when_free(inode, "a")
        files._files.grant(file, inode).close()

    monkeypatch.setattr(store, "open_image", open_and_pause)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_and_close_when_free)
            await trio.to_thread.run_sync(opened.wait)
            await open_and_close_when_free()
            go_on.set()
    assert len(descriptors_of(tmp_path)) == 1


def test_the_file_that_leaves_for_another_may_be_dropped_by_a_thread_just_then(
    files: ImageFiles, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vfs.idle, "IDLE_FILES", 0)
    threads: list[threading.Thread] = []

    class Raced(OrderedDict[int, tuple[OpenImage, float]]):
        def __len__(self) -> int:
            length = super().__len__()
            threads.append(threading.Thread(target=files.idle.drop, args=(1,)))
            threads[-1].start()
            threads[-1].join(0.05)  # unless it has to wait for us
            return length

    files.idle._files = Raced()
    files.idle.keep(1, store.open_image("a"))
    for thread in threads:
        thread.join()
    assert descriptors_of(tmp_path) == []


def test_an_index_that_fails_is_for_the_filesystem_to_tell_of_and_not_the_relay(
    store: Store, files: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.quick.get("a")
    assert entry is not None

    def fail(_: str) -> OpenImage:
        raise DriverError("the index cannot be read")

    monkeypatch.setattr(store.quick, "open_image", fail)
    assert files.open(join(NodeKind.CACHED, entry.inode), os.O_RDONLY) is None


def descriptors_of(directory: Path) -> list[str]:
    return [name for name in descriptors(os.getpid()) if name.startswith(f"{directory}/a")]

"""Opening an image while another thread evicts it, step by step, without a mount."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.disturb import descriptors

from cachefs.cache import ImageCache, Limits, OpenImage, Store
from cachefs.config import Amount
from cachefs.errors import StaleError
from cachefs.vfs.inodes import Room, join
from cachefs.vfs.opened import OpenImages


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    ImageCache(tmp_path).cache_image_iter("a", [b"data"])
    store = Store(tmp_path, Limits(Amount(2**20)))
    yield store
    store.close()


@pytest.fixture
def opened(store: Store) -> OpenImages:
    nothing: Any = None  # no fetch is needed
    opened = OpenImages(store, nothing, lasting=True)
    store.on_evicting(opened.hold)
    return opened


def test_an_image_evicted_while_it_is_opened_is_stale_and_nothing_of_it_stays(
    store: Store, opened: OpenImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry, before = store.get("a"), descriptors_of(tmp_path)
    assert entry is not None
    really = store.open_image

    def evicted_just_then(image_id: str) -> OpenImage:
        image = really(image_id)
        store.evict(image_id)
        return image

    monkeypatch.setattr(store, "open_image", evicted_just_then)
    with pytest.raises(StaleError):
        opened.cached(entry)
    assert descriptors_of(tmp_path) == before
    assert list((tmp_path / ".cachefs" / "held").iterdir()) == []


def test_an_image_opened_just_before_its_name_goes_is_held(
    store: Store, opened: OpenImages, tmp_path: Path
) -> None:
    entry = store.get("a")
    assert entry is not None
    opened.hold(entry)  # the evicting thread has found it closed
    file = opened.cached(entry)
    inode = join(Room.CACHED, entry.inode)
    assert store.held.path(inode).samefile(tmp_path / "a")
    store.evict("a")
    assert store.held.path(inode).read_bytes() == b"data"
    file.close()
    assert list((tmp_path / ".cachefs" / "held").iterdir()) == []


def descriptors_of(directory: Path) -> list[str]:
    return [name for name in descriptors(os.getpid()) if name.startswith(f"{directory}/a")]

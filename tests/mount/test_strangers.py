"""A mount beside processes that hold locks in its cache directory, or damage its index."""

import os
import signal
from typing import Any

import pytest
from support.cachefs_mount import Mounted
from support.processes import wait_for
from support.strangers import FLOCK, READ_TRANSACTION, WRITE_LOCK, another_holds

from .conftest import MakeMount

LOCKS = {
    "the directory": (".cachefs/lock", FLOCK),
    "the index, writing": ("cache.db", WRITE_LOCK),
    "the index, reading": ("cache.db", READ_TRANSACTION),
}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_of_another_process_delays_nobody_and_costs_no_worker(
    mount: Mounted, lock: str
) -> None:
    name, how = LOCKS[lock]
    image, data = mount.origin.new()
    mount.fetch(image)
    before = mount.worker()
    with another_holds(mount.cache_dir / name, how):
        for _ in range(20):
            assert mount.cat(image) == data
            assert mount.status()["images"]
            assert mount.record(f"cached/{image}")["hits"]
            assert image in mount.listed()
    assert mount.worker() == before


def known(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says but for statistics."""
    return {name: value for name, value in record.items() if name not in {"hits", "last_accessed"}}


@pytest.mark.parametrize("damage", ["overwritten", "removed"])
def test_a_mount_outlives_its_index(make_mount: MakeMount, damage: str) -> None:
    mount = make_mount()
    images = dict(mount.origin.new() for _ in range(2))
    mount.fetch(*images)
    pinned, _ = images
    (mount.control / "pinned" / pinned).touch()
    before = {image: known(mount.record(f"cached/{image}")) for image in images}
    mount.expect("it is set aside", "it is gone", "SIGKILL")
    path = mount.cache_dir / ".cachefs/cache.db"
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(os.urandom(path.stat().st_size))
        os.truncate(path.with_name("cache.db-wal"), 0)
    wait_for(lambda: mount.status()["images"] == 2, "a new index")
    for image, data in images.items():
        assert mount.cat(image) == data
    assert before == {image: known(mount.record(f"cached/{image}")) for image in images}
    assert before[pinned]["pinned"]
    os.kill(mount.worker(), signal.SIGKILL)
    wait_for(lambda: mount.status()["images"] == 2, "the next worker")
    assert before == {image: known(mount.record(f"cached/{image}")) for image in images}


def test_a_file_changed_while_the_index_is_lost_is_not_believed(make_mount: MakeMount) -> None:
    mount = make_mount()
    image, data = mount.origin.new()
    mount.fetch(image)
    mount.expect("it is gone", "is another file by now", "is damaged")
    path = mount.cache_dir / image
    (mount.cache_dir / ".cachefs/cache.db").unlink()
    path.write_bytes(os.urandom(len(data)))
    assert mount.cat(image) == data

"""Reading an image through a mount while a Glance caches it in the same directory: no EBUSY, no
ESTALE, no wrong byte. It takes no lock, and publishes by rename."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from support.cachefs_mount import Mounted

from .conftest import MakeMount

SIZE = 3_000_000


@pytest.fixture(
    params=[(driver, how) for driver in ("sqlite", "xattr") for how in ("relay", "plain")],
    ids="-".join,
)
def mount(request: pytest.FixtureRequest, make_mount: MakeMount) -> Mounted:
    driver, transport = request.param
    return make_mount(driver=driver, options=("--transport", transport))


class Glance:
    """It has begun to cache an image, as ``glance/image_cache/drivers`` does."""

    def __init__(self, cache_dir: Path, image_id: str, data: bytes) -> None:
        self._from, self._to = cache_dir / "incomplete" / image_id, cache_dir / image_id
        self._file = self._from.open("wb")
        self._data = data
        self.step(1000)

    def step(self, count: int) -> bool:
        """Write some more; whether there is more."""
        at = self._file.tell()
        self._file.write(self._data[at : at + count])
        self._file.flush()
        return self._file.tell() < len(self._data)

    def publish(self) -> None:
        self.step(len(self._data))
        self._file.close()
        self._from.rename(self._to)

    def die(self) -> None:
        self._file.close()


@contextmanager
def slowly(glance: Glance) -> Iterator[None]:
    """It goes on in a thread while the block runs, to its end."""

    def work() -> None:
        while glance.step(100_000):
            time.sleep(0.01)  # a download takes its time
        glance.publish()

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_reader_beside_a_glance_that_is_at_it(mount: Mounted) -> None:
    name, data = mount.origin.new(SIZE)
    glance = Glance(mount.cache_dir, name, data)
    assert mount.cat(name) == data
    glance.publish()
    assert mount.cat(name) == data
    assert (mount.cache_dir / name).read_bytes() == data


def test_readers_while_a_glance_gets_on_and_publishes(mount: Mounted) -> None:
    images = [mount.origin.new(SIZE) for _ in range(4)]
    for name, data in images:
        with slowly(Glance(mount.cache_dir, name, data)):
            for _ in range(6):
                assert mount.cat(name) == data
        assert mount.cat(name) == data
        assert (mount.cache_dir / name).read_bytes() == data


def test_a_reader_when_a_glance_was_killed(mount: Mounted) -> None:
    name, data = mount.origin.new(SIZE)
    Glance(mount.cache_dir, name, data[:SIZE]).die()
    assert mount.cat(name) == data
    mount.wait_listed("cached", name)
    assert (mount.cache_dir / name).read_bytes() == data


def test_a_queued_image_that_a_glance_caches_leaves_the_queue_when_it_is_cached(
    mount: Mounted,
) -> None:
    name, data = mount.origin.new(SIZE)
    (mount.cache_dir / "queue" / name).touch()  # by Glance, say
    mount.wait_listed("cached", name)
    name, data = mount.origin.new(SIZE)
    glance = Glance(mount.cache_dir, name, data)
    (mount.cache_dir / "queue" / name).touch()
    glance.publish()
    mount.wait_listed("cached", name)
    assert mount.cat(name) == data


@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
def test_a_worker_that_is_killed_beside_a_glance_leaves_its_reader_right(
    make_mount: MakeMount, driver: str
) -> None:
    mount = make_mount(driver=driver, options=("--transport", "relay", "--bandwidth", "2M"))
    name, data = mount.origin.new(SIZE)
    glance = Glance(mount.cache_dir, name, data)
    with open(mount.image(name), "rb", buffering=0) as file:
        first = file.read(4096)
        mount.expect("worker", "ended")
        os.kill(mount.worker(), signal.SIGKILL)
        rest = b"".join(iter(lambda: file.read(65536), b""))
    assert first + rest == data
    glance.publish()
    assert mount.cat(name) == data

"""``ImageCache`` against a model of plain dicts: cached, queued, hit, pinned, held, evicted."""

import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.place import Place, content

from cachefs.cache import Held, Layout, lease
from cachefs.drivers import DRIVERS
from cachefs.errors import ChecksumError, ImageNotFoundError

IDS = st.sampled_from(["a", "b ~%", "ü", "-c", "d" * 255])
SIZES = st.sampled_from([0, 1, 10, 20, 40, 60, 100, 120])
LIMITS = st.sampled_from([50, 100])
CHUNKS = st.lists(st.integers(0, 45), max_size=4)


@dataclass(eq=False)
class Image:
    """What the model knows of a cached image; *used* orders by last access."""

    size: int
    used: int
    hits: int = 0
    pinned: bool = False


class Machine(RuleBasedStateMachine):
    """At most one rejected and one abandoned file at a time, so that it is clear which goes."""

    driver = ""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="cachefs-model-"))
        self.place = Place(self.base / "cache", self.driver)
        self.images: dict[str, Image] = {}
        self.queue: list[str] = []
        self.rejected: dict[str, int] = {}
        self.abandoned: dict[str, int] = {}
        self.held: dict[int, Image] = {}
        self.moment = 10**6

    def teardown(self) -> None:
        del self.cache
        shutil.rmtree(self.base)

    # The model

    def now(self) -> int:
        self.moment += 1
        return self.moment

    def taken(self) -> int:
        others = sum(self.rejected.values()) + sum(self.abandoned.values()) + self.only_held()
        return others + sum(image.size for image in self.images.values())

    def only_held(self) -> int:
        """Bytes of the images that were evicted while they were held."""
        return sum(i.size for i in set(self.held.values()) - set(self.images.values()))

    def make_room(self, limit: int) -> tuple[int, int]:
        files = size = 0
        for leftovers in (self.abandoned, self.rejected):
            if self.taken() > limit and any(leftovers.values()):
                leftovers.clear()
        for image_id, image in sorted(self.images.items(), key=lambda item: item[1].used):
            if self.taken() > limit and not image.pinned and image not in self.held.values():
                del self.images[image_id]
                files, size = files + 1, size + image.size
        return files, size

    def write(self, image_id: str, chunks: list[int]) -> bool:
        """Whether an image that arrives in *chunks* gets to its end."""
        self.abandoned.pop(image_id, None)
        end = 0
        for chunk in filter(None, chunks):
            end += chunk
            pinned = {image for image in self.images.values() if image.pinned}
            kept = sum(image.size for image in pinned.union(self.held.values()))
            if end + kept > self.limit:
                return False
            self.make_room(self.limit - end)
        return True

    # The rules

    @initialize(limit=LIMITS)
    def open(self, limit: int) -> None:
        self.limit = limit
        self.cache = self.place.cache(max_size=limit)
        self.links = Held(Layout(self.place.path))

    @rule(limit=LIMITS)
    def reopen(self, limit: int) -> None:
        self.open(limit)
        self.abandoned.clear()

    def chunks(self, image_id: str, sizes: list[int]) -> tuple[list[bytes], str]:
        data = content(image_id, sum(sizes))
        chunks, start = [], 0
        for size in sizes:
            chunks.append(data[start : start + size])
            start += size
        return chunks, hashlib.md5(data).hexdigest()

    @rule(image_id=IDS, sizes=CHUNKS, tee=st.booleans())
    def cache_image(self, image_id: str, sizes: list[int], tee: bool) -> None:
        chunks, md5 = self.chunks(image_id, sizes)
        fits = image_id not in self.images and self.write(image_id, sizes)
        if tee:
            assert list(self.cache.get_caching_iter(image_id, md5, iter(chunks))) == chunks
        else:
            assert self.cache.cache_image_iter(image_id, iter(chunks), md5) == fits
        if fits:
            self.images[image_id] = Image(sum(sizes), self.now())
            self.rejected.pop(image_id, None)
            self.forget(image_id)

    @precondition(lambda self: not self.rejected)
    @rule(image_id=IDS, size=SIZES)
    def cache_wrong_bytes(self, image_id: str, size: int) -> None:
        wrong = [content(image_id, size)]
        if image_id in self.images:
            assert not self.cache.cache_image_iter(image_id, wrong, "0" * 32)
        elif self.write(image_id, [size]):
            with pytest.raises(ChecksumError):
                self.cache.cache_image_iter(image_id, wrong, "0" * 32)
            self.rejected[image_id] = size
            self.forget(image_id)
        else:
            assert not self.cache.cache_image_iter(image_id, wrong, "0" * 32)

    @rule(image_id=IDS, size=SIZES)
    def drop_half_way(self, image_id: str, size: int) -> None:
        if image_id not in self.images:
            self.write(image_id, [size])
        next(iter(self.cache.get_caching_iter(image_id, None, [content(image_id, size), b"x"])))

    @precondition(lambda self: not self.abandoned)
    @rule(image_id=IDS, size=SIZES)
    def find_abandoned(self, image_id: str, size: int) -> None:
        if image_id not in self.images:
            path = self.place.path / "incomplete" / image_id
            path.write_bytes(bytes(size))
            os.utime(path, (0, time.time() - 2 * lease.CLOSING))  # its writer is gone
            self.abandoned[image_id] = size

    @rule(image_id=IDS, size=SIZES, limit=LIMITS)
    def find_foreign_file(self, image_id: str, size: int, limit: int) -> None:
        if image_id not in self.images and image_id not in self.abandoned:
            path = self.place.path / image_id
            path.write_bytes(content(image_id, size))
            used = self.now() - 10**6
            os.utime(path, (used, used))
            self.images[image_id] = Image(size, used)
            self.rejected.pop(image_id, None)
            self.reopen(limit)
            self.forget(image_id)

    @rule(image_id=IDS)
    def read(self, image_id: str) -> None:
        image = self.images.get(image_id)
        if image is None:
            with pytest.raises(ImageNotFoundError), self.cache.open_for_read(image_id):
                pass
            return
        with self.cache.open_for_read(image_id) as file:
            assert file.read() == content(image_id, image.size)
        image.hits += 1
        image.used = self.now()

    @rule(image_id=IDS)
    def queue_image(self, image_id: str) -> None:
        new = image_id not in self.images and image_id not in self.queue
        assert self.cache.queue_image(image_id) == new
        if new:
            self.queue.append(image_id)
        if image_id not in self.images:
            self.rejected.pop(image_id, None)

    @rule(image_id=IDS)
    def delete_queued(self, image_id: str) -> None:
        self.cache.delete_queued_image(image_id)
        self.forget(image_id)

    @rule()
    def delete_all_queued(self) -> None:
        assert self.cache.delete_all_queued_images() == len(self.queue)
        self.queue.clear()

    @rule(image_id=IDS)
    def delete(self, image_id: str) -> None:
        self.cache.delete_cached_image(image_id)
        self.images.pop(image_id, None)

    @rule()
    def delete_all(self) -> None:
        assert self.cache.delete_all_cached_images() == len(self.images)
        self.images.clear()

    @precondition(lambda self: self.images)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        image_id = data.draw(st.sampled_from(sorted(self.images)))
        self.cache._store.pin(image_id, pinned)
        self.images[image_id].pinned = pinned

    @rule(image_id=IDS, number=st.integers(1, 3))
    def hold(self, image_id: str, number: int) -> None:
        """As a mount does with an open image whose name is going."""
        if image_id in self.images:
            assert self.links.keep(image_id, number)
            self.held[number] = self.images[image_id]

    @rule(number=st.integers(1, 3))
    def release(self, number: int) -> None:
        self.links.release(number)
        self.held.pop(number, None)

    @rule()
    def prune(self) -> None:
        assert self.cache.prune() == self.make_room(self.limit)

    @rule(stalled=st.booleans())
    def clean(self, stalled: bool) -> None:
        self.cache.clean(0 if stalled else None)
        self.rejected.clear()
        if stalled:
            self.abandoned.clear()

    def forget(self, image_id: str) -> None:
        if image_id in self.queue:
            self.queue.remove(image_id)

    # What always holds

    @invariant()
    def cached_images_are_those_of_the_model(self) -> None:
        if hasattr(self, "cache"):
            found = {
                image["image_id"]: (image["size"], image["hits"])
                for image in self.cache.get_cached_images()
            }
            assert found == {
                image_id: (image.size, image.hits) for image_id, image in self.images.items()
            }
            assert self.cache.get_cache_size() == sum(i.size for i in self.images.values())
            assert self.place.names() == sorted(self.images)

    @invariant()
    def the_room_taken_is_that_of_the_model(self) -> None:
        if hasattr(self, "cache"):
            usage = self.cache._store.usage()
            assert usage.held == self.only_held()
            taken = usage.cached + usage.reserved + usage.rejected + usage.held
            assert taken == self.taken()

    @invariant()
    def the_rest_of_the_directory_is_that_of_the_model(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.get_queued_images() == self.queue
            assert self.place.names("queue") == sorted(self.queue)
            assert self.place.names("incomplete") == sorted(self.abandoned)
            assert self.place.names("invalid") == sorted(self.rejected)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("driver", DRIVERS)
def test_any_sequence_of_calls_does_what_the_model_does(driver: str) -> None:
    run_state_machine_as_test(
        type("DriverMachine", (Machine,), {"driver": driver}),
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

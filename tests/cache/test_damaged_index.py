"""A damaged database, in ways that nobody has thought of: hits are lost at most."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from cachefs.cache import Limits, Store
from cachefs.image import Digest
from cachefs.units import Amount

IMAGES = [f"image-{number}" for number in range(6)]
Damage = Callable[[Random, bytearray], object]


def garbage(dice: Random, data: bytearray) -> None:
    """In some places, not the first page."""
    for _ in range(4):
        start = dice.randrange(1024, len(data))
        data[start : start + 512] = dice.randbytes(min(512, len(data) - start))


def wrong_bytes(dice: Random, data: bytearray) -> None:
    """A few, anywhere."""
    for _ in range(dice.randrange(1, 30)):
        data[dice.randrange(len(data))] = dice.randrange(256)


def no_text(dice: Random, data: bytearray) -> None:
    """What is no UTF-8, in names and in the words of a schema."""
    for word in (b"cached_images", b"cachefs_totals", b"TEXT", b"http:", b"sha256:", b"image-"):
        if dice.random() < 0.5:
            data[:] = data.replace(word, word[:-1] + b"\x88", dice.randrange(1, 4))


def swapped_pages(dice: Random, data: bytearray) -> None:
    """Right pages in wrong places."""
    pages = len(data) // 1024
    one, other = dice.randrange(1, pages) * 1024, dice.randrange(1, pages) * 1024
    data[one : one + 1024], data[other : other + 1024] = (
        data[other : other + 1024],
        data[one : one + 1024],
    )


def put(store: Store, image_id: str) -> None:
    data = image_id.encode() * 100
    with store.begin(image_id, len(data)) as transaction:
        transaction.write(data)
        digest = Digest("sha256", hashlib.sha256(data).hexdigest())
        transaction.commit(checksum=digest, verified=True, source="http://host/")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "cache"
    store = Store(path, Limits(Amount(size=100_000)))
    for image_id in IMAGES:
        put(store, image_id)
    store.pin(IMAGES[0], True)
    store.close()
    return path


@pytest.mark.parametrize("damage", [garbage, wrong_bytes, no_text, swapped_pages])
@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
def test_whatever_is_damaged_every_image_is_there(
    whole: Path, tmp_path: Path, damage: Damage, driver: str
) -> None:
    for seed in range(25):
        dice = Random(seed)
        path = tmp_path / str(seed)
        shutil.copytree(whole, path, symlinks=True)
        data = bytearray((path / ".cachefs/cache.db").read_bytes())
        damage(dice, data)
        (path / ".cachefs/cache.db").write_bytes(data)
        store = Store(path, Limits(Amount(size=100_000)), driver=driver)
        assert {entry.image_id for entry in store.entries()} >= set(IMAGES), seed
        for image_id in IMAGES:
            store.open_image(image_id).close()
            store.hit(image_id, store.now())
            assert store.quick.get(image_id) == store.get(image_id), seed
        put(store, "new")
        assert store.evict(IMAGES[1]).image_id == IMAGES[1]
        assert store.totals().images == len(list(store.entries())), seed
        store.close()

"""A file under another image's name, or under two: a record is believed of its own image only."""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cachefs.cache import Limits, Store
from cachefs.errors import ImageNotFoundError
from cachefs.image import Digest
from cachefs.units import Amount

DATA = {"a": b"a" * 1000, "b": b"b" * 1000}


def open_store(path: Path, driver: str) -> Store:
    return Store(path, Limits(Amount(size=100_000)), driver=driver)


@pytest.fixture(params=["sqlite", "xattr"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def path(tmp_path: Path, driver: str) -> Path:
    path = tmp_path / "cache"
    with closing(open_store(path, driver)) as store:
        for name, data in DATA.items():
            digest = Digest("sha256", hashlib.sha256(data).hexdigest())
            with store.begin(name, len(data)) as transaction:
                transaction.write(data)
                transaction.commit(checksum=digest, verified=True)
    return path


def copied(path: Path) -> None:
    shutil.copy2(path / "b", path / "a")  # with its attributes, as cp -a


def copied_anew(path: Path) -> None:
    shutil.copy2(path / "b", path / "new")
    (path / "new").rename(path / "a")


def renamed(path: Path) -> None:
    (path / "b").rename(path / "a")


def verified_as(store: Store, name: str) -> bytes | None:
    """What is served as verified under a name."""
    try:
        image = store.open_image(name)
    except ImageNotFoundError:
        return None
    with closing(image):
        return os.pread(image.fd, 2000, 0) if image.entry.verified else None


@pytest.mark.parametrize("change", [copied, copied_anew, renamed])
@pytest.mark.parametrize("when", ["open", "closed"])
def test_one_image_is_never_served_as_another_that_was_verified(
    path: Path, driver: str, change: Callable[[Path], None], when: str
) -> None:
    if when == "closed":
        change(path)
    with closing(open_store(path, driver)) as store:
        store.is_cached("a")
        if when == "open":
            change(path)
        for _ in range(2):
            assert verified_as(store, "a") in (None, DATA["a"])
            assert verified_as(store, "b") in (None, DATA["b"])
    with closing(open_store(path, driver)) as store:
        assert verified_as(store, "a") in (None, DATA["a"])


@pytest.mark.parametrize("when", ["open", "closed"])
@pytest.mark.parametrize("name", ["0", "z"])
def test_a_hard_link_harms_no_image(path: Path, driver: str, when: str, name: str) -> None:
    if when == "closed":
        os.link(path / "a", path / name)
    with closing(open_store(path, driver)) as store:
        if when == "open":
            store.is_cached("a")
            os.link(path / "a", path / name)
        for _ in range(2):
            assert verified_as(store, "a") == DATA["a"]
            assert verified_as(store, "b") == DATA["b"]
            store.is_cached(name)
            assert {"a", "b"} <= {entry.image_id for entry in store.entries()}


@pytest.mark.parametrize("named", ["\0", "a\0b", "../b", "x" * 300, ".", ""])
def test_a_name_that_makes_no_sense_harms_no_image(path: Path, driver: str, named: str) -> None:
    """Whoever may write to a file may write its attributes."""
    os.setxattr(path / "a", "user.cachefs.image", named.encode())
    with closing(open_store(path, driver)) as store:
        assert store.is_cached("a")
        assert {entry.image_id for entry in store.entries()} == {"a", "b"}
        os.setxattr(path / "b", "user.cachefs.image", named.encode())
        assert store.get("b") is not None
        assert store.totals().images == 2

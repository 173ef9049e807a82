"""A cache directory that is removed while a cache is open: it is a cache again, and empty."""

import shutil
from pathlib import Path

import pytest

from cachefs.cache import Limits, Store
from cachefs.cache.layout import Layout
from cachefs.errors import CacheDirectoryError, CacheFSError
from cachefs.units import Amount


def put(store: Store, image_id: str, data: bytes = b"x" * 1000) -> int:
    with store.begin(image_id, len(data)) as transaction:
        transaction.write(data)
        return transaction.commit().inode


@pytest.fixture(params=["sqlite", "xattr"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_it_caches_again_and_knows_nothing_of_before(tmp_path: Path, driver: str) -> None:
    store = Store(tmp_path / "cache", Limits(Amount(size=10_000)), driver=driver)
    before = [put(store, name) for name in ("one", "two", "three")]
    shutil.rmtree(tmp_path / "cache")
    store.prune()
    assert not store.is_cached("one")
    after = put(store, "four")
    assert [entry.image_id for entry in store.entries()] == ["four"]
    assert store.totals().images == 1
    assert store.quick.get("one") is None
    # The kernel goes by the number, and may remember those of before.
    assert after > max(before)
    store.close()


def test_another_directory_in_its_place_is_left_alone(tmp_path: Path, driver: str) -> None:
    store = Store(tmp_path / "cache", Limits(Amount(size=10_000)), driver=driver)
    put(store, "one")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine").write_bytes(b"mine")
    with pytest.raises(CacheDirectoryError, match="--adopt"):
        store.prune()
    assert (tmp_path / "cache" / "mine").read_bytes() == b"mine"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mine"]
    store.close()


def test_the_index_is_in_its_place_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cachefs.drivers.database.RETURN", 0.0)
    store = Store(tmp_path / "cache", Limits(Amount(size=10_000)))
    put(store, "one")
    shutil.rmtree(tmp_path / "cache")
    assert store.get("one") is None  # asked before the directory is made anew
    put(store, "two")
    assert [entry.image_id for entry in store.entries()] == ["two"]
    assert (tmp_path / "cache" / "cache.db").read_bytes().startswith(b"SQLite format 3")
    assert "is in its place again" in caplog.text
    store.close()


@pytest.mark.parametrize("part", [str(path) for path in Layout(Path()).directories])
def test_a_part_of_it_is_there_again_and_empty(tmp_path: Path, driver: str, part: str) -> None:
    """As where it is being removed while it is made anew."""
    store = Store(tmp_path / "cache", Limits(Amount(size=10_000)), driver=driver)
    put(store, "one")
    shutil.rmtree(tmp_path / "cache" / part)
    assert store.queued_ids() == store.failed_ids() == store.to_be_pinned() == []
    assert store.abandoned() == list(store.incomplete()) == []
    assert store.enqueue("two")
    assert store.set_priority("two", 5)
    assert not store.pin_when_cached("three")
    put(store, "four")
    store.fail("two", CacheFSError("no"))
    assert store.failed_ids() == ["two"]
    assert {"one", "four"} == {entry.image_id for entry in store.entries()}
    assert store.clean(0) == (1, 0)
    assert Layout(tmp_path / "cache").is_whole()
    store.close()

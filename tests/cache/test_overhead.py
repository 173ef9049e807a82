"""What a cache directory takes besides what counts against max_size."""

from pathlib import Path

import pytest
from support.clock import Clock
from support.place import Place, content

from cachefs.cache import Layout, overhead
from cachefs.cache.overhead import Overhead

MIB = 2**20


def on_disk(path: Path) -> int:
    """As du(1) has it, without the directories."""
    return sum(
        each.lstat().st_blocks * 512 for each in path.rglob("*") if each.is_file() and each.exists()
    )


def test_the_index_and_all_in_our_own_directory_are_counted(place: Place) -> None:
    with place.opened() as store:
        place.cache().cache_image_iter("a", [content("a", 1000)])
        before = Overhead(Layout(place.path), store._driver).bytes()
        assert before >= store._driver.disk_bytes()
        for name in ("failed/x", "aside/cache.db.1", "log", "held/5.json", "maps/x"):
            (place.path / ".cachefs" / name).write_bytes(bytes(MIB))
        (place.path / ".cachefs/aside/tree/below").mkdir(parents=True)
        (place.path / ".cachefs/aside/tree/below/file").write_bytes(bytes(MIB))
        after = Overhead(Layout(place.path), store._driver).bytes()
        assert after - before >= 6 * MIB
        assert abs(after - on_disk(place.path / ".cachefs")) < 3 * 4096  # of a page each


def test_what_counts_against_max_size_is_not_counted_twice(place: Place) -> None:
    with place.opened() as store:
        place.cache().cache_image_iter("a", [content("a", MIB)])
        before = Overhead(Layout(place.path), store._driver).bytes()
        (place.path / ".cachefs/held/5").hardlink_to(place.path / "a")
        (place.path / ".cachefs/beside/x").write_bytes(bytes(MIB))
        (place.path / "a").unlink()
        assert Overhead(Layout(place.path), store._driver).bytes() == before
        assert store.usage().reserved == store.usage().held == MIB


def test_polling_walks_the_directory_once_in_a_while_only(place: Place) -> None:
    clock = Clock()
    with place.opened() as store:
        measured = Overhead(Layout(place.path), store._driver, clock)
        before = measured.bytes()
        (place.path / ".cachefs/log").write_bytes(bytes(MIB))
        assert measured.bytes() == before
        clock.now += overhead.EVERY
        assert measured.bytes() >= before + MIB


def test_the_index_itself_is_measured_each_time(tmp_path: Path) -> None:
    place = Place(tmp_path / "cache", "sqlite")
    with place.opened() as store:
        before = store.index_bytes()
        (place.path / ".cachefs/cache.db-journal").write_bytes(bytes(MIB))
        assert store.index_bytes() == before + MIB
        (place.path / ".cachefs/cache.db-journal").unlink()


@pytest.mark.parametrize("gone", ["failed", "held", "beside"])
def test_a_directory_that_is_gone_is_no_error(place: Place, gone: str) -> None:
    with place.opened() as store:
        (place.path / ".cachefs" / gone).rmdir()
        assert store.index_bytes() > 0

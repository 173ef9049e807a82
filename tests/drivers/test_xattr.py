"""What only the xattr driver does: attributes of others, falling back, watching."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.cache_dir import CacheDir

from cachefs.drivers import Entry, Totals, attributes, file_record, open_driver, registry, watch
from cachefs.drivers.xattr import XattrDriver
from cachefs.errors import DriverError, InvalidValueError


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CacheDir]:
    cache = CacheDir(tmp_path, "xattr")
    yield cache
    cache.close()


@pytest.fixture
def no_inotify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_inotify", lambda directories: None)


def ids(entries: Iterator[Entry]) -> list[str]:
    return [entry.image_id for entry in entries]


def test_hits_and_access_time_stand_on_the_file_as_in_glance(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    driver.hit("a", 1700000000.25)
    assert os.getxattr(cache.path / "a", "user.hits") == b"1"
    assert (cache.path / "a").stat().st_atime_ns == 1700000000_250000000


def test_a_record_is_read_while_its_attributes_grow(cache: CacheDir) -> None:
    """Between the question for a value's size and that for its bytes, ERANGE."""
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    path, done = cache.path / "a", threading.Event()

    def grow() -> None:
        while not done.is_set():
            for hits, source in ((b"9", b"x" * 90), (b"1234567890", b"y")):
                os.setxattr(path, attributes.HITS, hits)
                os.setxattr(path, file_record.SOURCE, source)
                os.removexattr(path, file_record.SOURCE)

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        entries = [driver.get("a") for _ in range(3000)]
    finally:
        done.set()
        growing.join()
    assert {entry.hits for entry in entries if entry} <= {0, 9, 1234567890}
    assert None not in entries


def test_a_directory_of_glance_is_taken_as_it_is(cache: CacheDir) -> None:
    path = cache.path / "a"
    path.write_bytes(b"12345")
    os.setxattr(path, "user.hits", b"7")
    os.utime(path, (3.0, 2.0))
    entry = cache.open().get("a")
    assert entry is not None
    assert entry == Entry("a", 5, hits=7, last_accessed=3.0, last_modified=2.0, inode=entry.inode)


@pytest.mark.parametrize(
    "garbage", [b"", b"many", b"-1", b"1.5", b"\xff\xfe", b"9" * 400, "²".encode()]
)
def test_garbage_in_attributes_counts_as_missing(cache: CacheDir, garbage: bytes) -> None:
    path = cache.path / "a"
    path.touch()
    for name in ("hits", "cachefs.inode", "cachefs.fetched"):
        os.setxattr(path, f"user.{name}", garbage)
    driver = cache.open()
    driver.hit("a", 5.0)
    entry = driver.get("a")
    assert entry is not None
    assert entry.hits == 1
    assert entry.inode > 0
    assert driver.by_inode(entry.inode) == entry


def test_a_copy_with_attributes_gets_a_number_of_its_own(cache: CacheDir) -> None:
    driver = cache.open()
    put = cache.publish(driver, Entry("a", 1))
    subprocess.run(["cp", "-a", cache.path / "a", cache.path / "b"], check=True)
    assert driver.totals() == Totals(2, 2)
    assert len({entry.inode for entry in driver.entries()}) == 2
    entry = driver.get("a")
    assert entry is not None
    assert entry.inode == put.inode


def test_a_renamed_image_keeps_its_number(cache: CacheDir) -> None:
    driver = cache.open()
    put = cache.publish(driver, Entry("a", 1))
    cache.publish(driver, Entry("b", 2))
    (cache.path / "a").rename(cache.path / "b")
    assert driver.totals() == Totals(1, 1)
    entry = driver.by_inode(put.inode)
    assert entry is not None
    assert entry.image_id == "b"


def test_numbers_rise_though_the_clock_and_the_counter_go_back(cache: CacheDir) -> None:
    first = cache.publish(cache.open(), Entry("a", 1))
    cache.close()
    (cache.path / ".cachefs/inodes").unlink()
    driver = XattrDriver(cache.path, clock_ns=lambda: 1)
    driver.configure()
    assert cache.publish(driver, Entry("b", 1)).inode > first.inode
    driver.close()


def test_adopted_images_are_numbered_above_all_that_are_found(cache: CacheDir) -> None:
    numbered = cache.path / "m"
    numbered.touch()
    os.setxattr(numbered, "user.cachefs.inode", str(10**17).encode())
    for name in ("a", "b", "y", "z"):
        (cache.path / name).touch()
    driver = XattrDriver(cache.path, clock_ns=lambda: 1)
    driver.configure()
    assert driver.reconcile() == (4, 0)
    numbers = {entry.inode for entry in driver.entries()}
    assert numbers == set(range(10**17, 10**17 + 5))
    assert cache.publish(driver, Entry("next", 0)).inode == 10**17 + 5
    driver.close()


def test_copies_with_attributes_are_told_apart_at_the_start(cache: CacheDir) -> None:
    for name in ("a", "b", "c"):
        (cache.path / name).write_bytes(b"12")
        os.setxattr(cache.path / name, "user.cachefs.inode", b"7")
    driver = cache.open()
    assert driver.totals() == Totals(3, 6)
    assert len({entry.inode for entry in driver.entries()}) == 3


def test_a_number_that_another_process_gives_meanwhile_stands(
    cache: CacheDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (cache.path / name).touch()

    def other(path: str, inode: int) -> None:
        os.setxattr(path, "user.cachefs.inode", b"%d" % (5 if path.endswith("a") else 6))
        raise FileExistsError(path)

    monkeypatch.setattr(attributes, "number", other)
    driver = XattrDriver(cache.path)
    driver.configure()
    assert driver.reconcile() == (0, 0)
    assert [entry.inode for entry in driver.entries()] == [5, 6]
    driver.close()


def test_images_that_go_between_listing_and_numbering_are_no_error(
    cache: CacheDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.path / "a").touch()

    def gone(path: str, inode: int) -> None:
        Path(path).unlink()
        raise FileNotFoundError(path)

    monkeypatch.setattr(attributes, "number", gone)
    driver = cache.open()
    assert list(driver.entries()) == []
    assert driver.totals() == Totals(0, 0)


def test_a_failed_scan_is_made_up_for_by_the_next_call(
    cache: CacheDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: str) -> None:
        raise OSError("injected")

    driver = cache.open()
    cache.publish(driver, Entry("a", 3))
    (cache.path / "b").write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        with pytest.raises(OSError, match="injected"):
            driver.reconcile()
    assert driver.totals() == Totals(2, 4)
    assert ids(driver.entries()) == ["a", "b"]


def test_pins_and_access_times_are_known_after_a_start(cache: CacheDir) -> None:
    driver = cache.open()
    for name, accessed in (("a", 3.0), ("b", 2.0), ("c", 1.0)):
        cache.publish(driver, Entry(name, 1, last_accessed=accessed, pinned=name == "b"))
    cache.close()
    driver = cache.open()
    assert ids(driver.lru()) == ["c", "a"]
    assert ids(driver.pinned()) == ["b"]


def test_an_image_written_in_place_is_counted_in_full(cache: CacheDir) -> None:
    driver = cache.open()
    with (cache.path / "a").open("wb") as file:
        assert driver.totals() == Totals(1, 0)
        file.write(b"12345")
    assert driver.totals() == Totals(1, 5)


def test_a_lost_event_costs_a_scan_and_nothing_else(cache: CacheDir) -> None:
    driver = cache.open()
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(limit // 2 + 1):  # each makes two events or more
        (cache.path / "a").touch()
        (cache.path / "a").unlink()
    (cache.path / "b").write_bytes(b"1")
    assert ids(driver.entries()) == ["b"]


@pytest.mark.usefixtures("no_inotify")
def test_without_inotify_changes_of_others_are_seen_at_once(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    cache.publish(driver, Entry("b", 2))
    assert driver.totals() == Totals(2, 3)
    (cache.path / "a").unlink()
    (cache.path / "c").write_bytes(b"123")
    assert driver.totals() == Totals(2, 5)
    cache.run("driver.set_pinned('b', True)")
    assert ids(driver.pinned()) == ["b"]


@pytest.mark.usefixtures("no_inotify")
def test_without_inotify_a_settled_directory_is_not_read_again(
    cache: CacheDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch.DirectoryWatch([cache.path])
    os.utime(cache.path, (1.0, 1.0))
    assert watched.changed() is None
    assert watched.changed() == set()
    (cache.path / "a").touch()
    assert watched.changed() is None
    assert watched.changed() is None  # Too young to tell it from a later change.


def test_the_probe_is_not_among_the_images_and_not_left_behind(cache: CacheDir) -> None:
    cache.open()
    assert {path.name for path in cache.path.iterdir()} == {"incomplete", ".cachefs"}
    assert {path.name for path in (cache.path / ".cachefs").iterdir()} == {"changed", "inodes"}


def test_pinning_leaves_no_file_behind(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    driver.set_pinned("a", True)
    assert list((cache.path / ".cachefs/changed").iterdir()) == []


def test_a_long_source_is_cut_at_a_character(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1, source="x" + "ü" * 5000))
    entry = driver.get("a")
    assert entry is not None
    assert entry.source == "x" + "ü" * 511


def test_a_filesystem_without_user_attributes_falls_back_with_one_warning(
    no_xattrs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = open_driver("xattr", no_xattrs)
    assert driver.name == "sqlite"
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "no user extended attributes" in record.getMessage()
    driver.close()


def test_a_driver_that_cannot_work_leaves_nothing_behind(no_xattrs: Path) -> None:
    with pytest.raises(DriverError):
        XattrDriver(no_xattrs).configure()
    assert list(no_xattrs.iterdir()) == []


def test_a_driver_that_cannot_be_imported_falls_back_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cachefs.drivers.xattr", "cachefs.drivers.attributes"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "xattr", None)
    monkeypatch.delattr("cachefs.drivers.attributes")
    driver = open_driver("xattr", tmp_path)
    assert driver.name == "sqlite"
    [record] = caplog.records
    assert "cannot be loaded" in record.getMessage()
    driver.close()


def test_an_unknown_driver_is_an_invalid_value(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError):
        open_driver("postgres", tmp_path)


def test_a_fallback_whose_database_is_damaged_works_all_the_same(no_xattrs: Path) -> None:
    (no_xattrs / "cache.db").write_bytes(b"no database, certainly")
    with closing(open_driver("xattr", no_xattrs)) as driver:
        assert driver.name == "sqlite"
        assert driver.totals() == Totals(0, 0)


def test_every_driver_in_the_table_is_called_as_it_calls_itself(tmp_path: Path) -> None:
    for name in registry.DRIVERS:
        driver = open_driver(name, tmp_path)
        assert driver.name == name
        driver.close()

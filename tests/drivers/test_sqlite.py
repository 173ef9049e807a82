"""What only the sqlite driver does: sharing cache.db with Glance."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.cache_dir import CacheDir

from cachefs.drivers import Driver, Entry, Totals, open_driver
from cachefs.drivers.connections import WAL_BYTES
from cachefs.drivers.index import LRU_NEXT
from cachefs.errors import DriverError, NoRoomError

# As glance/image_cache/drivers/sqlite.py has them.
GLANCE_CREATE = """
CREATE TABLE IF NOT EXISTS cached_images (
    image_id TEXT PRIMARY KEY,
    last_accessed REAL DEFAULT 0.0,
    last_modified REAL DEFAULT 0.0,
    size INTEGER DEFAULT 0,
    hits INTEGER DEFAULT 0,
    checksum TEXT
);
"""
GLANCE_INSERT = """INSERT INTO cached_images
    (image_id, last_accessed, last_modified, hits, size) VALUES (?, ?, ?, 0, ?)"""
GLANCE_HIT = "UPDATE cached_images SET hits = hits + 1, last_accessed = ? WHERE image_id = ?"
MD5 = "0cc175b9c0f1b6a831c399e269772661"


class Glance:
    """Glance's driver, as far as the database goes: a connection for each call."""

    def __init__(self, cache: CacheDir) -> None:
        self.path = cache.path

    def execute(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.path / "cache.db")) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            rows = connection.execute(sql, values).fetchall()
            connection.commit()
        return rows

    def cache(self, image_id: str, size: int, accessed: float = 0.0) -> None:
        (self.path / image_id).write_bytes(b"x" * size)
        self.execute(GLANCE_INSERT, image_id, accessed, 100.0, size)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CacheDir]:
    cache = CacheDir(tmp_path, "sqlite")
    yield cache
    cache.close()


@pytest.fixture
def glance(cache: CacheDir) -> Glance:
    """A Glance that has made its database, and nothing else."""
    glance = Glance(cache)
    glance.execute(GLANCE_CREATE)
    return glance


def ids(entries: Iterator[Entry]) -> list[str]:
    return [entry.image_id for entry in entries]


def test_a_database_of_glance_is_taken_as_it_is(cache: CacheDir, glance: Glance) -> None:
    glance.cache("b", 20, accessed=2.0)
    glance.cache("a", 10, accessed=3.0)
    glance.execute(GLANCE_HIT, 3.0, "a")
    driver = open_driver("sqlite", cache.path)
    assert driver.totals() == Totals(2, 30)
    assert ids(driver.lru()) == ["b", "a"]
    assert driver.reconcile() == (0, 0)
    entry = driver.get("a")
    assert entry is not None
    assert entry == Entry(
        "a", 10, hits=1, last_accessed=3.0, last_modified=100.0, inode=entry.inode
    )
    driver.close()


def test_glances_table_is_left_as_glance_made_it(cache: CacheDir, glance: Glance) -> None:
    before = glance.execute("SELECT sql FROM sqlite_master WHERE name = 'cached_images'")
    cache.open()
    table = "SELECT sql FROM sqlite_master WHERE name = 'cached_images'"
    assert glance.execute(table) == before


def test_what_glance_caches_hits_and_deletes_is_followed(cache: CacheDir, glance: Glance) -> None:
    driver = cache.open()
    glance.cache("a", 10, accessed=1.0)
    glance.cache("b", 20, accessed=2.0)
    glance.execute(GLANCE_HIT, 3.0, "a")
    assert ids(driver.lru()) == ["b", "a"]
    glance.execute("DELETE FROM cached_images WHERE image_id = ?", "b")
    assert driver.totals() == Totals(1, 10)
    glance.execute("DELETE FROM cached_images")
    assert driver.totals() == Totals(0, 0)


def test_totals_follow_a_size_that_glance_changes(cache: CacheDir, glance: Glance) -> None:
    driver = cache.open()
    glance.cache("a", 10)
    glance.execute("UPDATE cached_images SET size = 15")
    assert driver.totals() == Totals(1, 15)


def test_insert_or_replace_by_others_is_counted_once(cache: CacheDir, glance: Glance) -> None:
    driver = cache.open()
    glance.cache("a", 10)
    before = driver.get("a")
    glance.execute("INSERT OR REPLACE INTO cached_images(image_id, size) VALUES ('a', 30)")
    after = driver.get("a")
    assert driver.totals() == Totals(1, 30)
    assert before is not None
    assert after is not None
    assert after.inode > before.inode


def test_a_duplicate_insert_by_glance_changes_nothing(cache: CacheDir, glance: Glance) -> None:
    driver = cache.open()
    put = cache.publish(driver, Entry("a", 10, source="s"))
    with pytest.raises(sqlite3.IntegrityError):
        glance.execute(GLANCE_INSERT, "a", 0, 0, 99)
    assert driver.get("a") == put
    assert driver.totals() == Totals(1, 10)


def test_reconcile_mends_a_table_that_was_dropped_with_its_triggers(
    cache: CacheDir, glance: Glance
) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 10))
    cache.close()
    glance.execute("DROP TABLE cached_images")
    glance.execute(GLANCE_CREATE)
    glance.cache("b", 20)
    driver = cache.open()
    assert ids(driver.entries()) == ["a", "b"]
    assert driver.totals() == Totals(2, 30)


def test_only_bare_md5_stands_in_glances_checksum(cache: CacheDir, glance: Glance) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1, checksum=MD5))
    cache.publish(driver, Entry("b", 1, checksum="sha256:" + "0" * 64))
    rows = glance.execute("SELECT image_id, checksum FROM cached_images ORDER BY image_id")
    assert rows == [("a", MD5), ("b", None)]


def test_a_checksum_of_glance_is_shown(cache: CacheDir, glance: Glance) -> None:
    driver = cache.open()
    glance.cache("a", 1)
    glance.execute("UPDATE cached_images SET checksum = ?", MD5)
    entry = driver.get("a")
    assert entry is not None
    assert entry.checksum == MD5


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DriverError):
        open_driver("sqlite", tmp_path / "absent")


def test_the_log_stops_growing_while_a_reader_is_half_way(cache: CacheDir) -> None:
    driver = cache.open()
    for name in ("a", "b", "c"):
        cache.publish(driver, Entry(name, 1))
    half_way = [driver.lru(), driver.entries()]
    for iterator in half_way:
        next(iterator)
    for count in range(3 * WAL_BYTES // 4096):  # each writes three pages of 1 KiB or more
        driver.hit("a", float(count))
    assert (cache.path / ".cachefs/cache.db-wal").stat().st_size < 1.1 * WAL_BYTES


def test_a_new_database_has_small_pages(cache: CacheDir) -> None:
    cache.open()
    assert Glance(cache).execute("PRAGMA page_size") == [(1024,)]


@pytest.mark.parametrize("page_size", [4096, 8192])
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_an_existing_database_keeps_its_page_size(
    cache: CacheDir, page_size: int, journal: str
) -> None:
    with closing(sqlite3.connect(cache.path / "cache.db")) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute(GLANCE_CREATE)
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    cache.close()
    glance = Glance(cache)
    assert glance.execute("PRAGMA page_size") == [(page_size,)]
    assert glance.execute("SELECT image_id FROM cached_images") == [("a",)]
    assert int.from_bytes((cache.path / "cache.db").read_bytes()[16:18], "big") == page_size


def test_pinned_images_are_no_part_of_the_index_that_finds_victims(cache: CacheDir) -> None:
    cache.open()
    [plan] = Glance(cache).execute("EXPLAIN QUERY PLAN " + LRU_NEXT, 0.0, 0)
    assert str(plan[3]).startswith("SEARCH cachefs_images USING INDEX cachefs_lru")


def test_a_full_disk_is_no_room(cache: CacheDir) -> None:
    driver = cache.open()
    index = driver._database.connections().main  # type: ignore[attr-defined] # injected
    pages = index.rows("PRAGMA page_count")[0][0]
    index.rows(f"PRAGMA max_page_count={pages}")
    with pytest.raises(NoRoomError):
        driver.put(Entry("a", 1, source="x" * 100_000), cache.path)


def test_a_failed_put_leaves_the_earlier_record(cache: CacheDir) -> None:
    driver: Driver = cache.open()
    put = cache.publish(driver, Entry("a", 10))
    with pytest.raises(DriverError):
        driver.put(Entry("a", 11, source=object()), cache.path)  # type: ignore[arg-type] # injected
    assert driver.get("a") == put


def test_reconcile_uses_up_no_inode_numbers(cache: CacheDir) -> None:
    driver = cache.open()
    first = cache.publish(driver, Entry("a", 1))
    for _ in range(3):
        driver.reconcile()
    assert cache.publish(driver, Entry("b", 1)).inode == first.inode + 1


def test_a_glance_that_is_writing_is_waited_for(cache: CacheDir, glance: Glance) -> None:
    with closing(
        sqlite3.connect(cache.path / "cache.db", isolation_level=None, check_same_thread=False)
    ) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute(GLANCE_INSERT, ("a", 0, 0, 10))
        timer = threading.Timer(0.2, writer.execute, ["COMMIT"])
        timer.start()
        driver = open_driver("sqlite", cache.path)
        timer.join()
    assert driver.totals() == Totals(1, 10)
    driver.close()

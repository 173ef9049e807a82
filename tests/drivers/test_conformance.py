"""What every driver does, whatever it keeps its records in."""

import os
import shutil
import signal
import subprocess
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from support.cache_dir import CacheDir

from cachefs.drivers import DRIVERS, Driver, Entry, Totals, describe, file_id, open_driver
from cachefs.drivers.base import glance_record
from cachefs.errors import DriverError

MD5 = "0cc175b9c0f1b6a831c399e269772661"
SHA256 = "sha256:" + "ab" * 32
FULL = Entry(
    "full ~%#ü",
    5,
    hits=3,
    last_accessed=1700000000.123456,
    last_modified=1600000000.654321,
    checksum=SHA256,
    pinned=True,
    fetched=1650000000.25,
    source="https://origin.example/images/",
    verified=True,
)


def ids(entries: object) -> list[str]:
    return [entry.image_id for entry in entries]  # type: ignore[attr-defined] # any iterable


def publish(cache: CacheDir, driver: Driver, *names: str) -> None:
    """Images of ten bytes, accessed in this order."""
    for count, name in enumerate(names):
        cache.publish(driver, Entry(name, 10, last_accessed=1000.0 + count, last_modified=500.0))


def test_a_record_comes_back_as_it_was_put(cache: CacheDir, driver: Driver) -> None:
    put = cache.publish(driver, FULL)
    assert put.inode > 0
    assert driver.get(FULL.image_id) == put == replace(FULL, inode=put.inode)


def test_a_record_survives_a_restart(cache: CacheDir, driver: Driver) -> None:
    put = cache.publish(driver, FULL)
    cache.close()
    assert cache.open().get(FULL.image_id) == put


@pytest.mark.parametrize("checksum", [None, MD5, "md5:" + MD5, SHA256])
def test_a_checksum_keeps_its_form(cache: CacheDir, driver: Driver, checksum: str | None) -> None:
    cache.publish(driver, Entry("a", 1, checksum=checksum))
    entry = driver.get("a")
    assert entry is not None
    assert entry.checksum == checksum


def test_an_unknown_id_has_no_record(driver: Driver) -> None:
    assert driver.get("a") is None
    assert driver.by_inode(1) is None
    assert driver.set_pinned("a", True) is False
    driver.hit("a", 1.0)
    driver.remove("a")
    assert driver.totals() == Totals(0, 0)


def test_an_image_is_found_by_its_inode_number(cache: CacheDir, driver: Driver) -> None:
    put = cache.publish(driver, Entry("a", 1))
    assert driver.by_inode(put.inode) == driver.get("a")


def test_putting_again_replaces_the_whole_record(cache: CacheDir, driver: Driver) -> None:
    cache.publish(driver, FULL)
    plain = Entry(FULL.image_id, 2, last_accessed=1.5, last_modified=2.5)
    put = cache.publish(driver, plain)
    assert driver.get(FULL.image_id) == replace(plain, inode=put.inode)
    assert driver.totals() == Totals(1, 2)


def test_putting_again_gives_another_inode_number(cache: CacheDir, driver: Driver) -> None:
    first = cache.publish(driver, Entry("a", 1))
    second = cache.publish(driver, Entry("a", 1))
    assert second.inode > first.inode
    assert driver.by_inode(first.inode) is None


def test_an_inode_number_is_not_reused_after_removal(cache: CacheDir, driver: Driver) -> None:
    first = cache.publish(driver, Entry("a", 1))
    cache.evict(driver, "a")
    assert cache.publish(driver, Entry("a", 1)).inode > first.inode


def test_an_inode_number_is_not_reused_after_a_restart(cache: CacheDir, driver: Driver) -> None:
    first = cache.publish(driver, Entry("a", 1))
    cache.evict(driver, "a")
    cache.close()
    assert cache.publish(cache.open(), Entry("b", 1)).inode > first.inode


def test_a_removed_image_is_gone_from_every_answer(cache: CacheDir, driver: Driver) -> None:
    put = cache.publish(driver, Entry("a", 1, pinned=True))
    driver.remove("a")
    assert driver.get("a") is None
    assert driver.by_inode(put.inode) is None
    assert [*driver.entries(), *driver.pinned(), *driver.lru()] == []
    assert driver.entries_after(0, 10) == []
    assert driver.totals() == Totals(0, 0)


def test_a_record_removed_before_its_unlink_failed_can_be_put_again(
    cache: CacheDir, driver: Driver
) -> None:
    entry = cache.publish(driver, Entry("a", 1))
    driver.remove("a")
    driver.put(entry, cache.path / "a")
    assert ids(driver.entries()) == ["a"]
    assert driver.get("a") is not None


def test_a_hit_counts_and_sets_the_time_of_access(cache: CacheDir, driver: Driver) -> None:
    cache.publish(driver, Entry("a", 1, last_modified=5.0))
    driver.hit("a", 1700000000.000001)
    driver.hit("a", 1700000000.000002)
    entry = driver.get("a")
    assert entry is not None
    assert (entry.hits, entry.last_accessed) == (2, 1700000000.000002)
    assert entry.last_modified == 5.0


def test_a_hit_on_a_removed_image_is_nothing(cache: CacheDir, driver: Driver) -> None:
    cache.publish(driver, Entry("a", 1))
    driver.remove("a")
    driver.hit("a", 5.0)
    assert driver.get("a") is None


def test_hits_of_many_threads_all_count(cache: CacheDir, driver: Driver) -> None:
    cache.publish(driver, Entry("a", 1))

    def hit() -> None:
        for count in range(50):
            driver.hit("a", float(count))

    threads = [threading.Thread(target=hit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = driver.get("a")
    assert entry is not None
    assert entry.hits == 200


def test_the_least_recently_accessed_comes_first(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "c", "a", "b")
    driver.hit("a", 2000.0)
    assert ids(driver.lru()) == ["c", "b", "a"]


def test_accesses_a_microsecond_apart_keep_their_order(cache: CacheDir, driver: Driver) -> None:
    names = [f"{count * 7 % 20:02}" for count in range(20)]
    publish(cache, driver, *sorted(names))
    for count, name in enumerate(names):
        driver.hit(name, 1700000000.0 + count * 1e-6)
    assert ids(driver.lru()) == names


def test_equal_times_of_access_go_by_age(cache: CacheDir, driver: Driver) -> None:
    for name in ("b", "a", "c"):
        cache.publish(driver, Entry(name, 1, last_accessed=7.0))
    assert ids(driver.lru()) == ["b", "a", "c"]


def test_pinned_images_are_not_among_the_least_recent(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b", "c")
    assert driver.set_pinned("a", True)
    assert ids(driver.lru()) == ["b", "c"]
    assert ids(driver.pinned()) == ["a"]


def test_an_unpinned_image_is_back_in_its_place(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b", "c")
    driver.set_pinned("b", True)
    assert driver.set_pinned("b", False)
    assert ids(driver.lru()) == ["a", "b", "c"]
    assert list(driver.pinned()) == []


def test_removing_while_iterating_skips_nothing(cache: CacheDir, driver: Driver) -> None:
    names = [f"{count:03}" for count in range(50)]
    publish(cache, driver, *names)
    seen = []
    for entry in driver.lru():
        cache.evict(driver, entry.image_id)
        seen.append(entry.image_id)
    assert seen == names


def test_what_is_removed_during_an_iteration_is_not_met(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b", "c")
    order = driver.lru()
    next(order)
    cache.evict(driver, "b")
    assert ids(order) == ["c"]


def test_what_is_hit_during_an_iteration_moves_back(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b", "c")
    order = driver.lru()
    next(order)
    driver.hit("b", 2000.0)
    assert ids(order) == ["c", "b"]


def test_entries_come_by_id(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "b", "ä", "A", "a b")
    assert ids(driver.entries()) == ["A", "a b", "b", "ä"]


def test_the_records_that_glance_knows_are_those_of_the_entries(
    cache: CacheDir, driver: Driver
) -> None:
    publish(cache, driver, "b", "a")
    cache.publish(driver, FULL)
    cache.publish(driver, replace(FULL, image_id="md5", checksum=MD5))
    records = driver.glance_records()
    assert records == [glance_record(entry) for entry in driver.entries()]
    assert [record[-1] for record in records] == [None, None, None, MD5]


def test_a_listing_by_pages_survives_removals(cache: CacheDir, driver: Driver) -> None:
    for count in range(5000):
        (cache.path / f"{count:04}").touch()
    driver.reconcile()
    seen: list[str] = []
    after = 0
    while page := driver.entries_after(after, 100):
        after = page[-1].inode
        seen += ids(page)
        for name in (seen[-1], seen[-50]):
            cache.evict(driver, name)
    assert sorted(seen) == [f"{count:04}" for count in range(5000)]
    assert driver.totals() == Totals(4900, 0)


def test_a_page_holds_no_more_than_its_limit_in_order(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "c", "b", "a")
    first = driver.entries_after(0, 2)
    assert ids(first) == ["c", "b"]
    assert ids(driver.entries_after(first[-1].inode, 2)) == ["a"]


def test_totals_follow_every_change(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b", "c")
    cache.publish(driver, Entry("a", 3))
    cache.evict(driver, "b")
    driver.hit("c", 1.0)
    assert driver.totals() == Totals(2, 13)


def test_reconcile_adopts_a_file_with_its_own_times(cache: CacheDir, driver: Driver) -> None:
    (cache.path / "a").write_bytes(b"12345")
    os.utime(cache.path / "a", (1000.5, 900.25))
    assert driver.reconcile() == (1, 0)
    entry = driver.get("a")
    assert entry is not None
    assert entry == Entry("a", 5, last_accessed=1000.5, last_modified=900.25, inode=entry.inode)
    assert driver.by_inode(entry.inode) == entry


def test_an_adopted_image_keeps_its_inode_number(cache: CacheDir, driver: Driver) -> None:
    (cache.path / "a").write_bytes(b"12345")
    driver.reconcile()
    entry = driver.get("a")
    cache.close()
    assert cache.open().get("a") == entry


def test_reconcile_drops_the_record_of_a_lost_file(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b")
    (cache.path / "a").unlink()
    assert driver.reconcile() == (0, 1)
    assert ids(driver.entries()) == ["b"]
    assert driver.totals() == Totals(1, 10)


def test_reconcile_leaves_what_agrees(cache: CacheDir, driver: Driver) -> None:
    put = cache.publish(driver, FULL)
    assert driver.reconcile() == (0, 0)
    assert driver.get(FULL.image_id) == put


def test_reconcile_ends_a_record_whose_file_has_another_size(
    cache: CacheDir, driver: Driver
) -> None:
    publish(cache, driver, "a")
    (cache.path / "a").write_bytes(b"123")
    driver.reconcile()
    assert driver.totals() == Totals(1, 3)


def test_an_image_put_but_never_renamed_is_not_there_after_a_restart(
    cache: CacheDir, driver: Driver
) -> None:
    path = cache.path / "incomplete" / "a"
    path.write_bytes(b"12345")
    driver.put(Entry("a", 5), path)
    cache.close()
    assert list(cache.open().entries()) == []


def test_an_image_removed_but_never_unlinked_is_back_after_a_restart(
    cache: CacheDir, driver: Driver
) -> None:
    publish(cache, driver, "a")
    driver.remove("a")
    cache.close()
    assert cache.open().totals() == Totals(1, 10)


def test_only_regular_files_with_an_id_are_images(cache: CacheDir, driver: Driver) -> None:
    (cache.path / "directory").mkdir()
    (cache.path / ".hidden").touch()
    (cache.path / "link").symlink_to("/etc/passwd")
    (cache.path / "image_cache_db_init").touch()
    (cache.path / "a\nb").touch()
    (cache.path / os.fsdecode(b"\xff")).touch()
    os.mkfifo(cache.path / "fifo")
    assert driver.reconcile() == (0, 0)
    assert list(driver.entries()) == []


def test_what_another_process_publishes_is_seen_at_once(cache: CacheDir, driver: Driver) -> None:
    assert driver.totals() == Totals(0, 0)
    cache.run("cache.publish(driver, Entry('a', 10, checksum='md5:x'))")
    assert driver.totals() == Totals(1, 10)
    [entry] = driver.entries()
    assert driver.by_inode(entry.inode) == driver.get("a") == entry


def test_what_another_process_evicts_is_gone_at_once(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b")
    cache.run("cache.evict(driver, 'a')")
    assert ids(driver.lru()) == ids(driver.entries()) == ["b"]
    assert driver.totals() == Totals(1, 10)


def test_an_image_that_another_process_hits_is_no_victim(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b")
    cache.run("driver.hit('a', 5000.0)")
    assert ids(driver.lru()) == ["b", "a"]


def test_pins_of_another_process_hold_at_once(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a", "b")
    driver.set_pinned("b", True)
    cache.run("driver.set_pinned('a', True); driver.set_pinned('b', False)")
    assert ids(driver.lru()) == ["b"]
    assert ids(driver.pinned()) == ["a"]


def test_hits_of_several_processes_all_count(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a")
    code = "sys.stdin.read()\nfor _ in range(200): driver.hit('a', time.time())"
    processes = [cache.start(code) for _ in range(4)]
    for process in processes:
        process.communicate(timeout=30)
        assert process.returncode == 0
    entry = driver.get("a")
    assert entry is not None
    assert entry.hits == 800


def test_several_processes_never_give_out_one_inode_number_twice(cache: CacheDir) -> None:
    code = """
me = sys.stdin.read()
for count in range(50):
    print(cache.publish(driver, Entry(f'{os.getpid()}-{count}', 1)).inode)
"""
    processes = [cache.start(code) for _ in range(4)]
    numbers: list[str] = []
    for process in processes:
        numbers += process.communicate(timeout=30)[0].split()
        assert process.returncode == 0
    assert len(set(numbers)) == len(numbers) == 200
    driver = cache.open()
    assert driver.totals() == Totals(200, 200)
    assert {str(entry.inode) for entry in driver.entries()} == set(numbers)


def test_several_processes_can_start_at_once_on_an_empty_directory(cache: CacheDir) -> None:
    processes = [cache.start("print(driver.totals().images)") for _ in range(6)]
    for process in processes:
        assert process.communicate(timeout=30)[0] == "0\n"


def test_a_hit_survives_the_death_of_its_process(cache: CacheDir, driver: Driver) -> None:
    publish(cache, driver, "a")
    cache.close()
    code = f"driver.hit('a', 4000.0); os.kill(os.getpid(), {int(signal.SIGKILL)})"
    with cache.start(code) as process:
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    entry = cache.open().get("a")
    assert entry is not None
    assert (entry.hits, entry.last_accessed) == (1, 4000.0)


def test_a_closed_driver_says_so(cache: CacheDir, driver: Driver) -> None:
    cache.close()
    with pytest.raises(DriverError):
        driver.totals()


# What the index knows, once it is lost


def lose_index(cache: CacheDir) -> None:
    """All that stands outside of the images' own files."""
    cache.close()
    (cache.path / "cache.db").unlink(missing_ok=True)
    shutil.rmtree(cache.path / ".cachefs")


def lost_and_found(cache: CacheDir, image_id: str) -> Entry:
    lose_index(cache)
    entry = cache.open().get(image_id)
    assert entry is not None
    return entry


def as_known(entry: Entry) -> tuple[object, ...]:
    """What is to survive: all but the statistics, and the number of the publication."""
    return (
        *(entry.pinned, entry.checksum, entry.verified, entry.fetched, entry.source),
        *(entry.size, entry.file, entry.private),
    )


def nothing_known(entry: Entry) -> bool:
    return (entry.pinned, entry.checksum, entry.verified, entry.fetched, entry.source) == (
        *(False, None, False, None, None),
    )


def file_of(cache: CacheDir, image_id: str) -> str:
    return file_id((cache.path / image_id).stat())


@pytest.mark.parametrize("checksum", [MD5, SHA256])
def test_what_a_lost_index_knew_is_read_back_from_the_file(
    cache: CacheDir, driver: Driver, checksum: str
) -> None:
    put = cache.publish(driver, replace(FULL, checksum=checksum))
    found = lost_and_found(cache, FULL.image_id)
    assert as_known(found) == as_known(put)
    assert found.file == file_of(cache, FULL.image_id)


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_an_image_stays_private_over_the_loss_of_the_index_and_another_date(
    cache: CacheDir, driver: Driver, checksum: str | None
) -> None:
    private = cache.publish(driver, replace(FULL, checksum=checksum, private=True))
    assert private.private
    found = driver.get(FULL.image_id)
    assert found is not None
    assert found.private
    os.utime(cache.path / FULL.image_id, (1, 1))
    assert lost_and_found(cache, FULL.image_id).private


def test_an_image_of_which_little_is_known_has_as_little_after_a_lost_index(
    cache: CacheDir, driver: Driver
) -> None:
    cache.publish(driver, FULL)
    cache.publish(driver, Entry(FULL.image_id, 2))
    assert nothing_known(lost_and_found(cache, FULL.image_id))


@pytest.mark.parametrize("pinned", [True, False])
def test_a_pin_that_was_changed_survives_a_lost_index(
    cache: CacheDir, driver: Driver, pinned: bool
) -> None:
    cache.publish(driver, replace(FULL, pinned=not pinned))
    driver.set_pinned(FULL.image_id, pinned)
    found = lost_and_found(cache, FULL.image_id)
    assert (found.pinned, found.checksum, found.verified) == (pinned, SHA256, True)


def test_a_lost_index_is_read_back_when_a_file_is_met_too(cache: CacheDir, driver: Driver) -> None:
    put = cache.publish(driver, FULL)
    away = cache.path / "incomplete/away"
    (cache.path / FULL.image_id).rename(away)
    lose_index(cache)
    driver = cache.open()
    away.rename(cache.path / FULL.image_id)
    found = driver.adopt(FULL.image_id)
    assert found is not None
    assert as_known(found) == as_known(put)
    assert driver.get(FULL.image_id) == found
    assert driver.by_inode(found.inode) == found
    assert ids(driver.pinned()) == [FULL.image_id]


def test_there_is_no_adopting_what_is_not_there(driver: Driver) -> None:
    assert driver.adopt("a") is None


@pytest.mark.parametrize("change", ["other bytes", "other length", "other file"])
def test_what_was_known_of_another_file_is_not_believed_after_a_lost_index(
    cache: CacheDir, driver: Driver, change: str
) -> None:
    cache.publish(driver, FULL)
    path = cache.path / FULL.image_id
    if change == "other file":
        copy = cache.path / "incomplete/copy"
        subprocess.run(["cp", "-a", path, copy], check=True)
        copy.rename(path)
    else:
        path.write_bytes(b"wrong" if change == "other bytes" else b"more than before")
        os.utime(path, ns=(5, path.stat().st_mtime_ns + 1))  # whatever the clock's steps are
    found = lost_and_found(cache, FULL.image_id)
    # The digest is to decide, so the record says of which file it was.
    assert found.checksum == SHA256
    assert found.file != file_of(cache, FULL.image_id)


def test_of_a_changed_file_without_a_digest_nothing_is_known_after_a_lost_index(
    cache: CacheDir, driver: Driver
) -> None:
    cache.publish(driver, Entry("a", 5, source="s", fetched=1.0))
    path = cache.path / "a"
    path.write_bytes(b"other")
    os.utime(path, ns=(5, path.stat().st_mtime_ns + 1))
    found = lost_and_found(cache, "a")
    assert (found.verified, found.checksum) == (False, None)


def test_a_file_that_was_found_to_be_right_is_believed_after_a_lost_index(
    cache: CacheDir, driver: Driver
) -> None:
    put = cache.publish(driver, FULL)
    os.utime(cache.path / FULL.image_id, (1, 1))
    driver.identify(put, file_of(cache, FULL.image_id))
    found = lost_and_found(cache, FULL.image_id)
    assert found.verified
    assert found.file == file_of(cache, FULL.image_id)


@pytest.mark.parametrize("name", ["checksum", "fetched", "file", "source"])
@pytest.mark.parametrize("garbage", [b"", b"x", b"\xff\0\xfe", b"nan", b"9" * 400])
def test_garbage_on_a_file_keeps_no_lost_index_from_being_made_anew(
    cache: CacheDir, driver: Driver, name: str, garbage: bytes
) -> None:
    cache.publish(driver, FULL)
    os.setxattr(cache.path / FULL.image_id, f"user.cachefs.{name}", garbage)
    found = lost_and_found(cache, FULL.image_id)
    assert found.size == FULL.size
    driver = cache.open()
    driver.set_pinned(FULL.image_id, False)
    assert driver.totals() == Totals(1, FULL.size)


def test_only_the_file_of_a_trusted_user_is_believed_after_a_lost_index(
    cache: CacheDir, driver: Driver
) -> None:
    cache.publish(driver, FULL)
    os.chown(cache.path / FULL.image_id, 65534, 65534)
    lose_index(cache)
    assert cache.open().get(FULL.image_id) is None


def test_what_is_written_on_a_file_is_the_same_whichever_driver_wrote_it(
    cache: CacheDir, driver: Driver
) -> None:
    put = cache.publish(driver, FULL)
    lose_index(cache)
    for name in DRIVERS:
        with closing(open_driver(name, cache.path)) as other:
            other.reconcile()
            found = other.get(FULL.image_id)
            assert found is not None
            assert as_known(found) == as_known(put)


def test_described_again_a_file_is_not_written_to(cache: CacheDir, driver: Driver) -> None:
    put = cache.publish(driver, FULL)
    path = cache.path / FULL.image_id
    before = path.stat().st_ctime_ns
    with path.open("rb") as file:
        assert describe(file.fileno(), put)
    assert path.stat().st_ctime_ns == before

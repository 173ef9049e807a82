"""Where the sqlite driver's database stands, who gets at it, and what stands in its place."""

import fcntl
import logging
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.cache_dir import CacheDir
from support.processes import wait_for

from cachefs.drivers import Driver, Entry, Totals, place
from cachefs.drivers.connections import UNTIDY_BYTES, WAL_BYTES, Connections
from cachefs.drivers.database import Database
from cachefs.errors import IndexBusyError, IndexLostError

GLANCE_CREATE = """CREATE TABLE IF NOT EXISTS cached_images (image_id TEXT PRIMARY KEY,
    last_accessed REAL DEFAULT 0.0, last_modified REAL DEFAULT 0.0, size INTEGER DEFAULT 0,
    hits INTEGER DEFAULT 0, checksum TEXT)"""
STRANGER = 65534


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CacheDir]:
    cache = CacheDir(tmp_path, "sqlite")
    yield cache
    cache.close()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is locked is waited for a moment only."""
    monkeypatch.setattr("cachefs.drivers.index.BUSY_TIMEOUT", 0.2)


def glance(path: Path, *rows: str) -> None:
    """A database as Glance makes it, with rows of images of ten bytes that are there."""
    with closing(sqlite3.connect(path / "cache.db")) as connection:
        connection.execute(GLANCE_CREATE)
        for name in rows:
            (path / name).write_bytes(b"x" * 10)
            connection.execute(
                "INSERT INTO cached_images(image_id, size, hits, last_accessed, last_modified)"
                " VALUES (?, 10, 7, 5.0, 5.0)",
                (name,),
            )
        connection.commit()


def modes(path: Path) -> dict[str, int]:
    return {each.name: stat.S_IMODE(each.lstat().st_mode) for each in path.iterdir()}


# Where it stands


def test_the_index_is_its_owners_alone(cache: CacheDir) -> None:
    cache.publish(cache.open(), Entry("a", 1))
    private = cache.path / ".cachefs"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    names = "cache.db", "cache.db-wal", "cache.db-shm", "index.lock"
    assert modes(private) == dict.fromkeys(names, 0o600)


def test_an_index_that_others_could_read_is_closed_to_them(cache: CacheDir) -> None:
    cache.publish(cache.open(), Entry("a", 1))
    private = cache.path / ".cachefs"
    for each in private.iterdir():
        each.chmod(0o644)
    private.chmod(0o755)
    cache.open()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert set(modes(private).values()) == {0o600}


def test_no_other_user_gets_at_the_locks(cache: CacheDir) -> None:
    cache.publish(cache.open(), Entry("a", 1))
    for path in (cache.path, *cache.path.parents[:2]):
        path.chmod(0o755)
    for name in ("cache.db", ".cachefs/cache.db-shm"):
        stranger = subprocess.run(
            ["head", "-c1", cache.path / name],
            user=STRANGER,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Permission denied" in stranger.stderr


def test_the_index_belongs_to_the_owner_of_the_directory(cache: CacheDir) -> None:
    os.chown(cache.path, STRANGER, STRANGER)
    cache.publish(cache.open(), Entry("a", 1))
    private = cache.path / ".cachefs"
    assert {each.lstat().st_uid for each in (private, *private.iterdir())} == {STRANGER}


def test_nothing_of_the_index_stands_among_the_images(cache: CacheDir) -> None:
    cache.publish(cache.open(), Entry("a", 1))
    assert {each.name for each in cache.path.iterdir()} == {
        "a",
        "cache.db",
        ".cachefs",
        "incomplete",
    }
    assert (cache.path / "cache.db").is_symlink()


def test_another_program_finds_the_records_by_glances_path(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    with closing(sqlite3.connect(cache.path / "cache.db")) as connection:
        assert connection.execute("SELECT image_id FROM cached_images").fetchall() == [("a",)]
        connection.execute("UPDATE cached_images SET hits = 9")
        connection.commit()
    entry = driver.get("a")
    assert entry is not None
    assert entry.hits == 9


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_of_glance_is_taken_over_with_its_records(cache: CacheDir, journal: str) -> None:
    glance(cache.path, "a")
    with closing(sqlite3.connect(cache.path / "cache.db")) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
    before = (cache.path / "cache.db").stat().st_ino
    entry = cache.open().get("a")
    assert entry is not None
    assert entry.hits == 7
    assert (cache.path / "cache.db").is_symlink()
    assert (cache.path / ".cachefs/cache.db").stat().st_ino == before


def test_the_log_of_a_killed_process_is_taken_over_too(cache: CacheDir) -> None:
    glance(cache.path, "a")
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA journal_mode=WAL'); c.execute('UPDATE cached_images SET hits = 8')\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, cache.path / "cache.db"], check=False)
    assert (cache.path / "cache.db-wal").exists()
    entry = cache.open().get("a")
    assert entry is not None
    assert entry.hits == 8
    assert (cache.path / "cache.db").is_symlink()


def test_a_database_that_is_in_use_is_used_where_it_stands_until_it_is_not(
    cache: CacheDir,
) -> None:
    glance(cache.path, "a")
    code = "import sys; f = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, cache.path / "cache.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        driver = cache.open()
        assert not (cache.path / "cache.db").is_symlink()
        assert stat.S_IMODE((cache.path / "cache.db").stat().st_mode) == 0o600
        assert driver.totals() == Totals(1, 10)
        other.communicate()
    cache.close()
    assert cache.open().totals() == Totals(1, 10)
    assert (cache.path / "cache.db").is_symlink()


def test_a_database_in_its_place_that_is_opened_once_more_stays_locked(cache: CacheDir) -> None:
    """Any close of a file drops all locks that the process has on it (fcntl(2)): another process
    would take itself for the last one to close the database, and remove the log in use."""
    glance(cache.path, "a")
    path = cache.path / "cache.db"
    with path.open("rb"):  # in use, and so not taken over; closed when all has been looked at
        driver = cache.open()
        before = locks_on(path)
        assert before
        other = cache.open()
        assert locks_on(path) == before
        assert not path.is_symlink()
        code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2])"
        code += ".fetchall(); c.close()"
        subprocess.run(
            [sys.executable, "-c", code, path, "SELECT * FROM cached_images"], check=True
        )
        assert path.with_name("cache.db-wal").exists()
        cache.publish(driver, Entry("b", 5))
        assert other.totals() == Totals(2, 15)


def locks_on(path: Path) -> list[str]:
    """This process's POSIX locks on the file, each as kind and range."""
    wanted = f"{os.getpid()}", f"{path.stat().st_ino}"
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return sorted(
        f"{words[3]} {words[6]} {words[7]}"
        for words in locks
        if words[1] == "POSIX" and (words[4], words[5].rpartition(":")[2]) == wanted
    )


def test_a_database_that_goes_while_it_is_looked_for_is_none(
    cache: CacheDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    glance(cache.path, "a")
    really = place._is_open_here

    def gone_just_then(path: Path) -> bool:
        path.unlink(missing_ok=True)
        return really(path)

    monkeypatch.setattr(place, "_is_open_here", gone_just_then)
    assert cache.open().totals() == Totals(1, 10)
    assert (cache.path / "cache.db").is_symlink()
    assert not caplog.records


def test_another_who_opens_it_at_that_moment_finds_all_as_it_was(
    cache: CacheDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    glance(cache.path, "a")
    path = cache.path / "cache.db"
    really, number = place._exchange, path.stat().st_ino
    openers = []

    def opened_just_then(one: Path, other: Path) -> None:
        if not openers:
            openers.append(subprocess.Popen(["head", "-c1", path], stdout=subprocess.PIPE))
            wait_for(lambda: f":{number} " in leases_being_broken(), "an opener")
        really(one, other)

    monkeypatch.setattr(place, "_exchange", opened_just_then)
    assert cache.open().totals() == Totals(1, 10)
    assert openers[0].communicate(timeout=10)[0] == b"S"
    assert path.is_file()
    assert not path.is_symlink()
    assert not (cache.path / ".cachefs/cache.db").exists()


def leases_being_broken() -> str:
    lines = Path("/proc/locks").read_text().splitlines()
    return "\n".join(line for line in lines if "BREAKING" in line)


# What stands in its place


def garbage(path: Path) -> None:
    path.write_bytes(b"no database, certainly")


def header_only(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)


def torn(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(GLANCE_CREATE)
        connection.executemany(
            "INSERT INTO cached_images(image_id) VALUES (?)", [(f"{n:050}",) for n in range(2000)]
        )
        connection.commit()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * 50000)


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cached_images (image_id TEXT PRIMARY KEY)")


def view(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (image_id TEXT)")
        connection.execute("CREATE VIEW cached_images AS SELECT image_id, 0 AS size FROM other")


def more_is_needed(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(GLANCE_CREATE.replace("checksum TEXT", "checksum TEXT, x NOT NULL"))


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(GLANCE_CREATE)
        connection.execute("PRAGMA user_version = 99")


def directory(path: Path) -> None:
    (path / "full").mkdir(parents=True)


def outside(path: Path) -> Path:
    return next(each for each in path.parents if each.name == "cache").parent


def link(path: Path) -> None:
    target = outside(path) / "target"
    target.write_bytes(b"precious")
    path.symlink_to(target)


def dangling(path: Path) -> None:
    path.symlink_to(outside(path) / "planted")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(path.parent)  # a path of a socket is short
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)


def of_a_stranger(path: Path) -> None:
    glance_at = sqlite3.connect(path)
    with closing(glance_at):
        glance_at.execute(GLANCE_CREATE)
    os.chown(path, STRANGER, STRANGER)


KINDS = [
    garbage,
    header_only,
    torn,
    foreign,
    view,
    more_is_needed,
    newer,
    directory,
    link,
    dangling,
    fifo,
    a_socket,
    of_a_stranger,
]


@pytest.fixture
def place_of_it(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    (path / "a").write_bytes(b"x" * 10)
    return path


@pytest.mark.parametrize("name", ["cache.db", ".cachefs/cache.db"])
@pytest.mark.parametrize("put_there", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_no_index_is_set_aside_and_one_made_of_the_files(
    place_of_it: Path,
    name: str,
    put_there: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (place_of_it / ".cachefs").mkdir()
    put_there(place_of_it / name)
    cache = CacheDir(place_of_it, "sqlite")
    driver = cache.open()
    assert driver.totals() == Totals(1, 10)
    cache.publish(driver, Entry("b", 5))
    driver.hit("b", 3.0)
    entry = driver.get("b")
    assert entry is not None
    assert entry.hits == 1
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) <= 1
    assert all("\n" not in record.getMessage() for record in warnings)
    cache.close()
    assert cache.open().totals() == Totals(2, 15)
    assert (place_of_it / "cache.db").readlink() == Path(".cachefs/cache.db")
    cache.close()
    target = place_of_it.parent / "target"
    assert not target.exists() or target.read_bytes() == b"precious"
    assert not (place_of_it.parent / "planted").exists()


def test_a_database_that_cannot_be_used_is_kept(place_of_it: Path) -> None:
    garbage(place_of_it / "cache.db")
    cache = CacheDir(place_of_it, "sqlite")
    cache.open()
    cache.close()
    [kept] = (place_of_it / ".cachefs/aside").iterdir()
    assert kept.read_bytes() == b"no database, certainly"


@pytest.mark.parametrize("name", ["cache.db", ".cachefs/cache.db"])
@pytest.mark.parametrize("damaged", [False, True])
def test_an_immutable_database_keeps_nobody_from_the_images(
    place_of_it: Path, name: str, damaged: bool
) -> None:
    (place_of_it / ".cachefs").mkdir()
    (garbage if damaged else newer)(place_of_it / name)
    subprocess.run(["chattr", "+i", place_of_it / name], check=True)
    cache = CacheDir(place_of_it, "sqlite")
    try:
        driver = cache.open()
        assert driver.totals() == Totals(1, 10)
        cache.publish(driver, Entry("b", 5))
        assert driver.get("b") is not None
    finally:
        subprocess.run(["chattr", "-i", place_of_it / name], check=True)
        cache.close()


def test_an_index_that_stays_locked_is_set_aside(
    place_of_it: Path, short_waits: None, caplog: pytest.LogCaptureFixture
) -> None:
    glance(place_of_it)
    CacheDir(place_of_it, "sqlite").open().close()
    with closing(sqlite3.connect(place_of_it / "cache.db", isolation_level=None)) as locker:
        locker.execute("PRAGMA locking_mode = EXCLUSIVE")
        locker.execute("BEGIN EXCLUSIVE")
        cache = CacheDir(place_of_it, "sqlite")
        assert cache.open().totals() == Totals(1, 10)
        cache.close()
    assert "locked" in caplog.text


def test_records_that_make_no_sense_are_dropped_and_their_files_adopted(
    place_of_it: Path,
) -> None:
    cache = CacheDir(place_of_it, "sqlite")
    cache.open()
    cache.close()
    with closing(sqlite3.connect(place_of_it / "cache.db")) as connection:
        connection.execute("UPDATE cached_images SET size = 'many', last_modified = 1e300")
        connection.commit()
    driver = cache.open()
    assert [entry.size for entry in driver.entries()] == [10]
    assert driver.totals() == Totals(1, 10)
    cache.close()


# While it is in use


@pytest.mark.parametrize("damage", ["overwritten", "emptied", "removed", "replaced"])
def test_an_index_lost_while_it_is_used_is_made_anew(
    place_of_it: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheDir(place_of_it, "sqlite")
    driver = cache.open()
    path = place_of_it / ".cachefs/cache.db"
    if damage == "overwritten":
        driver.tidy()
        size = path.stat().st_size
        path.write_bytes(b"\xaa" * size)
    elif damage == "emptied":
        driver.tidy()
        os.truncate(path, 0)
    else:
        path.unlink()
        if damage == "replaced":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute(GLANCE_CREATE)
    assert driver.totals() == Totals(1, 10)
    cache.publish(driver, Entry("b", 5, last_accessed=1e10))
    assert [entry.image_id for entry in driver.lru()] == ["a", "b"]
    assert driver.quick.get("b") == driver.get("b") is not None
    cache.close()


def test_the_log_of_a_lost_index_is_not_played_into_the_next(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1, hits=5))
    log = cache.path / ".cachefs/cache.db-wal"
    left = log.read_bytes()
    assert left
    cache.close()
    (cache.path / ".cachefs/cache.db").unlink()
    log.write_bytes(left)
    entry = cache.open().get("a")
    assert entry is not None
    assert entry.hits == 0


def test_what_one_process_sets_aside_no_other_goes_on_with(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    cache.run("driver._database._opened.path.unlink(); driver.get('a')")
    cache.run("cache.publish(driver, Entry('b', 2))")
    assert driver.totals() == Totals(2, 3)


def test_two_that_make_a_lost_index_anew_at_once_make_one(
    place_of_it: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by descriptors of its own, as two processes: a lock of threads is none between them."""
    cache = CacheDir(place_of_it, "sqlite")
    one, other = cache.open(), cache.open()
    (place_of_it / ".cachefs/cache.db").unlink()
    both, really, made = threading.Barrier(2), Database._replace, []

    def replaced_together(self: Database, path: Path) -> tuple[Connections, Path | None]:
        made.append(self)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # two that are here at once find no index there, either of them
        return really(self, path)

    monkeypatch.setattr(Database, "_replace", replaced_together)
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(driver.totals) for driver in (one, other)]
        assert [answer.result(20) for answer in answers] == [Totals(1, 10)] * 2
    assert len(made) == 1
    cache.publish(one, Entry("b", 5))
    cache.publish(other, Entry("c", 6))
    assert one.totals() == other.totals() == other.quick.totals() == Totals(3, 21)
    cache.close()


def hold_up(driver: Any) -> tuple[threading.Event, threading.Event]:
    """Two events: the driver fills an index from the files, and may go on with that."""
    fill, filling, go_on = driver._database._made_anew, threading.Event(), threading.Event()

    def held_up() -> None:
        filling.set()
        assert go_on.wait(10)
        fill()

    driver._database._made_anew = held_up
    return filling, go_on


def test_another_opens_an_index_that_is_made_anew_once_it_is_filled(place_of_it: Path) -> None:
    cache = CacheDir(place_of_it, "sqlite")
    one, other = cache.open(), cache.open()
    filling, go_on = hold_up(one)
    (place_of_it / ".cachefs/cache.db").unlink()
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(one.totals)]
        assert filling.wait(10)
        answers.append(threads.submit(other.totals))
        wait_for(lambda: is_busy(other), "one that waits for the other")
        with pytest.raises(FutureTimeoutError):
            answers[1].result(0.2)
        go_on.set()
        assert [answer.result(10) for answer in answers] == [Totals(1, 10)] * 2
    assert other.quick.totals() == Totals(1, 10)
    cache.close()


def test_a_database_that_another_replaces_while_it_is_opened_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, really = tmp_path / "cache.db", Connections._make
    for name in ("cache.db", "another"):
        place.prepare(tmp_path / name, tmp_path)

    def replaced_then(self: Connections) -> None:
        really(self)
        (tmp_path / "another").rename(path)

    monkeypatch.setattr(Connections, "_make", replaced_then)
    with pytest.raises(IndexLostError, match="replaced"):
        Connections(path)


@contextmanager
def at_the_index(path: Path) -> Iterator[None]:
    """Another process opens the index of the cache directory or makes it anew."""
    with (path / ".cachefs/index.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_another_that_is_at_the_index_for_long_is_not_waited_for_without_end(
    place_of_it: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.drivers.database.PATIENCE", 0.1)
    monkeypatch.setattr("cachefs.drivers.database.RETURN", 0.0)
    cache, path = CacheDir(place_of_it, "sqlite"), place_of_it / ".cachefs/cache.db"
    driver = cache.open()
    path.unlink()
    with at_the_index(place_of_it):
        assert driver.totals() == Totals(1, 10)
        assert cache.open().totals() == Totals(1, 10)
        assert not path.exists()
    assert driver.totals() == Totals(1, 10)
    assert driver.files()[0] == path
    assert path.exists()
    cache.close()


def test_an_event_loop_waits_for_no_process_that_is_at_the_index(place_of_it: Path) -> None:
    cache = CacheDir(place_of_it, "sqlite")
    driver = cache.open()
    (place_of_it / ".cachefs/cache.db").unlink()
    with ThreadPoolExecutor(1) as threads:
        with at_the_index(place_of_it):
            answer = threads.submit(driver.totals)
            wait_for(lambda: is_busy(driver), "a thread that makes the index anew")
            assert not answer.done()
        assert answer.result(20) == Totals(1, 10)
    assert driver.quick.totals() == Totals(1, 10)
    cache.close()


def is_busy(driver: Driver) -> bool:
    try:
        driver.quick.totals()
    except IndexBusyError:
        return True
    return False


@pytest.mark.parametrize("put_there", [directory, dangling, fifo], ids=lambda kind: kind.__name__)
def test_an_index_is_made_anew_without_a_lock_where_there_can_be_none(
    place_of_it: Path, put_there: Callable[[Path], None]
) -> None:
    (place_of_it / ".cachefs").mkdir()
    put_there(place_of_it / ".cachefs/index.lock")
    cache, path = CacheDir(place_of_it, "sqlite"), place_of_it / ".cachefs/cache.db"
    driver = cache.open()
    path.unlink()
    assert driver.totals() == Totals(1, 10)
    assert driver.files()[0] == path
    assert path.exists()
    assert not (place_of_it.parent / "planted").exists()
    cache.close()


def test_a_damaged_index_is_an_event_loops_to_leave_to_a_thread(place_of_it: Path) -> None:
    cache = CacheDir(place_of_it, "sqlite")
    driver = cache.open()
    driver.tidy()
    os.truncate(place_of_it / ".cachefs/cache.db", 0)
    with pytest.raises(IndexBusyError):
        driver.quick.get("a")
    assert driver.get("a") is not None
    assert driver.quick.get("a") is not None
    cache.close()


def test_an_index_that_is_made_anew_is_asked_once_it_is_filled(place_of_it: Path) -> None:
    """An image that it does not know yet would be taken for one that is not cached."""
    cache = CacheDir(place_of_it, "sqlite")
    driver = cache.open()
    filling, go_on = hold_up(driver)
    (place_of_it / ".cachefs/cache.db").unlink()
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(driver.get, "a")]
        assert filling.wait(10)
        answers.append(threads.submit(driver.get, "a"))
        with pytest.raises(IndexBusyError):
            driver.quick.get("a")
        assert not driver.quick.is_untidy
        assert not any(answer.done() for answer in answers)
        go_on.set()
        assert all(answer.result(10) is not None for answer in answers)
    assert driver.quick.get("a") is not None
    cache.close()


def test_an_event_loop_waits_for_no_writer(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    with closing(sqlite3.connect(cache.path / "cache.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert driver.quick.get("a") == driver.quick.entries_after(0, 9)[0]
        assert driver.quick.totals() == Totals(1, 1)
        with pytest.raises(IndexBusyError):
            driver.quick.hit("a", 5.0)
        writer.execute("COMMIT")
    driver.quick.hit("a", 5.0)
    entry = driver.get("a")
    assert entry is not None
    assert entry.hits == 1


def test_the_log_is_bounded_though_a_reader_never_ends(cache: CacheDir) -> None:
    driver = cache.open()
    cache.publish(driver, Entry("a", 1))
    written = 0

    def hit_on() -> None:
        nonlocal written
        while True:
            driver.quick.hit("a", 5.0)
            written += 1

    log = cache.path / ".cachefs/cache.db-wal"
    with closing(sqlite3.connect(cache.path / "cache.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM cached_images").fetchall()
        with pytest.raises(IndexBusyError):
            hit_on()
        assert driver.quick.is_untidy
        assert not driver.tidy()
        with pytest.raises(IndexBusyError):
            driver.hit("a", 5.0)
        assert WAL_BYTES <= log.stat().st_size < 1.01 * WAL_BYTES
        assert driver.disk_bytes() > WAL_BYTES
    assert driver.tidy()
    assert log.stat().st_size == 0
    driver.quick.hit("a", 5.0)
    entry = driver.get("a")
    assert entry is not None
    assert entry.hits == written + 1 > UNTIDY_BYTES / 10_000

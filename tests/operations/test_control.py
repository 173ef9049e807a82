"""``control/``: every file of the table, and the verbs of its directories."""

import errno
import os
import stat

import pytest
import trio
from support.fake_source import FakeSource

from cachefs.cache import Limits
from cachefs.control import TABLE
from cachefs.control.files import Lines, Text
from cachefs.control.records import Records
from cachefs.errors import ImageNotFoundError, SourceUnreachableError
from cachefs.evictor import Evictor
from cachefs.units import Amount
from cachefs.vfs.inodes import IMAGES_INODE

from .conftest import DATA, Served, every_driver, refused

SMALL = b"small image"
FILES = [each for each in TABLE if isinstance(each, Text | Lines)]
DIRECTORIES = [each for each in TABLE if isinstance(each, Records)]
SETTINGS = ["max_size", "min_free", "stall_time"]

every_file = pytest.mark.parametrize("declared", FILES, ids=lambda each: each.name)
every_directory = pytest.mark.parametrize("declared", DIRECTORIES, ids=lambda each: each.name)


@pytest.fixture(autouse=True)
def _on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is evicted in the background: what these tests see, the control files have done."""

    async def run(_: Evictor) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Evictor, "run", run)


# The table


async def test_control_lists_its_table(served: Served) -> None:
    async with served() as worker:
        assert await worker.ask.listdir("control") == [each.name for each in TABLE]


@every_file
@every_driver
async def test_a_file_can_be_read_whole_and_in_pieces(
    served: Served, driver: str, declared: Text | Lines
) -> None:
    async with served(driver=driver, images={"a": SMALL}) as worker:
        handle = await worker.ask.open(f"control/{declared.name}")
        whole = await worker.ask.read_all(handle)
        again = await worker.ask.read(handle, 0)
        assert [len(again), again[:3]] == [len(whole), whole[:3]]
        assert await worker.ask.read(handle, 1, 2) == again[1:3]
        assert await worker.ask.read(handle, len(again)) == b""
        await worker.ask.release(handle)


@every_file
async def test_a_file_is_asked_for_each_time_and_its_mode_says_who_may_write(
    served: Served, declared: Text | Lines
) -> None:
    async with served() as worker:
        entry = await worker.ask.lookup(f"control/{declared.name}")
        mode = 0o644 if declared.store else 0o444
        assert oct(entry.st_mode) == oct(stat.S_IFREG | mode)
        assert (entry.st_size, entry.attr_timeout) == (0, 0)
        handle = await worker.ask.open(f"control/{declared.name}")
        assert handle.direct_io
        await worker.ask.release(handle)


@every_directory
async def test_a_directory_is_empty_at_first_and_its_mode_says_who_may_change_it(
    served: Served, declared: Records
) -> None:
    async with served() as worker:
        assert await worker.ask.listdir(f"control/{declared.name}") == []
        entry = await worker.ask.lookup(f"control/{declared.name}")
        assert oct(entry.st_mode) == oct(stat.S_IFDIR | 0o755)


@pytest.mark.parametrize("declared", TABLE, ids=lambda each: each.name)
async def test_a_control_group_may_write_what_the_owner_may(
    served: Served, declared: Text | Lines | Records
) -> None:
    async with served(control_group="4242") as worker:
        entry = await worker.ask.lookup(f"control/{declared.name}")
        assert entry.st_gid == 4242
        assert bool(entry.st_mode & 0o020) == bool(entry.st_mode & 0o200)
        assert not entry.st_mode & 0o002


@pytest.mark.parametrize("name", [each.name for each in FILES if each.store is None])
async def test_a_read_only_file_refuses_to_be_written(served: Served, name: str) -> None:
    async with served() as worker:
        with refused(errno.EPERM):
            await worker.ask.setattr(f"control/{name}", "size")
        handle = await worker.ask.open(f"control/{name}", os.O_WRONLY)
        with refused(errno.EPERM):
            await worker.ask.write(handle, "1")
        await worker.ask.release(handle)


@pytest.mark.parametrize("update", ["mode", "uid", "gid"])
@pytest.mark.parametrize("name", ["max_size", "queue", "status"])
async def test_a_control_file_keeps_its_mode_and_owner(
    served: Served, name: str, update: str
) -> None:
    async with served() as worker:
        with refused(errno.EPERM):
            await worker.ask.setattr(f"control/{name}", update)


async def test_an_unknown_control_file_does_not_exist(served: Served) -> None:
    async with served() as worker:
        with refused(errno.ENOENT):
            await worker.ask.lookup("control/unknown")


async def test_control_files_have_no_extended_attributes(served: Served) -> None:
    async with served() as worker:
        assert await worker.ask.listxattr("control/status") == []


# Values


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("max_size", text) for text in ("512M", "10G", "5%", "123456")),
        *(("min_free", text) for text in ("0", "1M", "0.1%")),
        *(("stall_time", text) for text in ("3600", "90")),
    ],
)
async def test_a_setting_reads_as_it_was_written_and_config_says_by_whom(
    served: Served, name: str, text: str
) -> None:
    async with served() as worker:
        await worker.ask.echo(f"{text}\n", f"control/{name}")
        assert await worker.ask.cat(f"control/{name}") == f"{text}\n".encode()
        assert (await worker.record("config"))[name]["from"] == f"control/{name}"


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("text", ["", "nonsense", "-1", "1X", "10 G x", b"\xff\xfe", "1" * 5000])
async def test_a_bad_value_is_invalid_and_changes_nothing(
    served: Served, name: str, text: str | bytes
) -> None:
    async with served() as worker:
        before = await worker.ask.cat("control/config")
        with refused(errno.EINVAL):
            await worker.ask.echo(text, f"control/{name}")
        assert await worker.ask.cat("control/config") == before
        assert not (worker.layout.private_dir / "settings").exists()


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_value_that_was_written_holds_for_the_mounts_next_worker(
    served: Served, name: str
) -> None:
    async with served(dies=True) as worker:
        await worker.ask.echo("77", f"control/{name}")
    async with served(first=False) as worker:
        assert await worker.ask.cat(f"control/{name}") == b"77\n"


async def test_a_value_that_cannot_be_kept_changes_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    async with served() as worker:
        monkeypatch.setattr(worker.running._layout, "write_atomically", full)
        with refused(errno.ENOSPC):
            await worker.ask.echo("1G", "control/max_size")
        assert await worker.ask.cat("control/max_size") == b"10G\n"


@every_driver
async def test_a_lower_max_size_has_evicted_when_the_write_returns(
    served: Served, driver: str
) -> None:
    images = {name: bytes(1000) for name in "abc"}
    async with served(driver=driver, images=images) as worker:
        inode = (await worker.ask.lookup("images/a")).st_ino
        await worker.ask.echo("2000", "control/max_size")
        assert sorted(await worker.ask.listdir("images")) == ["b", "c"]
        assert worker.notifier.entries == [(IMAGES_INODE, b"a", inode)]
        assert await worker.record("prune") == {"files": 1, "bytes": 1000}
        assert (await worker.record("status"))["max_size"] == 2000


async def test_what_is_open_is_not_evicted_by_a_lower_max_size(served: Served) -> None:
    async with served(images={name: bytes(1000) for name in "ab"}) as worker:
        handle = await worker.ask.open("images/a")
        await worker.ask.echo("1000", "control/max_size")
        assert await worker.ask.listdir("images") == ["a"]
        await worker.ask.release(handle)


@every_driver
async def test_prune_evicts_the_least_recently_used_and_says_what(
    served: Served, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    """Also while the last use is not written yet."""
    monkeypatch.setattr("cachefs.vfs.hits.DELAY", 3600)
    async with served(driver=driver, images={name: bytes(1000) for name in "abc"}) as worker:
        assert await worker.record("prune") == {}
        await worker.ask.cat("images/a")
        worker.store.limits = Limits(Amount(size=1500))
        await worker.ask.echo("\n", "control/prune")
        assert await worker.record("prune") == {"files": 2, "bytes": 2000}
        assert await worker.ask.listdir("images") == ["a"]


@every_driver
async def test_room_for_a_fetch_is_made_of_the_least_recently_used(
    served: Served, monkeypatch: pytest.MonkeyPatch, source: FakeSource, driver: str
) -> None:
    """Also while the last use is not written yet."""
    monkeypatch.setattr("cachefs.vfs.hits.DELAY", 3600)
    source.images["img"] = bytes(1000)
    source.digests.clear()
    async with served(driver=driver, images={name: bytes(1000) for name in "ab"}) as worker:
        await worker.ask.cat("images/a")
        worker.store.limits = Limits(Amount(size=2500))
        await worker.ask.cat("images/img")
        await worker.cached("img")
        assert sorted(await worker.ask.listdir("images")) == ["a", "img"]


async def test_pruning_what_fits_drops_nothing(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        await worker.ask.echo("1", "control/prune")
        assert await worker.record("prune") == {"files": 0, "bytes": 0}


async def test_clean_removes_failures_and_stalled_files_and_says_how_many(
    served: Served,
) -> None:
    async with served() as worker:
        assert await worker.record("clean") == {}
        worker.store.fail("bad", ImageNotFoundError("no such image"))
        for name, when in (("old", 1.0), ("fresh", worker.store.now())):
            worker.layout.incomplete(name).write_bytes(SMALL)
            os.utime(worker.layout.incomplete(name), (when, when))
        await worker.ask.echo("60", "control/clean")
        assert await worker.record("clean") == {"invalid": 1, "stalled": 1}
        assert await worker.ask.listdir("control/invalid") == []
        assert [path.name for path in worker.layout.incomplete_dir.iterdir()] == ["fresh"]


async def test_clean_takes_the_stall_time_set_where_none_is_written(served: Served) -> None:
    async with served() as worker:
        worker.layout.incomplete("old").write_bytes(SMALL)
        await worker.ask.echo("x", "control/clean")
        assert (await worker.record("clean"))["stalled"] == 0
        await worker.ask.echo("0", "control/stall_time")
        await worker.ask.echo("x", "control/clean")
        assert (await worker.record("clean"))["stalled"] == 1


async def test_a_bad_stall_time_written_to_clean_removes_nothing(served: Served) -> None:
    async with served() as worker:
        worker.store.fail("bad", ImageNotFoundError("no such image"))
        with refused(errno.EINVAL):
            await worker.ask.echo("1 fortnight", "control/clean")
        assert await worker.ask.listdir("control/invalid") == ["bad"]


# Documents


async def test_status_has_its_documented_keys(served: Served) -> None:
    async with served(mode="plain", images={"a": SMALL}) as worker:
        status = await worker.record("status")
        assert status.keys() >= {
            *("size", "max_size", "min_free", "images", "hits", "misses", "evictions"),
            *("queued", "fetching", "invalid", "held", "sources", "transport", "worker"),
        }
        assert (status["images"], status["size"]) == (1, len(SMALL))
        assert status["transport"] == {"mode": "plain", "passthrough": False, "why": "no kernel"}
        assert status["worker"]["pid"] == os.getpid()
        assert status["sources"] == [{"url": "fake:///", "healthy": None, "error": None}]


async def test_a_source_that_has_answered_is_healthy(served: Served, source: FakeSource) -> None:
    async with served() as worker:
        await worker.ask.lookup("images/img")
        assert (await worker.record("status"))["sources"] == [
            {"url": "fake:///", "healthy": True, "error": None}
        ]


async def test_status_counts_what_happens(served: Served, held: FakeSource) -> None:
    async with served(images={"a": SMALL, "b": SMALL}) as worker:
        await worker.ask.cat("images/a")
        await worker.ask.unlink("control/cached/b")
        handle = await worker.ask.open("images/img")
        worker.store.fail("bad", ImageNotFoundError("no such image"))
        status = await worker.record("status")
        counts = ("hits", "misses", "evictions", "fetching", "invalid", "images", "reserved")
        assert [status[each] for each in counts] == [1, 1, 1, 1, 1, 1, len(DATA)]
        await worker.ask.release(handle)


async def test_status_tells_of_a_source_that_fails(served: Served, source: FakeSource) -> None:
    source.errors.append(SourceUnreachableError("away"))
    async with served() as worker:
        with refused(errno.EHOSTUNREACH):
            await worker.ask.lookup("images/img")
        (health,) = (await worker.record("status"))["sources"]
        assert (health["healthy"], health["error"]) == (False, "away")


async def test_config_hides_secrets(served: Served) -> None:
    fallback = ("https://other:hunter2@example.org/y/?token=hunter2",)
    async with served(fallbacks=fallback) as worker:
        shown = await worker.ask.cat("control/config")
        assert b"example.org" in shown
        assert b"hunter2" not in shown


async def test_size_is_the_bytes_that_count_against_the_limit(served: Served) -> None:
    async with served(images={"a": bytes(1000), "b": bytes(234)}) as worker:
        assert await worker.ask.cat("control/size") == b"1234\n"
        handle = await worker.ask.open("images/a")
        await worker.ask.unlink("control/cached/a")
        assert await worker.ask.cat("control/size") == b"1234\n"
        await worker.ask.release(handle)
        assert await worker.ask.cat("control/size") == b"234\n"


@pytest.mark.parametrize("name", SETTINGS)
async def test_touching_a_control_file_changes_nothing(served: Served, name: str) -> None:
    async with served() as worker:
        before = await worker.ask.cat("control/config")
        await worker.ask.setattr(f"control/{name}", "atime", "mtime")
        assert await worker.ask.cat("control/config") == before

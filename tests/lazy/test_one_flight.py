"""One download serves all, survives its daemon, and is never of two versions."""

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.origin import Request
from support.processes import failure, run, wait_for

from .conftest import MIB, MakeMount, progress, stamped

READER = """
import os, random, sys
path, original, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
chosen = random.Random(seed)
size = os.stat(original).st_size
with open(path, "rb", buffering=0) as file, open(original, "rb", buffering=0) as true:
    for _ in range(40):
        offset = chosen.randrange(size)
        if os.pread(file.fileno(), 5000, offset) != os.pread(true.fileno(), 5000, offset):
            sys.exit(f"wrong bytes at {offset}")
"""


def test_32_readers_at_random_offsets_cost_one_download(make_mount: MakeMount) -> None:
    mount = make_mount(limit_rate="20m")
    data = mount.origin.put("shared", stamped(96 * MIB))
    original = str(mount.origin.directory / "shared")
    tools = [
        mount.start_tool(sys.executable, "-c", READER, mount.image("shared"), original, str(seed))
        for seed in range(32)
    ]
    for tool in tools:
        with tool:
            assert tool.wait(40) == 0
    mount.wait_listed("cached", "shared")
    run("cmp", mount.image("shared"), original)
    assert len(data) <= mount.server.bytes_sent("/shared") <= 1.1 * len(data)


UNALIGNED = "location / { limit_rate 10m; sendfile_max_chunk 300k; }"
"""Otherwise nginx sends a MiB at a time, which is a chunk, and no kill ever meets half of one."""


def cut_short(mount: Mounted, path: str) -> list[Request]:
    """The requests that got fewer bytes than they asked for."""
    ranges = ((r, r.range.removeprefix("bytes=").split("-")) for r in mount.server.requests(path))
    return [r for r, (first, last) in ranges if r.bytes_sent < int(last) - int(first) + 1]


def kill_worker(mount: Mounted) -> None:
    """``kill -9`` of the process that serves; its supervisor starts another."""
    worker = mount.worker()
    os.kill(worker, signal.SIGKILL)
    mount.expect(rf"worker {worker} ")
    wait_for(lambda: mount.worker() != worker, "the next worker")


def kill_all(mount: Mounted) -> None:
    """``kill -9`` of all, and a new mount."""
    mount.kill()
    mount.expect("detaching")
    mount.start()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kill", [kill_worker, kill_all])
def test_a_fetch_killed_at_20_random_moments_is_whole_and_costs_little_more(
    make_mount: MakeMount, kill: object
) -> None:
    assert callable(kill)
    chosen = random.Random(20)
    size = 512 * MIB
    mount = make_mount(limit_rate="10m", extra=UNALIGNED, patience=150)
    data = mount.origin.put("big", stamped(size))
    mount.touch("queue/big")
    mount.wait_listed("incomplete", "big")
    done = 0
    for number in range(20):
        # Moments are places first: a machine that is busy must not be done before the last.
        goal = (number + chosen.random()) * size / 20 * 0.9
        wait_for(lambda: progress(mount, "big") >= goal, f"{goal} bytes", 30)  # noqa: B023
        # Then times: a kill right after a chunk has arrived would cost nothing.
        moment = time.monotonic() + chosen.random() / 10
        wait_for(lambda: time.monotonic() >= moment, "a random moment")  # noqa: B023
        arrived = progress(mount, "big")
        assert arrived >= done, "what had come was lost"
        kill(mount)
        mount.wait_listed("incomplete", "big")
        done = arrived
    mount.wait_listed("cached", "big", timeout=30)
    assert mount.record("cached/big")["checksum"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    run("cmp", mount.image("big"), str(mount.origin.directory / "big"))
    # Or the kills would have met nothing under way, and the sum said nothing.
    wait_for(lambda: len(cut_short(mount, "/big")) >= 20, "the requests that were cut to be logged")
    assert any(request.bytes_sent % MIB for request in cut_short(mount, "/big"))
    assert size < mount.server.bytes_sent("/big") <= 1.2 * size


@pytest.mark.parametrize("digest", [None, ""], ids=["digest", "etag"])
def test_an_image_changed_between_two_kills_is_never_mixed(
    make_mount: MakeMount, digest: str | None
) -> None:
    mount = make_mount(limit_rate="4m")
    mount.expect("could not fetch 'big'")
    data = mount.origin.put("big", stamped(24 * MIB), digest=digest)
    mount.touch("queue/big")
    mount.wait_listed("incomplete", "big")
    for stamp in (b"second", b"third"):
        wait_for(lambda: progress(mount, "big") >= 4 * MIB, "4 MiB")
        mount.kill()
        data = mount.origin.put("big", stamped(24 * MIB, stamp), digest=digest)
        for name in ("big", "SHA256SUMS"):  # nginx's ETag is the second and the size
            os.utime(mount.origin.directory / name, (len(stamp), len(stamp)))
        mount.expect("detaching")
        mount.start()
        mount.wait_listed("incomplete", "big")
    mount.wait_listed("cached", "big")
    assert mount.cat("big") == data


def test_who_opened_it_incomplete_reads_on_through_completion_and_eviction(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(limit_rate="4m")
    data = mount.origin.put("img", stamped(8 * MIB))
    path = Path(mount.image("img"))
    with path.open("rb", buffering=0) as file:
        assert file.read(100) == data[:100]
        lazy = os.fstat(file.fileno()).st_ino
        assert os.getxattr(path, "user.cachefs.state") == b"incomplete"
        mount.wait_listed("cached", "img")
        # The kernel is told of it right after.
        wait_for(lambda: os.getxattr(path, "user.cachefs.state") == b"cached", "the cached image")
        assert path.stat().st_ino != lazy
        assert os.pread(file.fileno(), 5 * MIB, MIB) == data[MIB : 6 * MIB]
        assert path.read_bytes() == data
        mount.remove("cached/img")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), len(data), 0) == data
        assert os.fstat(file.fileno()).st_ino == lazy
        mount.origin.remove("img")
        wait_for(lambda: failure(os.stat, path) == "ENOENT", "the name to be gone", 8)
        assert os.pread(file.fileno(), 100, 7 * MIB) == data[7 * MIB : 7 * MIB + 100]


def test_until_it_is_verified_it_is_incomplete_and_after_a_wrong_digest_readers_get_EIO(  # noqa: N802
    make_mount: MakeMount,
) -> None:
    mount = make_mount(limit_rate="2m")
    mount.expect("could not fetch 'wrong'", r"\(EIO\)")
    data = mount.origin.put("wrong", stamped(6 * MIB), digest="0" * 64)
    path = Path(mount.image("wrong"))
    with path.open("rb", buffering=0) as file:
        assert file.read(5000) == data[:5000]
        assert os.getxattr(path, "user.cachefs.state") == b"incomplete"
        read = run("cat", str(path), check=False)
        assert read.status == 1
        assert len(read.stdout) < len(data)
        # Those that had been read too, once the kernel has been told to forget its pages.
        wait_for(lambda: failure(os.pread, file.fileno(), 10, 0) == "EIO", "EIO at 0")
        assert failure(os.pread, file.fileno(), 10, 5 * MIB) == "EIO"
        wait_for(lambda: not mount.listed("incomplete"), "the second try to end")
        assert failure(os.pread, file.fileno(), 10, 0) == "EIO"
    assert mount.listed() == []
    assert mount.listed("invalid") == ["wrong"]
    assert 2 * len(data) <= mount.server.bytes_sent("/wrong") <= 2 * len(data) + 100


@pytest.mark.parametrize("keep", [True, False])
def test_the_last_close_ends_the_fetch_where_it_is_told_to(
    make_mount: MakeMount, keep: bool
) -> None:
    options = [] if keep else ["--on-last-close", "cancel"]
    mount = make_mount(limit_rate="2m", options=options)
    data = mount.origin.put("img", stamped(6 * MIB))
    run("head", "-c", "10", mount.image("img"))
    if keep:
        mount.wait_listed("cached", "img")
    else:
        wait_for(lambda: not mount.listed("incomplete"), "the fetch to end")
        assert mount.listed() == mount.listed("invalid") == []
    assert mount.cat("img") == data


def test_reopening_at_once_what_the_last_close_cancels_is_no_error(make_mount: MakeMount) -> None:
    mount = make_mount(limit_rate="4m", options=["--on-last-close", "cancel"])
    data = mount.origin.put("img", stamped(2 * MIB))
    for _ in range(30):
        with Path(mount.image("img")).open("rb", buffering=0) as file:
            assert file.read(10) == data[:10]


def test_a_hundred_stats_of_a_missing_name_cost_the_origin_a_question(
    make_mount: MakeMount,
) -> None:
    mount = make_mount()
    began = time.monotonic()
    for _ in range(100):
        assert failure(os.stat, mount.image("missing")) == "ENOENT"
    periods = 1 + (time.monotonic() - began) // 5
    assert len(mount.server.requests("/missing")) <= periods


def test_names_that_no_image_can_have_never_reach_the_origin(make_mount: MakeMount) -> None:
    mount = make_mount()
    for name in (".hidden", ".Trash-1000", "cache.db", "cache.db-wal", "queue", "a\x07b", "a\nb"):
        assert failure(os.stat, mount.image(name)) in ("EINVAL", "ENOENT")
    assert mount.server.requests() == []

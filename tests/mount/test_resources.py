"""What a mount does at the limits of its process: descriptors, and handlers of requests."""

import contextlib
import errno
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.cachefs_mount import NGINX, Mounted
from support.processes import failure, wait_for

from .conftest import MakeMount

MIB = 2**20
TRANSPORTS = pytest.mark.parametrize("transport", ["relay", "plain"])


def limited(hard: int) -> tuple[str, ...]:
    """The words before a command that has so many descriptors at most, and 64 at first."""
    return ("prlimit", f"--nofile=64:{hard}")


@TRANSPORTS
def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one(
    make_mount: MakeMount, transport: str
) -> None:
    mount = make_mount(options=("--transport", transport), running=False)
    mount.prefix = list(limited(4096))
    mount.start()
    limits = Path(f"/proc/{mount.worker()}/limits").read_text()
    found = re.search(r"^Max open files\s+(\d+)\s+(\d+)", limits, re.MULTILINE)
    assert found is not None
    assert found.groups() == ("4096", "4096")


@TRANSPORTS
def test_an_open_too_many_fails_and_nothing_else(make_mount: MakeMount, transport: str) -> None:
    mount = make_mount(options=("--transport", transport), running=False)
    true = {f"i{number}": os.urandom(2000) for number in range(340)}
    mount.origin.directory.mkdir(exist_ok=True)
    for name, data in true.items():
        (mount.origin.directory / name).write_bytes(data)
    mount.prefix = list(limited(300))
    mount.start()
    mount.prefix = []
    worker = mount.worker()
    mount.expect("files are open", r"\(EMFILE\)", "Too many open files")
    with contextlib.ExitStack() as stack:
        errors: Counter[int] = Counter()
        opened = 0
        for name, data in true.items():
            try:
                fd = os.open(mount.image(name), os.O_RDONLY)
                stack.callback(os.close, fd)
                read = os.pread(fd, 4096, 0)  # which says so where its fetch found none left
            except OSError as error:
                errors[error.errno or 0] += 1
                continue
            assert read == data
            opened += 1
        assert set(errors) == {errno.EMFILE}
        assert opened > 100
        assert mount.status()["images"]
    wait_for(lambda: can_open(mount, "i339"), "descriptors to be free again")
    assert mount.cat("i339") == true["i339"]
    assert mount.worker() == worker
    lines = [line for line in mount.new_lines() if "EMFILE" in line]
    assert len(lines) < 8, "a storm is not logged for each request"


def can_open(mount: Mounted, name: str) -> bool:
    return failure(lambda: os.close(os.open(mount.image(name), os.O_RDONLY))) != "EMFILE"


READERS = """
import os, sys, threading
threading.stack_size(1 << 16)
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
started = threading.Barrier(451)
def read(number):
    started.wait()
    os.pread(fd, 4096, (number + 2) << 20)
for number in range(450):
    threading.Thread(target=read, args=(number,), daemon=True).start()
started.wait()
threading.Event().wait()
"""


@TRANSPORTS
def test_control_answers_while_450_reads_wait_for_a_stalled_source(
    make_mount: MakeMount, transport: str
) -> None:
    mount = make_mount(
        options=("--transport", transport, "--max-size", "2G"), source=NGINX, limit_rate="1k"
    )
    (mount.origin.directory / "big").touch()
    os.truncate(mount.origin.directory / "big", 600 * MIB)
    worker = mount.worker()
    for _ in range(4):
        with mount.start_tool(sys.executable, "-c", READERS, mount.image("big")) as tool:
            wait_for(lambda pid=tool.process.pid: reading(pid) >= 450, "the reads to wait")
            assert mount.record("incomplete/big")["size"] == 600 * MIB
            assert mount.listed("queue") == []
            assert mount.status()["fetching"] == 1
            tool.process.kill()
            assert tool.wait() == -signal.SIGKILL
    assert mount.worker() == worker


def reading(pid: int) -> int:
    """The threads of a process that are in pread64(2)."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += (task / "syscall").read_text().startswith("17 ")
    return found

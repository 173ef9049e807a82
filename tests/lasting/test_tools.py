"""qemu, a mounted filesystem and many handles go on while the worker is killed below them."""

import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.cachefs_mount import Mounted
from support.disturb import PATIENCE, SECONDS, Disturbance
from support.processes import run

from .conftest import MakeMount

MIB = 1 << 20

READ_HANDLES = """
import os, random, sys, time
count, seconds, origin, images = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
names = sys.argv[5:]
true = {name: open(f"{origin}/{name}", "rb").read() for name in names}
opened = [(name, os.open(f"{images}/{name}", os.O_RDONLY)) for name in names * (count // 10)]
print(len(opened), flush=True)
deadline, reads, dice = time.monotonic() + seconds, 0, random.Random(1)
while time.monotonic() < deadline:
    for name, fd in opened:
        offset, size = dice.randrange(len(true[name])), dice.randrange(1, 20000)
        got = os.pread(fd, size, offset)
        assert got == true[name][offset:offset + size], (name, offset, size, len(got))
        reads += 1
    time.sleep(0.01)
print(reads)
"""


def put_qcow2(mount: Mounted, size_mib: int) -> Path:
    """A qcow2 of random clusters, in the origin as ``disk.qcow2``; the origin's file."""
    scratch = mount.home / "scratch"
    with Path("/dev/urandom").open("rb") as noise:
        scratch.write_bytes(noise.read(size_mib * MIB))
    disk = mount.home / "disk.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(scratch), str(disk))
    mount.origin.put("disk.qcow2", disk.read_bytes())
    scratch.unlink()
    disk.unlink()
    return mount.origin.directory / "disk.qcow2"


def test_qemu_compares_a_disk_over_kills_and_evictions(make_mount: MakeMount) -> None:
    assert shutil.which("qemu-img"), "this test needs qemu-utils"
    mount = make_mount(source="nginx", limit_rate="8m")
    true = put_qcow2(mount, 16)
    deadline = time.monotonic() + SECONDS
    rounds = 0
    with Disturbance(mount, evict=["disk.qcow2"], refetch=False) as disturbance:
        while not rounds or time.monotonic() < deadline:
            image = mount.image("disk.qcow2")
            run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", str(true), image)
            rounds += 1
    assert disturbance.kills >= SECONDS / 4


def test_one_running_qemu_io_reads_right_bytes_over_kills_and_evictions(
    make_mount: MakeMount,
) -> None:
    """`read -P` fails on any byte that differs from the pattern."""
    mount = make_mount()
    scratch = mount.home / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(scratch), "32M")
    writes = [("-c", f"write -P {number + 1} {number}M 1M") for number in range(32)]
    run("qemu-io", "-f", "qcow2", *itertools.chain(*writes), str(scratch))
    mount.origin.put("disk.qcow2", scratch.read_bytes())
    mount.fetch("disk.qcow2")
    turns = int(SECONDS * 10)
    words: list[str] = []
    for turn in range(turns):
        number = turn * 7 % 32
        words += ["-c", f"read -P {number + 1} {number}M 1M", "-c", "sleep 100"]
    with Disturbance(mount, evict=["disk.qcow2"]) as disturbance:
        image = mount.image("disk.qcow2")
        done = mount.run(
            *("qemu-io", "-r", "-t", "none", "-f", "qcow2", *words, image), timeout=SECONDS + 25
        )
    assert done.text.count("1 MiB, 1 ops") == turns
    assert "Pattern verification failed" not in done.text + done.stderr
    assert disturbance.kills >= SECONDS / 4


def make_ext4(mount: Mounted) -> dict[str, str]:
    """An ext4 image ``root.ext4`` in the origin; its files' SHA-256."""
    tree, scratch = mount.home / "tree", mount.home / "root.ext4"
    tree.mkdir()
    with Path("/dev/urandom").open("rb") as noise:
        for number in range(40):
            (tree / f"file-{number}").write_bytes(noise.read(200_000 + 997 * number))
    scratch.touch()
    run("truncate", "-s", "24M", str(scratch))
    run("mkfs.ext4", "-q", "-d", str(tree), str(scratch))
    mount.origin.put("root.ext4", scratch.read_bytes())
    return sums(mount, tree)


def sums(mount: Mounted, tree: Path) -> dict[str, str]:
    names = sorted(str(path) for path in tree.glob("file-*"))
    lines = mount.run("sha256sum", *names, timeout=30).text.splitlines()
    return {Path(line.split(maxsplit=1)[1]).name: line.split()[0] for line in lines}


@contextmanager
def loop_mounted(mount: Mounted, name: str) -> Iterator[tuple[str, Path]]:
    """The image mounted through a loop device, read-only; the device and where. Both are taken away
    however this ends."""
    where = mount.home / "root"
    where.mkdir()
    device = run("losetup", "--find", "--show", "--read-only", mount.image(name)).text.strip()
    try:
        run("mount", "-o", "ro,noload", device, str(where))
        try:
            yield device, where
        finally:
            run("umount", "-l", str(where))
    finally:
        run("losetup", "--detach", device)


def test_a_filesystem_mounted_from_an_image_is_whole_over_kills_and_evictions(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(source="nginx", limit_rate="8m")
    true = make_ext4(mount)
    # Mounted while it is being fetched; cached, evicted and fetched anew below the loop device.
    with loop_mounted(mount, "root.ext4") as (device, where):
        deadline = time.monotonic() + SECONDS
        with Disturbance(mount, evict=["root.ext4"]) as disturbance:
            while disturbance.kills < 3 or time.monotonic() < deadline:
                assert sums(mount, where) == true
                run("blockdev", "--flushbufs", device)
                Path("/proc/sys/vm/drop_caches").write_text("1")
    assert disturbance.kills >= 3


def test_200_open_handles_read_right_bytes_over_kills_and_evictions(make_mount: MakeMount) -> None:
    mount = make_mount(source="nginx", limit_rate="1m")
    names = [f"image-{number}" for number in range(10)]
    for number, name in enumerate(names):
        mount.origin.put(name, MIB + 12345 * number)
    mount.fetch(*names[:5])  # the others are being fetched when they are opened
    child = mount.start_tool(
        *(sys.executable, "-c", READ_HANDLES, "200", str(SECONDS), str(mount.origin.directory)),
        *(str(mount.images), *names),
        stdout=-1,
    )
    with child:
        assert child.process.stdout is not None
        assert int(child.process.stdout.readline()) == 200
        with Disturbance(mount, evict=names) as disturbance:
            stdout, stderr = child.process.communicate(timeout=PATIENCE)
        assert child.process.returncode == 0, stderr.decode()
    print(f"{int(stdout)} reads")  # noqa: T201 - a figure of the long run
    assert disturbance.kills >= SECONDS / 4
    assert disturbance.evictions > 0

"""Reading in all the ways in which programs read; each of a cached image and of one that comes."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from support.cachefs_mount import DIRECTORY, NGINX, Mounted
from support.processes import run, start, wait_for

MIB = 2**20
pytestmark = pytest.mark.parametrize(
    ("kind", "stacked"),
    [
        (("sqlite", DIRECTORY), False),
        (("sqlite", NGINX), False),
        (("sqlite", DIRECTORY), True),
        (("xattr", DIRECTORY), True),
    ],
    ids=["directory", "nginx", "sqlite on overlayfs", "xattr on overlayfs"],
    scope="module",
)


@pytest.fixture(params=["cached", "uncached"])
def cached(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "cached")


def image(mount: Mounted, cached: bool, content: int | bytes = 300_000) -> tuple[str, bytes]:
    """The path and the bytes of a new image, cached or yet to be fetched."""
    name, data = mount.origin.new(content)
    if cached:
        mount.fetch(name)
    return mount.image(name), data


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 5 * MIB + 7])
def test_an_image_of_any_size_is_read_whole(mount: Mounted, cached: bool, size: int) -> None:
    path, data = image(mount, cached, size)
    assert run("cat", path).stdout == data
    assert run("stat", "-c", "%s", path).text.strip() == str(size)


def test_the_kernel_reads_by_itself_where_it_can(mount: Mounted, stacked: bool) -> None:
    transport = mount.status()["transport"]
    assert isinstance(transport, dict)
    assert transport["mode"] == "relay"
    assert transport["passthrough"] is not stacked
    assert ("stacked" in transport["why"]) is stacked


def test_an_image_is_read_from_the_disk(mount: Mounted, cached: bool) -> None:
    """The pages of the cache directory's own file are gone, and those of the mount."""
    path, data = image(mount, cached, 2 * MIB)
    assert run("cat", path).stdout == data
    mount.wait_listed("cached", Path(path).name)
    for name in (mount.cache_dir / Path(path).name, path):
        with open(name, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert run("cat", path).stdout == data


def test_an_empty_image_is_cached_when_it_is_read(mount: Mounted) -> None:
    name, _ = mount.origin.new(0)
    assert mount.cat(name) == b""
    mount.wait_listed("cached", name)


def test_single_bytes_are_read_at_odd_offsets(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, 2 * MIB + 13)
    with open(path, "rb", buffering=0) as file:
        for offset in (0, 1, 4095, 4097, MIB - 1, MIB, 2 * MIB + 12):
            assert os.pread(file.fileno(), 1, offset) == data[offset : offset + 1]


def test_reads_across_chunks_are_whole(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, 3 * MIB)
    with open(path, "rb", buffering=0) as file:
        for offset, size in ((MIB - 3, 7), (MIB // 2, 2 * MIB), (1, 3 * MIB - 2)):
            assert os.pread(file.fileno(), size, offset) == data[offset : offset + size]


def test_a_read_past_the_end_gives_what_there_is(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, 10_001)
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4096, 10_000) == data[-1:]
        assert os.pread(file.fileno(), 4096, 10_001) == b""
        assert os.pread(file.fileno(), 4096, 10**12) == b""


def test_an_image_is_mapped_into_memory(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, 2 * MIB + 5)
    # In a process of its own: a page fault that hangs would take all of this one's threads along.
    code = (
        "import hashlib, mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:\n"
        "        tail = pages[-1]\n"
        "        print(hashlib.sha256(pages).hexdigest(), tail)\n"
    )
    shown = run(sys.executable, "-c", code, path).text.split()
    assert shown == [hashlib.sha256(data).hexdigest(), str(data[-1])]


def test_dd_reads_past_the_page_cache(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, 2 * MIB)
    direct = run("dd", f"if={path}", "iflag=direct", "bs=64k", "status=none")
    assert direct.stdout == data


def test_dd_reads_blocks_that_are_not_aligned(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, MIB + 333)
    assert run("dd", f"if={path}", "bs=7777", "status=none").stdout == data


def test_zeros_are_read_as_zeros(mount: Mounted, cached: bool) -> None:
    data = bytes(MIB) + b"end" + bytes(MIB)
    path, _ = image(mount, cached, data)
    assert run("cat", path).stdout == data


def test_an_image_is_read_from_its_end_to_its_start(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, 4 * MIB)
    with open(path, "rb", buffering=0) as file:
        offsets = range(len(data) - 65536, -1, -65536)
        pieces = [os.pread(file.fileno(), 65536, offset) for offset in offsets]
    assert b"".join(reversed(pieces)) == data


def test_thirty_two_readers_at_once_get_the_same_bytes(mount: Mounted, cached: bool) -> None:
    path, data = image(mount, cached, 3 * MIB)
    readers = [start("sha256sum", path) for _ in range(32)]
    sums = [reader.communicate(timeout=30)[0].decode().split() for reader in readers]
    assert {line[0] for line in sums} == {hashlib.sha256(data).hexdigest()}
    name = Path(path).name
    mount.wait_listed("cached", name)
    wait_for(lambda: name not in mount.listed("incomplete"), "the fetch to end")
    assert mount.record(f"cached/{name}")["hits"] == 32


def test_qemu_img_reads_an_image(mount: Mounted, cached: bool) -> None:
    raw, plain = mount.home / "raw", mount.home / "plain"
    raw.write_bytes(os.urandom(MIB) + bytes(3 * MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(plain))
    path, _ = image(mount, cached, plain.read_bytes())
    information = json.loads(run("qemu-img", "info", "--output=json", path).text)
    assert information["format"] == "qcow2"
    assert information["virtual-size"] == 4 * MIB
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, str(plain))
    assert plain.read_bytes() == raw.read_bytes()


def test_a_filesystem_in_an_image_is_mounted_by_loop_device(mount: Mounted, cached: bool) -> None:
    content, disk, mountpoint = (mount.home / name for name in ("content", "disk", "loop"))
    content.mkdir(exist_ok=True)
    mountpoint.mkdir(exist_ok=True)
    (content / "hello").write_text("hello from an image\n")
    disk.unlink(missing_ok=True)
    run("mkfs.ext4", "-q", "-d", str(content), str(disk), "4M")
    path, _ = image(mount, cached, disk.read_bytes())
    loop = run("losetup", "--find", "--show", "--read-only", path).text.strip()
    try:
        run("mount", "-o", "ro,noload", loop, str(mountpoint))
        try:
            assert (mountpoint / "hello").read_text() == "hello from an image\n"
        finally:
            run("umount", str(mountpoint))
    finally:
        run("losetup", "--detach", loop)

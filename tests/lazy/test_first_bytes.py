"""Parts of a large image come while little of it has been fetched. Judged by bytes, not by time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.processes import run

from .conftest import MIB, MakeMount, progress, stamped

GIB = 2**30
RATE = "20m"
LITTLE = GIB // 8
"""Bytes: what six connections bring in a second, and more than any of these reads should take."""


@pytest.fixture
def gib(make_mount: MakeMount) -> Mounted:
    """A mount of ``gib``, 1 GiB with words at its ends and holes between."""
    mount = make_mount(limit_rate=RATE)
    path = mount.origin.directory / "gib"
    with path.open("wb") as file:
        file.write(b"first".ljust(4096, b"!"))
        file.truncate(GIB)
        file.seek(GIB - 4096)
        file.write(b"last".rjust(4096, b"!"))
    return mount


def test_the_first_4_kib_of_1_gib(gib: Mounted) -> None:
    read = run("head", "-c", "4096", gib.image("gib"))
    assert read.stdout == b"first".ljust(4096, b"!")
    assert progress(gib, "gib") < LITTLE


def test_the_last_4_kib_of_1_gib(gib: Mounted) -> None:
    read = run("tail", "-c", "4096", gib.image("gib"))
    assert read.stdout == b"last".rjust(4096, b"!")
    assert progress(gib, "gib") < LITTLE


def test_the_middle_of_1_gib(gib: Mounted) -> None:
    with Path(gib.image("gib")).open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4096, GIB // 2) == bytes(4096)
        assert progress(gib, "gib") < LITTLE


def test_qemu_img_info_of_a_qcow2(make_mount: MakeMount, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(stamped(96 * MIB))
    mount = make_mount(limit_rate="5m")
    run(
        *("qemu-img", "convert", "-f", "raw", "-O", "qcow2"),
        *(str(raw), str(mount.origin.directory / "disk.qcow2")),
    )
    shown = run("qemu-img", "info", "-U", mount.image("disk.qcow2")).text
    assert "file format: qcow2" in shown
    assert "virtual size: 96 MiB" in shown
    assert progress(mount, "disk.qcow2") < 48 * MIB


@contextmanager
def loop_mounted(image: str, where: Path) -> Iterator[Path]:
    """A filesystem in a file, mounted; detached with its loop device however the block ends."""
    where.mkdir()
    run("mount", "-o", "loop,ro", image, str(where))
    try:
        yield where
    finally:
        run("umount", "-l", str(where), check=False)


def test_an_ext4_image_is_mounted_and_checked_while_it_is_fetched(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"file-{number}").write_bytes(stamped(2 * MIB, b"%d" % number))
    mount = make_mount(limit_rate="3m")
    original = mount.origin.directory / "disk.ext4"
    run("mkfs.ext4", "-q", "-F", "-d", str(tree), str(original), "64M")
    with loop_mounted(mount.image("disk.ext4"), tmp_path / "loop") as loop:
        assert {path.name for path in loop.glob("file-*")} == {path.name for path in tree.iterdir()}
        assert progress(mount, "disk.ext4") < 64 * MIB
        shutil.copy(loop / "file-19", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == (tree / "file-19").read_bytes()
        run("e2fsck", "-fn", mount.image("disk.ext4"))
        run("diff", "-r", "-x", "lost+found", str(tree), str(loop))
    run("cmp", mount.image("disk.ext4"), str(original))

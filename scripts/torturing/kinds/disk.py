"""The cache directory's filesystem is full, out of inodes, read-only, or gone, below a mount.

A reader may be told so. What is cached reads right as long as it is there, the mount answers, and
when there is room again all goes on.
"""

import contextlib
import errno
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from torturing.content import Image
from torturing.kind import COMBOS
from torturing.mount import Mount, StartError
from torturing.patience import HangError, run, until
from torturing.world import MIB, World

SIZE = 48
TOLERATED = ("ENOSPC", "EIO", "EROFS", "ENOENT", "EACCES")
"""What a reader may be told while the disk is of no use."""

LOUDEST = 60
"""Warnings and errors that the daemon may log in the few seconds of one fault."""


class Disk:
    """One fault after the other, each on a filesystem of its own."""

    name = "disk"
    disturbs = "cache directory on a small ext4 or tmpfs: full, no inodes, read-only, removed"
    least = 8.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """As many as there is time for, in an order of the seed's."""
        rounds: list[tuple[str, Callable[[World, random.Random, Mount, Path], None]]] = [
            *(
                (kind, fault)
                for kind in ("ext4", "tmpfs")
                for fault in (_full, _no_inodes, _removed)
            ),
            ("ext4", _read_only),
            ("ext4", _renamed),
        ]
        rng.shuffle(rounds)
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            kind, fault = rounds[turn % len(rounds)]
            self._round(world, rng, kind, fault)
            turn += 1

    def _round(
        self,
        world: World,
        rng: random.Random,
        kind: str,
        fault: Callable[[World, random.Random, Mount, Path], None],
    ) -> None:
        what = f"{fault.__name__.strip('_')} on {kind}"
        images = world.images(rng, 8, 100_000, 2 * MIB)
        inodes = 160 if fault is _no_inodes else 0
        with world.small_disk(kind, SIZE, inodes=inodes) as place:
            mount = world.mount(
                cache_dir=place / "cache", max_size=SIZE * MIB, timeout="4s", start=False
            )
            try:
                mount.start()
            except StartError as error:
                world.figures.error(f"{what}: no start beforehand: {error}")
                return
            pinned = images[:4]
            mount.fetch(*(image.name for image in pinned))
            for image in pinned:
                mount.touch(f"pinned/{image.name}")
            hard: tuple[str, ...] = ()
            if fault in {_removed, _renamed}:
                hard = TOLERATED
                if world.combo.transport == "plain":  # a worker may give up, and its opens end
                    hard = (*TOLERATED, "ENOTCONN", "ECONNABORTED")
            before = _lines(mount)
            with world.readers(
                mount,
                images,
                ("keep", "open", "list"),
                tolerate=hard or TOLERATED,
                during=f"{what}:",
            ):
                with world.readers(
                    mount, pinned, ("open", "keep"), tolerate=hard, during=f"{what}:"
                ):
                    fault(world, rng, mount, place)
                    world.figures.fault()
                    time.sleep(1.5)
                if not until(mount.answers, 20):
                    world.figures.error(f"{what}: the mount does not answer: {mount.tail()}")
                loud = _lines(mount) - before
                if loud > LOUDEST:
                    world.figures.error(f"{what}: {loud} warnings in the log")
                _mend(place)
            if fault is _read_only:
                self._repair(mount, place)
            self._after(world, mount, images, what)
            self._end(mount)

    @staticmethod
    def _repair(mount: Mount, place: Path) -> None:
        """As an administrator does with a filesystem that has turned read-only."""
        with contextlib.suppress(HangError):
            mount.stop()
        mount.destroy()
        backing = place.with_suffix(".img")
        run(["umount", place], 20)
        run(["e2fsck", "-fy", backing], 30, check=False)
        run(["mount", "-o", "loop", backing, place], 20)

    @staticmethod
    def _end(mount: Mount) -> None:
        with contextlib.suppress(HangError):
            mount.stop()
        mount.destroy()

    def _after(self, world: World, mount: Mount, images: list[Image], what: str) -> None:
        """With room again, the mount goes on, or another one on the same directory does."""
        if mount.process is None or mount.process.poll() is not None:
            mount.destroy()
            mount.start()
        for image in images:
            with contextlib.suppress(OSError):
                mount.remove(f"pinned/{image.name}")
            with contextlib.suppress(OSError):
                mount.touch(f"queue/{image.name}")
        missing = {image.name for image in images}
        if not until(lambda: missing <= set(mount.listed("cached")), 30):
            left = sorted(missing - set(mount.listed("cached")))
            why = [
                mount.show(f"invalid/{name}") for name in left if name in mount.listed("invalid")
            ]
            world.figures.error(f"{what}: not cached with room again: {left[:3]} {why[:1]}")
            for name in left:
                with contextlib.suppress(OSError):
                    mount.remove(f"queue/{name}")
        world.check(mount, SIZE * MIB)


def _full(_: World, rng: random.Random, __: Mount, place: Path) -> None:
    with (place / "stranger").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(rng.randbytes(4096) * 16)
    with (place / "stranger-2").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 512)


def _no_inodes(_: World, __: random.Random, ___: Mount, place: Path) -> None:
    (place / "strangers").mkdir()
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (place / "strangers" / str(number)).touch()


def _removed(_: World, __: random.Random, mount: Mount, ___: Path) -> None:
    shutil.rmtree(mount.cache_dir, ignore_errors=True)


def _renamed(_: World, __: random.Random, mount: Mount, ___: Path) -> None:
    mount.cache_dir.rename(mount.cache_dir.with_name("elsewhere"))


def _read_only(_: World, __: random.Random, ___: Mount, place: Path) -> None:
    """As ext4 makes itself where it finds an error (``errors=remount-ro``)."""
    device = place.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    run(["mount", "-o", "remount,errors=remount-ro", place])
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("torture\n")
    assert until(lambda: _is_read_only(place), 5), "the filesystem did not turn read-only"


def _is_read_only(place: Path) -> bool:
    try:
        (place / "probe").touch()
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def _mend(place: Path) -> None:
    """Take away what took the room."""
    for stranger in place.glob("stranger*"):
        with contextlib.suppress(OSError):
            if stranger.is_dir():
                shutil.rmtree(stranger)
            else:
                stranger.unlink()
    with contextlib.suppress(OSError):
        (place / "elsewhere").rename(place / "cache")


def _lines(mount: Mount) -> int:
    return len(re.findall(rb" (WARNING|ERROR|CRITICAL) ", mount.log.read_bytes()))

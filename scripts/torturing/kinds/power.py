"""Power loss: the cache directory's disk as it was at a random write, mounted and checked.

The disk keeps its writes in order (:mod:`torturing.blockdev`); of those after the last flush a
random part is lost. What was published by then is there and whole; nothing that is there is wrong.
"""

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torturing.kind import COMBOS
from torturing.kinds.background import meanwhile
from torturing.mount import Mount
from torturing.patience import HangError, run, until
from torturing.processes import MARK
from torturing.world import MIB, World

SIZE = 64
"""MiB of the disk."""


class PowerDisk:
    """The program that is the disk."""

    def __init__(self, world: World, name: str) -> None:
        self.place = world.directory(name)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torturing.blockdev", str(self.place), str(SIZE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(world.home / "blockdev.log").open("ab"),
            env={**os.environ, MARK: str(world.home)},
        )
        self.file = self.place / "disk"
        if self._line(20) != "ready":
            raise RuntimeError("the disk does not start")

    def snapshot_after(self, writes: int, seed: str, path: Path) -> None:
        """Have it written to *path* after so many more writes; :meth:`taken` waits."""
        self._say(f"snap {writes} {seed} {path}")

    def taken(self, seed: str, path: Path, seconds: float) -> None:
        """Return once the snapshot is there: at the latest after *seconds*, as it is then."""
        if not self._line(seconds):
            self._say(f"now {seed} {path}")
            if not self._line(20):
                raise HangError("the disk gives no snapshot")

    def close(self) -> None:
        """Unmount it."""
        run(["umount", "-l", self.place], 10, check=False)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())
        self._process.stdin.flush()

    def _line(self, seconds: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline().decode().strip() if ready else ""


class Power:
    """A disk under load, cut off again and again."""

    name = "power"
    disturbs = "power loss: the disk as it was at a random write, mounted and checked"
    least = 10.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Rounds of some snapshots of one run of a mount; each is then mounted."""
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            for snapshot, published in self._loaded(world, rng, deadline):
                self._recover(world, snapshot, published)
                snapshot.unlink()
            turn += 1

    def _loaded(
        self, world: World, rng: random.Random, deadline: float
    ) -> list[tuple[Path, set[str]]]:
        """A mount under load on a disk: snapshots, and what was cached when each was asked for."""
        disk = PowerDisk(world, "power")
        try:
            run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", disk.file], 30)
            place = world.directory("disk")
            run(["mount", "-o", "loop", disk.file, place], 20)
            try:
                return self._snapshots(world, rng, disk, place, deadline)
            finally:
                for mount in world.mounts:
                    if place in mount.cache_dir.parents:
                        mount.destroy()
                world.unmount(place)
        finally:
            disk.close()

    def _snapshots(
        self, world: World, rng: random.Random, disk: PowerDisk, place: Path, deadline: float
    ) -> list[tuple[Path, set[str]]]:
        world.origin.rate = 8 * MIB
        mount = world.mount(cache_dir=place / "cache", max_size=30 * MIB)
        images = world.images(rng, 14, 1_000, 3 * MIB)
        names = [image.name for image in images]
        dice = random.Random(rng.random())
        spared = set(names[:4])
        mount.fetch(*spared)

        def churn() -> None:
            name = dice.choice(names)
            if name not in spared and dice.random() < 0.4:
                mount.remove(f"cached/{name}")
            else:
                mount.touch(f"queue/{name}")
            world.figures.operation()

        taken = []
        for name in spared:
            mount.touch(f"pinned/{name}")
        with meanwhile(churn, world.figures, 0.05, name="load"):
            for number in range(max(1, min(4, int((deadline - time.monotonic()) / 6)))):
                path = world.home / f"snapshot-{time.monotonic_ns()}.img"
                published = set(mount.listed("cached")) & spared
                seed = f"{world.seed}/{number}"
                disk.snapshot_after(rng.randint(1, 150), seed, path)
                disk.taken(seed, path, 6)
                world.figures.fault()
                taken.append((path, published))
        return taken

    def _recover(self, world: World, snapshot: Path, published: set[str]) -> None:
        with self._mounted(world, snapshot) as place:
            cache = place / "cache"
            if not cache.exists():
                world.figures.error("the cache directory is not there after a power loss")
                return
            mount = world.mount(cache_dir=cache, max_size=30 * MIB, start=False)
            mount.start()
            lost = published - set(mount.listed("cached"))
            if lost:
                world.figures.error(f"published and pinned before a power loss, and lost: {lost}")
            self._unpin(mount)
            world.check(mount, 30 * MIB)

    def _unpin(self, mount: Mount) -> None:
        for name in mount.listed("pinned"):
            with contextlib.suppress(OSError):
                mount.remove(f"pinned/{name}")

    @contextmanager
    def _mounted(self, world: World, snapshot: Path) -> Iterator[Path]:
        place = world.directory("after")
        assert until(snapshot.exists, 5), "no snapshot"
        run(["mount", "-o", "loop", snapshot, place], 20)
        try:
            yield place
        finally:
            for mount in world.mounts:
                if place in mount.cache_dir.parents:
                    mount.destroy()
            world.unmount(place)

"""The limit by measure: what the directory holds is added up every 50 ms, while images of random
sizes are fetched, pins and limits move, and open images are evicted.

A sample is taken under the directory's lock (``.cachefs/lock``, flock), between two decisions of
the cache: without it, a file that is renamed meanwhile would be seen twice or not at all.
"""

import contextlib
import fcntl
import os
import random
import time

from torturing import check
from torturing.kind import COMBOS
from torturing.kinds.background import meanwhile
from torturing.mount import Mount
from torturing.world import MIB, World


class LimitsByMeasure:
    """A directory that is always full."""

    name = "limits"
    disturbs = "fetches of random sizes, pins and limits moving, `rm` of open images"
    least = 6.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """One mount, measured all along."""
        images = world.images(rng, 30, 0, 5 * MIB)
        names = [image.name for image in images]
        ruler = Ruler(16 * MIB)
        mount = world.mount(max_size=ruler.limit, timeout="3s", max_fetches=4)
        dice = random.Random(rng.random())
        tolerate = ("ENOSPC", "EIO")  # EIO where a fetch is cancelled below its reader
        with (
            world.readers(mount, images, ("keep", "open", "open", "list"), tolerate=tolerate),
            meanwhile(lambda: ruler.sample(world, mount), world.figures, 0.05, name="the sum"),
        ):
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    self._move(world, mount, ruler, dice, names)
                time.sleep(dice.uniform(0.0, 0.15))
            for name in mount.listed("pinned"):
                with contextlib.suppress(OSError):
                    mount.remove(f"pinned/{name}")
            ruler.move(mount, 16 * MIB)
        self._drain(mount)
        world.check(mount, ruler.allowed)

    def _move(
        self, world: World, mount: Mount, ruler: "Ruler", dice: random.Random, names: list[str]
    ) -> None:
        name = dice.choice(names)
        action = dice.choice(
            ("queue", "queue", "evict", "evict", "pin", "unpin", "limit", "cancel")
        )
        if action == "queue":
            mount.touch(f"queue/{name}")
        elif action == "evict":
            mount.remove(f"cached/{name}")
        elif action == "pin" and len(mount.listed("pinned")) < 3:
            mount.touch(f"pinned/{name}")
        elif action == "unpin":
            mount.remove(f"pinned/{name}")
        elif action == "cancel":
            mount.remove(f"incomplete/{name}")
        elif action == "limit":
            ruler.move(mount, dice.randint(8 * MIB, 24 * MIB))
            world.figures.fault()
        world.figures.operation()

    def _drain(self, mount: Mount) -> None:
        """What waits for room may wait for ever once the readers have gone: it is unqueued."""
        for name in mount.listed("queue"):
            with contextlib.suppress(OSError):
                mount.remove(f"queue/{name}")


class Ruler:
    """What is allowed at the moment, in bytes. A limit set lower than what is taken holds for what
    comes: open and pinned images stay, and the sum must only not grow."""

    def __init__(self, limit: int) -> None:
        self.limit = self.allowed = limit
        self.taken = 0
        self._moving = False

    def move(self, mount: Mount, limit: int) -> None:
        """Write another limit."""
        self._moving = True
        try:
            self.allowed = max(self.allowed, limit)
            mount.write("max_size", str(limit))
            self.limit = limit
        finally:
            self._moving = False

    def sample(self, world: World, mount: Mount) -> None:
        """Measure, and compare. Raises AssertionError."""
        fd = os.open(mount.cache_dir / ".cachefs" / "lock", os.O_RDWR)
        try:
            deadline = time.monotonic() + 1
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.0005)
            taken = check.taken_bytes(mount.cache_dir)
        finally:
            os.close(fd)
        world.figures.images(0)
        world.figures.operation()
        allowed = self.allowed
        if not self._moving:
            self.allowed = max(self.limit, min(self.allowed, taken))
        over = taken - allowed
        assert over <= 0, f"{taken} bytes are taken where {allowed} are allowed"

"""`ls` looping, evictions and the notifications that they send, and kill -9 of the worker.

A worker that dies while the kernel works on its notification leaves a thread in the kernel, which
waits for a lock that a listing holds, which waits for the next worker.
"""

import random
import time

from torturing.kind import COMBOS
from torturing.kinds.background import meanwhile
from torturing.mount import Mount
from torturing.patience import HangError, until
from torturing.processes import kill
from torturing.world import MIB, World

PLAIN = ("ENOTCONN", "ECONNABORTED", "ENOENT", "EBADF", "EIO")
"""What ends with a plain mount."""

RECOVERY = 60.0
"""Seconds that a mount has to answer again after a kill."""


class Notify:
    """Many kills in a row, as fast as the supervisor takes them for accidents."""

    name = "notify"
    disturbs = "kill -9 of the worker while `ls` loops and images are evicted"
    least = 6.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """One mount; its worker is killed until the time, or the number asked for, is over."""
        images = world.images(rng, 24, 1_000, 60_000)
        names = [image.name for image in images]
        mount = world.mount(max_size=64 * MIB)
        mount.fetch(*names)
        kills = 0
        tolerate = PLAIN if world.combo.transport == "plain" else ()
        dice = random.Random(rng.random())

        def churn() -> None:
            name = dice.choice(names)
            mount.remove(f"cached/{name}", RECOVERY)
            world.figures.operation()
            mount.touch(f"queue/{name}", RECOVERY)
            world.figures.operation()

        with (
            world.readers(mount, images, ("ls", "ls", "ls", "keep"), tolerate=tolerate),
            meanwhile(churn, world.figures, 0.0, name="evictions"),
            meanwhile(churn, world.figures, 0.0, name="evictions"),
        ):
            while (
                kills < world.options.kills if world.options.kills else time.monotonic() < deadline
            ):
                time.sleep(rng.uniform(0.4, 0.9))
                self._kill(world, mount)
                kills += 1
        world.check(mount, 64 * MIB)

    def _kill(self, world: World, mount: Mount) -> None:
        pid = 0

        def seen() -> bool:
            nonlocal pid
            try:
                pid = mount.worker(RECOVERY)
            except (OSError, ValueError):
                return False
            return True

        if not until(seen, RECOVERY):
            raise HangError(f"no worker within {RECOVERY:g} s")
        kill(pid)
        world.figures.fault()
        began = time.monotonic()

        def back() -> bool:
            try:
                return mount.worker(RECOVERY) != pid
            except (OSError, ValueError):
                return False

        if not until(back, RECOVERY):
            raise HangError(f"no other worker within {RECOVERY:g} s of a kill")
        world.figures.gap(time.monotonic() - began)

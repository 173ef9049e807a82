"""kill -9 of the worker, the supervisor, and both, at random moments under load."""

import contextlib
import random
import time

from torturing.content import Image
from torturing.kind import COMBOS
from torturing.mount import Mount
from torturing.patience import HangError, until
from torturing.processes import kill
from torturing.world import MIB, World

LIMIT = 24 * MIB

ENDED = ("ENOTCONN", "ECONNABORTED", "ENOENT", "EBADF", "EIO")
"""What a reader may get where the mount itself ends: always on plain, whose open files end with
their daemon, and wherever all processes are killed."""


class Kills:
    """Load from readers, the queue and evictions; one kill after the other."""

    name = "kills"
    disturbs = "kill -9 of worker, supervisor or both at random moments, under load"
    least = 8.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Rounds of a mount, killed some times, checked, and made again on the same directory."""
        images = world.images(rng, 10, 10_000, 4 * MIB)
        world.origin.rate = 20 * MIB
        mount = world.mount(max_size=LIMIT, start=False)
        while True:
            mount.start()
            with world.readers(mount, images, tolerate=self._tolerated(world)):
                ended = min(deadline, time.monotonic() + rng.uniform(5, 15))
                while time.monotonic() < ended:
                    self._load(world, mount, rng)
                    self._kill_worker(world, mount, rng)
            self._kill_all(world, mount, images, rng)
            world.check(mount, LIMIT)
            if time.monotonic() > deadline:
                return

    def _tolerated(self, world: World) -> tuple[str, ...]:
        # Four readers of images that together exceed the limit may find no room.
        return ("ENOSPC", *ENDED) if world.combo.transport == "plain" else ("ENOSPC",)

    def _load(self, world: World, mount: Mount, rng: random.Random) -> None:
        for _ in range(rng.randrange(4)):
            image = rng.choice(list(world.origin.images))
            with contextlib.suppress(OSError):
                if rng.random() < 0.5:
                    mount.touch(f"queue/{image}")
                else:
                    mount.remove(f"cached/{image}")
                world.figures.operation()
            time.sleep(rng.uniform(0, 0.1))

    def _kill_worker(self, world: World, mount: Mount, rng: random.Random) -> None:
        try:
            pid = mount.worker()
        except (OSError, ValueError):
            pid = 0  # between two mounts, on plain
        if pid:
            kill(pid)
            world.figures.fault()
        began = time.monotonic()
        if not until(lambda: mount.answers() and mount.worker() != pid, 45):
            raise HangError("no other worker within 45 s of a kill")
        world.figures.gap(time.monotonic() - began)
        time.sleep(rng.uniform(0, 0.8))
        if world.combo.transport == "relay" and rng.random() < 0.15:
            done = mount.cli("upgrade")
            world.figures.operation()
            if done.status:
                world.figures.error(f"cachefs upgrade ended with {done.status}: {done.stderr}")

    def _kill_all(
        self, world: World, mount: Mount, images: list[Image], rng: random.Random
    ) -> None:
        """The supervisor alone, then the worker; or both at once; the directory is left as it
        was."""
        if rng.random() < 0.3:
            mount.stop()
            return
        world.figures.fault()
        if rng.random() < 0.5 and mount.process is not None:
            kill(mount.process.pid)
            time.sleep(rng.uniform(0, 0.5))
            if not until(mount.answers, 20):
                world.figures.error("the mount does not outlive its supervisor")
            with world.readers(mount, images, tolerate=("ENOSPC",)):
                time.sleep(1)
        mount.kill_all()
        mount.destroy()

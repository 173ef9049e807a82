"""A real Glance that caches the same images in the same directory, and is killed, or not."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cachefs.cache.lease import CLOSING
from torturing.content import Image
from torturing.kind import COMBOS, LeftOutError
from torturing.kinds.background import meanwhile
from torturing.patience import HangError, run, until
from torturing.processes import MARK, kill
from torturing.world import MIB, World

INSTALLING = 900.0
"""Seconds that pip may take for Glance and all that it needs."""


class Glance:
    """Two caches on one directory."""

    name = "glance"
    disturbs = "a real Glance caches the same images in the same directory, killed and not"
    least = 10.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Rounds of one mount and one Glance, which ends in one way or the other."""
        python = _python(world)
        images = world.images(rng, 8, 1_000, 2 * MIB)
        names = [image.name for image in images]
        world.origin.rate = 8 * MIB
        mount = world.mount(max_size=64 * MIB, start=False)
        dice = random.Random(rng.random())

        def churn() -> None:
            if dice.random() < 0.5:
                mount.touch(f"queue/{dice.choice(names)}")
            else:
                mount.remove(f"cached/{dice.choice(names)}")
            world.figures.operation()

        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            mount.start()
            ended = max(time.monotonic() + 5, min(deadline, time.monotonic() + 12))
            tolerate = ("ENOTCONN", "ECONNABORTED", "ENOENT") if "plain" in str(world.combo) else ()
            with (
                world.readers(mount, images, ("open", "keep"), tolerate=tolerate),
                # What Glance removes while no worker runs is lost to who has it open, and for a
                # moment to who asks for it by its name.
                world.readers(mount, images, ("list",), tolerate=(*tolerate, "EIO")),
                meanwhile(churn, world.figures, 0.1, name="load"),
            ):
                while time.monotonic() < ended:
                    with self._glance(world, python, mount.cache_dir, images, rng):
                        time.sleep(rng.uniform(1.5, 4))
                        if rng.random() < 0.3:
                            kill(mount.worker())
                            world.figures.fault()
                        until(mount.answers, 40)
            mount.stop()
            time.sleep(CLOSING)  # till then a start of ours leaves a Glance what it may yet rename
            world.check(mount)
            turn += 1

    @contextmanager
    def _glance(
        self,
        world: World,
        python: Path,
        cache_dir: Path,
        images: Sequence[Image],
        rng: random.Random,
    ) -> Iterator[None]:
        """A Glance for as long as the block runs; then it is killed, wherever it is."""
        order = {
            "cache": str(cache_dir),
            "driver": world.combo.driver,
            "seed": rng.random(),
            "images": [
                {name: getattr(image, name) for name in Image.__slots__} for image in images
            ],
        }
        said = world.home / f"glance-{time.monotonic_ns()}"
        with said.open("wb") as out, (world.home / "glance.log").open("ab") as log:
            process = subprocess.Popen(
                [python, "-W", "ignore", "-m", "torturing.glance_program", json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, MARK: str(world.home)},
            )
        try:
            if not until(lambda: b"ready" in said.read_bytes() or process.poll() is not None, 60):
                raise HangError("Glance does not start within 60 s")
            if process.poll() is not None:
                raise RuntimeError(f"Glance ended with {process.returncode}: see glance.log")
            yield
        finally:
            process.kill()
            world.figures.fault()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            lines = said.read_text().splitlines()
            world.figures.operation(lines.count("step"))
            for line in lines:
                if line.startswith("Glance"):
                    world.figures.error(line)


def _python(world: World) -> Path:
    """The interpreter of an environment with Glance, installed where it is missing and there is
    time. Raises LeftOutError."""
    home = world.options.glance or Path(sys.prefix) / "glance"
    python = home / "bin" / "python"
    if _has_glance(python):
        return python
    if not world.options.install:
        raise LeftOutError("Glance is not installed, and there is no time for it")
    try:
        run([sys.executable, "-m", "venv", home], 120)
        run([python, "-m", "pip", "install", "-q", "glance"], INSTALLING)
    except (HangError, RuntimeError) as error:
        raise LeftOutError("Glance cannot be installed") from error
    return python


def _has_glance(python: Path) -> bool:
    if not python.exists():
        return False
    done = run([python, "-W", "ignore", "-c", "import glance.image_cache"], 60, check=False)
    return done.status == 0

"""A real kill, or an injected error, at every system call of what the daemon does: strace(1) counts
the calls of each thread, and injects at the N-th.

The N go up from 1 until nothing is injected any more; then the step has been done to all of them.
"""

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torturing.content import Image
from torturing.kind import COMBOS, LeftOutError
from torturing.mount import Mount, StartError
from torturing.patience import HangError, until
from torturing.processes import kill
from torturing.world import MIB, World, have

KILL = "signal=KILL"
CALLS = {
    "openat": "error=EMFILE",
    "pwrite64": "error=ENOSPC",
    "ftruncate": "error=ENOSPC",
    "fsync": "error=EIO",
    "fdatasync": "error=EIO",
    "rename": "error=EIO",
    "renameat": "error=EIO",
    "unlink": "error=EIO",
    "linkat": "error=ENOSPC",
    "mkdir": "error=ENOSPC",
    "fcntl": "error=ENOLCK",
    "flock": "error=EINTR",
    "utimensat": "error=EIO",
    "fsetxattr": "error=ENOSPC",
    "setxattr": "error=ENOSPC",
    "write": "error=ENOSPC",
    "close": "",
    "newfstatat": "error=EIO",
}
"""What is injected instead of a kill, for each system call; where nothing is, only kills are."""


@dataclass(slots=True)
class Stage:
    """What a scenario works with."""

    world: World
    mount: Mount
    image: Image


def _publish(stage: Stage) -> None:
    with contextlib.suppress(FileExistsError):
        stage.mount.touch(f"queue/{stage.image.name}")
    until(lambda: stage.mount.answers() and stage.mount.settle(0), 4)


def _evict(stage: Stage) -> None:
    stage.mount.remove(f"cached/{stage.image.name}")


def _queue(stage: Stage) -> None:
    stage.mount.touch(f"queue/{stage.image.name}")
    stage.mount.remove(f"queue/{stage.image.name}")


def _hit(stage: Stage) -> None:
    stage.mount.read(stage.image.name)
    time.sleep(0.05)


SCENARIOS: dict[str, tuple[Callable[[Stage], None], bool]] = {
    "publish": (_publish, False),
    "evict": (_evict, True),
    "queue": (_queue, False),
    "hit": (_hit, True),
}
"""By name: what is done while the worker is traced, and whether the image is cached beforehand."""

OUTSIDE = ("resume", "start")


class Steps:
    """Injection after injection, each on the worker that serves just then."""

    name = "steps"
    disturbs = (
        "kill -9 or an error at every system call of publish, evict, queue, hit, resume, start"
    )
    least = 14.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Pairs of a scenario and a system call, in an order of the seed's."""
        if not have("strace"):
            raise LeftOutError("no strace")
        pairs = [(scenario, call) for scenario in (*SCENARIOS, *OUTSIDE) for call in CALLS]
        rng.shuffle(pairs)
        mount = world.mount(max_size=32 * MIB, timeout="5s")
        world.origin.rate = 16 * MIB
        reached = dict.fromkeys(pairs, 0)
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            left = [pair for pair in pairs if reached[pair] >= 0]
            if not left:
                break
            pair = left[turn % len(left)]
            reached[pair] += rng.randint(1, 4)
            if not self._step(world, mount, rng, pair, reached[pair]):
                reached[pair] = -1
            turn += 1
        world.check(mount, 32 * MIB)

    def _step(
        self, world: World, mount: Mount, rng: random.Random, pair: tuple[str, str], number: int
    ) -> bool:
        """Whether something was injected. The image can be had afterwards, and is right."""
        scenario, call = pair
        what = CALLS[call] if CALLS[call] and rng.random() < 0.5 else KILL
        inject = f"{call}:{what}:when={number}"
        [image] = world.images(rng, 1, 1_000, 2 * MIB)
        stage = Stage(world, mount, image)
        name = f"{scenario}, {inject}"
        if scenario == "start":
            injected = self._start(stage, call, inject)
        elif scenario == "resume":
            injected = self._resume(stage, call, inject)
        else:
            injected = self._inside(stage, scenario, call, inject)
        if injected:
            world.figures.fault()
        self._mend(stage, name)
        return injected

    def _inside(self, stage: Stage, scenario: str, call: str, inject: str) -> bool:
        action, cached = SCENARIOS[scenario]
        if cached:
            stage.mount.fetch(stage.image.name)
        with self._traced(stage, stage.mount.worker(), call, inject) as log, _answers():
            action(stage)
            stage.world.figures.operation()
        return _injected(log)

    def _resume(self, stage: Stage, call: str, inject: str) -> bool:
        """A worker is killed in the middle of a fetch, and the next one has it injected."""
        mount = stage.mount
        worker, supervisor = mount.worker(), mount.supervisor()
        with contextlib.suppress(FileExistsError):
            mount.touch(f"queue/{stage.image.name}")
        with self._traced(stage, supervisor, call, inject) as log:
            kill(worker)
            until(lambda: _injected(log), 3)
        return _injected(log)

    def _start(self, stage: Stage, call: str, inject: str) -> bool:
        mount = stage.mount
        with contextlib.suppress(HangError):
            mount.stop()
        log = mount.home / f"strace-{time.monotonic_ns()}"
        mount.start(prefix=_strace(log, call, inject), wait=False)
        until(lambda: _injected(log) or mount.answers(), 8)
        injected = _injected(log)
        mount.destroy()
        return injected

    def _mend(self, stage: Stage, what: str) -> None:
        """As good as before, whatever was done: the image is fetched where it is not there."""
        mount, image, figures = stage.mount, stage.image, stage.world.figures
        if mount.process is not None and mount.process.poll() is not None:
            if stage.world.combo.transport == "relay" and "start" not in what:
                figures.error(f"{what}: the mount has ended: {mount.tail()}")
            mount.process = None
            mount.destroy()
        if mount.process is None:
            try:
                mount.start()
            except StartError as error:
                figures.error(f"after {what}: {error}")
                raise
        if not until(mount.answers, 40):
            raise HangError(f"after {what}: the mount does not answer")
        for _ in range(3):  # what broke once may be in invalid/, until it is asked for again
            with contextlib.suppress(OSError):
                mount.touch(f"queue/{image.name}")
            if until(lambda: image.name in mount.listed("cached"), 8):
                break
        else:
            figures.error(f"after {what}: the image is not cached any more")
            return
        with _answers():
            if mount.read(image.name) != image.read(0, image.size):
                figures.error(f"after {what}: wrong bytes")
        with _answers():
            mount.remove(f"cached/{image.name}")

    @contextmanager
    def _traced(self, stage: Stage, pid: int, call: str, inject: str) -> Iterator[Path]:
        log = stage.mount.home / f"strace-{time.monotonic_ns()}"
        process = subprocess.Popen(
            [*_strace(log, call, inject), "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            until(lambda: _tracer(pid) or process.poll() is not None, 3, 0.01)
            time.sleep(0.05)
            yield log
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
            if process.stderr is not None:
                process.stderr.close()


@contextmanager
def _answers() -> Iterator[None]:
    """An error is an answer, where the fault is what was asked for."""
    with contextlib.suppress(OSError, ValueError):
        yield


def _strace(log: Path, call: str, inject: str) -> list[str]:
    return ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={inject}"]


def _injected(log: Path) -> bool:
    with contextlib.suppress(OSError):
        text = log.read_bytes()
        return b"(INJECTED)" in text or b"killed by SIGKILL" in text
    return False


def _tracer(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()
    return False

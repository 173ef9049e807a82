"""A real kill, or an injected error, at every system call of what the daemon does: strace(1) counts
the calls of each thread, and injects at the N-th.

Each scenario is traced once without a fault, to know which calls it has; then they are had in
random order.
"""

import contextlib
import random
import signal
import subprocess
import time
from collections import Counter
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
    "write": "",
    "close": "",
    "newfstatat": "error=EIO",
}
"""What is injected instead of a kill, for each system call; where nothing is, only kills are:
write(2) is of pipes and of the device, which know no such errors."""


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

WEIGHTS = {"publish": 5, "evict": 3, "queue": 2, "hit": 2, "resume": 2, "start": 1}
"""How often each scenario is had; those of the mount itself take seconds each."""


class Steps:
    """Injection after injection, each on the worker that serves just then."""

    name = "steps"
    disturbs = (
        "kill -9 or an error at every system call of publish, evict, queue, hit, resume, start"
    )
    least = 10.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Steps in an order of the seed's; each scenario is traced once before, for its calls."""
        if not have("strace"):
            raise LeftOutError("no strace")
        mount = world.mount(max_size=32 * MIB, timeout="5s")
        world.origin.rate = 16 * MIB
        steps: dict[str, list[tuple[str, int]]] = {}
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            scenario = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            if scenario not in steps:
                found = self._profile(world, mount, rng, scenario)
                rng.shuffle(found)
                steps[scenario] = found
            if steps[scenario]:
                self._step(world, mount, rng, scenario, steps[scenario].pop())
            turn += 1
        world.check(mount, 32 * MIB)

    def _profile(
        self, world: World, mount: Mount, rng: random.Random, scenario: str
    ) -> list[tuple[str, int]]:
        """Each system call of the scenario with its number in its thread."""
        [image] = world.images(rng, 1, 1_000, 2 * MIB)
        stage = Stage(world, mount, image)
        log = self._do(stage, scenario, "", lambda _: False)
        self._mend(stage, f"{scenario}, traced", strict=True)
        counts: Counter[tuple[str, str]] = Counter()
        for line in log.read_text(errors="replace").splitlines():
            thread, _, rest = line.partition(" ")
            call = rest.strip().partition("(")[0]
            if call in CALLS:
                counts[thread, call] += 1
        most: dict[str, int] = {}
        for (_, call), count in counts.items():
            most[call] = max(most.get(call, 0), count)
        return [(call, number) for call, count in most.items() for number in range(1, count + 1)]

    def _step(
        self, world: World, mount: Mount, rng: random.Random, scenario: str, step: tuple[str, int]
    ) -> None:
        """The image can be had afterwards, and is right."""
        call, number = step
        what = CALLS[call] if CALLS[call] and rng.random() < 0.5 else KILL
        inject = f"{call}:{what}:when={number}"
        [image] = world.images(rng, 1, 1_000, 2 * MIB)
        stage = Stage(world, mount, image)
        log = self._do(stage, scenario, inject, _injected)
        if _injected(log):
            world.figures.fault()
        self._mend(stage, f"{scenario}, {inject}", strict=what == KILL and scenario != "start")

    def _do(self, stage: Stage, scenario: str, inject: str, enough: Callable[[Path], bool]) -> Path:
        """The scenario under strace; its log."""
        log = stage.mount.home / f"strace-{time.monotonic_ns()}"
        if scenario == "start":
            self._start(stage, log, inject, enough)
        elif scenario == "resume":
            self._resume(stage, log, inject, enough)
        else:
            self._inside(stage, log, scenario, inject)
        return log

    def _inside(self, stage: Stage, log: Path, scenario: str, inject: str) -> None:
        action, cached = SCENARIOS[scenario]
        if cached:
            stage.mount.fetch(stage.image.name)
        with self._traced(stage.mount.worker(), log, inject), _answers():
            action(stage)
            stage.world.figures.operation()

    def _resume(self, stage: Stage, log: Path, inject: str, enough: Callable[[Path], bool]) -> None:
        """A worker is killed in the middle of a fetch, and the next one has it injected."""
        mount = stage.mount
        worker, supervisor = mount.worker(), mount.supervisor()
        with contextlib.suppress(FileExistsError):
            mount.touch(f"queue/{stage.image.name}")
        with self._traced(supervisor, log, inject):
            kill(worker)
            until(lambda: enough(log), 2.5)

    def _start(self, stage: Stage, log: Path, inject: str, enough: Callable[[Path], bool]) -> None:
        mount = stage.mount
        with contextlib.suppress(HangError):
            mount.stop()
        mount.start(prefix=_strace(log, inject), wait=False)
        until(lambda: enough(log) or mount.answers(), 8)
        mount.destroy()

    def _mend(self, stage: Stage, what: str, *, strict: bool) -> None:
        """As good as before, whatever was done: the image is fetched where it is not there. An
        error at its start may end a mount, and so may a kill of its supervisor, which is traced,
        too; where *strict*, nothing else may."""
        mount, image, figures = stage.mount, stage.image, stage.world.figures
        if mount.process is not None and mount.process.poll() is not None:
            if strict and mount.process.returncode != -signal.SIGKILL:
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
            figures.images()
        with _answers():
            mount.remove(f"cached/{image.name}")

    @contextmanager
    def _traced(self, pid: int, log: Path, inject: str) -> Iterator[None]:
        process = subprocess.Popen(
            [*_strace(log, inject), "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: _is_traced(pid) or process.poll() is not None, 3, 0.01)
            time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _answers() -> Iterator[None]:
    """An error is an answer, where the fault is what was asked for."""
    with contextlib.suppress(OSError, ValueError):
        yield


def _strace(log: Path, inject: str) -> list[str]:
    words = ["strace", "-f", "-qq", "-o", str(log), "-s", "0"]
    if inject:
        return [*words, "-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]
    return [*words, "-e", f"trace={','.join(CALLS)}"]


def _injected(log: Path) -> bool:
    with contextlib.suppress(OSError):
        text = log.read_bytes()
        return b"(INJECTED)" in text or b"killed by SIGKILL" in text
    return False


def _is_traced(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    return False

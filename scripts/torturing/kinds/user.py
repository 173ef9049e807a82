"""A hostile local user: reads what is not theirs, plants links, signals, locks, looks for secrets.

Their program runs as an unprivileged user (setpriv) and prints every attempt that succeeds.
"""

import contextlib
import json
import os
import random
import sys
import time
from pathlib import Path

from torturing.kind import COMBOS, LeftOutError
from torturing.mount import Mount
from torturing.patience import run
from torturing.processes import marked
from torturing.world import MIB, World

UID = 65534
BECOME = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
SECRET = "pl4nted-s3cret"  # noqa: S105 - the harness's own, looked for where it must not be

CONTROL = "reads an image"
"""What their program may do; without it, all else that it cannot do would mean nothing."""

PROGRAM = r"""
import fcntl, json, os, signal, sys
place = json.loads(sys.argv[1])
def attempt(what, call):
    try:
        answer = call()
    except OSError:
        return
    if answer is not False:
        print(what, flush=True)
def read(path):
    with open(path, "rb") as file:
        return file.read()
def locked(path):
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
def control(name):
    fd = os.open(place["mnt"] + "/control/" + name, os.O_WRONLY)
    os.write(fd, b"1\n")
def secret(path):
    return place["secret"].encode() in read(path) or False
cache, mnt = place["cache"], place["mnt"]
for name in (".cachefs", ".cachefs/held", ".cachefs/maps"):
    attempt(f"lists {name}", lambda: os.listdir(f"{cache}/{name}") and None)
for name in ("cache.db", "cache.db-shm", "cache.db-wal"):
    attempt(f"reads {name}", lambda: read(f"{cache}/{name}") and None)
    attempt(f"locks {name}", lambda: locked(f"{cache}/{name}"))
for name in (".cachefs/lock", "incomplete/.lock"):
    attempt(f"locks {name}", lambda: locked(f"{cache}/{name}"))
for name in ("planted", "queue/planted", "incomplete/planted", "invalid/planted"):
    attempt(f"plants a link at {name}", lambda: os.symlink("/etc/passwd", f"{cache}/{name}"))
for name in ("max_size", "enqueue", "prune", "clean", "stall_time", "min_free"):
    attempt(f"writes control/{name}", lambda: control(name))
attempt("queues", lambda: os.close(os.open(f"{mnt}/control/queue/x", os.O_CREAT | os.O_WRONLY)))
attempt("evicts", lambda: os.unlink(f"{mnt}/control/cached/{place['image']}"))
attempt("pins", lambda: os.close(os.open(f"{mnt}/control/pinned/{place['image']}", os.O_CREAT)))
attempt("reads an image", lambda: read(f"{mnt}/images/{place['image']}") and None)
attempt("writes an image", lambda: os.open(f"{mnt}/images/{place['image']}", os.O_WRONLY))
attempt("reads what is private at the source", lambda: read(f"{mnt}/images/private") and None)
attempt("reads a link out of the source", lambda: secret(f"{mnt}/images/outside"))
for pid in place["pids"]:
    attempt("signals a process", lambda: os.kill(pid, signal.SIGUSR1))
    attempt("reads an environment", lambda: read(f"/proc/{pid}/environ") and None)
    attempt("finds the secret in an argument vector", lambda: secret(f"/proc/{pid}/cmdline"))
attempt("finds the secret in the log", lambda: secret(place["log"]))
for name in ("config", "status", "metrics", "events", "invalid/missing", "queue/missing"):
    attempt(f"finds the secret in control/{name}", lambda: secret(f"{mnt}/control/{name}"))
"""


class User:
    """One mount with a password in its URL, one of a directory with private files, one on a cache
    directory that the user owns."""

    name = "user"
    disturbs = "a hostile local user: private files, locks, planted links, signals, secrets"
    least = 8.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Rounds of the three."""
        for place in (world.home.parent, world.home):
            place.chmod(0o755)
        if run([*BECOME, "test", "-x", world.home], 10, check=False).status:
            raise LeftOutError("the directory is closed to other users")
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            self._with_password(world, rng)
            self._of_a_directory(world, rng)
            self._on_their_directory(world, rng)
            turn += 1

    def _attack(self, world: World, mount: Mount, image: str) -> None:
        # What the administrator has typed is for them to hide; what we start is for us.
        own = mount.process.pid if mount.process is not None else 0
        place = {
            "mnt": str(mount.mountpoint),
            "cache": str(mount.cache_dir),
            "log": str(mount.log),
            "image": image,
            "secret": SECRET,
            "pids": [pid for pid in marked(mount.home) if pid != own],
        }
        done = run([*BECOME, _python(), "-c", PROGRAM, json.dumps(place)], 45, check=False)
        world.figures.fault(40)
        if done.status:
            world.figures.error(f"the user's program failed: {done.stderr[-300:]}")
        said = done.text.splitlines()
        if CONTROL not in said:
            world.figures.error("a local user cannot read an image")
        for line in said:
            if line == CONTROL:
                continue
            world.figures.error(f"a local user {line}")

    def _with_password(self, world: World, rng: random.Random) -> None:
        [image] = world.images(rng, 1, 10_000, MIB)
        missing = f"missing-{image.name}"
        url = world.origin.url.replace("://", f"://user:{SECRET}@")
        log = world.home / f"public-{image.name}.log"
        mount = world.mount("--log-file", str(log), url=url, max_size=16 * MIB)
        mount.fetch(image.name)
        with contextlib.suppress(OSError):
            mount.touch(f"queue/{missing}")
        world.figures.operation(2)
        self._attack(world, mount, image.name)
        if log.exists() and log.stat().st_mode & 0o004 and SECRET in log.read_text():
            world.figures.error("the secret is in a log that all may read")
        world.check(mount, 16 * MIB)

    def _of_a_directory(self, world: World, rng: random.Random) -> None:
        source = world.directory("source")
        source.chmod(0o755)
        image = world.images(rng, 1, 10_000, MIB)[0]
        (source / image.name).write_bytes(image.read(0, image.size))
        private = source / "private"
        private.write_text(SECRET)
        private.chmod(0o600)
        outside = world.home / f"outside-{image.name}"
        outside.write_text(SECRET)
        outside.chmod(0o600)
        (source / "outside").symlink_to(outside)
        mount = world.mount(url=str(source), max_size=16 * MIB)
        mount.fetch(image.name)
        for name in ("private", "outside"):  # root may have had them cached
            with contextlib.suppress(OSError):
                mount.read(name)
                world.figures.operation()
        self._attack(world, mount, image.name)
        mount.stop()

    def _on_their_directory(self, world: World, rng: random.Random) -> None:
        """Links that they have planted are not followed for writing, wherever they stand."""
        images = world.images(rng, 3, 10_000, 100_000)
        cache = world.directory("theirs")
        victim = world.home / f"victim-{cache.name}"
        victim.mkdir()
        (victim / "file").write_text("precious")
        os.chown(cache, UID, UID)
        name = images[0].name
        links = {
            ".cachefs/lock": "file",
            ".cachefs/held/1.new": "file",
            f"incomplete/{name}": "file",
            f"queue/{name}": "new",
            f".cachefs/maps/{name}": "file",
            "cache.db": "new.db",
            "invalid": "",
            images[1].name: "file",
        }
        for place, target in rng.sample(sorted(links.items()), 4):
            path = cache / place
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.symlink_to(victim / target)
                os.chown(path, UID, UID, follow_symlinks=False)
                world.figures.fault()
        for path in [cache, *cache.rglob("*")]:
            os.chown(path, UID, UID, follow_symlinks=False)
        before = _content(victim)
        mount = world.mount(cache_dir=cache, max_size=16 * MIB, start=False)
        with contextlib.suppress(Exception):  # to be refused is well
            mount.start(seconds=20)
            for image in images:
                mount.touch(f"queue/{image.name}", 20)
            mount.settle(8)
        mount.destroy()
        world.figures.operation()
        if _content(victim) != before:
            changed = {name for name, _ in _content(victim) ^ before}
            world.figures.error(f"a planted link was followed for writing: {sorted(changed)}")


def _content(place: Path) -> set[tuple[str, str]]:
    found = set()
    for path in place.rglob("*"):
        text = path.read_bytes().hex() if path.is_file() else ""
        found.add((path.name, text[:2000] + oct(path.stat().st_mode)))
    return found


def _python() -> str:
    """An interpreter that any user may run: the virtual environment may be in a private place."""
    return next(
        (path for path in ("/usr/bin/python3",) if os.access(path, os.X_OK)), sys.executable
    )

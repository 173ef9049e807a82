"""The index damaged in every way while nothing is mounted, and locked by strangers while it is.

Hits are lost at most: no mount fails to start, no image is lost, nothing waits for a stranger.
"""

import contextlib
import fcntl
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torturing.content import Image
from torturing.kind import COMBOS
from torturing.mount import Mount, StartError
from torturing.patience import until
from torturing.processes import kill
from torturing.world import MIB, World

PROMPT = 4.0
"""Seconds within which status and opens answer, whatever a stranger locks: a busy machine's, far
from the 30 for which the locks are held."""

HELD = (6.0, 6.0, 30.0)
"""Seconds for which a stranger holds a lock."""

Damage = Callable[[Path, random.Random], None]


def zero(path: Path, _: random.Random) -> None:
    """As long as it was, and nothing but zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def truncate(path: Path, rng: random.Random) -> None:
    """Cut somewhere, perhaps to nothing."""
    os.truncate(path, rng.choice((0, 1, 100, rng.randrange(path.stat().st_size))))


def garble(path: Path, rng: random.Random) -> None:
    """Garbage in some pages, not the first."""
    with path.open("r+b") as file:
        for _ in range(4):
            file.seek(rng.randrange(1024, max(1025, path.stat().st_size)))
            file.write(rng.randbytes(512))


def garble_header(path: Path, rng: random.Random) -> None:
    """Garbage at the start."""
    with path.open("r+b") as file:
        file.write(rng.randbytes(100))


def foreign_schema(path: Path, _: random.Random) -> None:
    """Another program's table of the same name."""
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cached_images (id BLOB, name BLOB)")
        connection.execute("INSERT INTO cached_images VALUES (1, 'other')")
        connection.commit()


def newer_version(path: Path, _: random.Random) -> None:
    """A version that only a later cachefs knows."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1000000")
        connection.commit()


def senseless_rows(path: Path, rng: random.Random) -> None:
    """Values that no row of ours has."""
    with (
        contextlib.closing(sqlite3.connect(path)) as connection,
        contextlib.suppress(sqlite3.Error),
    ):
        value = rng.choice((None, "text", -1, 2**62, b"\xff", float("inf")))
        column = rng.choice(("size", "hits", "last_accessed", "checksum"))
        connection.execute(f"UPDATE cached_images SET {column} = ?", (value,))  # noqa: S608 - of the names above
        connection.execute("INSERT INTO cached_images (image_id) VALUES ('../../etc/passwd')")
        connection.commit()


def directory(path: Path, _: random.Random) -> None:
    """A directory in its place."""
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def link(path: Path, _: random.Random) -> None:
    """A symbolic link to elsewhere."""
    cache_dir = next(place for place in path.parents if (place / "incomplete").is_dir())
    elsewhere = cache_dir.parent / f"elsewhere-{time.monotonic_ns()}.db"
    shutil.copy(path, elsewhere)
    path.unlink()
    path.symlink_to(elsewhere)


def dead_link(path: Path, _: random.Random) -> None:
    """A symbolic link to nowhere."""
    path.unlink()
    path.symlink_to("/nonexistent/cache.db")


def remove(path: Path, _: random.Random) -> None:
    """Nothing there."""
    path.unlink()


def leave_journals(path: Path, rng: random.Random) -> None:
    """Garbage where SQLite keeps its journals."""
    for suffix in ("-wal", "-shm", "-journal"):
        with contextlib.suppress(OSError):
            path.with_name(path.name + suffix).write_bytes(rng.randbytes(5000))


def immutable(path: Path, _: random.Random) -> None:
    """Only to be read."""
    path.chmod(0o400)


DAMAGES: tuple[Damage, ...] = (
    *(zero, truncate, garble, garble_header, foreign_schema, newer_version, senseless_rows),
    *(directory, link, dead_link, remove, leave_journals, immutable),
)


class Index:
    """Damage after damage, and lock after lock, on one directory."""

    name = "index"
    disturbs = "`cache.db` damaged in every way; locks held by strangers for seconds"
    least = 7.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """As many as there is time for, in an order of the seed's."""
        images = world.images(rng, 6, 1_000, MIB)
        mount = world.mount(max_size=64 * MIB)
        mount.fetch(*(image.name for image in images))
        locks = [self._exclusive, self._reading, self._directory]
        damages = list(DAMAGES)
        rng.shuffle(locks)
        rng.shuffle(damages)
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            if turn % 3 == 0:
                lock = locks[turn // 3 % len(locks)]
                left = max(2.0, min(rng.choice(HELD), deadline - time.monotonic() - 3))
                self._locked(world, mount, images, lock, left)
            damage = damages[turn % len(damages)]
            if turn % 3 == 1:
                self._while_mounted(world, mount, images, damage, rng)
            else:
                mount.stop()
                self._damage(world, mount, damage, rng)
                self._restart(world, mount, images, damage.__name__)
            turn += 1
        mount.stop()  # what is damaged below a mount is made good by the next
        world.check(mount, 64 * MIB)

    def _damage(self, world: World, mount: Mount, damage: Damage, rng: random.Random) -> None:
        path = mount.cache_dir / "cache.db"
        if not path.is_file():  # the xattr driver's is none of its business
            _clear(path)
            path.write_bytes(rng.randbytes(4096))
        if path.is_symlink() and rng.random() < 0.7:
            path = path.resolve()  # the index itself, wherever it is kept
        with contextlib.suppress(sqlite3.Error):
            damage(path, rng)
        world.figures.fault()

    def _while_mounted(
        self, world: World, mount: Mount, images: list[Image], damage: Damage, rng: random.Random
    ) -> None:
        """Damaged below a mount, whose next worker finds it so. What the kernel has in its caches
        of an image is never taken for another's."""
        what = f"cache.db {damage.__name__}, mounted"
        for image in images:
            self._read(world, mount, image, what)
        worker = mount.worker()
        self._damage(world, mount, damage, rng)
        kill(worker)
        if not until(lambda: mount.answers() and mount.worker() != worker, 45):
            world.figures.error(f"{what}: no other worker: {mount.tail()}")
            mount.destroy()
            _clear(mount.cache_dir / "cache.db")
            mount.start()
        for image in rng.sample(images, len(images)):
            self._read(world, mount, image, what)

    def _restart(self, world: World, mount: Mount, images: list[Image], what: str) -> None:
        """All is there still, without a byte from the origin."""
        before = dict(world.origin.requests)
        try:
            mount.start()
        except StartError as error:
            world.figures.error(f"no start with cache.db: {what}: {error}")
            mount.destroy()
            with contextlib.suppress(OSError):
                _clear(mount.cache_dir / "cache.db")
            mount.start()
        there = set(mount.listed("cached"))
        for image in images:
            if image.name not in there:
                world.figures.error(f"cache.db {what}: {image.name} is not cached any more")
                continue
            self._read(world, mount, image, f"cache.db {what}")
            if world.origin.requests[image.name] != before.get(image.name, 0):
                world.figures.error(f"cache.db {what}: {image.name} was fetched again")
        for image in images:
            if image.name not in there:
                mount.fetch(image.name)

    def _read(self, world: World, mount: Mount, image: Image, what: str) -> None:
        try:
            data = mount.read(image.name)
        except OSError as error:
            world.figures.error(f"{what}: {image.name}: {error.strerror}")
            return
        world.figures.operation()
        if data != image.read(0, image.size):
            world.figures.error(f"{what}: {image.name} has wrong bytes")

    def _locked(
        self,
        world: World,
        mount: Mount,
        images: list[Image],
        lock: Callable[[Mount], contextlib.AbstractContextManager[None]],
        seconds: float,
    ) -> None:
        """While a stranger holds the lock, status and opens answer, and no worker is lost."""
        worker = mount.worker()
        over, what = time.monotonic() + seconds, lock.__name__.strip("_")
        with lock(mount):
            world.figures.fault()
            while time.monotonic() < over:
                began = time.monotonic()
                mount.status()
                for image in images[:3]:
                    self._read(world, mount, image, f"lock held ({what})")
                took = time.monotonic() - began
                world.figures.gap(took)
                if took > PROMPT:
                    world.figures.error(f"lock held ({what}): status and opens took {took:.1f} s")
                time.sleep(0.1)
        if mount.worker() != worker:
            world.figures.error(f"lock held ({what}): the worker was replaced")

    @contextmanager
    def _exclusive(self, mount: Mount) -> Iterator[None]:
        with self._connected(mount) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.rollback()

    @contextmanager
    def _reading(self, mount: Mount) -> Iterator[None]:
        with self._connected(mount) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM cached_images").fetchall()
            yield
            connection.rollback()

    @contextmanager
    def _directory(self, mount: Mount) -> Iterator[None]:
        fd = os.open(mount.cache_dir / ".cachefs" / "lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _connected(self, mount: Mount) -> Iterator[sqlite3.Connection]:
        """To the index that there is; with the xattr driver, a file that it must not care for."""
        own = mount.combo.driver == "sqlite"
        path = mount.cache_dir / "cache.db" if own else mount.home / "other.db"
        with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as made:
            made.execute("CREATE TABLE IF NOT EXISTS cached_images (image_id TEXT)")
            yield made


def _clear(path: Path) -> None:
    places = {path, path.resolve()} if path.is_symlink() else {path}
    for victim in [found for place in places for found in place.parent.glob(f"{place.name}*")]:
        if victim.is_dir() and not victim.is_symlink():
            shutil.rmtree(victim)
        else:
            victim.unlink()

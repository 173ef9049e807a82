"""A cache directory for driver tests: publishes and evicts as cachefs.cache does."""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cachefs.drivers import Driver, Entry, open_driver


class CacheDir:
    """A cache directory and the drivers opened on it."""

    def __init__(self, path: Path, driver_name: str) -> None:
        self.path = path
        self.driver_name = driver_name
        self._opened: list[Driver] = []
        (path / "incomplete").mkdir(exist_ok=True)

    def open(self) -> Driver:
        """One more driver on the directory, reconciled; as another process has one."""
        driver = open_driver(self.driver_name, self.path)
        assert driver.name == self.driver_name
        self._opened.append(driver)
        with self._locked():
            driver.reconcile()
        return driver

    def close(self) -> None:
        """Close every driver; the directory can be opened again."""
        while self._opened:
            self._opened.pop().close()

    def publish(self, driver: Driver, entry: Entry) -> Entry:
        """Write a file of the entry's size, record it, rename it into place."""
        path = self.path / "incomplete" / entry.image_id
        path.write_bytes(b"x" * entry.size)
        with self._locked():
            entry = driver.put(entry, path)
            path.rename(self.path / entry.image_id)
        return entry

    def evict(self, driver: Driver, image_id: str) -> None:
        """Drop the record, then the file."""
        with self._locked():
            driver.remove(image_id)
            (self.path / image_id).unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The cache's lock over processes, which the contract of a driver relies on."""
        with (self.path / "incomplete" / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def start(self, code: str) -> subprocess.Popen[str]:
        """Run *code* in a Python of its own, with CacheDir's *cache* and its *driver* open."""
        prelude = (
            "import sys, os, time; from pathlib import Path\n"
            "from support.cache_dir import CacheDir; from cachefs.drivers import Entry\n"
            f"cache = CacheDir(Path({str(self.path)!r}), {self.driver_name!r})\n"
            "driver = cache.open()\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", prelude + code],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str) -> str:
        """Run *code* as :meth:`start` does, to its end, and return what it printed."""
        with self.start(code) as process:
            output = process.communicate(timeout=30)[0]
        assert process.returncode == 0
        return output

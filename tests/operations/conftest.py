"""A whole filesystem without a kernel: a store in a directory of the test's own, a source in
memory, and requests made in the test's own nursery."""

import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from support.fake_source import MIB, PATIENCE, FakeSource
from support.requests import Requests

from cachefs.cache import Store
from cachefs.cache.layout import Layout
from cachefs.control import TransportStatus, WorkerStatus
from cachefs.image import Digest
from cachefs.mount.filesystem import Filesystem, limits_of
from cachefs.settings import RunningSettings, Settings
from cachefs.settings.setting import Given
from cachefs.sources import Source
from cachefs.vfs.shown import Shown, create

DATA = Random(5).randbytes(5 * MIB + 17)

every_mode = pytest.mark.parametrize("mode", ["relay", "plain"])
every_driver = pytest.mark.parametrize("driver", ["sqlite", "xattr"])


@dataclass(eq=False)
class RecordingNotifier:
    """What the kernel was told to forget; told from any thread."""

    inodes: list[int] = field(default_factory=list)
    entries: list[tuple[int, bytes, int]] = field(default_factory=list)

    def invalidate_inode(self, nodeid: int) -> None:
        self.inodes.append(nodeid)

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        self.entries.append((parent, name, deleted))


class Worker:
    """One worker of a mount, and the kernel that asks it."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        mode: str,
        monkeypatch: pytest.MonkeyPatch,
        shown: Shown,
    ) -> None:
        self.layout = Layout(settings.cache_dir)
        self.running = RunningSettings(settings, "mount", self.layout)
        self.store = Store(settings.cache_dir, limits_of(settings), driver=settings.driver)
        self.filesystem = Filesystem(
            self.running,
            self.store,
            source,
            worker=WorkerStatus(os.getpid(), 1.0),
            transport=TransportStatus(mode, False, "no kernel"),
            shown=shown if mode == "relay" else None,
        )
        self.notifier = RecordingNotifier()
        self.filesystem.connect(self.notifier)
        self.ask = Requests(self.filesystem, monkeypatch, relay=mode == "relay")

    def put(self, image_id: str, data: bytes) -> int:
        """Cache an image past the source; its inode's number."""
        with self.store.begin(image_id, len(data)) as transaction:
            transaction.write(data)
            transaction.commit()
        entry = self.store.quick.get(image_id)
        assert entry is not None
        return entry.inode

    async def cached(self, image_id: str) -> None:
        """Return once the image is cached."""
        await until(lambda: self.store.quick.get(image_id) is not None)
        await until(lambda: image_id not in self.fetching)

    async def failed(self, image_id: str) -> dict[str, Any]:
        """The record of the image once its fetch has failed for good."""
        await until(lambda: self.store.failure(image_id) and image_id not in self.fetching)
        await until(lambda: not self.store.quick.is_queued(image_id))
        return await self.record(f"invalid/{image_id}")

    async def waits(self, image_id: str) -> dict[str, Any]:
        """The record of the image once its fetch has failed of what may pass."""
        await until(lambda: self.store.quick.is_queued(image_id) and image_id not in self.fetching)
        record: dict[str, Any] = {}
        while not record.get("error"):
            with contextlib.suppress(FileNotFoundError):  # it is being tried just now
                record = await self.record(f"queue/{image_id}")
        return record

    async def record(self, path: str) -> dict[str, Any]:
        """What a control file shows, which is JSON."""
        shown: dict[str, Any] = json.loads(await self.ask.cat(f"control/{path}"))
        return shown

    @property
    def fetching(self) -> set[str]:
        """The images that are being fetched, or about to be."""
        return self.filesystem._fetcher.under_way()

    @property
    def held(self) -> list[str]:
        """What is in ``.cachefs/held``."""
        return sorted(path.name for path in self.layout.held_dir.iterdir())

    @property
    def descriptors(self) -> list[str]:
        """What this process has open of images, cached or on their way or gone."""
        base, own = f"{self.layout.base}/", self.layout.private_dir
        return [
            target
            for target in targets_of_descriptors()
            if target.startswith(base)
            and Path(target).parent != own  # the lock, and an index
            and not Path(target).name.startswith("cache.db")
        ]

    def die(self) -> None:
        """Give back what the death of the process would: descriptors and their locks, no more."""
        files = [grant.file for grant in self.filesystem.open_files]
        for flight in {file.flight for file in files if hasattr(file, "flight")}:
            if flight.fd >= 0:
                os.close(flight.fd)
        for file in files:
            if file.fd is not None:
                os.close(file.fd)
        self.filesystem.image_files.idle.close()
        self.store.close()


Served = Callable[..., AbstractAsyncContextManager[Worker]]


@pytest.fixture(autouse=True)
def _nothing_leaks(tmp_path: Path) -> Iterator[None]:
    """No descriptor of the cache, or of a source in the test's directory, is left by a test."""
    yield
    assert [name for name in targets_of_descriptors() if name.startswith(f"{tmp_path}/")] == []


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further tries come at once."""
    monkeypatch.setattr("cachefs.fetcher.retry.FIRST_PAUSE", 0.001)


@pytest.fixture
def source() -> Iterator[FakeSource]:
    source = FakeSource({"img": DATA}, digests={"img": sha256(DATA)})
    yield source
    source.gate.set()
    source.answer.set()


@pytest.fixture
def held(source: FakeSource) -> FakeSource:
    """The source, which sends a chunk of each read and then waits for its gate."""
    source.gate.clear()
    source.free = MIB
    return source


@pytest.fixture
def shown() -> Iterator[int]:
    """The file of what is being read of control files, which outlives workers."""
    fd = create()
    yield fd
    os.close(fd)


@pytest.fixture
def served(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: int
) -> Served:
    """``async with served() as worker``: a filesystem over *source* that answers while the block
    runs, at most :data:`PATIENCE` seconds. Keywords are settings by name, but for these: *mode* is
    the transport's, *images* what is cached before. With *first* it is the mount's first worker,
    and *open_nodes* what the kernel has open; one that *dies* leaves that to the next."""

    @contextlib.asynccontextmanager
    async def serve(
        *,
        mode: str = "relay",
        images: Mapping[str, bytes] = {},
        open_nodes: Mapping[int, int] = {},
        first: bool = True,
        dies: bool = False,
        origin: Source = source,
        **settings: object,
    ) -> AsyncIterator[Worker]:
        values = {
            "source": "https://user:hunter2@example.org/x/",
            "mountpoint": tmp_path / "mnt",
            "cache_dir": tmp_path / "cache",
            "min_free": Settings.min_free.kind.parse("0"),
            **settings,
        }
        given = {name: Given(value, "a test") for name, value in values.items()}
        worker = Worker(Settings(given), origin, mode, monkeypatch, Shown(shown))
        for image_id, data in images.items():
            worker.put(image_id, data)
        try:
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    await worker.filesystem.begin(nursery, open_nodes, first=first)
                    try:
                        yield worker
                    finally:
                        source.gate.set()  # or a thread that reads would stay
                        source.answer.set()
                        nursery.cancel_scope.cancel()
        finally:
            if not dies:
                worker.filesystem.end()
            worker.die()

    return serve


async def until(condition: Callable[[], object]) -> None:
    """Return once *condition* holds; the surrounding time limit ends a wait in vain."""
    while not condition():  # noqa: ASYNC110 - what tells of it is often no event
        await trio.sleep(0.005)


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The block's request is refused with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno_name(caught.value.errno) == errno_name(number)


def errno_name(number: int | None) -> str:
    return os.strerror(number or 0)


def sha256(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def targets_of_descriptors() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return sorted(found)

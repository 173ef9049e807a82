"""A store, origins and fetchers, without a kernel mount. Flights run in the test's own nursery."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from random import Random

import pytest
import trio
from support.fake_source import MIB, PATIENCE, FakeSource
from support.images import Images
from support.misbehaving import Misbehaving, misbehaving
from support.origin import Origin, nginx

from cachefs.cache import Hasher, Limits, Store
from cachefs.errors import CacheFSError
from cachefs.fetcher import Fetcher, FetchSettings, Flight
from cachefs.image import Digest
from cachefs.sources import Source, open_source
from cachefs.units import Amount


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """No descriptor is left open by a test."""
    descriptors = Path("/proc/self/fd")
    before = set(descriptors.iterdir())
    yield
    leaked = []
    for descriptor in set(descriptors.iterdir()) - before:
        with contextlib.suppress(FileNotFoundError):
            target = str(descriptor.readlink())
            # obstore keeps its connections and its own runtime.
            if not target.startswith(("socket:", "anon_inode:", "pipe:", "/proc/")):
                leaked.append(target)
    assert not leaked


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(cache_dir: Path) -> Iterator[Store]:
    store = Store(cache_dir, Limits(Amount(size=2**30)))
    yield store
    store.close()


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "origin")


MakeOrigin = Callable[..., Origin]
MakeMisbehaving = Callable[..., Misbehaving]
Running = Callable[..., AbstractAsyncContextManager[Fetcher]]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_origin(images: Images, stack: ExitStack) -> MakeOrigin:
    """nginx before the images; arguments as of :func:`support.origin.nginx`."""
    return lambda **options: stack.enter_context(nginx(images.directory, **options))


@pytest.fixture
def make_misbehaving(stack: ExitStack) -> MakeMisbehaving:
    return lambda answer: stack.enter_context(misbehaving(answer))


@pytest.fixture
def running(store: Store) -> Running:
    """``async with running(source_or_url) as fetcher``: it works while the block runs, at most
    :data:`PATIENCE` seconds, and ends as a daemon's does."""

    @contextlib.asynccontextmanager
    async def run(
        source: Source | str, *, limit: float = PATIENCE, **options: object
    ) -> AsyncIterator[Fetcher]:
        names = FetchSettings.__dataclass_fields__
        settings = FetchSettings(**{k: v for k, v in options.items() if k in names})  # type: ignore[arg-type]
        rest = {k: v for k, v in options.items() if k not in names}
        source = open_source(source) if isinstance(source, str) else source
        fetcher = Fetcher(store, source, settings, **rest)  # type: ignore[arg-type]
        with trio.fail_after(limit):
            async with trio.open_nursery() as nursery:
                await nursery.start(fetcher.run)
                try:
                    yield fetcher
                finally:
                    nursery.cancel_scope.cancel()

    return run


DATA = Random(3).randbytes(9 * MIB + 17)


def sha256(data: bytes) -> Digest:
    hasher = Hasher(None, "sha256")
    hasher.update(data)
    return hasher.finish()


def cached(store: Store, image_id: str = "img") -> bytes:
    return (store.cache_dir / image_id).read_bytes()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further tries come at once; for modules that ask for it."""
    monkeypatch.setattr("cachefs.fetcher.retry.FIRST_PAUSE", 0.01)


@pytest.fixture
def source() -> FakeSource:
    return FakeSource({"img": DATA}, digests={"img": sha256(DATA)})


@pytest.fixture
def held(source: FakeSource) -> FakeSource:
    """The source, which sends a chunk of each read and then waits for its gate."""
    source.gate.clear()
    source.free = MIB
    return source


@pytest.fixture
def silent(held: FakeSource) -> FakeSource:
    """The source, which sends nothing until its gate is set."""
    held.free = 0
    return held


async def until(condition: Callable[[], object]) -> None:
    """Return once *condition* holds; the surrounding time limit ends a wait in vain."""
    while not condition():  # noqa: ASYNC110 - what tells of it is often no event
        await trio.sleep(0.005)


async def read(flight: Flight, start: int, stop: int) -> bytes:
    """Bytes of an image, as a reader gets them."""
    await flight.wait(start, stop)
    fd = os.dup(flight.fd)  # the flight closes its own when it has ended, and no reader is counted
    try:
        return await trio.to_thread.run_sync(os.pread, fd, stop - start, start)
    finally:
        os.close(fd)


async def fetch(fetcher: Fetcher, image_id: str) -> Flight:
    """The ended flight of an image."""
    flight = fetcher.start(await fetcher.stat(image_id))
    await flight.finished.wait()
    return flight


async def failure_of(flight: Flight, start: int = 0, stop: int = 1) -> CacheFSError:
    """The error that a reader gets."""
    with pytest.raises(CacheFSError) as caught:
        await flight.wait(start, stop)
    return caught.value

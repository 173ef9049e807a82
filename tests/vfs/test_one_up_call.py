"""How often an open by the relay climbs into the filesystem, counted as calls between packages."""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

import cachefs
from cachefs.cache import Held, ImageCache, Layout, Limits, Store
from cachefs.kernel import wire
from cachefs.kernel.wire import Opcode
from cachefs.transport.backing import Guarded
from cachefs.transport.exchange import Exchange
from cachefs.transport.open_table import OpenTable
from cachefs.transport.passthrough import Passthrough
from cachefs.units import Amount
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.inodes import NodeKind, Serials, join
from cachefs.vfs.open_files import OpenFiles

ROOT = Path(cachefs.__file__).parent


class Connection:
    """A device that takes everything."""

    def __init__(self) -> None:
        self.fd = -1
        self.backing: list[int] = []

    def write(self, message: bytes | memoryview) -> None:
        pass

    def open_backing(self, fd: int) -> int:
        self.backing.append(fd)
        return len(self.backing)

    def close_backing(self, backing_id: int) -> bool:
        return True


def package(frame: FrameType | None) -> str | None:
    """The package of cachefs that the code is in."""
    path = Path(frame.f_code.co_filename) if frame else ROOT.parent
    return path.relative_to(ROOT).parts[0] if path.is_relative_to(ROOT) else None


def up_calls(action: Callable[[], object]) -> list[str]:
    """The functions of ``vfs`` that ``transport`` calls while *action* runs."""
    found: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (package(frame), package(frame.f_back)) == ("vfs", "transport"):
            found.append(frame.f_code.co_qualname)

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    ImageCache(tmp_path).cache_image_iter("a", [b"data"])
    store = Store(tmp_path, Limits(Amount(2**20)))
    yield store
    store.close()


def test_an_open_of_a_cached_image_is_one_up_call(store: Store, tmp_path: Path) -> None:
    connection, fd = Connection(), OpenTable.create(slots=4)
    table, hits = OpenTable(fd), Hits(store.quick)
    registry = OpenFiles(Serials())
    files = ImageFiles(store.quick, Held(Layout(tmp_path)), registry, hits, lasting=True)
    backing = Guarded(files)
    exchange = Exchange(
        connection,  # type: ignore[arg-type]
        table,
        Passthrough(connection, table, passthrough=True),  # type: ignore[arg-type]
        backing,
        send=lambda _: None,
        notify=lambda _: None,
        passthrough=True,
    )
    entry = store.quick.get("a")
    assert entry is not None
    node = join(NodeKind.CACHED, entry.inode)
    message = wire.request(Opcode.OPEN, 2, node, struct.pack("=II", os.O_RDONLY, 0))
    assert up_calls(lambda: exchange.request(memoryview(bytearray(message)))) == ["ImageFiles.open"]
    assert len(connection.backing) == 1
    assert hits.total == 1
    message = wire.release(4, node, node)
    assert up_calls(lambda: exchange.request(memoryview(bytearray(message)))) == [
        "ImageFiles.opened",
        "Grant.close",
    ]
    assert len(registry) == 0
    files.idle.drop(node)
    table.close()
    os.close(fd)

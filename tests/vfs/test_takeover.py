"""What an earlier worker left is read like what comes from a stranger."""

from pathlib import Path
from typing import Any

import pytest

from cachefs.cache import Held, ImageCache, Layout, Limits, Store
from cachefs.units import Amount
from cachefs.vfs.expected import Expected
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.inodes import NodeKind, Serials, join
from cachefs.vfs.open_files import OpenFiles
from cachefs.vfs.open_images import LostFile
from cachefs.vfs.takeover import Takeover


@pytest.mark.parametrize(
    "note", ["", "{", "[]", "7", "{}", '{"digest": 7}', '{"digest": null, "colour": "red"}']
)
async def test_a_note_that_makes_no_sense_costs_its_readers_only(
    tmp_path: Path, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    ImageCache(tmp_path).cache_image_iter("a", [b"data"])
    store, registry = Store(tmp_path, Limits(Amount(2**20))), OpenFiles(Serials())
    try:
        held = Held(Layout(tmp_path))
        files = ImageFiles(store.quick, held, registry, Hits(store.quick), lasting=True)
        unused: Any = None  # no fetch is resumed
        takeover = Takeover(
            registry,
            files,
            store.quick,
            held,
            unused,
            expected=Expected(),
            keep_for_open=unused,
        )
        entry = store.quick.get("a")
        assert entry is not None
        lazy, cached = join(NodeKind.LAZY, 5), join(NodeKind.CACHED, entry.inode)
        (tmp_path / ".cachefs" / "held" / f"{lazy}.json").write_text(note)
        await takeover.run({lazy: 1, cached: 1}, first=False)
        await takeover.go_on()
        lost = registry.opened(lazy)
        assert lost is not None
        assert isinstance(lost.file, LostFile)
        assert registry.opened(cached) is not None
        assert "cannot be read on" in caplog.text
    finally:
        registry.close()
        store.close()

"""What a read gives whose file has become shorter than its image."""

import os
from pathlib import Path

import pytest

from cachefs.vfs.reader import Reader, ShortFileError

DATA = os.urandom(100_000)


async def test_a_read_is_short_at_the_end_of_the_image_only(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    reader = Reader()
    try:
        assert bytes(await reader.read(fd, 90_000, 20_000, len(DATA))) == DATA[90_000:]
        assert bytes(await reader.read(fd, 200_000, 10, len(DATA))) == b""
        os.truncate(path, 95_000)
        assert bytes(await reader.read(fd, 90_000, 5_000, len(DATA))) == DATA[90_000:95_000]
        for start in (90_000, 99_000):
            with pytest.raises(ShortFileError):
                await reader.read(fd, start, 20_000, len(DATA))
    finally:
        os.close(fd)

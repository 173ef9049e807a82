import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.place import Place

from cachefs.cache import ImageCache
from cachefs.config import DRIVERS


@pytest.fixture(params=DRIVERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "cache", request.param)


@pytest.fixture
def cache(place: Place) -> ImageCache:
    return place.cache()


@pytest.fixture(params=DRIVERS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place on a filesystem of 16 MiB; needs root."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=True)
    try:
        yield Place(path / "cache", request.param)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)

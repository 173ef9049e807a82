from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import small_disk
from support.place import Place

from cachefs.cache import ImageCache
from cachefs.drivers import DRIVERS


@pytest.fixture(params=DRIVERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "cache", request.param)


@pytest.fixture
def cache(place: Place) -> ImageCache:
    return place.cache()


@pytest.fixture(params=DRIVERS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place on a filesystem of 16 MiB; needs root."""
    with small_disk(tmp_path / "small", 16) as disk:
        yield Place(disk / "cache", request.param)

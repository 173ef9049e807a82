from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_dir import CacheDir

from cachefs.drivers import Driver
from cachefs.drivers.registry import DRIVERS


@pytest.fixture(params=sorted(DRIVERS))
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CacheDir]:
    cache = CacheDir(tmp_path, request.param)
    yield cache
    cache.close()


@pytest.fixture
def driver(cache: CacheDir) -> Driver:
    return cache.open()

"""A directory of images, and each kind of source that can serve it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.origin import Origin, nginx

from cachefs.sources import Source, open_source


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The directory that the sources serve. Nobody else writes there."""
    directory = tmp_path / "images here"
    directory.mkdir()
    return directory


@pytest.fixture
def origin(images: Path) -> Iterator[Origin]:
    with nginx(images, extra="autoindex on;") as server:
        yield server


@pytest.fixture(params=["directory", "http"])
def source(request: pytest.FixtureRequest, images: Path) -> Source:
    """What every source must do; a new kind of source is one more parameter."""
    if request.param == "directory":
        return open_source(str(images))
    origin: Origin = request.getfixturevalue("origin")
    return open_source(origin.url)

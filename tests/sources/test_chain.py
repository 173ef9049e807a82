"""Sources with fallbacks."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.origin import nginx

from cachefs.errors import (
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
    SourceUnreachableError,
)
from cachefs.sources import open_source


@pytest.fixture
def near(tmp_path: Path) -> Path:
    directory = tmp_path / "near"
    directory.mkdir()
    return directory


@pytest.fixture
def far(tmp_path: Path) -> Path:
    directory = tmp_path / "far"
    directory.mkdir()
    return directory


def test_the_first_source_that_has_the_image_provides_it(near: Path, far: Path) -> None:
    (near / "both").write_bytes(b"near")
    (far / "both").write_bytes(b"far!")
    (far / "one").write_bytes(b"far!")
    chain = open_source(str(near), [str(far)])
    for name, content in (("both", b"near"), ("one", b"far!")):
        assert b"".join(chain.read(chain.stat(name), 0, 4)) == content


def test_an_image_that_nobody_has_is_not_found(near: Path, far: Path) -> None:
    with pytest.raises(ImageNotFoundError):
        open_source(str(near), [str(far)]).stat("absent")


def test_an_unreachable_source_is_passed_over(near: Path, far: Path) -> None:
    (far / "img").write_bytes(b"far!")
    with nginx(near) as origin:
        chain = open_source(origin.url, [str(far)])
        origin.stop()
        assert b"".join(chain.read(chain.stat("img"), 0, 4)) == b"far!"
        chain.check()


def test_an_image_is_not_called_absent_while_a_source_is_unreachable(near: Path, far: Path) -> None:
    with nginx(near) as origin:
        for order in ((origin.url, [str(far)]), (str(far), [origin.url])):
            origin.stop()
            chain = open_source(*order)
            with pytest.raises(SourceUnreachableError):
                chain.stat("absent")
            origin.start()
            with pytest.raises(ImageNotFoundError):
                chain.stat("absent")


def test_the_first_of_several_failures_is_told(near: Path, far: Path) -> None:
    with nginx(near, refuse={"/": 403}) as refusing, nginx(far) as down:
        down.stop()
        with pytest.raises(SourceRefusedError):
            open_source(refusing.url, [down.url]).stat("img")
        with pytest.raises(SourceUnreachableError):
            open_source(down.url, [refusing.url]).stat("img")


def test_a_chain_of_which_nobody_is_there_fails_its_check(near: Path, far: Path) -> None:
    with nginx(near) as one, nginx(far) as other:
        chain = open_source(one.url, [other.url])
        one.stop()
        chain.check()
        other.stop()
        with pytest.raises(SourceUnreachableError, match=one.url):
            chain.check()


def test_an_image_of_another_mounts_source_is_an_error(near: Path, far: Path) -> None:
    (near / "img").write_bytes(b"near")
    chain = open_source(str(near), [str(far)])
    foreign = replace(chain.stat("img"), source="http://elsewhere/")
    with pytest.raises(SourceError):
        list(chain.read(foreign, 0, 4))

"""From a location to a source."""

from pathlib import Path

import pytest
from support.origin import Origin

from cachefs.errors import InvalidValueError, SourceError
from cachefs.sources import open_source
from cachefs.sources.chain import ChainSource, chain_of


def test_a_path_and_its_file_url_are_the_same_source(tmp_path: Path) -> None:
    directory = tmp_path / "a b#c%20"
    directory.mkdir()
    assert open_source(str(directory)).url == open_source(directory.as_uri()).url
    assert open_source(directory.as_uri()).url.endswith("/a%20b%23c%2520/")


def test_a_relative_path_stays_what_it_was(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "img").write_bytes(b"1")
    monkeypatch.chdir(images.parent)
    source = open_source(images.name)
    monkeypatch.chdir("/")
    assert source.stat("img").size == 1


def test_a_server_that_is_down_is_no_reason_not_to_start(origin: Origin) -> None:
    origin.stop()
    assert open_source(origin.url).url == origin.url


@pytest.mark.parametrize(
    "location",
    [
        "",
        "nul\0byte",
        "ftp://host/",
        "://x",
        "file://elsewhere/images",
        "file:///images?x",
        "/no/such/directory",
        "file:///no/such/directory",
        "/etc/passwd",
        "/etc/passwd/x",
        "http:///images",
    ],
)
def test_what_is_no_source_is_an_error_in_one_line(location: str) -> None:
    with pytest.raises((InvalidValueError, SourceError)) as caught:
        open_source(location)
    assert 0 < len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_fallbacks_make_a_chain(images: Path, origin: Origin) -> None:
    chain = open_source(origin.url, [str(images)])
    assert isinstance(chain, ChainSource)
    assert [member.url for member in chain_of(chain).members] == [origin.url, images.as_uri() + "/"]
    assert len(chain_of(open_source(str(images))).members) == 1


def test_the_same_source_twice_is_a_mistake(images: Path) -> None:
    with pytest.raises(InvalidValueError, match="twice"):
        open_source(str(images), [f"{images}/"])

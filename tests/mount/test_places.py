"""What may not be a cache directory is one clear line, and no file is touched."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.processes import run

from .conftest import MakeMount
from .test_start import fails, replaced

FILES = {"one": b"1" * 2**20, "two": b"2" * 2**20, "three": b"3" * 2**20}


@pytest.fixture
def unmounted(make_mount: MakeMount) -> Mounted:
    """All that a mount needs, not mounted, with the user's originals in the source."""
    mount = make_mount(running=False)
    for name, content in FILES.items():
        (mount.origin.directory / name).write_bytes(content)
    return mount


def refused(mount: Mounted, cache_dir: Path, *words: str) -> str:
    before = {path.name for path in mount.home.iterdir()}
    line = fails(
        mount, "--max-size", "1M", *words, command=replaced(mount, mount.cache_dir, cache_dir)
    )
    assert {path.name for path in mount.home.iterdir()} == before
    found = {each.name: each.read_bytes() for each in mount.origin.directory.iterdir()}
    assert found == FILES
    return line


@contextmanager
def bound(place: Path, onto: Path) -> Iterator[Path]:
    """*place*, seen at *onto* too."""
    onto.mkdir()
    run("mount", "--bind", str(place), str(onto))
    try:
        yield onto
    finally:
        run("umount", "-l", str(onto))
        onto.rmdir()


def test_the_source_as_the_cache(unmounted: Mounted) -> None:
    assert "the source" in refused(unmounted, unmounted.origin.directory)


def test_a_cache_in_the_source(unmounted: Mounted) -> None:
    line = refused(unmounted, unmounted.origin.directory / "cache")
    assert "lies below the source" in line


def test_a_cache_that_holds_the_source(unmounted: Mounted) -> None:
    assert "holds the source" in refused(unmounted, unmounted.home)


def test_the_source_through_a_link(unmounted: Mounted) -> None:
    link = unmounted.home / "link"
    link.symlink_to(unmounted.origin.directory)
    assert "the source" in refused(unmounted, link / "cache")


def test_the_source_through_a_bind_mount(unmounted: Mounted) -> None:
    with bound(unmounted.origin.directory, unmounted.home / "bound") as place:
        assert "the source" in refused(unmounted, place)
        assert "the source" in refused(unmounted, place / "cache")


def test_a_directory_in_the_source_through_a_bind_mount(unmounted: Mounted) -> None:
    (unmounted.origin.directory / "below").mkdir()
    with bound(unmounted.origin.directory / "below", unmounted.home / "bound") as place:
        (unmounted.origin.directory / "below").rmdir()
        assert "the source" in refused(unmounted, place)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_fallback_as_the_cache(unmounted: Mounted, form: str) -> None:
    other = unmounted.home / "other"
    other.mkdir()
    (other / "mine").write_bytes(b"mine")
    line = refused(unmounted, other / "cache", "--fallback", form.format(other), "--adopt")
    assert "lies below the source" in line
    assert [each.name for each in other.iterdir()] == ["mine"]


def test_a_cache_that_holds_the_mountpoint(unmounted: Mounted) -> None:
    holder = unmounted.home / "holder"
    (holder / "mnt").mkdir(parents=True)
    command = [
        str(holder / "mnt") if word == str(unmounted.mountpoint) else word
        for word in replaced(unmounted, unmounted.cache_dir, holder)
    ]
    done = run(*command, check=False)
    assert done.status == 1
    assert "holds the mountpoint" in done.stderr
    assert [each.name for each in holder.iterdir()] == ["mnt"]


def test_the_mountpoint_as_the_cache(unmounted: Mounted) -> None:
    assert "the mountpoint" in refused(unmounted, unmounted.mountpoint)
    assert "lies below the mountpoint" in refused(unmounted, unmounted.mountpoint / "cache")


def test_a_directory_of_the_users_files_is_a_cache_only_for_who_says_so(
    unmounted: Mounted,
) -> None:
    mine = unmounted.home / "mine"
    mine.mkdir()
    (mine / "file").write_bytes(b"mine")
    assert "--adopt" in refused(unmounted, mine)
    assert [each.name for each in mine.iterdir()] == ["file"]
    subprocess.run(
        [*replaced(unmounted, unmounted.cache_dir, mine), "--adopt"], check=True, timeout=30
    )
    assert unmounted.listed() == ["file"]
    assert unmounted.cat("file") == b"mine"

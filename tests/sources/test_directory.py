"""What only a directory can do to us."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cachefs.errors import (
    ImageChangedError,
    ImageNotFoundError,
    InvalidValueError,
    SourceError,
    SourceRefusedError,
    SourceUnreachableError,
)
from cachefs.sources.directory import DirectorySource

MIB = 2**20
NOBODY = 65534
OWNER = os.geteuid()


@contextmanager
def as_owner() -> Iterator[None]:
    """Be again who the tests were started by."""
    now = os.geteuid()
    os.seteuid(OWNER)
    try:
        yield
    finally:
        os.seteuid(now)


@pytest.fixture
def directory(images: Path) -> DirectorySource:
    return DirectorySource(str(images))


def test_a_symbolic_link_is_the_image_that_it_points_to(
    directory: DirectorySource, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"12345")
    (images / "link").symlink_to(tmp_path / "elsewhere")
    image = directory.stat("link")
    assert b"".join(directory.read(image, 0, 5)) == b"12345"


def test_what_is_no_regular_file_is_not_found(
    directory: DirectorySource, images: Path, tmp_path: Path
) -> None:
    (images / "directory").mkdir()
    os.mkfifo(images / "fifo")
    (images / "device").symlink_to("/dev/zero")
    (images / "dangling").symlink_to(tmp_path / "nowhere")
    (images / "circle").symlink_to(images / "circle")
    (images / "through").symlink_to("/dev/null/x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(images / "socket"))
        for name in ("directory", "fifo", "device", "dangling", "circle", "through", "socket"):
            with pytest.raises(ImageNotFoundError):
                directory.stat(name)


def test_a_missing_top_directory_is_unreachable_not_an_absent_image(
    directory: DirectorySource, images: Path
) -> None:
    (images / "img").write_bytes(b"1")
    image = directory.stat("img")
    images.rename(images.with_name("moved"))
    with pytest.raises(SourceUnreachableError):
        directory.stat("img")
    with pytest.raises(SourceUnreachableError):
        list(directory.read(image, 0, 1))
    with pytest.raises(SourceUnreachableError):
        directory.check()


def test_a_top_directory_replaced_by_a_file_is_unreachable(
    directory: DirectorySource, images: Path
) -> None:
    images.rmdir()
    images.touch()
    with pytest.raises(SourceUnreachableError):
        directory.stat("img")
    with pytest.raises(InvalidValueError):
        directory.check()


def test_an_unmounted_share_is_unreachable_not_empty(
    directory: DirectorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mounting for real needs privileges that these tests must do without.
    monkeypatch.setattr(directory, "_was_mountpoint", True)
    with pytest.raises(SourceUnreachableError, match="not mounted"):
        directory.stat("img")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that an ordinary user can get to, while the test is one: root may read all."""
    with TemporaryDirectory(prefix="cachefs-images-") as name:
        Path(name).chmod(0o755)
        before = os.geteuid()
        if before == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(before)


def test_a_file_without_permission_is_refused(public: Path) -> None:
    source = DirectorySource(str(public))
    with as_owner():
        (public / "img").write_bytes(b"1")
        (public / "img").chmod(0)
    with pytest.raises(SourceRefusedError):
        source.stat("img")


def test_a_directory_without_permission_is_refused(public: Path) -> None:
    source = DirectorySource(str(public))
    source.check()
    with as_owner():
        public.chmod(0)
    try:
        with pytest.raises(SourceRefusedError, match="no permission"):
            source.check()
        with pytest.raises(SourceRefusedError):
            source.stat("img")
    finally:
        with as_owner():
            public.chmod(0o755)


def test_a_file_written_to_while_it_is_read_is_changed(
    directory: DirectorySource, images: Path
) -> None:
    (images / "img").write_bytes(bytes(3 * MIB))
    image = directory.stat("img")
    pieces = directory.read(image, 0, image.size)
    next(pieces)
    time.sleep(0.02)  # a coarse file timestamp stands for up to one tick of the kernel
    with (images / "img").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ImageChangedError):
        next(pieces)


def test_a_file_cut_while_it_is_read_is_changed(directory: DirectorySource, images: Path) -> None:
    (images / "img").write_bytes(bytes(3 * MIB))
    image = directory.stat("img")
    pieces = directory.read(image, 0, image.size)
    next(pieces)
    os.truncate(images / "img", MIB)
    with pytest.raises(ImageChangedError):
        list(pieces)


def test_no_descriptor_is_left_open(directory: DirectorySource, images: Path) -> None:
    (images / "img").write_bytes(bytes(3 * MIB))
    os.mkfifo(images / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    image = directory.stat("img")
    list(directory.read(image, 0, image.size))
    dropped = directory.read(image, 0, image.size)
    next(dropped)
    dropped.close()
    with pytest.raises(ImageNotFoundError):
        directory.stat("fifo")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_digest_file_that_is_no_file_is_an_error_only_if_it_is_there(
    directory: DirectorySource, images: Path
) -> None:
    (images / "img").write_bytes(b"1")
    (images / "img.sha256").write_text("this is no digest\n")
    with pytest.raises(SourceError, match="holds no sha256 digest"):
        directory.stat("img")

"""What only a directory can do to us."""

import errno
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cachefs.errors import (
    CacheFSError,
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


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that others may get to, which pytest's own are not."""
    with TemporaryDirectory(prefix="cachefs-images-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_symbolic_link_is_the_image_that_it_points_to(
    directory: DirectorySource, images: Path, tmp_path: Path
) -> None:
    (images / "sub").mkdir()
    (images / "sub" / "file").write_bytes(b"12345")
    (images / "next").symlink_to("sub/../sub/./file")
    (images / "link").symlink_to(images / "next")
    for name in ("next", "link"):
        image = directory.stat(name)
        assert b"".join(directory.read(image, 0, 5)) == b"12345"


def test_a_symbolic_link_that_leads_out_of_the_source_is_refused(
    directory: DirectorySource, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"12345")
    (images / "img").write_bytes(b"1")
    (tmp_path / "images hereafter").write_bytes(b"12345")
    (images / "absolute").symlink_to(tmp_path / "elsewhere")
    (images / "relative").symlink_to("../elsewhere")
    (images / "and back").symlink_to(f"../{images.name}/img")
    (images / "by prefix").symlink_to(f"{images}after")
    (images / "device").symlink_to("/dev/zero")
    (images / "through").symlink_to("/dev/null/x")
    (images / "twice").symlink_to("relative")
    (images / "up").symlink_to("..")
    for name in ("absolute", "relative", "and back", "by prefix", "device", "through", "twice"):
        with pytest.raises(SourceRefusedError, match="leads out of the source"):
            directory.stat(name)
    with pytest.raises(SourceRefusedError):
        directory.stat("up")


def test_a_link_swapped_in_between_stat_and_read_is_refused(
    directory: DirectorySource, images: Path, tmp_path: Path
) -> None:
    (images / "img").write_bytes(b"12345")
    image = directory.stat("img")
    (images / "img").rename(tmp_path / "moved")
    (images / "img").symlink_to(tmp_path / "moved")
    with pytest.raises(SourceRefusedError):
        list(directory.read(image, 0, 5))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440])
def test_a_file_that_others_may_not_read_is_private(open_to_all: Path, mode: int) -> None:
    (open_to_all / "img").write_bytes(b"12345")
    source = DirectorySource(str(open_to_all))
    assert not source.stat("img").private
    (open_to_all / "img").chmod(mode)
    image = source.stat("img")
    assert image.private
    assert b"".join(source.read(image, 0, 5)) == b"12345"


def test_a_file_whose_mode_is_tightened_after_stat_is_changed(open_to_all: Path) -> None:
    (open_to_all / "img").write_bytes(b"12345")
    source = DirectorySource(str(open_to_all))
    image = source.stat("img")
    (open_to_all / "img").chmod(0o600)
    with pytest.raises(ImageChangedError):
        list(source.read(image, 0, 5))


def test_a_file_below_a_directory_that_others_may_not_enter_is_private(open_to_all: Path) -> None:
    images = open_to_all / "above" / "images"
    (images / "inner").mkdir(parents=True)
    (images / "inner" / "img").write_bytes(b"12345")
    (images / "link").symlink_to("inner/img")
    source = DirectorySource(str(images))
    for directory in (images / "inner", images, images.parent):
        assert not source.stat("link").private
        directory.chmod(0o700)
        source.check()
        assert source.stat("link").private
        directory.chmod(0o711)
    open_to_all.joinpath("short").symlink_to(images)
    images.parent.chmod(0o700)
    assert DirectorySource(str(open_to_all / "short")).stat("link").private


def test_what_this_process_cannot_open_is_no_word_of_the_source(
    directory: DirectorySource, images: Path
) -> None:
    (images / "img").write_bytes(b"12345")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/", os.O_PATH)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(OSError) as caught:
            directory.stat("img")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert not isinstance(caught.value, CacheFSError)


def test_a_list_of_digests_counts_whoever_may_read_it(
    directory: DirectorySource, images: Path
) -> None:
    (images / "img").write_bytes(b"12345")
    (images / "SHA256SUMS").write_text(f"{'ab' * 32}  img\n")
    (images / "SHA256SUMS").chmod(0o600)
    assert str(directory.stat("img").digest) == f"sha256:{'ab' * 32}"


def test_a_list_of_digests_behind_a_link_that_leads_out_is_an_error(
    directory: DirectorySource, images: Path, tmp_path: Path
) -> None:
    (images / "img").write_bytes(b"12345")
    (tmp_path / "sums").write_text(f"{'ab' * 32}  img\n")
    (images / "SHA256SUMS").symlink_to(tmp_path / "sums")
    with pytest.raises(SourceRefusedError, match="cannot verify"):
        directory.stat("img")


def test_what_is_no_regular_file_is_not_found(
    directory: DirectorySource, images: Path, tmp_path: Path
) -> None:
    (images / "directory").mkdir()
    os.mkfifo(images / "fifo")
    (images / "nearly").write_bytes(b"1")
    (images / "dangling").symlink_to(images / "nowhere")
    (images / "circle").symlink_to(images / "circle")
    (images / "through").symlink_to(images / "nearly" / "x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(images / "socket"))
        for name in ("directory", "fifo", "dangling", "circle", "through", "socket"):
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

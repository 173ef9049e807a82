"""What every source does: one suite for all of them."""

import gzip
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.errors import ImageChangedError, ImageNotFoundError, SourceError
from cachefs.image import check_image_id
from cachefs.sources import Source

MIB = 2**20

STRANGE_IDS = [
    "plain",
    "two words",
    " leading and trailing ",
    "100%",
    "%",
    "%zz",
    "%2e",
    "a%20b",
    "a%2Fb",
    "a#b",
    "a?b=c&d",
    "~tilde",
    "a+b",
    "back\\slash",
    "a:b",
    "http:x",
    "x;y=1,2@3",
    "[b]{c}<d>|^`",
    "*!$'\"",
    "a..",
    "trailing.",
    "é-日本-Ω",
    "e\u0301",
    "emoji 😀",
    "no\u00a0break\u200b",
    "long" + "é" * 125,
    "page.html",
]


def read(source: Source, image_id: str) -> bytes:
    image = source.stat(image_id)
    return b"".join(source.read(image, 0, image.size))


@pytest.mark.parametrize("image_id", STRANGE_IDS)
def test_an_id_is_the_name_of_exactly_one_image(
    source: Source, images: Path, image_id: str
) -> None:
    check_image_id(image_id)
    (images / image_id).write_bytes(image_id.encode())
    assert read(source, image_id) == image_id.encode()


def test_an_encoded_id_is_another_image(source: Source, images: Path) -> None:
    (images / "a b").write_bytes(b"the space")
    (images / "a%20b").write_bytes(b"the percent sign")
    assert read(source, "a b") == b"the space"
    assert read(source, "a%20b") == b"the percent sign"


def test_a_healthy_source_passes_its_check(source: Source) -> None:
    source.check()


def test_an_absent_image_is_not_found(source: Source) -> None:
    with pytest.raises(ImageNotFoundError):
        source.stat("absent")


def test_a_directory_is_no_image(source: Source, images: Path) -> None:
    (images / "sub").mkdir()
    with pytest.raises((ImageNotFoundError, SourceError)):
        source.stat("sub")


def test_stat_tells_size_version_and_where_it_came_from(source: Source, images: Path) -> None:
    (images / "img").write_bytes(b"12345")
    image = source.stat("img")
    assert (image.image_id, image.size, image.source) == ("img", 5, source.url)
    assert image.version
    assert image.ranges
    assert image.digest is None


def test_stat_of_the_same_bytes_gives_the_same_description(source: Source, images: Path) -> None:
    (images / "img").write_bytes(b"12345")
    assert source.stat("img") == source.stat("img")


def test_an_empty_image_can_be_read(source: Source, images: Path) -> None:
    (images / "empty").touch()
    image = source.stat("empty")
    assert image.size == 0
    assert list(source.read(image, 0, 0)) == []


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, 1),
        (0, MIB),
        (1, 2 * MIB + 1),
        (MIB - 1, MIB + 1),
        (5 * MIB, 5 * MIB + 7),
        (0, 5 * MIB + 7),
        (3, 3),
        (5 * MIB + 7, 5 * MIB + 7),
    ],
)
def test_a_range_is_exactly_these_bytes(
    source: Source, images: Path, start: int, stop: int
) -> None:
    content = os.urandom(5 * MIB + 7)
    (images / "img").write_bytes(content)
    image = source.stat("img")
    assert b"".join(source.read(image, start, stop)) == content[start:stop]


def test_pieces_are_of_about_a_mebibyte(source: Source, images: Path) -> None:
    (images / "img").write_bytes(os.urandom(8 * MIB))
    image = source.stat("img")
    sizes = [len(piece) for piece in source.read(image, 0, image.size)]
    assert sum(sizes) == 8 * MIB
    assert max(sizes) <= 3 * MIB
    assert min(sizes[:-1]) >= MIB // 2


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 6)])
def test_a_range_outside_the_image_is_a_mistake(
    source: Source, images: Path, start: int, stop: int
) -> None:
    (images / "img").write_bytes(b"12345")
    image = source.stat("img")
    with pytest.raises(ValueError, match="no range"):
        next(source.read(image, start, stop))


@pytest.mark.parametrize("content", [b"other bytes", b"OTHER"], ids=["size", "time"])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 3)])
def test_an_image_replaced_since_stat_is_changed_never_mixed(
    source: Source, images: Path, content: bytes, start: int, stop: int
) -> None:
    (images / "img").write_bytes(b"12345")
    os.utime(images / "img", (1, 1_000_000_000))
    image = source.stat("img")
    (images / "new").write_bytes(content)
    (images / "new").rename(images / "img")
    with pytest.raises(ImageChangedError):
        list(source.read(image, start, stop))


def test_an_image_removed_since_stat_is_not_found(source: Source, images: Path) -> None:
    (images / "img").write_bytes(b"12345")
    image = source.stat("img")
    (images / "img").unlink()
    with pytest.raises(ImageNotFoundError):
        list(source.read(image, 0, 5))


def test_an_image_replaced_while_it_is_read_is_read_to_its_end(
    source: Source, images: Path
) -> None:
    content = os.urandom(32 * MIB)
    (images / "img").write_bytes(content)
    image = source.stat("img")
    pieces = source.read(image, 0, image.size)
    first = next(pieces)
    (images / "new").write_bytes(os.urandom(32 * MIB))
    (images / "new").rename(images / "img")
    assert first + b"".join(pieces) == content


def test_closing_half_way_leaves_the_source_usable(source: Source, images: Path) -> None:
    (images / "img").write_bytes(os.urandom(16 * MIB))
    image = source.stat("img")
    for _ in range(20):
        pieces = source.read(image, 0, image.size)
        next(pieces)
        pieces.close()
    assert len(read(source, "img")) == 16 * MIB


def test_many_threads_read_at_once(source: Source, images: Path) -> None:
    contents = {f"img{number}": os.urandom(MIB + number) for number in range(8)}
    for name, content in contents.items():
        (images / name).write_bytes(content)
    together = threading.Barrier(8)

    def fetch(name: str) -> bool:
        together.wait()
        return all(read(source, name) == contents[name] for _ in range(5))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(fetch, contents))


@pytest.mark.parametrize("algorithm", ["sha512", "sha256", "md5"])
def test_a_list_of_digests_beside_the_images_counts(
    source: Source, images: Path, algorithm: str
) -> None:
    (images / "img é").write_bytes(b"12345")
    digest = hashlib.new(algorithm, b"12345").hexdigest()
    (images / f"{algorithm.upper()}SUMS").write_text(f"{digest}  img é\n")
    assert str(source.stat("img é").digest) == f"{algorithm}:{digest}"


@pytest.mark.parametrize("algorithm", ["sha512", "sha256", "md5"])
def test_a_digest_file_of_one_image_counts(source: Source, images: Path, algorithm: str) -> None:
    (images / "img").write_bytes(b"12345")
    digest = hashlib.new(algorithm, b"12345").hexdigest()
    (images / f"img.{algorithm}").write_text(f"{digest}\n")
    assert str(source.stat("img").digest) == f"{algorithm}:{digest}"


def test_a_digest_that_was_put_right_counts_once_the_wrong_one_is_forgotten(
    source: Source, images: Path
) -> None:
    (images / "img").write_bytes(b"12345")
    (images / "SHA256SUMS").write_text(f"{'0' * 64}  img\n")
    os.utime(images / "SHA256SUMS", (1, 1))  # nginx tells versions by seconds
    assert str(source.stat("img").digest) == f"sha256:{'0' * 64}"
    (images / "SHA256SUMS").write_text(f"{'1' * 64}  img\n")
    source.forget_digest("img")
    assert str(source.stat("img").digest) == f"sha256:{'1' * 64}"


def test_an_image_with_the_longest_name_needs_no_digest_file(source: Source, images: Path) -> None:
    (images / ("x" * 255)).write_bytes(b"12345")
    assert source.stat("x" * 255).digest is None


def test_a_checksum_file_that_is_too_large_is_an_error(source: Source, images: Path) -> None:
    (images / "img").write_bytes(b"12345")
    with (images / "SHA256SUMS").open("wb") as file:
        file.truncate(64 * MIB + 1)
    with pytest.raises(SourceError, match="too large"):
        source.stat("img")


DISTRIBUTIONS = [
    "CHECKSUM",
    "img.CHECKSUM",
    "img-CHECKSUM",
    "Fedora-Cloud-42-1.1-x86_64-CHECKSUM",
    "sha256sum.txt",
    "sha256sums.txt",
    "img.sha256sum",
    "SHA1SUMS",
]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_checksum_files_as_distributions_name_them_count(
    source: Source, images: Path, name: str
) -> None:
    (images / "img").write_bytes(b"12345")
    digest = "ab" * (20 if name == "SHA1SUMS" else 32)
    tag = "SHA1" if name == "SHA1SUMS" else "SHA256"
    (images / name).write_text(
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# img: 5 bytes\n"
        f"{tag} (img) = {digest}\n"
        "-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n"
    )
    assert str(source.stat("img").digest) == f"{tag.lower()}:{digest}"


LISTS = {
    "path": f"{'ab' * 32}  images/img\n".encode(),
    "size column": f"{'ab' * 32} 5 img\n".encode(),
    "utf-16": f"{'ab' * 32}  img\r\n".encode("utf-16"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_in_another_hand_counts(source: Source, images: Path, kind: str) -> None:
    (images / "img").write_bytes(b"12345")
    (images / "SHA256SUMS").write_bytes(LISTS[kind])
    assert str(source.stat("img").digest) == f"sha256:{'ab' * 32}"


@pytest.mark.parametrize("name", ["SHA512SUMS", "SHA256SUMS", "CHECKSUM", "old-CHECKSUM"])
@pytest.mark.parametrize(
    "data",
    [b"", b"# to come\n", gzip.compress(LISTS["path"], mtime=0), LISTS["path"].hex().encode()],
    ids=["empty", "a comment", "gzip", "hex"],
)
def test_a_list_that_cannot_be_read_is_an_error_never_no_list(
    source: Source, images: Path, name: str, data: bytes
) -> None:
    (images / "img").write_bytes(b"12345")
    (images / name).write_bytes(data)
    with pytest.raises(SourceError, match=f"cannot verify images: '{name}' beside the images"):
        source.stat("img")


def test_stat_tells_when_the_image_was_modified(source: Source, images: Path) -> None:
    (images / "img").write_bytes(b"12345")
    os.utime(images / "img", (1, 1_580_000_000))
    assert source.stat("img").modified == 1_580_000_000


def test_a_list_changed_in_place_counts_for_the_next_image(source: Source, images: Path) -> None:
    (images / "one").write_bytes(b"1")
    (images / "two").write_bytes(b"2")
    (images / "SHA256SUMS").write_text(f"{'ab' * 32}  one\n")
    assert source.stat("two").digest is None
    (images / "SHA256SUMS").write_text(f"{'ab' * 32}  one\n{'cd' * 32}  two\n")
    source.forget_digest("two")
    assert str(source.stat("two").digest) == f"sha256:{'cd' * 32}"

"""The formats of checksum files, which one wins, and for how long."""

import hashlib
import subprocess
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.errors import SourceError, SourceTimeoutError
from cachefs.image import Digest
from cachefs.sources.checksums import FRESH, NONE_BELIEVED, ChecksumFiles, parse_single
from cachefs.sources.lists import entries
from cachefs.sources.loading import BELIEVED, SmallFile
from cachefs.sources.names import checksum_files

A, B = "a1" * 32, "b2" * 32


def parse_list(data: bytes, algorithm: str) -> dict[str, Digest]:
    return {each.name: each.digest for each in entries([data], algorithm) if each.exact}


class Files:
    """Small files by name, whose reading is counted; an exception among them is raised. What is in
    *held* arrives once the event there is set."""

    def __init__(self, **files: str | Exception) -> None:
        self.files = files
        self.read: list[str] = []
        self.now = 0.0
        self.held: dict[str, threading.Event] = {}
        self.sums = ChecksumFiles(
            self.open, lambda: self.now, lambda: checksum_files(self.files.keys())
        )

    def open(self, name: str, known: str | None, limit: int) -> SmallFile | None:
        self.read.append(name)
        found = self.files.get(name)
        if found is None:
            return None
        if isinstance(found, Exception):
            raise found
        version = str(hash(found))
        if version == known:
            return SmallFile(version, None)
        return SmallFile(version, self.pieces(name, found.encode()))

    def pieces(self, name: str, data: bytes) -> Generator[bytes]:
        for piece in (data[:1], data[1:]):
            yield piece
            if name in self.held:
                self.held[name].wait(20)

    def digest(self, image_id: str = "img", version: str | None = "v1") -> str:
        return str(self.sums.digest_of(image_id, version))


@pytest.mark.parametrize(
    "line",
    [
        f"{A}  img",
        f"{A} *img",
        f"{A} img",
        f"{A}\timg",
        f"{A.upper()}  img\r",
        f"{A}  ./img",
        f"SHA256 (img) = {A}",
        f"SHA256(img)= {A}",
        f"SHA2-256(img)= {A}",
        f"\ufeff{A}  img",
    ],
)
def test_a_line_names_an_image_and_its_digest(line: str) -> None:
    digests = parse_list(f"{line}\n".encode(), "sha256")
    assert {name: digest.hex for name, digest in digests.items()} == {"img": A}


def test_lines_that_are_no_digests_are_skipped() -> None:
    text = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# a comment
{A}  img
{"c3" * 64}  img
SHA512 (img) = {"c3" * 64}
{A}
zz{A[2:]}  other
\ufffd

-----BEGIN PGP SIGNATURE-----
iQIzBAEBCAAdFiEEhDk4488sYZ7Mzb7I2UYnzA==
-----END PGP SIGNATURE-----
""".encode()
    assert list(parse_list(text + b"\xff\xfe" + A.encode() + b"  x\n", "sha256")) == ["img"]


def test_the_later_of_two_lines_counts() -> None:
    assert parse_list(f"{A}  img\n{B}  img".encode(), "sha256")["img"].hex == B


@pytest.mark.parametrize("name", ["a b", "back\\slash", " x ", "(p) = q", "é", "*star", "100%"])
@pytest.mark.parametrize("options", [[], ["--tag"], ["--binary"]])
def test_what_coreutils_writes_is_understood(tmp_path: Path, name: str, options: list[str]) -> None:
    (tmp_path / name).write_bytes(b"12345")
    listed = subprocess.run(
        ["sha256sum", *options, "--", name], cwd=tmp_path, check=True, capture_output=True
    ).stdout
    expected = hashlib.sha256(b"12345").hexdigest()
    assert parse_list(listed, "sha256")[name].hex == expected


@pytest.mark.parametrize(
    "text", [A, f"{A}\n", f"\n{A}\r\n", f"{A}  img\n", f"{A}  /srv/old name\n", f"{A}  -\n"]
)
def test_a_file_of_one_image_needs_no_name(text: str) -> None:
    assert parse_single(text.encode(), "sha256", "img").hex == A


def test_a_file_of_one_image_may_list_others_too() -> None:
    assert parse_single(f"{A}  x\n{B}  img\n".encode(), "sha256", "img").hex == B


@pytest.mark.parametrize("text", ["", "hello", f"{A}  x\n{B}  y\n", "a1" * 16])
def test_a_file_of_one_image_without_its_digest_is_an_error(text: str) -> None:
    with pytest.raises(SourceError, match="holds no sha256"):
        parse_single(text.encode(), "sha256", "img")


def test_the_strongest_list_wins_over_weaker_ones_and_over_the_images_own_file() -> None:
    files = Files(
        SHA512SUMS=f"{A}{A}  img",
        SHA256SUMS=f"{A}  img",
        **{"img.sha512": B + B},
    )
    assert files.digest() == f"sha512:{A}{A}"


def test_an_images_own_file_is_read_only_if_no_list_names_it() -> None:
    files = Files(MD5SUMS=f"{'d4' * 16}  img", **{"img.sha512": B + B, "other.sha256": A})
    assert files.digest("img") == f"md5:{'d4' * 16}"
    assert "img.sha512" not in files.read
    assert files.digest("other") == f"sha256:{A}"


def test_no_checksum_file_means_no_digest() -> None:
    assert Files().digest() == "None"


@pytest.mark.parametrize("name", ["SHA512SUMS", "MD5SUMS", "img.md5"])
def test_an_error_keeps_its_kind_and_is_not_remembered(name: str) -> None:
    files = Files(**{name: SourceTimeoutError("late")})
    for _ in range(2):
        with pytest.raises(SourceTimeoutError, match="cannot verify images: late"):
            files.digest()
    del files.files[name]
    assert files.digest() == "None"


def test_an_answer_is_believed_for_a_while_for_one_version() -> None:
    files = Files(SHA256SUMS=f"{A}  img")
    files.digest()
    files.files["SHA256SUMS"] = f"{B}  img"
    files.read.clear()
    files.now += BELIEVED - 1
    assert files.digest(version="v1") == f"sha256:{A}"
    assert files.read == []
    assert files.digest(version="v2") == f"sha256:{B}"
    files.now += 2
    assert files.digest(version="v1") == f"sha256:{B}"


@pytest.mark.parametrize("version", ["v1", None])
def test_an_answer_that_was_wrong_is_looked_up_anew(version: str | None) -> None:
    files = Files(SHA256SUMS=f"{A}  img")
    assert files.digest(version=version) == f"sha256:{A}"
    files.files["SHA256SUMS"] = f"{B}  img"
    assert files.digest(version=version) == f"sha256:{A}"
    files.sums.forget("img")
    assert files.digest(version=version) == f"sha256:{B}"
    files.read.clear()
    assert files.digest(version=version) == f"sha256:{B}"
    assert files.read == [] or version is None


def test_a_list_written_after_the_first_look_is_noticed_for_a_new_image() -> None:
    files = Files()
    files.digest("old")
    files.files["SHA256SUMS"] = f"{A}  new"
    files.now += FRESH
    assert files.digest("new") == f"sha256:{A}"


def test_lists_are_not_read_again_for_each_of_many_images() -> None:
    files = Files(SHA256SUMS="".join(f"{A}  {number}\n" for number in range(50)))
    for number in range(50):
        files.digest(str(number))
    assert files.read == ["SHA512SUMS", "SHA256SUMS"]


def test_threads_that_ask_at_once_read_a_list_once() -> None:
    files = Files(SHA512SUMS="".join(f"{A}{A}  {number}\n" for number in range(8)))
    together = threading.Barrier(8)

    def ask(number: int) -> str:
        together.wait()
        return files.digest(str(number))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(8))) == {f"sha512:{A}{A}"}
    assert files.read == ["SHA512SUMS"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachefs.sources.checksums._MAX_ANSWERS", 3)
    files = Files()
    for number in range(10):
        files.digest(str(number))
    assert len(files.sums._answers) == 3


def test_that_there_is_no_digest_is_believed_but_for_a_moment() -> None:
    files = Files()
    assert files.digest() == "None"
    files.files["SHA256SUMS"] = f"{A}  img"
    files.now += NONE_BELIEVED - 1
    assert files.digest() == "None"
    files.now += 1
    assert files.digest() == f"sha256:{A}"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images wait for a list for a moment only."""
    monkeypatch.setattr("cachefs.sources.loading.PATIENCE", 0.05)


def test_a_list_that_is_slow_to_come_holds_up_only_what_it_alone_could_tell_of(
    hasty: None,
) -> None:
    files = Files(SHA512SUMS=f"{A}{A}  slow", SHA256SUMS=f"{B}  img")
    arrives = files.held["SHA512SUMS"] = threading.Event()
    assert files.digest("img") == f"sha256:{B}"
    for _ in range(3):
        with pytest.raises(SourceTimeoutError, match="cannot verify images: 'SHA512SUMS'"):
            files.digest("slow")
    assert files.read.count("SHA512SUMS") == 1
    task = files.sums._lists["SHA512SUMS"]._task
    arrives.set()
    assert task is not None
    assert task._done.wait(20)
    assert files.digest("slow") == f"sha512:{A}{A}"


def test_a_list_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachefs.sources.loading.LIST_DEADLINE", -1.0)
    files = Files(SHA256SUMS=f"{A}  img")
    with pytest.raises(SourceTimeoutError, match="has not arrived"):
        files.digest()
    monkeypatch.undo()
    assert files.digest() == f"sha256:{A}"


@pytest.mark.parametrize("name", ["SHA512SUMS", "MD5SUMS", "CHECKSUM", "Fedora-42-CHECKSUM"])
@pytest.mark.parametrize("text", ["", "# to come\n", "\x1f\x8b\x08\0", '{"img": 1}'])
def test_a_list_without_a_digest_in_it_is_an_error_that_says_what_to_do(
    name: str, text: str
) -> None:
    with pytest.raises(SourceError, match=f"'{name}' beside the images holds no digest.*sha256sum"):
        Files(**{name: text}).digest()


def test_what_a_source_answers_for_any_name_is_no_list() -> None:
    def answer(name: str, known: str | None, limit: int) -> SmallFile:
        return SmallFile(None, (piece for piece in [b"Not found\n"]), lambda: True)

    assert ChecksumFiles(answer, lambda: 0.0).digest_of("img", "v1") is None


@pytest.mark.parametrize("name", ["CHECKSUM", "img.CHECKSUM", "img-CHECKSUM", "Fedora-CHECKSUM"])
def test_a_list_without_an_algorithm_in_its_name_has_it_in_its_lines(name: str) -> None:
    both = f"MD5 (img) = {'d4' * 16}\nSHA256 (img) = {A}\nSHA1 (img) = {'d4' * 20}\n"
    assert Files(**{name: both}).digest() == f"sha256:{A}"
    assert Files(**{name: f"{'d4' * 20}  img"}).digest() == f"sha1:{'d4' * 20}"


def test_the_strongest_of_the_further_lists_wins() -> None:
    files = Files(MD5SUMS=f"{'d4' * 16}  img", **{"sha256sum.txt": f"{A}  img"})
    assert files.digest() == f"sha256:{A}"


def test_a_file_of_another_image_is_not_read() -> None:
    files = Files(**{"other": "", "other.CHECKSUM": "nothing", "other.sha256sum": "nothing"})
    assert files.digest() == "None"
    assert "other.CHECKSUM" not in files.read


def test_of_many_listed_lists_those_called_most_like_the_image_are_read() -> None:
    names = [f"Rocky-{number}-CHECKSUM" for number in range(20)]
    files = Files(**dict.fromkeys(names, f"{B}  other"), **{"img-9-CHECKSUM": f"{A}  img-9-x"})
    assert files.digest("img-9-x") == f"sha256:{A}"
    assert len([name for name in files.read if name in names]) < 8


def test_a_listed_file_of_the_image_counts() -> None:
    assert Files(**{"img": "", "img.sha256sum": A}).digest() == f"sha256:{A}"


def test_a_path_whose_end_is_the_image_counts_where_no_list_has_its_name_alone() -> None:
    files = Files(SHA512SUMS=f"{A}{A}  images/img", SHA256SUMS=f"{B}  img")
    assert files.digest() == f"sha256:{B}"
    assert Files(SHA256SUMS=f"{A}  images/img\n{A}  old/img").digest() == f"sha256:{A}"


def test_two_paths_that_end_alike_with_different_digests_are_an_error() -> None:
    files = Files(SHA256SUMS=f"{A}  amd64/img\n{B}  arm64/img\n{A}  amd64/other\n")
    with pytest.raises(SourceError, match="several paths in it end with 'img'"):
        files.digest()
    assert files.digest("other") == f"sha256:{A}"

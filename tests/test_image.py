"""IDs, digests and errnos: the tables of values that everything else relies on."""

import contextlib
import errno
import hashlib
import inspect
import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs import errors
from cachefs.cache import Hasher
from cachefs.errors import (
    CacheFSError,
    ChecksumError,
    InvalidImageIDError,
    InvalidValueError,
    errno_of,
)
from cachefs.image import RESERVED_NAMES, Digest, ImageRecord, State, check_image_id

BAD_IDS = [
    "",
    ".",
    "..",
    ".hidden",
    "/etc/passwd",
    "a/b",
    "a/",
    "../a",
    "a\0b",
    "a\nb",
    "a\tb",
    "a\x7fb",
    "a\x85b",
    "a" * 256,
    "ü" * 128,
    "日" * 86,
    "a\udcffb",
    b"\xff\xfe",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    *sorted(RESERVED_NAMES),
]
GOOD_IDS = [
    "a",
    "-",
    "--help",
    "a b",
    " ",
    "~",
    "%2e%2e",
    "#1",
    "a.b",
    "a..",
    "cache.db2",
    "Queue",
    "queue ",
    "\\",
    "a\\nb",
    "*?[a]",
    "$(id)",
    "日本語",
    "נִקּוּד",
    "🐧",
    "e\u0301",
    "\u202e",
    "a" * 255,
    "ü" * 127,
    "日" * 85,
    "7e2a7d2c-3f4e-4f57-9cf6-2f6c3e5a9a11",
    "urn:image:1",
]


@pytest.mark.parametrize("image_id", BAD_IDS)
def test_a_bad_id_is_einval(image_id: str | bytes) -> None:
    with pytest.raises(InvalidImageIDError) as caught:
        check_image_id(image_id)
    assert errno_of(caught.value) == errno.EINVAL


@pytest.mark.parametrize("image_id", GOOD_IDS)
def test_an_odd_id_is_good_as_text_and_as_bytes(image_id: str) -> None:
    assert check_image_id(image_id) == check_image_id(image_id.encode()) == image_id


@given(st.text() | st.text(alphabet="./\0\n~% aü", max_size=4))
def test_every_id_that_passes_keeps_the_contract(text: str) -> None:
    try:
        image_id = check_image_id(text)
    except InvalidImageIDError:
        return
    assert image_id == text
    assert 1 <= len(text.encode()) <= 255
    assert "/" not in text
    assert not text.startswith(".")
    assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in text)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1))
def test_every_name_that_keeps_the_contract_passes(text: str) -> None:
    if len(text.encode()) <= 255 and text[0] != "." and text not in RESERVED_NAMES:
        assert check_image_id(text) == text


@given(st.binary(max_size=300))
def test_any_bytes_are_an_id_or_einval(data: bytes) -> None:
    with contextlib.suppress(InvalidImageIDError):
        assert check_image_id(data).encode() == data


# Digests

EMPTY_MD5 = hashlib.md5(b"").hexdigest()


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"])
def test_a_digest_of_any_algorithm_is_read_back(algorithm: str) -> None:
    text = f"{algorithm}:{hashlib.new(algorithm, b'').hexdigest()}"
    assert str(Digest.parse(text)) == text


def test_bare_hex_is_md5_as_glance_writes_it() -> None:
    assert Digest.parse(EMPTY_MD5) == Digest("md5", EMPTY_MD5)


def test_the_case_and_the_space_around_a_digest_mean_nothing() -> None:
    assert Digest.parse(f" MD5:{EMPTY_MD5.upper()}\n") == Digest("md5", EMPTY_MD5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "md5",
        "md5:",
        ":" + EMPTY_MD5,
        EMPTY_MD5[1:],
        EMPTY_MD5 + "00",
        "md5:" + "zz" * 16,
        "md5:" + "0 " * 16,
        "md5:" + "٣" * 32,
        "sha256:" + EMPTY_MD5,
        "crc32:00000000",
        "shake_128:" + "00" * 16,
        "a\0b:00",
        "a\udcffb:00",
        "sha256:md5:" + EMPTY_MD5,
    ],
)
def test_what_is_no_digest_is_einval(text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Digest.parse(text)
    assert caught.value.errno == errno.EINVAL


@given(st.text())
def test_any_text_is_a_digest_or_einval(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidValueError:
        return
    assert Digest.parse(str(digest)) == digest


@given(st.lists(st.binary()), st.sampled_from(["md5", "sha256"]))
def test_a_hasher_finds_the_digest_of_all_chunks(chunks: list[bytes], algorithm: str) -> None:
    expected = Digest(algorithm, hashlib.new(algorithm, b"".join(chunks)).hexdigest())
    hasher = Hasher(expected, "sha512")
    for chunk in chunks:
        hasher.update(chunk)
    assert hasher.finish() == expected


def test_a_hasher_refuses_other_bytes() -> None:
    hasher = Hasher(Digest("md5", EMPTY_MD5), "md5")
    hasher.update(b"x")
    with pytest.raises(ChecksumError, match=EMPTY_MD5):
        hasher.finish()


def test_a_hasher_without_a_promise_verifies_nothing() -> None:
    hasher = Hasher(None, "md5")
    assert not hasher.verifies
    assert hasher.finish() == Digest("md5", EMPTY_MD5)


# Errnos


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ImageNotFoundError", errno.ENOENT),
        ("SourceRefusedError", errno.EACCES),
        ("SourceUnreachableError", errno.EHOSTUNREACH),
        ("SourceTimeoutError", errno.ETIMEDOUT),
        ("NoRoomError", errno.ENOSPC),
        ("ChecksumError", errno.EIO),
        ("ImageChangedError", errno.EIO),
        ("InvalidImageIDError", errno.EINVAL),
        ("InvalidValueError", errno.EINVAL),
        ("ImageExistsError", errno.EEXIST),
        ("ImageBusyError", errno.EBUSY),
        ("ReadOnlyError", errno.EROFS),
    ],
)
def test_an_error_has_the_errno_of_the_contract(name: str, expected: int) -> None:
    error: CacheFSError = getattr(errors, name)("why")
    assert errno_of(error) == error.errno == expected


def test_every_error_of_ours_has_an_errno_that_linux_knows() -> None:
    ours = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    for kind in ours:
        if issubclass(kind, CacheFSError):
            assert kind.errno in errno.errorcode


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (FileNotFoundError(errno.ENOENT, "gone"), errno.ENOENT),
        (OSError("without an errno"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ValueError("a bug"), errno.EIO),
        (sqlite3.OperationalError("locked"), errno.EIO),
    ],
)
def test_an_error_of_others_has_its_own_errno_or_eio(error: Exception, expected: int) -> None:
    assert errno_of(error) == expected


# Records


def test_a_record_begins_with_glances_keys() -> None:
    assert list(ImageRecord("a", 1).as_dict())[:6] == [
        "image_id",
        "size",
        "hits",
        "last_accessed",
        "last_modified",
        "checksum",
    ]


def test_a_record_is_one_line_of_json() -> None:
    text = ImageRecord("日 ~", 1, state=State.INVALID, error="a\nb").as_json()
    assert text.count("\n") == 1
    assert json.loads(text)["error"] == "a\nb"
    assert json.loads(text)["state"] == "invalid"

"""The durable map of an incomplete image: what a crash, a power loss and damage leave of it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.cache import CHUNK, PartialMap, Version
from cachefs.cache.partial import SYNCED, WRITTEN

V1 = Version(10 * CHUNK - 5, "tag", "sha256:00")
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "map"


@pytest.fixture
def data(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def header(path: Path) -> dict[str, object]:
    members: dict[str, object] = json.loads(path.read_bytes()[:PAGE])
    return members


def edit(path: Path, **members: object) -> None:
    """Replace members of the first page."""
    content = path.read_bytes()
    page = json.dumps({**header(path), **members}).encode().ljust(PAGE)
    path.write_bytes(page + content[PAGE:])


def reopened(path: Path) -> list[int] | None:
    """The chunks that another process believes to be there, None where it refuses the map."""
    partial = PartialMap.open(path)
    if partial is None:
        return None
    partial.close()
    return partial.present()


def made(path: Path, *written: int, synced: tuple[int, ...] = (), data: int = -1) -> None:
    """A map whose process was killed after this."""
    partial = PartialMap.create(path, V1)
    for number in synced:
        partial.mark_written(number, number + 1)
    if synced:
        partial.sync(data)
    for number in written:
        partial.mark_written(number, number + 1)
    partial.close()


def test_a_new_map_has_nothing(path: Path) -> None:
    made(path)
    assert reopened(path) == []


def test_written_chunks_outlive_the_process(path: Path) -> None:
    made(path, 1, 4, 9)
    assert reopened(path) == [1, 4, 9]


def test_only_synced_chunks_outlive_the_machine(path: Path, data: int) -> None:
    made(path, 2, 5, synced=(1, 4), data=data)
    edit(path, boot="another")
    assert reopened(path) == [1, 4]


def test_what_is_written_after_a_power_loss_counts_until_the_next(path: Path, data: int) -> None:
    made(path, 2, synced=(1,), data=data)
    edit(path, boot="another")
    partial = PartialMap.open(path)
    assert partial is not None
    partial.mark_written(7, 8)
    partial.close()
    assert reopened(path) == [1, 7]
    edit(path, boot="a third")
    assert reopened(path) == [1]


def test_a_chunk_is_synced_before_the_map_says_so(
    path: Path, data: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialMap.create(path, V1)
    partial.mark_written(3, 4)
    seen = []

    def fdatasync(fd: int) -> None:
        seen.append((fd == data, path.read_bytes()[PAGE + 3 : PAGE + 4]))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert partial.sync(data) == 1
    partial.close()
    # The image first, with the map as it was; then the map, which says so by then.
    assert seen == [(True, WRITTEN), (False, SYNCED)]


def test_a_failed_sync_is_told_and_nothing_counts_as_synced(
    path: Path, data: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialMap.create(path, V1)
    partial.mark_written(3, 4)

    def fdatasync(fd: int) -> None:
        raise OSError(5, "lost")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(OSError, match="lost"):
        partial.sync(data)
    partial.close()
    assert path.read_bytes()[PAGE + 3 : PAGE + 4] == WRITTEN


def test_what_arrives_during_a_sync_is_not_called_synced(
    path: Path, data: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialMap.create(path, V1)
    partial.mark_written(3, 4)
    true = os.fdatasync

    def fdatasync(fd: int) -> None:
        true(fd)
        if fd == data:
            partial.mark_written(5, 6)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    partial.sync(data)
    assert path.read_bytes()[PAGE:][3:6] == SYNCED + b"\0" + WRITTEN
    assert partial.sync(data) == 1
    assert partial.sync(data) == 0
    partial.close()


def test_a_thread_left_behind_marks_nothing_after_close(path: Path) -> None:
    partial = PartialMap.create(path, V1)
    partial.close()
    partial.mark_written(1, 2)
    assert reopened(path) == []


def test_a_missing_map_is_none(path: Path) -> None:
    assert reopened(path) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * PAGE,
        b"\0" * (PAGE + 10),
        b"\xff" * (PAGE + 10),
        b"not a map".ljust(PAGE) + b"\1" * 10,
    ],
)
def test_a_damaged_map_is_refused(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    assert reopened(path) is None


@pytest.mark.parametrize(
    "members",
    [
        {"format": 2},
        {"chunk": CHUNK * 2},
        {"size": V1.size + CHUNK},
        {"size": -1},
        {"size": 10**30},
        {"size": 2**62},
        {"size": "10"},
        {"size": 1.5},
        {"size": None},
        {"size": True},
        {"tag": 5},
        {"digest": ["sha256:00"]},
    ],
)
def test_a_map_with_a_foreign_header_is_refused(path: Path, members: dict[str, object]) -> None:
    made(path, 1)
    edit(path, **members)
    assert reopened(path) is None


@pytest.mark.parametrize("name", ["format", "chunk", "boot", "size", "tag", "digest"])
def test_a_map_without_one_member_is_refused(path: Path, name: str) -> None:
    made(path, 1)
    members = header(path)
    del members[name]
    path.write_bytes(json.dumps(members).encode().ljust(PAGE) + path.read_bytes()[PAGE:])
    assert reopened(path) is None


@pytest.mark.parametrize("length", [PAGE, PAGE + 9, PAGE + 11])
def test_a_map_of_another_length_is_refused(path: Path, length: int) -> None:
    made(path, 1)
    os.truncate(path, length)
    assert reopened(path) is None


def test_a_map_with_a_state_that_there_is_not_is_refused(path: Path) -> None:
    made(path, 1)
    content = bytearray(path.read_bytes())
    content[PAGE + 4] = 3
    path.write_bytes(content)
    assert reopened(path) is None


def test_a_symbolic_link_or_a_directory_is_no_map(path: Path, tmp_path: Path) -> None:
    made(tmp_path / "other", 1)
    path.symlink_to(tmp_path / "other")
    assert reopened(path) is None
    path.unlink()
    path.mkdir()
    assert reopened(path) is None


def test_refused_maps_leave_no_descriptor_open(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    path.write_bytes(b"{}")
    assert reopened(path) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_tag_too_long_for_a_map_touches_nothing(path: Path) -> None:
    with pytest.raises(ValueError, match="has 5000 characters"):
        PartialMap.create(path, Version(1, "x" * 5000, None))
    assert not path.exists()


def test_a_removed_map_is_gone(path: Path) -> None:
    PartialMap.create(path, V1).remove()
    assert not path.exists()


def test_the_version_is_kept(path: Path) -> None:
    made(path)
    partial = PartialMap.open(path)
    assert partial is not None
    partial.close()
    assert partial.version == V1


A, B = "tag a", "tag b"
X, Y = "sha256:aa", "sha256:bb"


@pytest.mark.parametrize(
    ("one", "other", "sure"),
    [
        (Version(5, A, X), Version(5, A, X), True),
        (Version(5, A, X), Version(6, A, X), False),
        (Version(5, A, None), Version(5, A, None), True),
        (Version(5, A, None), Version(5, B, None), False),
        (Version(5, A, X), Version(5, B, X), True),
        (Version(5, A, X), Version(5, A, Y), False),
        (Version(5, None, X), Version(5, None, X), True),
        (Version(5, A, X), Version(5, A, None), True),
        (Version(5, A, X), Version(5, B, None), False),
        (Version(5, None, X), Version(5, None, None), False),
        (Version(5, None, None), Version(5, None, None), False),
        (Version(5, A, None), Version(5, None, None), False),
    ],
)
def test_when_two_versions_are_surely_the_same(one: Version, other: Version, sure: bool) -> None:
    assert one.is_surely(other) is sure
    assert other.is_surely(one) is sure

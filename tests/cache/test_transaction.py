"""Maps of partial files, and when they are believed; the ends of a transaction."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.place import Place, content

from cachefs.cache import CHUNK, PartialMap, Store, Transaction, Version
from cachefs.errors import ImageBusyError, ImageExistsError, SourceError

SIZE = 3 * CHUNK
DATA = content("a", SIZE)
VERSION = Version(SIZE, "etag", None)


def begin(store: Store, version: Version | None = VERSION) -> Transaction:
    return store.begin("a", version.size if version else None, version)


def write_first(transaction: Transaction) -> None:
    """Write and mark the first chunk of three."""
    assert transaction.partial is not None
    os.pwrite(transaction.fd, DATA[:CHUNK], 0)
    transaction.partial.mark_written(0, 1)


def present(transaction: Transaction) -> list[int]:
    assert transaction.partial is not None
    return transaction.partial.present()


def leave(place: Place) -> None:
    """Have the first chunk on disk, as a daemon that ended leaves it."""
    with place.opened() as store:
        transaction = begin(store)
        write_first(transaction)
        transaction.keep()


def test_what_was_kept_is_gone_on_with_after_a_restart(place: Place) -> None:
    leave(place)
    with place.opened() as store:
        assert store.abandoned() == ["a"]
        with begin(store) as transaction:
            assert present(transaction) == [0]
            assert os.pread(transaction.fd, CHUNK, 0) == DATA[:CHUNK]


def test_a_killed_writer_is_gone_on_with(place: Place) -> None:
    code = f"""
from cachefs.cache import Version
transaction = place.store().begin("a", {SIZE}, Version({SIZE}, "etag", None))
os.pwrite(transaction.fd, content("a", {CHUNK}), 0)
transaction.partial.mark_written(0, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert place.run(code)[0] == -9
    with place.opened() as store, begin(store) as transaction:
        assert present(transaction) == [0]


@pytest.mark.parametrize(
    "version",
    [
        replace(VERSION, tag="another"),
        replace(VERSION, tag=None),
        replace(VERSION, size=SIZE - 1),
        replace(VERSION, tag=None, digest="sha256:" + "0" * 64),
    ],
)
def test_bytes_of_another_version_are_thrown_away(place: Place, version: Version) -> None:
    leave(place)
    with place.opened() as store, begin(store, version) as transaction:
        assert present(transaction) == []
        assert os.pread(transaction.fd, CHUNK, 0) == bytes(CHUNK)


def test_a_map_does_not_outlive_the_bytes_it_speaks_of(place: Place) -> None:
    leave(place)
    with place.opened() as store:
        transaction = store.begin("a", SIZE)  # by a writer without a map, who is killed
        transaction.write(bytes(SIZE))
        os.close(transaction.fd)
        with begin(store) as again:
            assert present(again) == []


@pytest.mark.parametrize(
    ("owner", "call"), [(os, "ftruncate"), (os, "fsync"), (PartialMap, "create")]
)
def test_a_begin_that_is_cut_off_leaves_no_map_of_other_bytes(
    place: Place, monkeypatch: pytest.MonkeyPatch, owner: object, call: str
) -> None:
    leave(place)

    class KilledError(BaseException):
        """As SIGKILL: nothing is tidied up after it."""

    def die(*_: object) -> None:
        raise KilledError

    with place.opened() as store, monkeypatch.context() as patch:
        patch.setattr(owner, call, die)
        patch.setattr(Transaction, "abort", lambda transaction: os.close(transaction.fd))
        with pytest.raises(KilledError):
            begin(store, replace(VERSION, tag="new"))
    with place.opened() as store, begin(store) as transaction:
        assert present(transaction) == []


def test_a_map_of_a_file_of_another_length_is_not_believed(place: Place) -> None:
    leave(place)
    os.truncate(place.path / "incomplete/a", CHUNK)
    with place.opened() as store, begin(store) as transaction:
        assert present(transaction) == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff" * 5000])
def test_a_damaged_map_is_not_believed(place: Place, damage: bytes) -> None:
    leave(place)
    (place.path / ".cachefs/maps/a").write_bytes(damage)
    with place.opened() as store, begin(store) as transaction:
        assert present(transaction) == []


def test_after_a_reboot_only_synced_chunks_are_believed(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leave(place)
    with place.opened() as store:
        transaction = begin(store)
        assert transaction.partial is not None
        transaction.partial.mark_written(1, 2)
        os.close(transaction.fd)  # killed
    (tmp_path / "boot").write_text("another boot")
    monkeypatch.setattr("cachefs.cache.partial._BOOT_ID", tmp_path / "boot")
    with place.opened() as store, begin(store) as transaction:
        assert present(transaction) == [0]


def test_a_version_with_an_endless_tag_can_be_fetched(place: Place) -> None:
    with place.opened() as store, begin(store, replace(VERSION, tag="x" * 9000)) as transaction:
        assert present(transaction) == []


def test_a_published_image_leaves_no_map(place: Place) -> None:
    with place.opened() as store:
        transaction = begin(store)
        os.pwrite(transaction.fd, DATA, 0)
        transaction.commit()
        assert store.is_cached("a")
    assert place.names(".cachefs/maps") == []


def test_kept_bytes_give_way_before_any_image(place: Place) -> None:
    leave(place)
    with place.opened(max_size=SIZE + 10) as store:
        store.begin("b", SIZE).abort()
        assert store.abandoned() == []
    assert place.names(".cachefs/maps") == []


def test_a_second_writer_is_refused_while_the_first_lives(place: Place) -> None:
    with (
        place.opened() as store,
        place.opened() as other,
        begin(store) as transaction,
    ):
        write_first(transaction)
        with pytest.raises(ImageBusyError):
            begin(other)
        with pytest.raises(ImageBusyError):
            begin(other, None)
        assert present(transaction) == [0]
        assert place.names(".cachefs/maps") == ["a"]


def test_a_cached_image_cannot_be_begun(place: Place) -> None:
    with place.opened() as store:
        with store.begin("a") as transaction:
            transaction.commit()
        with pytest.raises(ImageExistsError):
            store.begin("a")


def test_fewer_bytes_than_promised_are_not_published(place: Place) -> None:
    with place.opened() as store, store.begin("a", 5) as transaction:
        transaction.write(b"123")
        with pytest.raises(SourceError):
            transaction.commit()
    assert place.names() == []


def test_an_ended_transaction_writes_nowhere(place: Place) -> None:
    with place.opened() as store:
        transaction = store.begin("a", 5)
        transaction.abort()
        with pytest.raises(OSError, match="Bad file descriptor"):
            transaction.write(b"123")


def test_hits_of_an_incomplete_image_are_kept(place: Place) -> None:
    with place.opened() as store, store.begin("a") as transaction:
        transaction.write(b"123")
        assert transaction.commit(hits=3).hits == 3
        entry = store.quick.get("a")
        assert entry is not None
        assert entry.hits == 3


def test_a_file_that_was_replaced_by_another_is_not_published(place: Place) -> None:
    with place.opened() as store, store.begin("a", 3) as transaction:
        transaction.write(b"123")
        transaction.path.unlink()
        transaction.path.write_bytes(b"somebody else's")
        with pytest.raises(ImageBusyError):
            transaction.commit()
        assert not store.is_cached("a")
    assert (place.path / "incomplete/a").read_bytes() == b"somebody else's"

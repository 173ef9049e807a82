"""Failures and the queue, as the store has them and as other versions leave them on the disk."""

import json

from support.place import Place, content

from cachefs.cache import Failure
from cachefs.errors import SourceError


def test_a_failure_is_remembered_until_it_is_forgotten(place: Place) -> None:
    with place.opened() as store:
        store.fail("a", SourceError("the source is away"), source="http://origin/")
    with place.opened() as store:
        assert store.failed_ids() == ["a"]
        failure = store.failure("a")
        assert failure is not None
        assert (failure.error, failure.source) == ("the source is away", "http://origin/")
        assert store.forget_failure("a")
        assert not store.forget_failure("a")
        assert store.failure("a") is None


def test_a_failure_with_members_of_another_version_is_no_damaged_one(place: Place) -> None:
    members = {"image_id": "a", "error": "refused", "errno": 13, "when": 5.0, "size": 0}
    with place.opened() as store:
        path = place.path / ".cachefs" / "failed" / "a"
        path.write_text(json.dumps(members | {"source": None, "color": "red"}))
        assert store.failure("a") == Failure("a", "refused", 5.0)


def test_a_damaged_failure_is_a_failure(place: Place) -> None:
    with place.opened() as store:
        path = place.path / ".cachefs" / "failed" / "a"
        for text in ("", "{}", "[]", "7", '"error"', "{"):
            path.write_text(text)
            failure = store.failure("a")
            assert failure is not None
            assert "damaged" in failure.error


def test_a_priority_is_set_on_what_is_queued_alone(place: Place) -> None:
    with place.opened() as store:
        for image_id in "ab":
            store.enqueue(image_id)
        assert store.set_priority("b", 3)
        assert not store.set_priority("c", 3)
        assert (store.priority("a"), store.priority("b"), store.priority("c")) == (0, 3, 0)
        assert store.queued_ids() == ["b", "a"]
        assert store.unqueue("b")
        assert not store.quick.unqueue("b")
        assert store.queued_since("b") is None
        assert not store.quick.is_queued("b")
        assert store.quick.unqueue("a")


def test_what_was_abandoned_is_queued_again(place: Place) -> None:
    with place.opened() as store:
        store.requeue_abandoned()
        assert store.queued_ids() == []


def test_event_loops_find_images_by_name_by_number_and_page_by_page(place: Place) -> None:
    with place.opened() as store:
        for image_id in "abc":
            with store.begin(image_id, 10) as transaction:
                transaction.write(content(image_id, 10))
                transaction.commit()
        quick = store.quick
        entries = quick.page(0, 10)
        assert [entry.image_id for entry in entries] == ["a", "b", "c"]
        assert quick.page(entries[0].inode, 1) == [quick.get("b")]
        assert quick.by_inode(entries[2].inode) == quick.get("c")
        assert (quick.totals().images, quick.totals().size) == (3, 30)
        store.evict("a")
        assert (quick.get("a"), quick.evictions) == (None, 1)
        store.pin("b", True)
        assert [entry.image_id for entry in store.pinned()] == ["b"]
        assert [entry.image_id for entry in store.entries()] == ["b", "c"]

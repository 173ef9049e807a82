"""Who waits for room hears of all that may give some."""

from collections.abc import Callable

import pytest
from support.place import Place, content

from cachefs.cache import Limits, Store
from cachefs.errors import CacheFSError
from cachefs.units import Amount


def rejected(store: Store) -> None:
    """Bytes in invalid/."""
    with store.begin("bad", 10) as transaction:
        transaction.write(b"0123456789")
        transaction.reject(CacheFSError("wrong"))


WAYS: dict[str, Callable[[Store], object]] = {
    "a limit": lambda store: setattr(store, "limits", Limits(Amount(size=2**20))),
    "an eviction": lambda store: store.evict("a"),
    "a pruning": lambda store: store.prune(),
    "a pin that goes": lambda store: store.pin("a", False),
    "a failure that is forgotten": lambda store: store.forget_failure("bad"),
    "a failure that is queued": lambda store: store.enqueue("bad"),
    "a failure that is to be pinned": lambda store: store.pin_when_cached("bad"),
    "a cleaning": lambda store: store.clean(0),
    "a cleaning of stalled files": lambda store: store.clean_stalled(0),
}


@pytest.mark.parametrize("way", WAYS)
def test_room_is_told_of(place: Place, way: str) -> None:
    place.cache().cache_image_iter("a", [content("a", 1000)])
    with place.opened() as store:
        rejected(store)
        told: list[str] = []
        store.on_room(lambda: told.append(way))
        WAYS[way](store)
        assert told

"""Which opens were refused as stale, as the next process of a mount hears of it."""

import os

import pytest
from support.place import Place

from cachefs.cache import Kept, Layout, Refusals, Refused
from cachefs.cache.refusals import RETRY_SECONDS


@pytest.fixture
def refusals(place: Place) -> Refusals:
    place.store().close()  # makes the directories
    return Refusals(Layout(place.path))


def test_what_was_refused_is_known_to_the_next_process_for_a_while(
    place: Place, refusals: Refusals
) -> None:
    assert refusals.recent() == Refused()
    refusals.note(Refused(("a",)))
    noted = Refused(("\udcff b", None), (Kept(2**57 + 1), Kept(7, {"size": 1, "digest": None})))
    refusals.note(noted)
    later = Refusals(Layout(place.path))
    assert later.recent() == noted
    file = Layout(place.path).refused_file
    os.utime(file, (0, file.stat().st_mtime - RETRY_SECONDS))
    assert later.recent() == Refused()


@pytest.mark.parametrize(
    "content",
    [
        *("", '["a', "7", "{}", "[" * 60_000, '{"refused": [7], "kept": []}'),
        *('{"refused": [], "kept": [[1]]}', '{"refused": [], "kept": [["1", null]]}'),
        '{"refused": [], "kept": [[1, 2]]}',
    ],
)
def test_a_note_of_refusals_that_makes_no_sense_may_be_of_any(
    place: Place, refusals: Refusals, content: str
) -> None:
    Layout(place.path).refused_file.write_text(content)
    assert refusals.recent() == Refused((None,))


def test_a_link_in_the_place_of_the_refusals_is_not_followed(
    place: Place, refusals: Refusals
) -> None:
    (place.path / "theirs").write_bytes(b"theirs")
    Layout(place.path).refused_file.symlink_to(place.path / "theirs")
    assert refusals.recent() == Refused()
    refusals.note(Refused(("a",)))
    assert (place.path / "theirs").read_bytes() == b"theirs"
    assert refusals.recent() == Refused(("a",))

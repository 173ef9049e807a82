"""What a queued image waits for and until when, on a clock of the test's own."""

import pytest
from support.clock import Clock

from cachefs.errors import (
    CacheFSError,
    ImageBusyError,
    ImageChangedError,
    NoRoomError,
    SourceError,
    SourceRefusedError,
    SourceUnreachableError,
)
from cachefs.fetcher.retry import FIRST_PAUSE
from cachefs.fetcher.waits import LEAST_PAUSE, LONGEST_PAUSES, Waits, WaitsFor, waits_for_what


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waits(clock: Clock) -> Waits:
    return Waits(clock)


DOWN = SourceUnreachableError("down")


def test_an_image_that_has_not_failed_is_due(waits: Waits) -> None:
    assert waits.is_due("img")
    assert waits.get("img") is None


def test_pauses_grow_with_each_failure_up_to_a_limit(waits: Waits, clock: Clock) -> None:
    longest = FIRST_PAUSE
    for _ in range(20):
        pause = waits.put("img", DOWN)
        assert longest / 2 <= pause <= max(longest, LEAST_PAUSE)
        assert not waits.is_due("img")
        clock.now += pause
        assert waits.is_due("img")
        longest = min(2 * longest, LONGEST_PAUSES[WaitsFor.SOURCE])
    assert 150 <= pause <= 300


def test_what_a_source_asks_for_is_waited_for_however_long(waits: Waits) -> None:
    error = SourceError("too many requests")
    error.retry_after = 900.0
    assert waits.put("img", error) >= 900


def test_a_wait_tells_what_for_why_and_how_long(waits: Waits, clock: Clock) -> None:
    pause = waits.put("img", DOWN)
    clock.now += pause / 2
    waiting = waits.get("img")
    assert waiting is not None
    assert (waiting.waits_for, waiting.error) == ("source", "down")
    assert waiting.seconds == pytest.approx(pause / 2)


@pytest.mark.parametrize(
    ("error", "waits_for"),
    [
        (DOWN, WaitsFor.SOURCE),
        (SourceRefusedError("no"), WaitsFor.SOURCE),
        (ImageChangedError("another"), WaitsFor.SOURCE),
        (NoRoomError("full"), WaitsFor.ROOM),
        (ImageBusyError("busy"), WaitsFor.WRITER),
        (CacheFSError("a bad disk"), WaitsFor.CACHE),
    ],
)
def test_every_error_says_what_must_come_to_pass(error: Exception, waits_for: WaitsFor) -> None:
    assert waits_for_what(error) is waits_for


def test_those_that_wait_for_what_is_there_are_due_at_once(waits: Waits, clock: Clock) -> None:
    for _ in range(9):
        waits.put("a", DOWN)
    waits.put("b", NoRoomError("full"), 100)
    clock.now += LEAST_PAUSE
    assert waits.wake(WaitsFor.SOURCE)
    assert waits.is_due("a")
    assert not waits.wake(WaitsFor.SOURCE)
    assert not waits.wake(WaitsFor.WRITER)
    assert (waits.wanted_room("a"), waits.wanted_room("b")) == (None, 100)


def test_nothing_is_tried_again_in_a_hot_loop_however_often_it_is_woken(
    waits: Waits, clock: Clock
) -> None:
    tries = 0
    for _ in range(10_000):
        if waits.is_due("img"):
            tries += 1
            waits.put("img", NoRoomError("disk full"), 100)
        waits.wake(WaitsFor.ROOM)
        clock.now += 0.001
    assert tries <= 10 / LEAST_PAUSE


def test_who_leaves_the_queue_is_forgotten(waits: Waits) -> None:
    for name in ("a", "b", "c"):
        waits.put(name, DOWN)
    waits.forget("a")
    waits.keep_only(["b"])
    assert [waits.is_due(name) for name in ("a", "b", "c")] == [True, False, True]

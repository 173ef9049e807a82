"""The small parts: bandwidth, precedence, retries, the sink."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.clock import Clock

from cachefs.cache import CHUNK, PartialMap, Version
from cachefs.errors import (
    ChecksumError,
    ImageChangedError,
    ImageNotFoundError,
    NoRoomError,
    SourceError,
    SourceRefusedError,
    SourceTimeoutError,
    SourceUnreachableError,
)
from cachefs.fetcher.retry import FIRST_PAUSE, LONGEST_PAUSE, RetryPolicy, pauses
from cachefs.fetcher.sink import Sink
from cachefs.fetcher.traffic import BURST, Bandwidth, Precedence
from cachefs.sources import is_passing


def test_without_a_limit_nobody_waits() -> None:
    assert Bandwidth(None).take(2**40) == 0


@given(
    rate=st.integers(1000, 10**9),
    counts=st.lists(st.integers(1, 2**20), min_size=1, max_size=50),
    idle=st.floats(0, 100),
)
def test_over_any_time_no_more_is_taken_than_the_rate_and_one_burst(
    rate: int, counts: list[int], idle: float
) -> None:
    clock = Clock()
    limit = Bandwidth(rate, clock)
    limit.take(1)
    clock.now += idle
    began, taken = clock.now, 0
    for count in counts:
        wait = limit.take(count)
        taken += count
        clock.now += wait
        assert taken <= rate * (clock.now - began + BURST) + 2


def test_a_share_of_each_is_counted_for_all_who_share() -> None:
    clock = Clock()
    limit = Bandwidth(1000, clock)
    assert limit.take(100) == pytest.approx(0)  # the burst
    assert limit.take(500) == pytest.approx(0.5)
    assert limit.take(500) == pytest.approx(1.0)
    clock.now += 1.0
    assert limit.take(100) == pytest.approx(0.1)


def test_pauses_double_with_jitter_up_to_a_limit() -> None:
    for number, pause in enumerate(pauses(12)):
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
        assert longest / 2 <= pause <= longest


def test_there_are_as_many_pauses_as_tries() -> None:
    assert len(list(pauses(5))) == 5
    assert list(pauses(0)) == []


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (SourceError("x"), True),
        (SourceUnreachableError("x"), True),
        (SourceTimeoutError("x"), True),
        (SourceRefusedError("x"), False),
        (ImageNotFoundError("x"), False),
        (ImageChangedError("x"), False),
        (ChecksumError("x"), False),
        (NoRoomError("x"), False),
        (OSError("x"), False),
    ],
)
def test_what_is_worth_another_try(error: Exception, passing: bool) -> None:
    assert is_passing(error) is passing


def test_patience_ends_after_so_many_failures_in_a_row() -> None:
    patience = RetryPolicy(3)
    assert [patience.pause(SourceError("x"), 7) is None for _ in range(5)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_progress_renews_patience() -> None:
    patience = RetryPolicy(1)
    assert all(patience.pause(SourceError("x"), progress) for progress in range(10))


def test_there_is_no_patience_with_what_does_not_pass() -> None:
    assert RetryPolicy(3).pause(ImageChangedError("x"), 0) is None


async def test_precedence_lets_all_go_while_nobody_reads(autojump_clock: trio.abc.Clock) -> None:
    with trio.fail_after(1):
        await Precedence().turn(lambda: False)


async def test_precedence_holds_the_queued_until_the_last_reader_has_gone(
    autojump_clock: trio.abc.Clock,
) -> None:
    precedence, went = Precedence(), []

    async def queued() -> None:
        await precedence.turn(lambda: False)
        went.append("queued")

    precedence.enter()
    precedence.enter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queued)
        await precedence.turn(lambda: True)
        precedence.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert went == []
        precedence.leave()
    assert went == ["queued"]


async def test_precedence_lets_one_go_that_begins_to_be_read(
    autojump_clock: trio.abc.Clock,
) -> None:
    precedence, read = Precedence(), []
    precedence.enter()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(precedence.turn, lambda: bool(read))
            await trio.testing.wait_all_tasks_blocked()
            read.append(True)
            precedence.enter()


async def test_precedence_lets_one_go_that_need_not_wait_any_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    precedence, done = Precedence(), []
    precedence.enter()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(precedence.turn, lambda: bool(done))
            await trio.testing.wait_all_tasks_blocked()
            done.append(True)
            precedence.look_again()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def partial(tmp_path: Path) -> Iterator[PartialMap]:
    partial = PartialMap.create(tmp_path / "map", Version(4 * CHUNK, "v", None))
    yield partial
    partial.close()


def test_a_sink_writes_and_marks(file: int, partial: PartialMap) -> None:
    sink = Sink(file, partial)
    assert sink.write(b"abc", 5)
    assert sink.mark(1, 3)
    assert os.pread(file, 10, 0) == b"\0\0\0\0\0abc"
    assert partial.present() == [1, 2]


def test_a_sink_that_is_shut_does_nothing(file: int, partial: PartialMap) -> None:
    sink = Sink(file, partial)
    sink.shut()
    assert not sink.write(b"abc", 0)
    assert not sink.mark(0, 1)
    assert os.fstat(file).st_size == 0
    assert partial.present() == []


def test_a_sink_tells_whether_bytes_are_the_same_again(file: int, partial: PartialMap) -> None:
    sink = Sink(file, partial)
    sink.write(b"abcdef", 0)
    assert sink.agrees(b"cd", 2)
    assert not sink.agrees(b"cx", 2)

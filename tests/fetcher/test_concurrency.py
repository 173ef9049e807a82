"""Tasks side by side end as one; reports of threads: none is lost, gathered where nobody is in a
hurry, in the order of each."""

import threading

import pytest
import trio

from cachefs.errors import ImageNotFoundError, SourceError, without_traceback
from cachefs.fetcher import concurrency
from cachefs.fetcher.concurrency import Reports, gather

from .conftest import PATIENCE

THREADS, POSTS = 4, 500


@pytest.mark.parametrize("urgent", [False, True])
async def test_no_report_is_lost_and_each_thread_s_are_in_order(urgent: bool) -> None:
    taken: list[tuple[int, int]] = []
    mailbox = Reports(lambda start, stop: taken.append((start, stop)))

    def post(thread: int) -> None:
        for number in range(POSTS):
            mailbox.post(thread, number)

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    with trio.fail_after(PATIENCE):
        await mailbox.listen(lambda: len(taken) == THREADS * POSTS, lambda: urgent)
    for thread_number in range(THREADS):
        assert [n for t, n in taken if t == thread_number] == list(range(POSTS))


async def test_reports_are_gathered_unless_somebody_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wakings: list[float] = []
    mailbox = Reports(lambda start, stop: wakings.append(trio.current_time()))
    urgent = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.listen, lambda: False, lambda: urgent)
        began = trio.current_time()
        mailbox.post(0, 1)
        await trio.sleep(concurrency.PAUSE / 2)
        mailbox.post(1, 2)
        assert wakings == []
        await trio.sleep(concurrency.PAUSE)
        assert wakings == [pytest.approx(began + concurrency.PAUSE)] * 2
        urgent = True
        mailbox.post(2, 3)
        await trio.testing.wait_all_tasks_blocked(cushion=0.0001)
        assert len(wakings) == 3
        nursery.cancel_scope.cancel()


async def test_what_was_posted_can_be_taken_before_its_turn() -> None:
    taken: list[int] = []
    mailbox = Reports(lambda start, stop: taken.append(start))
    mailbox.post(7, 8)
    mailbox.take_in()
    assert taken == [7]
    mailbox.take_in()
    assert taken == [7]


async def test_who_listens_ends_when_woken_after_all_was_taken() -> None:
    taken: list[int] = []
    mailbox = Reports(lambda start, stop: taken.append(start))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.listen, lambda: bool(taken), lambda: True)
            await trio.testing.wait_all_tasks_blocked()
            mailbox.post(0, 1)
            mailbox.take_in()  # by another task, before the listener runs
            mailbox.wake()


async def test_gather_returns_when_all_have() -> None:
    done = []

    async def task() -> None:
        await trio.lowlevel.checkpoint()
        done.append(True)

    await gather(task, task, task)
    assert len(done) == 3


@pytest.mark.parametrize("kind", [SourceError, OSError, ZeroDivisionError])
async def test_gather_cancels_the_rest_and_raises_one_error_alone(kind: type[Exception]) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise kind("x")

    with trio.fail_after(PATIENCE), pytest.raises(kind, match="x"):
        await gather(trio.sleep_forever, fail, fail)


def test_a_copy_of_an_error_holds_no_frames() -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        raise ImageNotFoundError("x")
    copy = without_traceback(caught.value)
    assert (type(copy), copy.args, copy.__traceback__) == (ImageNotFoundError, ("x",), None)

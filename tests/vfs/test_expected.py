"""What is kept for an open that the kernel is about to try once more."""

from pathlib import Path

import trio
import trio.testing

from cachefs.cache import Kept, Layout, Refusals
from cachefs.cache.claim import claim
from cachefs.vfs.expected import KEPT_SECONDS, MOST_KEPT, Expected


async def test_a_name_is_expected_for_a_moment_after_its_refusal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    expected = Expected()
    assert not expected.expects("a")
    expected.refused("a")
    assert expected.expects("a")
    assert expected.was_refused("a")
    assert not expected.expects("b")
    await trio.sleep(KEPT_SECONDS)
    assert not expected.expects("a")


async def test_a_refusal_of_nobody_knows_which_image_may_be_of_any(
    autojump_clock: trio.testing.MockClock,
) -> None:
    expected = Expected()
    expected.refused(None)
    assert expected.was_refused("a")
    await trio.sleep(KEPT_SECONDS)
    assert not expected.was_refused("a")


async def test_after_another_worker_any_image_is_expected_but_none_known_to_be_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    expected = Expected()
    expected.taken_over()
    assert expected.expects("a")
    assert not expected.was_refused("a")
    await trio.sleep(KEPT_SECONDS)
    assert not expected.expects("a")


async def test_what_another_worker_had_just_refused_is_known_to_have_been_refused(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    layout = Layout(tmp_path)
    claim(layout)
    before, expected = Expected(Refusals(layout)), Expected(Refusals(layout))
    before.refused("a")
    before.refused("b")
    expected.taken_over()
    assert expected.was_refused("a")
    assert expected.was_refused("b")
    assert not expected.was_refused("c")
    await trio.sleep(KEPT_SECONDS)
    assert not expected.was_refused("a")


async def test_what_is_kept_is_known_to_the_next_worker_until_it_is_released(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    layout = Layout(tmp_path)
    claim(layout)
    before = Expected(Refusals(layout))
    nursery.start_soon(before.run)
    before.refused("a")
    before.keep(lambda: None, Kept(7))
    before.keep(lambda: None, Kept(8, {"size": 3}))
    before.keep(lambda: None)
    assert Expected(Refusals(layout)).taken_over() == (Kept(7), Kept(8, {"size": 3}))
    await trio.sleep(1.5 * KEPT_SECONDS)
    assert Expected(Refusals(layout)).taken_over() == ()


async def test_a_refusal_that_cannot_be_noted_is_known_to_this_worker(tmp_path: Path) -> None:
    expected = Expected(Refusals(Layout(tmp_path / "missing")))
    expected.refused("a")
    assert expected.was_refused("a")


async def test_what_is_kept_is_released_after_a_moment_in_its_order(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    expected, released = Expected(), list[str]()
    nursery.start_soon(expected.run)
    expected.keep(lambda: released.append("first"))
    await trio.sleep(KEPT_SECONDS / 2)
    expected.keep(lambda: released.append("second"))
    assert released == []
    await trio.sleep(KEPT_SECONDS * 0.75)
    assert released == ["first"]
    assert not expected.idle
    await trio.sleep(KEPT_SECONDS)
    assert released == ["first", "second"]
    assert expected.idle


async def test_no_more_is_kept_than_a_process_has_descriptors_for() -> None:
    expected, released = Expected(), list[int]()
    for number in range(MOST_KEPT + 3):
        expected.keep(lambda number=number: released.append(number))  # type: ignore[misc]
    assert released == [0, 1, 2]


async def test_all_is_released_at_the_end(nursery: trio.Nursery) -> None:
    expected, released = Expected(), list[str]()
    nursery.start_soon(expected.run)
    expected.keep(lambda: released.append("kept"))
    await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()
    expected.close()
    assert released == ["kept"]

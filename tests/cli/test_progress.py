"""Waiting for queued images."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from support.control_tree import FakeMount

from cachefs.cli.control import Control
from cachefs.cli.progress import ABSENT_POLLS, wait
from cachefs.image import State


def _daemon(*steps: Callable[[], None]) -> Callable[[float], None]:
    """A sleep in which the daemon does its next step."""
    left = iter(steps)
    return lambda _: next(left)()


def _wait(fake: FakeMount, *steps: Callable[[], None], console: Console | None = None) -> bool:
    return wait(
        Control(fake.root),
        ["img"],
        console=console or Console(file=io.StringIO(), force_terminal=False),
        sleep=_daemon(*steps),
    )


def test_it_ends_when_the_image_is_cached(
    fake: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("img", State.QUEUED)
    assert _wait(
        fake,
        lambda: fake.put("img", State.INCOMPLETE, progress=0),
        lambda: fake.put("img", State.INCOMPLETE, progress=2**19),
        lambda: fake.put("img"),
    )
    assert capsys.readouterr().out == "img is being fetched, 1.0 MiB\nimg is cached, 1.0 MiB\n"


def test_a_failed_image_is_told_in_one_line(
    fake: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("img", State.QUEUED)
    assert not _wait(fake, lambda: fake.put("img", State.INVALID, error="wrong\nchecksum"))
    assert capsys.readouterr().err == "cachefs: img: wrong checksum\n"


def test_an_image_that_is_missed_while_it_moves_is_not_given_up(fake: FakeMount) -> None:
    fake.put("img", State.QUEUED)
    assert _wait(fake, lambda: fake.drop("img"), lambda: fake.put("img"))


def test_an_image_that_somebody_unqueued_is_given_up(
    fake: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not _wait(fake, *[lambda: None] * (ABSENT_POLLS - 1))
    assert "no longer queued" in capsys.readouterr().err


def test_an_interrupt_tells_what_is_still_queued(
    fake: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    fake.put("img", State.QUEUED)
    with pytest.raises(KeyboardInterrupt):
        _wait(fake, interrupt)
    assert capsys.readouterr().err == "cachefs: interrupted; still queued: img\n"


def test_a_terminal_gets_bars_with_the_id_as_it_is(fake: FakeMount) -> None:
    screen = io.StringIO()
    fake.put("img", State.INCOMPLETE, progress=2**19)
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    assert _wait(fake, lambda: fake.put("img"), console=console)
    assert "img" in screen.getvalue()
    assert "1.0/1.0 MiB" in screen.getvalue()

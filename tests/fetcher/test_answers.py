"""Questions to the source: asked once for all, and negative answers remembered for a while."""

import pytest
import trio
import trio.testing

from cachefs.errors import (
    CacheFSError,
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
    SourceUnreachableError,
)
from cachefs.fetcher.answers import FAILURE_TTL, MAX_NEGATIVE, NEGATIVE_TTL, Answers
from cachefs.sources import SourceImage

from .conftest import PATIENCE, FakeSource, until


@pytest.fixture
def source() -> FakeSource:
    return FakeSource({"img": b"x" * 10})


async def asked(answers: Answers, nursery: trio.Nursery, image_id: str) -> str:
    """The answer in one word: the size, or the error's class."""
    try:
        return str((await answers.ask(nursery, image_id)).size)
    except CacheFSError as error:
        return type(error).__name__


async def hear(heard: list[str], answers: Answers, nursery: trio.Nursery) -> None:
    """Ask for an image, and add what is heard."""
    heard.append(await asked(answers, nursery, "img"))


async def test_many_who_ask_at_once_are_one_question(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    answers, heard = Answers(source), []
    source.answer.clear()
    async with trio.open_nursery() as askers:
        for _ in range(50):
            askers.start_soon(hear, heard, answers, nursery)
        await until(lambda: source.stats)
        source.answer.set()
    assert heard == ["10"] * 50
    assert source.stats == ["img"]


async def test_a_yes_is_asked_for_again(source: FakeSource, nursery: trio.Nursery) -> None:
    answers = Answers(source)
    await answers.ask(nursery, "img")
    await answers.ask(nursery, "img")
    assert source.stats == ["img", "img"]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ImageNotFoundError("no"), NEGATIVE_TTL),
        (SourceRefusedError("no"), NEGATIVE_TTL),
        (SourceUnreachableError("down"), FAILURE_TTL),
        (SourceError("nonsense"), FAILURE_TTL),
    ],
)
async def test_a_no_is_believed_for_some_seconds(
    source: FakeSource,
    nursery: trio.Nursery,
    mock_clock: trio.testing.MockClock,
    error: CacheFSError,
    seconds: float,
) -> None:
    answers = Answers(source)
    source.errors = [error]
    for _ in range(100):
        assert await asked(answers, nursery, "img") == type(error).__name__
        mock_clock.jump(seconds / 101)
    assert source.stats == ["img"]
    mock_clock.jump(seconds / 10)
    assert await asked(answers, nursery, "img") == "10"


async def test_a_no_to_one_name_is_none_to_another(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    answers = Answers(source)
    assert await asked(answers, nursery, "other") == "ImageNotFoundError"
    assert await asked(answers, nursery, "img") == "10"


async def test_a_no_can_be_forgotten(source: FakeSource, nursery: trio.Nursery) -> None:
    answers = Answers(source)
    await asked(answers, nursery, "new")
    source.images["new"] = b"x"
    assert await asked(answers, nursery, "new") == "ImageNotFoundError"
    answers.forget("new")
    assert await asked(answers, nursery, "new") == "1"


async def test_the_oldest_negative_answers_are_forgotten_first(
    source: FakeSource, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetcher.answers.MAX_NEGATIVE", 3)
    assert MAX_NEGATIVE > 100
    answers = Answers(source)
    for name in ("a", "b", "c", "d"):
        await asked(answers, nursery, name)
    source.stats.clear()
    for name in ("d", "c", "b", "a"):
        await asked(answers, nursery, name)
    assert source.stats == ["a"]


async def test_a_remembered_no_keeps_no_frames_alive(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    answers = Answers(source)
    await asked(answers, nursery, "missing")
    with pytest.raises(ImageNotFoundError) as caught:
        await answers.ask(nursery, "missing")
    assert caught.value.__cause__ is None


async def test_who_is_cancelled_takes_the_answer_from_nobody(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    answers, heard = Answers(source), []
    source.answer.clear()
    async with trio.open_nursery() as askers:
        with trio.CancelScope() as first:
            askers.start_soon(hear, heard, answers, nursery)
            await until(lambda: source.stats)
            first.cancel()
            await answers.ask(nursery, "img")
        source.answer.set()
    assert heard == ["10"]
    assert source.stats == ["img"]


async def test_when_the_daemon_ends_who_waits_is_told(source: FakeSource) -> None:
    answers, heard = Answers(source), []
    source.answer.clear()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as askers, trio.open_nursery() as daemon:
            askers.start_soon(hear, heard, answers, daemon)
            await until(lambda: source.stats)
            daemon.cancel_scope.cancel()
    source.answer.set()
    assert heard == ["CacheFSError"]


async def test_an_unforeseen_error_ends_one_question_and_not_the_daemon(
    source: FakeSource, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers(source)
    source.errors = [ZeroDivisionError("a bug")]
    assert await asked(answers, nursery, "img") == "CacheFSError"
    assert "nobody foresaw" in caplog.text
    assert await asked(answers, nursery, "img") == "10"


class Uploaded(FakeSource):
    """The source, where the image appears while the first to ask for it is being told that there is
    none, once the gate is set."""

    def stat(self, image_id: str) -> SourceImage:
        if self.stats:
            return super().stat(image_id)
        self.stats.append(image_id)
        assert self.gate.wait(PATIENCE)
        raise ImageNotFoundError(image_id)


async def test_what_is_asked_anew_does_not_hear_what_was_asked_before(
    nursery: trio.Nursery,
) -> None:
    source = Uploaded({"img": b"x" * 10})
    answers, heard = Answers(source), []
    source.gate.clear()
    nursery.start_soon(hear, heard, answers, nursery)
    await until(lambda: source.stats)
    answers.forget("img")
    assert await asked(answers, nursery, "img") == "10"
    source.gate.set()
    await until(lambda: heard)
    assert heard == ["ImageNotFoundError"]
    assert await asked(answers, nursery, "img") == "10"

"""Questions to the source: one for all who ask at the same time, and a negative cache.

A file manager or a shell's completion asks for the same missing names again and again; the origin
hears of each but once in a while.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from cachefs.errors import (
    CacheFSError,
    ImageNotFoundError,
    SourceRefusedError,
    without_traceback,
)
from cachefs.sources import Source, SourceImage

log = logging.getLogger(__name__)

MAX_QUESTIONS = 16
"""Questions under way at once, each in a thread."""

NEGATIVE_TTL = 5.0
"""Seconds for which "there is no such image" and "not for you" are believed."""

FAILURE_TTL = 1.0
"""Seconds for which a source that failed is not asked for the same image again."""

MAX_NEGATIVE = 10_000
"""How many negative answers are remembered; the oldest are forgotten first."""


@dataclass(slots=True)
class _Question:
    answered: trio.Event = field(default_factory=trio.Event)
    answer: SourceImage | None = None
    error: CacheFSError | OSError | None = None


@dataclass(frozen=True, slots=True)
class _NegativeAnswer:
    error: CacheFSError
    until: float


class Answers:
    """What *source* says of images. For one event loop."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._questions: dict[str, _Question] = {}
        self._negative: OrderedDict[str, _NegativeAnswer] = OrderedDict()
        self._limiter = trio.CapacityLimiter(MAX_QUESTIONS)

    async def ask(self, nursery: trio.Nursery, image_id: str) -> SourceImage:
        """The source's description of an image. The question itself runs in *nursery*: cancellation
        ends the waiting, not what others wait for. Raises as :meth:`Source.stat`."""
        negative = self._negative.get(image_id)
        if negative is not None and trio.current_time() < negative.until:
            raise without_traceback(negative.error)
        question = self._questions.get(image_id)
        if question is None:
            question = self._questions[image_id] = _Question()
            nursery.start_soon(self._run, image_id, question)
        await question.answered.wait()
        if question.answer is None:
            assert question.error is not None
            raise without_traceback(question.error)
        return question.answer

    def forget(self, image_id: str) -> None:
        """Ask the source next time, whatever it said, or is about to say to who asked before."""
        self._negative.pop(image_id, None)
        self._questions.pop(image_id, None)

    async def _run(self, image_id: str, question: _Question) -> None:
        try:
            question.answer = await trio.to_thread.run_sync(
                self._source.stat, image_id, limiter=self._limiter, abandon_on_cancel=True
            )
        except CacheFSError as error:
            question.error = without_traceback(error)
            if self._questions.get(image_id) is question:
                self._remember(image_id, error)
        except OSError as error:  # no word of the source's: the next may ask at once
            question.error = without_traceback(error)
        except Exception as error:
            log.exception("asking for %r met an error that nobody foresaw", image_id)
            question.error = CacheFSError(f"cannot ask for {image_id!r}: {error!r}")
        finally:
            if question.answer is None and question.error is None:
                question.error = CacheFSError("the daemon is ending")
            if self._questions.get(image_id) is question:  # else it was asked anew meanwhile
                del self._questions[image_id]
            question.answered.set()

    def _remember(self, image_id: str, error: CacheFSError) -> None:
        final = isinstance(error, ImageNotFoundError | SourceRefusedError)
        until = trio.current_time() + (NEGATIVE_TTL if final else FAILURE_TTL)
        self._negative[image_id] = _NegativeAnswer(without_traceback(error), until)
        self._negative.move_to_end(image_id)
        while len(self._negative) > MAX_NEGATIVE:
            self._negative.popitem(last=False)

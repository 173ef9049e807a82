"""Several sources, asked in order: the first that has an image provides it, and where it fails in
the middle, another that has the same bytes goes on.

Each source has its own health and circuit breaker (:mod:`cachefs.sources.health`). One source is a
chain of one."""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    InvalidValueError,
    SourceError,
    without_traceback,
)
from cachefs.sources.base import Source, SourceImage
from cachefs.sources.health import Breaker

_TWIN_TTL: Final = 60.0
"""Seconds for which it is believed what another source has under the same name."""

_MAX_TWINS: Final = 256


class Member:
    """One source of a chain, with its breaker: what it answers is reported there."""

    def __init__(self, source: Source, breaker: Breaker) -> None:
        self.source = source
        self.url = source.url
        self.breaker = breaker

    def check(self) -> None:
        """:meth:`Source.check`, as a probe."""
        with self._reporting() as began:
            self.source.check()
        self.breaker.answered(began, probe=self.breaker.is_open)

    def stat(self, image_id: str) -> SourceImage:
        """:meth:`Source.stat`."""
        with self._reporting() as began:
            image = self.source.stat(image_id)
        self.breaker.answered(began)
        return image

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        """:meth:`Source.read`."""
        with (
            self._reporting() as began,
            contextlib.closing(self.source.read(image, start, stop)) as pieces,
        ):
            yield from pieces
        self.breaker.answered(began)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[float]:
        began = self.breaker.begin()
        try:
            yield began
        except CacheFSError as error:
            self.breaker.failed(error, began)
            raise


class ChainSource:
    """A source with fallbacks; as thread-safe as its members, which ``sources`` names in order."""

    def __init__(
        self, sources: Sequence[Source], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises InvalidValueError for no source, or one URL twice: a SourceImage names its source
        by URL, and two of one URL could not be told apart."""
        self.sources = tuple(sources)
        if not self.sources:
            raise InvalidValueError("there is no source")
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []
        self.members = tuple(Member(each, Breaker(clock, self._changed)) for each in self.sources)
        """The sources with their health, in order."""
        self._by_url = {member.url: member for member in self.members}
        if len(self._by_url) < len(self.members):
            raise InvalidValueError("the same source is given twice")
        self.url = self.sources[0].url
        self._lock = threading.Lock()
        self._twins: OrderedDict[tuple[str, SourceImage], tuple[SourceImage | None, float]] = (
            OrderedDict()
        )

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener*, in any thread, whenever a source begins or ends to be left alone."""
        self._listeners.append(listener)

    def rest(self) -> float:
        """Seconds until any of the sources may be asked; 0 for now."""
        return min(member.breaker.rest() for member in self.members)

    def check(self) -> None:
        """Return if any source is there, else raise what the first one says."""
        failure: SourceError | None = None
        for member in self.members:
            try:
                return member.check()
            except SourceError as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def stat(self, image_id: str) -> SourceImage:
        """The image as the first source describes it that has it.

        A source that fails, in whatever way, or is left alone, is passed over; but if then nobody
        has the image, its error is raised, the first if there are several: it might have had the
        image, and "not found" would be a guess. Where all are left alone all are asked, but for
        those that have asked for it.
        """
        failure: SourceError | None = None
        absent: list[ImageNotFoundError] = []
        asked = False
        for member in self.members:
            if not member.breaker.admits():
                failure = failure or member.breaker.last_error()
                continue
            asked = True
            try:
                return member.stat(image_id)
            except ImageNotFoundError as error:
                absent.append(without_traceback(error))
            except SourceError as error:
                failure = failure or without_traceback(error)
        if not asked:
            return self._stat_in_need(image_id)
        raise failure or _nobody_has_it(image_id, absent)

    def _stat_in_need(self, image_id: str) -> SourceImage:
        """:meth:`stat` while all sources are left alone."""
        absent: list[ImageNotFoundError] = []
        failure: SourceError | None = None
        for member in self.members:
            refusal = member.breaker.refusal()
            if refusal is not None:
                failure = failure or refusal
                continue
            try:
                return member.stat(image_id)
            except ImageNotFoundError as error:
                absent.append(without_traceback(error))
            except SourceError as error:
                failure = failure or without_traceback(error)
        raise failure or _nobody_has_it(image_id, absent)

    def forget_digest(self, image_id: str) -> None:
        """Have each source ask anew."""
        for source in self.sources:
            source.forget_digest(image_id)
        with self._lock:
            for key in [key for key in self._twins if key[1].image_id == image_id]:
                del self._twins[key]

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        """Read from the source that described *image*; where it fails, or is left alone, go on at
        the same byte from another that has the same bytes. Raises the first one's error where there
        is none.

        INVARIANT: bytes of two sources make one image only where both promise the same digest, or,
        where neither promises any, the same size under the same strong ETag."""
        first = self._by_url.get(image.source)
        if first is None:
            raise SourceError(f"{image.image_id!r}: {image.source} is not a source of this mount")
        position = start
        failure: CacheFSError | None = None
        for member, described in self._readable(first, image, start):
            if position > start and not described.ranges:
                continue
            begin = position
            try:
                with contextlib.closing(member.read(described, begin, stop)) as pieces:
                    for piece in pieces:
                        position += len(piece)
                        yield piece
                return
            except ImageChangedError:
                if member is first:
                    raise
                with self._lock:
                    self._twins.pop((member.url, image), None)
            except (SourceError, ImageNotFoundError) as error:
                failure = failure or without_traceback(error)
        raise failure or self._why_not(first, image)

    def _readable(
        self, first: Member, image: SourceImage, start: int
    ) -> Iterator[tuple[Member, SourceImage]]:
        """The sources that the image may be read from, in the order of asking, each with its own
        description of it. Lazy: others are asked for it once they are needed."""
        asked_first = first.breaker.admits()
        if asked_first:
            yield first, image
        others = 0
        for member in self.members:
            if member is first or not member.breaker.admits():
                continue
            twin = self._twin(member, image)
            if twin is not None and (start == 0 or twin.ranges):
                others += 1
                yield member, twin
        if not asked_first and not others and first.breaker.refusal() is None:
            yield first, image  # in vain, at the worst

    def _why_not(self, first: Member, image: SourceImage) -> CacheFSError:
        """Why nothing was even asked, or why what was asked had another version."""
        if first.breaker.is_open:
            return first.breaker.last_error()
        return SourceError(f"{image.image_id!r} at {image.source}: no source can go on with it")

    def _twin(self, member: Member, image: SourceImage) -> SourceImage | None:
        """How *member* describes the same bytes; None where it has others, or cannot say."""
        key = member.url, image
        with self._lock:
            known = self._twins.get(key)
        if known is not None and self._clock() < known[1]:
            return known[0]
        try:
            other = member.stat(image.image_id)
        except ImageNotFoundError:
            twin = None
        except SourceError:
            return None
        else:
            twin = other if _same_bytes(image, other) else None
        with self._lock:
            self._twins[key] = twin, self._clock() + _TWIN_TTL
            if len(self._twins) > _MAX_TWINS:
                self._twins.popitem(last=False)
        return twin

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


def _nobody_has_it(image_id: str, answers: Sequence[ImageNotFoundError]) -> ImageNotFoundError:
    """The one source's own words, or that none of several has it."""
    if len(answers) == 1:
        return answers[0]
    return ImageNotFoundError(f"{image_id!r}: none of {len(answers)} sources has it")


def _same_bytes(one: SourceImage, other: SourceImage) -> bool:
    """Whether two sources speak of the same bytes: by digest where either has one, else by size and
    a strong ETag (RFC 9110, 8.8.1)."""
    if one.size != other.size:
        return False
    if one.digest is not None or other.digest is not None:
        return one.digest == other.digest
    return one.version is not None and one.version == other.version and one.version[:1] == '"'


def chain_of(source: Source) -> ChainSource:
    """*source* itself where it is a chain, else the chain of it alone."""
    return source if isinstance(source, ChainSource) else ChainSource([source])

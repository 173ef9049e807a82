"""Several sources, asked in order: the first that has an image provides it."""

from collections.abc import Generator, Sequence

from cachefs.errors import ImageNotFoundError, InvalidValueError, SourceError
from cachefs.sources.base import Source, SourceImage


class ChainSource:
    """A source with fallbacks; as thread-safe as its members, which ``sources`` names in order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Raises InvalidValueError for no source, or one URL twice: a SourceImage names its source
        by URL, and two of one URL could not be told apart."""
        self.sources = tuple(sources)
        if not self.sources:
            raise InvalidValueError("there is no source")
        self._by_url = {source.url: source for source in self.sources}
        if len(self._by_url) < len(self.sources):
            raise InvalidValueError("the same source is given twice")
        self.url = self.sources[0].url

    def check(self) -> None:
        """Return if any source is there, else raise what the first one says."""
        failure: SourceError | None = None
        for source in self.sources:
            try:
                return source.check()
            except SourceError as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def stat(self, image_id: str) -> SourceImage:
        """The image as the first source describes it that has it.

        A source that fails, in whatever way, is passed over; but if then nobody has the image, its
        error is raised, the first if there are several: it might have had the image, and "not
        found" would be a guess.
        """
        failure: SourceError | None = None
        for source in self.sources:
            try:
                return source.stat(image_id)
            except ImageNotFoundError:
                continue
            except SourceError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        raise ImageNotFoundError(f"{image_id!r}: no source has it")

    def forget_digest(self, image_id: str) -> None:
        """Have each source ask anew."""
        for source in self.sources:
            source.forget_digest(image_id)

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        """Read from the source that described *image*, and from no other: versions are its own."""
        source = self._by_url.get(image.source)
        if source is None:
            raise SourceError(f"{image.image_id!r}: {image.source} is not a source of this mount")
        return source.read(image, start, stop)


def members(source: Source) -> tuple[Source, ...]:
    """The sources that *source* consists of, in order: itself, unless it is a chain."""
    return source.sources if isinstance(source, ChainSource) else (source,)

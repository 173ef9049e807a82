"""The contract of a source: where images come from.

All methods block, are called in threads, and may be called from several at once. A source
translates its library's errors into :mod:`cachefs.errors` here, at its boundary. What says nothing
of the source, that this process can open no more files, may rise as the OSError it is."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, Protocol

from cachefs.image import Digest

READ_TIMEOUT: Final = 30.0
"""Seconds without a single byte after which a server has timed out, unless the caller says."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One version of one image as its source describes it.

    *size* is in bytes; *version* is the source's own name for these very bytes (an ETag, or size
    and mtime of a file), None where it has none; *digest* is what the bytes must have, None where
    nobody says. *ranges* tells whether :meth:`Source.read` can start anywhere but at 0. *source* is
    the URL of the source that answered, which a chain needs to come back to it. *modified* is when
    the source says the image was last changed, in seconds since the epoch. *private* is true where
    users of this machine others than its owner and group may not read it at the source: a mount
    does not let them, either."""

    image_id: str
    size: int
    version: str | None
    digest: Digest | None
    ranges: bool
    source: str
    modified: float | None = None
    private: bool = False


class Source(Protocol):
    """Where images come from."""

    url: str

    def check(self) -> None:
        """Ask the source whether it is there at all, cheaply; returns, or raises
        :class:`~cachefs.errors.SourceError` saying why not."""

    def stat(self, image_id: str) -> SourceImage:
        """Describe an image. Raises ImageNotFoundError, SourceRefusedError, SourceUnreachableError,
        SourceTimeoutError, or SourceError for an answer that cannot be an image (an HTML login
        page).

        *image_id* has passed :func:`cachefs.image.check_image_id`.
        """

    def forget_digest(self, image_id: str) -> None:
        """Have the next :meth:`stat` ask for the image's digest anew: the bytes were others. Asks
        for nothing itself."""

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        """Yield the bytes [*start*, *stop*) of exactly this version, in order, in pieces of about 1
        MiB.

        Raises ImageChangedError as soon as the source is seen to hold another version (its size or
        version differs; of an image with a digest a source need not compare versions, since the
        bytes will be judged by the digest), SourceError when it sends another length, and as in
        :meth:`stat`. No retries beyond what one connection needs: the fetcher retries.
        """

"""Images in a store that obstore speaks to: HTTP here; S3, GCS and Azure fit the same class.

Owns how a store is asked, and what of its answers is believed; knows no URLs or credentials: the
store comes ready made (see :mod:`cachefs.sources.http`).

One request describes an image: a GET of its first byte, whose answer (206) has the size, the
version, and the proof that ranges are served (obstore does not show ``Accept-Ranges``). Where that
cannot be had, from a server without ranges or of an empty image, a HEAD follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import NotModifiedError, NotSupportedError

from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceUnreachableError,
)
from cachefs.sources.base import SourceImage
from cachefs.sources.checksums import ChecksumFiles, SmallFile
from cachefs.sources.failures import STORE_ERRORS, broke, status_of, translate

if TYPE_CHECKING:  # obstore has these in its stubs only
    from obstore import BytesStream, GetOptions, GetResult
    from obstore.store import ObjectStore

PIECE: Final = 2**20
"""Least bytes in a piece but the last; obstore's own chunks are of some 100 KiB."""

_RANGES_RETRY: Final = 60.0
"""Seconds until a server that served no range is tried again with one.

A GET that it answers with the whole image is dropped, but megabytes are under way by then.
"""

_NO_DATE: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""obstore's ``last_modified`` where the server names none."""


class ObjectSource:
    """Images that lie directly below the root (or prefix) of an obstore store; thread-safe."""

    def __init__(
        self, store: ObjectStore, url: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*url* is what people may see: it names the store and holds no credentials."""
        self.url = url
        self._store = store
        self._clock = clock
        self._no_ranges_seen = float("-inf")
        self._checksums = ChecksumFiles(self._read_small, clock)

    def check(self) -> None:
        """Ask for the root; whatever the server says of it, it is there, unless it says 401 or 5xx.

        A server that shows no listing answers 403 or 404 there, and serves its images all the same.
        """
        try:
            obstore.head(self._store, "")
        except STORE_ERRORS as error:
            failure = translate(error, self.url)
            if status_of(error) in (403, 404) or isinstance(failure, ImageNotFoundError):
                return
            if broke(error) or status_of(error) is not None:
                raise failure from error
            # An answer that describes no object (a listing without a length) is an answer.

    def stat(self, image_id: str) -> SourceImage:
        """See :meth:`cachefs.sources.base.Source.stat`; one request, and those for its digest."""
        result, ranges = self._describe(image_id)
        self._refuse_page(result, image_id)
        version = _version_of(result)
        return SourceImage(
            image_id=image_id,
            size=result.meta["size"],
            version=version,
            digest=self._checksums.digest_of(image_id, version),
            ranges=ranges,
            source=self.url,
        )

    def forget_digest(self, image_id: str) -> None:
        """See :meth:`cachefs.sources.base.Source.forget_digest`."""
        self._checksums.forget(image_id)

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        """See :meth:`cachefs.sources.base.Source.read`; one request.

        Closing the generator closes the connection, unless all has arrived: then it is kept for the
        next request.
        """
        if not 0 <= start <= stop <= image.size:
            raise ValueError(f"[{start}, {stop}) is no range of {image.size} bytes")
        if start == stop:
            return
        what = self._what(image.image_id)
        if start and not image.ranges:
            raise SourceError(f"{what}: the source serves no ranges of it")
        options: GetOptions = {}
        if image.ranges and (start, stop) != (0, image.size):
            options["range"] = (start, stop)
        if image.version is not None and image.version.startswith('"'):
            # If-Match compares strongly (RFC 9110, 13.1.1): a weak ETag would never match.
            options["if_match"] = image.version
        exact = "range" in options or stop == image.size
        yield from _pieces(self._start(image, options), what, stop - start, exact)

    def _start(self, image: SourceImage, options: GetOptions) -> BytesStream:
        """Ask for bytes of the image, and see that the answer is of its version and of them."""
        what = self._what(image.image_id)
        try:
            result = obstore.get(self._store, image.image_id, options=options)
        except STORE_ERRORS as error:
            raise translate(error, what) from error
        self._refuse_page(result, image.image_id)
        if (result.meta["size"], _version_of(result)) != (image.size, image.version):
            raise ImageChangedError(f"{what}: changed at the source")
        if result.range != options.get("range", (0, image.size)):
            raise SourceError(f"{what}: the source sent another range than it was asked for")
        return result.stream(min_chunk_size=PIECE)

    def _describe(self, image_id: str) -> tuple[GetResult, bool]:
        """The store's answer to what it knows of the image, and whether ranges are served."""
        what = self._what(image_id)
        if self._clock() - self._no_ranges_seen >= _RANGES_RETRY:
            try:
                result = obstore.get(self._store, image_id, options={"range": (0, 1)})
                result.bytes()  # one byte, so that the connection can serve the next request
                return result, True
            except STORE_ERRORS as error:
                failure = translate(error, what)
                unclear = type(failure) is SourceError and not broke(error)
                if status_of(error) != 416 and not (unclear and status_of(error) is None):
                    raise failure from error
                no_ranges = isinstance(error, NotSupportedError)
        else:
            no_ranges = True
        try:
            result = obstore.get(self._store, image_id, options={"head": True})
        except STORE_ERRORS as error:
            raise translate(error, what) from error
        if result.meta["size"] == 0:
            return result, True  # there is no range but the whole, and that can be read
        if no_ranges and not _is_page(result):
            self._no_ranges_seen = self._clock()
        return result, False

    def _read_small(self, name: str, known: str | None, limit: int) -> SmallFile | None:
        what = self._what(name)
        options: GetOptions = {"if_none_match": known} if known else {}
        try:
            result = obstore.get(self._store, name, options=options)
            self._refuse_page(result, name)
            if result.meta["size"] > limit:
                raise SourceError(f"{what}: over {limit} bytes, too large for a checksum file")
            data = bytes(result.bytes())
        except NotModifiedError:
            return SmallFile(known, None)
        except STORE_ERRORS as error:
            failure = translate(error, what)
            if isinstance(failure, ImageNotFoundError):
                return None
            raise failure from error
        return SmallFile(result.meta["e_tag"], data)

    def _refuse_page(self, result: GetResult, name: str) -> None:
        if _is_page(result) and not name.lower().endswith((".html", ".htm")):
            raise SourceError(f"{self._what(name)}: answered with an HTML page, not an image")

    def _what(self, name: str) -> str:
        return f"{name!r} at {self.url}"


def _pieces(stream: BytesStream, what: str, wanted: int, exact: bool) -> Generator[bytes]:
    """The first *wanted* bytes of *stream*; if *exact*, it must have no more.

    The last piece is held back until the end of the stream has been seen, which also gives the
    connection back for the next request.
    """
    left = wanted
    while left:
        piece = _next_piece(stream, what, wanted - left)
        if not piece:
            raise SourceError(f"{what}: the source sent {left} of {wanted} bytes too few")
        excess = len(piece) > left
        piece = piece[:left]
        left -= len(piece)
        if exact and (excess or (not left and _next_piece(stream, what, wanted))):
            raise SourceError(f"{what}: the source sent more than the {wanted} bytes wanted")
        yield piece


def _next_piece(stream: BytesStream, what: str, done: int) -> bytes:
    """The next piece; empty at the end."""
    try:
        return next(stream, b"")
    except STORE_ERRORS as error:
        # In no variable: it would keep its traceback, and that the stream, until a collection.
        raise _while_streaming(translate(error, what), what, done) from error


def _while_streaming(failure: CacheFSError, what: str, done: int) -> CacheFSError:
    """*failure*, unless it is that the source cannot be reached: it did answer. The next request
    will tell."""
    if isinstance(failure, SourceUnreachableError):
        return SourceError(f"{what}: the connection broke after {done} bytes")
    return failure


def _is_page(result: GetResult) -> bool:
    content_type = result.attributes.get("Content-Type") or ""
    return content_type.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


def _version_of(result: GetResult) -> str | None:
    """The ETag, else the date with the size, else None."""
    meta = result.meta
    if meta["e_tag"]:
        return meta["e_tag"]
    if meta["last_modified"] == _NO_DATE:
        return None
    return f"{meta['last_modified']:%Y-%m-%dT%H:%M:%SZ}/{meta['size']}"

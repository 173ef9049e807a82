"""Images in a store that obstore speaks to: HTTP here; S3, GCS and Azure fit the same class.

Owns how a store is asked, and what of its answers is believed; knows no URLs or credentials: the
store comes ready made (see :mod:`cachefs.sources.http`).

One request describes an image: a GET of its first byte, whose answer (206) has the size, the
version, and the proof that ranges are served (obstore does not show ``Accept-Ranges``). Where that
cannot be had, from a server without ranges or of an empty image, a HEAD follows, and where that is
refused, a GET.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import NotSupportedError

from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceUnavailableError,
    SourceUnreachableError,
)
from cachefs.sources.absence import Answer
from cachefs.sources.base import SourceImage
from cachefs.sources.beside import Beside, check_coding, is_page_name
from cachefs.sources.checksums import FRESH, ChecksumFiles
from cachefs.sources.failures import STORE_ERRORS, broke, status_of, translate, was_cut

if TYPE_CHECKING:  # obstore has these in its stubs only
    from obstore import BytesStream, GetOptions, GetResult
    from obstore.store import ObjectStore

PIECE: Final = 2**20
"""Least bytes in a piece but the last; obstore's own chunks are of some 100 KiB."""

_RANGES_RETRY: Final = 60.0
"""Seconds until a server that served no range is tried again with one.

A GET that it answers with the whole image is dropped, but megabytes are under way by then.
"""

_MIRROR_TRIES: Final = 3
"""How often a source is asked again that has answered with another version."""

_MIRRORS_REMEMBERED: Final = 3600.0
"""Seconds for which a source is known to consist of servers that differ in their ETags."""

_NO_DATE: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""obstore's ``last_modified`` where the server names none."""


class ObjectSource:
    """Images that lie directly below the root (or prefix) of an obstore store; thread-safe."""

    def __init__(
        self,
        store: ObjectStore,
        url: str,
        beside: Beside,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*url* is what people may see: it names the store and holds no credentials. *beside* asks
        the same store for what are no images."""
        self.url = url
        self._store = store
        self._beside = beside
        self._clock = clock
        self._no_ranges_seen = float("-inf")
        self._mirrors_seen = float("-inf")
        self._tags_differed = float("-inf")
        self._digest_asked = float("-inf")
        self._checksums = ChecksumFiles(beside.read, clock, beside.listing)

    def check(self) -> None:
        """Ask for the root; whatever the server says of it, it is there, unless it says 401 or 5xx.

        A server that shows no listing answers 403 or 404 there, and one that knows no HEAD 405 or
        501; they serve their images all the same.
        """
        try:
            self._ask("", {"head": True})
        except STORE_ERRORS as error:
            failure = translate(error, self.url)
            status = status_of(error)
            if status in (403, 404, 405, 501) or isinstance(failure, ImageNotFoundError):
                return
            if broke(error) or status is not None:
                raise self._dated(failure, status, "") from error
            # An answer that describes no object (a listing without a length) is an answer.

    def stat(self, image_id: str) -> SourceImage:
        """See :meth:`cachefs.sources.base.Source.stat`; one request, and those for its digest.

        Where mirrors were seen that differ in their ETags, an image with a digest is of the version
        that the digest names, and one without has none, and is to be read in one go.
        """
        result, ranges = self._describe(image_id)
        self._refuse_others(result, image_id)
        self._beside.absence.served(image_id)
        version = _version_of(result)
        digest = self._checksums.digest_of(image_id, version)
        if digest is not None and self._clock() - self._tags_differed < _MIRRORS_REMEMBERED:
            version = str(digest)
        elif digest is None and self._clock() - self._mirrors_seen < _MIRRORS_REMEMBERED:
            version, ranges = None, False
        return SourceImage(
            image_id=image_id,
            size=result.meta["size"],
            version=version,
            digest=digest,
            ranges=ranges,
            source=self.url,
            modified=_modified(result),
        )

    def forget_digest(self, image_id: str) -> None:
        """See :meth:`cachefs.sources.base.Source.forget_digest`."""
        self._checksums.forget(image_id)

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        """See :meth:`cachefs.sources.base.Source.read`; one request.

        Of an image with a digest only the size is compared, and what comes is the digest's to
        judge. Closing the generator closes the connection, unless all has arrived: then it is kept
        for the next request.
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
        exact = "range" in options or stop == image.size
        yield from _pieces(self._start(image, options), what, stop - start, exact)

    def _start(self, image: SourceImage, options: GetOptions) -> BytesStream:
        """Ask for bytes of the image, and see that the answer is of its version and of them."""
        what = self._what(image.image_id)
        asked: GetOptions = {**options}
        if image.digest is None and image.version is not None and image.version.startswith('"'):
            # If-Match compares strongly (RFC 9110, 13.1.1): a weak ETag would never match.
            asked["if_match"] = image.version
        try:
            result = self._get(image.image_id, asked)
        except ImageChangedError:
            result = self._ask_mirrors(image, options)
        else:
            if not _is_version(result, image):
                del result  # its connection is of no further use
                result = self._ask_mirrors(image, options)
        self._expect_digest(image, _version_of(result))
        if result.range != options.get("range", (0, image.size)):
            raise SourceError(f"{what}: the source sent another range than it was asked for")
        return result.stream(min_chunk_size=PIECE)

    def _expect_digest(self, image: SourceImage, tag: str | None) -> None:
        """Where another ETag has come than was described, of another mirror or of another image,
        see whether the image's digest is another by now, too. Once in a while: mirrors differ every
        time."""
        if image.digest is None or image.version in (tag, str(image.digest)):
            return
        if self._clock() - self._digest_asked < FRESH:
            return
        self._digest_asked = self._clock()
        try:
            digest = self._checksums.digest_of(image.image_id, tag)
        except CacheFSError:
            return  # the digest that is known decides
        if digest != image.digest:
            raise ImageChangedError(f"{self._what(image.image_id)}: changed at the source")
        self._tags_differed = self._clock()

    def _ask_mirrors(self, image: SourceImage, options: GetOptions) -> GetResult:
        """What was answered was of another version. Behind one name may be many servers, each with
        an ETag of its own: ask a few times more for the version that was described. If one of them
        has it, or no two agree, it is so."""
        seen = set()
        for _ in range(_MIRROR_TRIES if image.digest is None else 0):
            result = self._get(image.image_id, options)
            if _is_version(result, image):
                self._mirrors_seen = self._clock()
                return result
            seen.add((result.meta["size"], _version_of(result)))
            del result
        if len(seen) > 1:
            self._mirrors_seen = self._clock()
        raise ImageChangedError(f"{self._what(image.image_id)}: changed at the source")

    def _get(self, image_id: str, options: GetOptions) -> GetResult:
        try:
            result = self._ask(image_id, options)
        except STORE_ERRORS as error:
            raise self._failure(error, image_id) from error
        self._refuse_others(result, image_id)
        return result

    def _ask(self, image_id: str, options: GetOptions) -> GetResult:
        """One request, or two where the first came over a kept connection that the server closed
        just then."""
        try:
            return obstore.get(self._store, image_id, options=options)
        except STORE_ERRORS as error:
            if not was_cut(error):
                raise
        return obstore.get(self._store, image_id, options=options)

    def _describe(self, image_id: str) -> tuple[GetResult, bool]:
        """The store's answer to what it knows of the image, and whether ranges are served."""
        what = self._what(image_id)
        if self._clock() - self._no_ranges_seen >= _RANGES_RETRY:
            try:
                result = self._ask(image_id, {"range": (0, 1)})
                result.bytes()  # one byte, so that the connection can serve the next request
                return result, True
            except STORE_ERRORS as error:
                failure = translate(error, what)
                unclear = type(failure) is SourceError and not broke(error)
                if status_of(error) != 416 and not (unclear and status_of(error) is None):
                    raise self._failure(error, image_id) from error
                no_ranges = isinstance(error, NotSupportedError)
        else:
            no_ranges = True
        result = self._whole(image_id)
        if result.meta["size"] == 0:
            return result, True  # there is no range but the whole, and that can be read
        if no_ranges and not _answer(result).is_page:
            self._no_ranges_seen = self._clock()
        return result, False

    def _whole(self, image_id: str) -> GetResult:
        """The answer to HEAD, or where a server does not do that, to a GET whose body is dropped:
        some megabytes are under way by then."""
        try:
            return self._ask(image_id, {"head": True})
        except STORE_ERRORS as error:
            if status_of(error) not in (400, 403, 405, 501):
                raise self._failure(error, image_id) from error
        try:
            return self._ask(image_id, {})
        except STORE_ERRORS as error:
            raise self._failure(error, image_id) from error

    def _failure(self, error: Exception, image_id: str) -> CacheFSError:
        """What obstore's *error* means, once it is known what the source says of names that it does
        not have, and for how long it wants to be left alone."""
        what, status = self._what(image_id), status_of(error)
        failure = translate(error, what)
        if status is not None:
            if not isinstance(failure, ImageNotFoundError | ImageChangedError) and (
                self._beside.absence.means(Answer(status))
            ):
                return ImageNotFoundError(f"{what}: not found (HTTP status {status}, as for any)")
            return self._dated(failure, status, image_id)
        if type(failure) is SourceError and not broke(error):
            # An answer that obstore makes nothing of: a page without a length, say.
            answer = self._beside.ask(image_id)
            if answer.is_page and not is_page_name(image_id):
                return self._page(answer, what)
        return failure

    def _dated(self, failure: CacheFSError, status: int | None, name: str) -> CacheFSError:
        if isinstance(failure, SourceError) and status in (429, 503):
            failure.retry_after = self._beside.retry_after(name)
        return failure

    def _refuse_others(self, result: GetResult, image_id: str) -> None:
        """Raise for an answer that is not the image's own bytes."""
        what = self._what(image_id)
        answer = _answer(result)
        if answer.is_page and not is_page_name(image_id):
            raise self._page(answer, what)
        check_coding(result.attributes.get("Content-Encoding"), image_id, what)

    def _page(self, answer: Answer, what: str) -> CacheFSError:
        if self._beside.absence.means(answer):
            return ImageNotFoundError(f"{what}: not found (an HTML page, as for any)")
        return SourceError(f"{what}: answered with an HTML page, not an image")

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
        return SourceUnavailableError(f"{what}: the connection broke after {done} bytes")
    return failure


def _answer(result: GetResult) -> Answer:
    content_type = result.attributes.get("Content-Type") or ""
    return Answer(200, content_type.partition(";")[0].strip().lower())


def _is_version(result: GetResult, image: SourceImage) -> bool:
    """Whether an answer may be of the version that *image* describes."""
    if result.meta["size"] != image.size:
        return False
    if image.digest is not None or image.version is None:
        return True
    return _version_of(result) == image.version


def _version_of(result: GetResult) -> str | None:
    """The ETag, else the date with the size, else None."""
    meta = result.meta
    if meta["e_tag"]:
        return meta["e_tag"]
    if meta["last_modified"] == _NO_DATE:
        return None
    return f"{meta['last_modified']:%Y-%m-%dT%H:%M:%SZ}/{meta['size']}"


def _modified(result: GetResult) -> float | None:
    date = result.meta["last_modified"]
    return None if date == _NO_DATE else date.timestamp()

"""Digests from checksum files that lie beside the images.

Owns which file wins, and for how long an answer is believed; the formats are in
:mod:`cachefs.sources.lists`. Knows nothing of where the files come from: it is given a callable
that reads one by name, and one that names the lists which nobody could guess.

Which digest counts, in this order: ``SHA512SUMS``, ``SHA256SUMS``, then ``MD5SUMS``, ``CHECKSUM``,
``sha256sum.txt``, ``sha256sums.txt`` and what the source's listing shows that is called alike
(``Fedora-Cloud-42-1.1-x86_64-CHECKSUM``), of these the strongest; then a file of the image's own:
``ID.sha512``, ``ID.sha256``, ``ID.md5``, ``ID.CHECKSUM``, ``ID-CHECKSUM``. The lists come first
because one of them answers for all images, and a file per image costs a request per image; it is
asked for only when no list names the image.

Verification is never lost in silence: a checksum file that is there but cannot be read, or is an
HTML page, or holds no digest, is an error; only "not found" means "none".
"""

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cachefs.errors import CacheFSError, SourceError, SourceTimeoutError
from cachefs.image import Digest
from cachefs.sources.lists import STRONGEST_FIRST, Digests, bare_digest
from cachefs.sources.loading import (
    BELIEVED,
    MAX_SINGLE_BYTES,
    ListFile,
    ReadSmall,
    Task,
    nothing,
    watched,
)
from cachefs.sources.names import (
    FIRST_LISTS,
    MORE_LISTS,
    algorithm_of,
    further_lists,
    own_files,
)

log = logging.getLogger(__name__)

_KINDS: Final = frozenset({"sha512", "sha256", "md5"})

NONE_BELIEVED: Final = 5.0
"""Seconds for which an image is known to have no digest: a list may be put there any time."""

FRESH: Final = 2.0
"""Seconds for which a list (or its absence) is used without asking whether it has changed."""

_MAX_ANSWERS: Final = 4096


@dataclass(frozen=True, slots=True)
class _Answer:
    version: str | None
    asked: float
    digest: Digest | None

    @property
    def believed(self) -> float:
        return NONE_BELIEVED if self.digest is None else BELIEVED


_UNKNOWN: Final = _Answer("", 0.0, None)
"""What is remembered of an image whose answer was wrong: of no version, so a changed image."""


class ChecksumFiles:
    """The checksum files of one source; thread-safe.

    *listing* is :func:`cachefs.sources.names.checksum_files` of what the source lists, as far as it
    does; it may raise SourceError."""

    def __init__(
        self,
        read: ReadSmall,
        clock: Callable[[], float] = time.monotonic,
        listing: Callable[[], dict[str, str | None]] = dict,
    ) -> None:
        self._read = read
        self._clock = clock
        self._listing = listing
        self._lists: dict[str, ListFile] = {}
        self._lists_lock = threading.Lock()
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._answers_lock = threading.Lock()
        self._said = False

    def digest_of(self, image_id: str, version: str | None) -> Digest | None:
        """What this version of the image must have; None if no checksum file names it.

        Costs nothing if it was asked within :data:`BELIEVED` seconds (:data:`NONE_BELIEVED`, if it
        has none), else at most one request for
        each list (a conditional one, for a list that is known) and, if no list names the image, for
        each kind of file of its own. Raises SourceError if a file cannot be read.
        """
        now = self._clock()
        with self._answers_lock:
            known = self._answers.get(image_id)
        changed = known is not None and known.version != version
        if known and version is not None and not changed and now - known.asked < known.believed:
            return known.digest
        # Where the image is another, so is most likely the list, however short ago it was read.
        try:
            digest = self._look_up(image_id, 0.0 if changed else FRESH)
        except CacheFSError as error:
            # The same class, so that an outage stays an outage; more words, so that it is known why
            # an image that is there is refused.
            worded = type(error)(f"cannot verify images: {error}")
            if isinstance(error, SourceError) and isinstance(worded, SourceError):
                worded.retry_after = error.retry_after
            raise worded from error
        self._remember(image_id, _Answer(version, now, digest))
        if digest is None and not self._said:
            self._said = True
            log.info(
                "no checksum file beside the images names %r: it cannot be verified, nor can any"
                " other that none names",
                image_id,
            )
        return digest

    def forget(self, image_id: str) -> None:
        """Look the image up anew next time, in lists that are asked for whether they have changed:
        an operator may just have put them right."""
        self._remember(image_id, _UNKNOWN)

    def _remember(self, image_id: str, answer: _Answer) -> None:
        with self._answers_lock:
            self._answers[image_id] = answer
            self._answers.move_to_end(image_id)
            if len(self._answers) > _MAX_ANSWERS:
                self._answers.popitem(last=False)

    def _look_up(self, image_id: str, fresh: float) -> Digest | None:
        """A list that is slow to come is passed over if another names the image: it holds up only
        what it alone could tell of."""
        read: list[tuple[str, Digests]] = []
        late: list[SourceTimeoutError] = []

        def find(names: Sequence[str]) -> Digest | None:
            found = []
            for file, task in [(file, file.start(fresh)) for file in self._files(names)]:
                try:
                    digests = file.finish(task)
                except SourceTimeoutError as error:
                    late.append(error)
                    continue
                read.append((file.name, digests))
                if digest := digests.find(image_id):
                    found.append(digest)
            return _strongest(found)

        for name in FIRST_LISTS:
            if digest := find([name]):
                return digest
        listed = self._listing()
        if digest := find([*MORE_LISTS, *further_lists(listed, image_id)]):
            return digest
        guesses = [digests.guess(image_id, repr(name)) for name, digests in read]
        if digest := _strongest(digest for digest in guesses if digest is not None):
            return digest
        if late:
            raise late[0]
        return self._own_file(image_id, own_files(listed, image_id))

    def _files(self, names: Iterable[str]) -> list[ListFile]:
        with self._lists_lock:
            for name in names:
                if name not in self._lists:
                    self._lists[name] = ListFile(name, self._read, self._clock)
            return [self._lists[name] for name in names]

    def _own_file(self, image_id: str, names: Sequence[str]) -> Digest | None:
        tasks = [Task(partial(self._single, name, image_id), name) for name in names]
        found = [task.wait(repr(name)) for task, name in zip(tasks, names, strict=True)]
        return next((digest for digest in found if digest is not None), None)

    def _single(self, name: str, image_id: str) -> Digest | None:
        file = self._read(name, None, MAX_SINGLE_BYTES)
        if file is None:
            return None
        with contextlib.closing(file.pieces or nothing()) as pieces:
            data = b"".join(watched(pieces, name, bytearray()))
        kind = name.removeprefix(image_id)[1:]
        try:
            return parse_single(data, kind if kind in _KINDS else algorithm_of(name), image_id)
        except SourceError:
            if file.is_anything():
                return None
            raise


def parse_single(data: bytes, algorithm: str | None, image_id: str) -> Digest:
    """The digest in a file of one image: bare hex, or a line as of a list.

    The line's name does not matter if there is only one (the image may have been renamed, or summed
    elsewhere). Raises SourceError if it holds none, or none that must be this image's.
    """
    digests = Digests.read([data], algorithm)
    what = f"the checksum file of {image_id!r}"
    if digest := digests.find(image_id) or digests.guess(image_id, what) or digests.only():
        return digest
    bare = bare_digest(data, algorithm)
    if bare is not None and not digests.count:
        return bare
    kind = algorithm or "CHECKSUM"
    raise SourceError(
        f"the {kind} file of {image_id!r} beside the images holds no {algorithm or 'such'} digest"
        " of it"
    )


def _strongest(digests: Iterable[Digest]) -> Digest | None:
    return min(digests, key=lambda digest: STRONGEST_FIRST.index(digest.algorithm), default=None)

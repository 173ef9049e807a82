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
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from cachefs.errors import CacheFSError, SourceError, SourceTimeoutError
from cachefs.image import Digest
from cachefs.sources.lists import STRONGEST_FIRST, Digests, bare_digest

FIRST_LISTS: Final = ("SHA512SUMS", "SHA256SUMS")
"""Each is asked for only if those before it do not name the image."""

MORE_LISTS: Final = ("MD5SUMS", "CHECKSUM", "sha256sum.txt", "sha256sums.txt")
"""Asked for at the same time."""

OWN_FILES: Final = ("{}.sha512", "{}.sha256", "{}.md5", "{}.CHECKSUM", "{}-CHECKSUM")

MAX_LIST_BYTES: Final = 64 * 2**20
MAX_SINGLE_BYTES: Final = 64 * 2**10

MAX_LISTED: Final = 8
"""How many lists that a listing shows are read for one image: those called most like it."""

BELIEVED: Final = 60.0
"""Seconds for which the digest of a version of an image is not asked for again, nor a list whose
changes the source would not tell of."""

FRESH: Final = 2.0
"""Seconds for which a list (or its absence) is used without asking whether it has changed."""

PATIENCE: Final = 10.0
"""Seconds for which images wait for a list. It goes on arriving; they are told to come again."""

LIST_DEADLINE: Final = 600.0
"""Seconds after which a list that has not arrived is given up."""

_MAX_ANSWERS: Final = 4096

_LIST_NAME = re.compile(
    r"(?:.*[-_.])?(?:checksums?|(md5|sha1|sha224|sha256|sha384|sha512|b2)sums?)(?:\.txt)?",
    re.IGNORECASE,
)
_ALGORITHMS: Final = {"b2": "blake2b"}


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file that is about to be read. *version* is its ETag or the like, None where nothing would
    tell that it has changed; *pieces* is None if the caller has this version. *is_anything* tells,
    where it is no checksum file, whether the source answers so for any name."""

    version: str | None
    pieces: Generator[bytes] | None
    is_anything: Callable[[], bool] = lambda: False


ReadSmall = Callable[[str, str | None, int], SmallFile | None]
"""``read(name, known_version, max_bytes)``: the file, or None where there is none.

Raises SourceError for one that is larger, or that cannot be read; so does the reading of its
pieces.
"""


@dataclass(frozen=True, slots=True)
class _List:
    version: str | None
    digests: Digests
    asked: float


@dataclass(frozen=True, slots=True)
class _Answer:
    version: str | None
    asked: float
    digest: Digest | None


_UNKNOWN: Final = _Answer("", 0.0, None)
"""What is remembered of an image whose answer was wrong: of no version, so a changed image."""


T = TypeVar("T")


class _Task(Generic[T]):
    """Work in a thread of its own, whose result any number of threads wait for. A thread, since it
    may be in the hands of the slowest of servers; nobody joins it, and it ends by itself."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._done = threading.Event()
        self._began = time.monotonic()
        self._result: list[T] = []
        self._error: CacheFSError | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wait(self, what: str) -> T:
        """The result. Raises its error; SourceTimeoutError :data:`PATIENCE` after its begin."""
        if not self._done.wait(max(0.0, self._began + PATIENCE - time.monotonic())):
            raise SourceTimeoutError(
                f"{what} has been arriving for {time.monotonic() - self._began:.0f} s and is not"
                " here yet"
            )
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except CacheFSError as error:
            self._error = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 raised by the threads that wait for it
            self._error = CacheFSError(f"unforeseen: {error!r}")
        finally:
            self._done.set()


class _ListFile:
    """One list: what is known of it, and the reading of it that is under way, if any."""

    def __init__(self, name: str, read: ReadSmall, clock: Callable[[], float]) -> None:
        self.name = name
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: _List | None = None
        self._task: _Task[_List] | None = None
        found = _LIST_NAME.fullmatch(name)
        named = (found[1] or "").lower() if found else ""
        self._algorithm = _ALGORITHMS.get(named, named) or None

    def start(self, fresh_for: float) -> _Task[_List] | None:
        """Have it read, unless it was within *fresh_for* seconds or is being read; what to wait
        for."""
        with self._lock:
            known, now = self._known, self._clock()
            if known is not None and known.version is None and known.digests.count and fresh_for:
                fresh_for = BELIEVED
            if known is not None and now - known.asked < fresh_for:
                return None
            if self._task is None:
                self._task = _Task(lambda: self._load(known, now), f"list {self.name}")
            return self._task

    def finish(self, task: _Task[_List] | None) -> Digests:
        """The digests, once *task* is done."""
        if task is not None:
            return task.wait(repr(self.name)).digests
        assert self._known is not None
        return self._known.digests

    def _load(self, known: _List | None, now: float) -> _List:
        try:
            fresh = self._ask(known, now)
            self._known = fresh
            return fresh
        finally:
            with self._lock:
                self._task = None

    def _ask(self, known: _List | None, now: float) -> _List:
        file = self._read(self.name, known.version if known else None, MAX_LIST_BYTES)
        if file is None:
            return _List(None, Digests(), now)
        if file.pieces is None and known is not None:
            return _List(known.version, known.digests, now)
        with contextlib.closing(file.pieces or _nothing()) as pieces:
            head = bytearray()
            digests = Digests.read(_watched(pieces, self.name, head), self._algorithm)
        if digests.count or bare_digest(head.decode(errors="replace"), self._algorithm):
            return _List(file.version, digests, now)
        if file.is_anything():
            return _List(None, Digests(), now)
        raise SourceError(
            f"{self.name!r} beside the images holds no digest that can be read: make it a text of"
            " lines of a digest and a name, as sha256sum writes it, or take it away"
        )


class ChecksumFiles:
    """The checksum files of one source; thread-safe.

    *listing* names the files beside the images that are called like a checksum list, as far as the
    source tells; it may raise SourceError."""

    def __init__(
        self,
        read: ReadSmall,
        clock: Callable[[], float] = time.monotonic,
        listing: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._read = read
        self._clock = clock
        self._listing = listing
        self._lists: dict[str, _ListFile] = {}
        self._lists_lock = threading.Lock()
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._answers_lock = threading.Lock()

    def digest_of(self, image_id: str, version: str | None) -> Digest | None:
        """What this version of the image must have; None if no checksum file names it.

        Costs nothing if it was asked within :data:`BELIEVED` seconds, else at most one request for
        each list (a conditional one, for a list that is known) and, if no list names the image, for
        each kind of file of its own. Raises SourceError if a file cannot be read.
        """
        now = self._clock()
        with self._answers_lock:
            known = self._answers.get(image_id)
        changed = known is not None and known.version != version
        if known and version is not None and not changed and now - known.asked < BELIEVED:
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
        late: SourceTimeoutError | None = None
        read: list[tuple[str, Digests]] = []
        for names in (*((name,) for name in FIRST_LISTS), None):
            lists = self._files(names if names is not None else self._further(image_id))
            found: list[Digest] = []
            for file, task in [(file, file.start(fresh)) for file in lists]:
                try:
                    digests = file.finish(task)
                except SourceTimeoutError as error:
                    late = late or error
                    continue
                read.append((file.name, digests))
                if digest := digests.find(image_id):
                    found.append(digest)
            if found:
                return _strongest(found)
        guesses = [digests.guess(image_id, repr(name)) for name, digests in read]
        if found := [digest for digest in guesses if digest is not None]:
            return _strongest(found)
        if late is not None:
            raise late
        return self._own_file(image_id)

    def _further(self, image_id: str) -> Sequence[str]:
        """The other lists to ask for: the known names, and the listed ones most like the image."""
        listed = {name for name in self._listing() if is_list_name(name)}
        listed -= {*FIRST_LISTS, *MORE_LISTS, *(form.format(image_id) for form in OWN_FILES)}
        alike = sorted(listed, key=lambda name: (-_alike(name, image_id), name))
        return (*MORE_LISTS, *alike[:MAX_LISTED])

    def _files(self, names: Iterable[str]) -> list[_ListFile]:
        with self._lists_lock:
            for name in names:
                if name not in self._lists:
                    self._lists[name] = _ListFile(name, self._read, self._clock)
            return [self._lists[name] for name in names]

    def _own_file(self, image_id: str) -> Digest | None:
        names = [form.format(image_id) for form in OWN_FILES]
        tasks = [_Task(partial(self._single, name, image_id), name) for name in names]
        found = [task.wait(repr(name)) for task, name in zip(tasks, names, strict=True)]
        return next((digest for digest in found if digest is not None), None)

    def _single(self, name: str, image_id: str) -> Digest | None:
        file = self._read(name, None, MAX_SINGLE_BYTES)
        if file is None:
            return None
        with contextlib.closing(file.pieces or _nothing()) as pieces:
            data = b"".join(_watched(pieces, name, bytearray()))
        kind = name.removeprefix(image_id)[1:]
        try:
            return parse_single(data, None if kind == "CHECKSUM" else kind, image_id)
        except SourceError:
            if file.is_anything():
                return None
            raise


def is_list_name(name: str) -> bool:
    """Whether a file called so is a list of digests: ``Fedora-42-CHECKSUM``, ``md5sum.txt``."""
    return _LIST_NAME.fullmatch(name) is not None


def parse_single(data: bytes, algorithm: str | None, image_id: str) -> Digest:
    """The digest in a file of one image: bare hex, or a line as of a list.

    The line's name does not matter if there is only one (the image may have been renamed, or summed
    elsewhere). Raises SourceError if it holds none, or none that must be this image's.
    """
    digests = Digests.read([data], algorithm)
    what = f"the checksum file of {image_id!r}"
    if digest := digests.find(image_id) or digests.guess(image_id, what) or digests.only():
        return digest
    bare = bare_digest(data.decode(errors="replace"), algorithm)
    if bare is not None and not digests.count:
        return bare
    kind = algorithm or "CHECKSUM"
    raise SourceError(
        f"the {kind} file of {image_id!r} beside the images holds no {algorithm or 'such'} digest"
        " of it"
    )


def _watched(pieces: Iterable[bytes], name: str, head: bytearray) -> Generator[bytes]:
    """*pieces*, until :data:`LIST_DEADLINE`; the first of them are kept in *head*."""
    began = time.monotonic()
    for piece in pieces:
        if time.monotonic() - began > LIST_DEADLINE:
            raise SourceTimeoutError(f"{name!r} has not arrived in {LIST_DEADLINE:.0f} s")
        if len(head) < MAX_SINGLE_BYTES:
            head += piece[:MAX_SINGLE_BYTES]
        yield piece


def _nothing() -> Generator[bytes]:
    yield from ()


def _strongest(digests: Iterable[Digest]) -> Digest:
    return min(digests, key=lambda digest: STRONGEST_FIRST.index(digest.algorithm))


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

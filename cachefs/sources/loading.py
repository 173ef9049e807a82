"""Reading the checksum files of a source, whose lists may be long, slow, or never end.

Owns the threads that read, and how long anybody waits for them: a list holds up nobody but the
images that it alone can tell of, and those not for long. Knows nothing of which file counts.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from cachefs.errors import CacheFSError, SourceError, SourceTimeoutError
from cachefs.sources.lists import Digests, bare_digest
from cachefs.sources.names import FIRST_LISTS, MORE_LISTS, algorithm_of

MAX_LIST_BYTES: Final = 64 * 2**20
MAX_SINGLE_BYTES: Final = 64 * 2**10

BELIEVED: Final = 60.0
"""Seconds for which the digest of a version of an image is not asked for again, nor a list whose
changes the source would not tell of."""

PATIENCE: Final = 10.0
"""Seconds for which images wait for a list. It goes on arriving; they are told to come again."""

LIST_DEADLINE: Final = 600.0
"""Seconds after which a list that has not arrived is given up."""


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
class ListContent:
    """What was in a list when it was *asked* for."""

    version: str | None
    digests: Digests
    asked: float


T = TypeVar("T")


class Task(Generic[T]):
    """Work in a thread of its own, whose result any number of threads wait for. A thread, since it
    may be in the hands of the slowest of servers; nobody joins it, and it ends by itself."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._done = threading.Event()
        self._began = time.monotonic()
        self._result: list[T] = []
        self._error: CacheFSError | OSError | None = None
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
        except (CacheFSError, OSError) as error:
            self._error = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 raised by the threads that wait for it
            self._error = CacheFSError(f"unforeseen: {error!r}")
        finally:
            self._done.set()


class ListFile:
    """One list: what is known of it, and the reading of it that is under way, if any."""

    def __init__(self, name: str, read: ReadSmall, clock: Callable[[], float]) -> None:
        self.name = name
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: ListContent | None = None
        self._task: Task[ListContent] | None = None
        self._algorithm = algorithm_of(name)

    def start(self, fresh_for: float) -> Task[ListContent] | None:
        """Have it read, unless it was within *fresh_for* seconds or is being read; what to wait
        for."""
        with self._lock:
            known, now = self._known, self._clock()
            if known is not None and known.version is None and known.digests.count and fresh_for:
                fresh_for = BELIEVED
            if known is not None and now - known.asked < fresh_for:
                return None
            if self._task is None:
                self._task = Task(lambda: self._load(known, now), f"list {self.name}")
            return self._task

    def finish(self, task: Task[ListContent] | None) -> Digests:
        """The digests, once *task* is done."""
        if task is not None:
            return task.wait(repr(self.name)).digests
        assert self._known is not None
        return self._known.digests

    def _load(self, known: ListContent | None, now: float) -> ListContent:
        try:
            fresh = self._ask(known, now)
            self._known = fresh
            return fresh
        finally:
            with self._lock:
                self._task = None

    def _ask(self, known: ListContent | None, now: float) -> ListContent:
        file = self._read(self.name, known.version if known else None, MAX_LIST_BYTES)
        if file is None:
            return ListContent(None, Digests(), now)
        if file.pieces is None and known is not None:
            return ListContent(known.version, known.digests, now)
        with contextlib.closing(file.pieces or nothing()) as pieces:
            head = bytearray()
            digests = Digests.read(watched(pieces, self.name, head), self._algorithm)
        # One that only a listing shows may speak of one image, and need not name it.
        nameless = self.name not in FIRST_LISTS + MORE_LISTS and bare_digest(
            bytes(head), self._algorithm
        )
        if digests.count or nameless:
            return ListContent(file.version, digests, now)
        if file.is_anything():
            return ListContent(None, Digests(), now)
        raise SourceError(
            f"{self.name!r} beside the images holds no digest that can be read: make it a text of"
            " lines of a digest and a name, as sha256sum writes it, or take it away"
        )


def watched(pieces: Iterable[bytes], name: str, head: bytearray) -> Generator[bytes]:
    """*pieces*, until :data:`LIST_DEADLINE`; the first of them are kept in *head*."""
    began = time.monotonic()
    for piece in pieces:
        if time.monotonic() - began > LIST_DEADLINE:
            raise SourceTimeoutError(f"{name!r} has not arrived in {LIST_DEADLINE:.0f} s")
        if len(head) < MAX_SINGLE_BYTES:
            head += piece[:MAX_SINGLE_BYTES]
        yield piece


def nothing() -> Generator[bytes]:
    """No piece at all."""
    yield from ()

"""The database that the sqlite driver has open, made anew whenever it cannot be used.

Owns which database that is: the one that :mod:`cachefs.drivers.place` finds, an empty one in its
place once it is set aside, or, where the directory can hold none, a temporary one. Knows nothing of
what is recorded; the driver fills an empty one from the files.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cachefs.drivers import file_record, place
from cachefs.drivers.connections import Connections
from cachefs.drivers.index import Index
from cachefs.drivers.index_lock import IndexLock
from cachefs.drivers.private import private_dir
from cachefs.errors import CacheFSError, DriverError, IndexBusyError, IndexLostError

log = logging.getLogger(__name__)

T = TypeVar("T")

RENEWAL = 5.0
"""Seconds in which a database is made anew but once: where that does not help, none is put where
the last one failed."""

RETURN = 1.0
"""Seconds between two looks whether a temporary database can be one in its place again."""

PATIENCE = 10.0
"""Seconds to wait for another process that opens the database or makes it anew; where it takes
longer, a temporary one is used."""

ANEW = "%s: it is %s, and made anew from the files; %s may be lost"
"""The one warning."""

LOST = {
    True: "hits",
    False: "hits, pins and checksums (the filesystem has no user extended attributes)",
}
"""What is lost at most, by whether the files themselves can say the rest."""


class Database:
    """See the module. *made_anew* is called, in the thread that has found the fault, when another
    database has been opened instead. *path*, in ``.cachefs/``, is another place than the one where
    Glance finds it."""

    def __init__(
        self, cache_dir: Path, made_anew: Callable[[], object], path: Path | None = None
    ) -> None:
        self._cache_dir = cache_dir
        self._is_elsewhere = path is not None
        self._path = path or cache_dir / place.LINK
        self._made_anew = made_anew
        self._opened: Connections | None = None
        self._renewing = threading.RLock()
        self._lock = IndexLock(cache_dir)  # taken after _renewing, always
        self._filler: int | None = None
        self._is_unfilled = False
        self._renewed = float("-inf")
        self._returning = float("inf")
        self._scratch: Path | None = None

    def open(self) -> None:
        """Open the database, and create or upgrade it; one that cannot be used is set aside, and a
        new one made."""
        with self._renewing, self._lock.within(PATIENCE) as alone:
            self._opened = self._open(alone)

    def close(self) -> None:
        """Close it, and remove a temporary one."""
        opened, self._opened = self._opened, None
        self._is_unfilled = False
        if opened is not None:
            opened.close()
        if self._scratch is not None:
            place.remove_scratch(self._scratch)
            self._scratch = None

    def give_up(self, why: CacheFSError) -> None:
        """Go on in a temporary place, where the directory has no room for a database. Raises *why*
        where that is so already."""
        with self._renewing:
            opened = self.connections()
            if opened.path == self._scratch:
                raise why
            self._opened = self._make_temporary(why)
            opened.close()

    def connections(self) -> Connections:
        """The open database, also one that could not be filled. Waits while another thread fills a
        new one from the files. Raises DriverError where none is."""
        opened = self._opened  # before the question, and so none that is filled only now
        if self._is_being_filled:
            with self._renewing:
                opened = self._opened
        return self._checked(opened)

    def connections_at_once(self) -> Connections:
        """As :meth:`connections`; raises IndexBusyError where that would wait, and for a database
        that is to be filled yet."""
        opened = self._opened
        if self._is_being_filled or self._is_unfilled:
            raise IndexBusyError(f"the index of {self._cache_dir} is being made anew")
        return self._checked(opened)

    def _checked(self, opened: Connections | None) -> Connections:
        if opened is None:
            raise DriverError(f"the index of {self._cache_dir} is not open")
        return opened

    @property
    def _is_being_filled(self) -> bool:
        return self._filler not in {None, threading.get_ident()}

    def asked(self, work: Callable[[Index], T], *, patient: bool = False) -> T:
        """What *work* gives, or gives in a new database, where this one cannot be used. With
        *patient*, one that is locked is not one of those. Raises DriverError where a new one cannot
        be filled; the next to ask tries that again."""
        opened = self._filled()
        if not opened.is_there():
            self._renew(opened, IndexLostError(f"index {opened.path}: it was taken away"))
            opened = self._filled()
        if opened.path == self._scratch and time.monotonic() >= self._returning:
            self._return(opened)
            opened = self._filled()
        try:
            return work(opened.main)
        except DriverError as error:
            if self._opened is opened:
                lost = isinstance(error, IndexLostError)
                if not lost and (patient or not isinstance(error, IndexBusyError)):
                    raise
                self._renew(opened, error)
        return work(self._filled().main)

    def _filled(self) -> Connections:
        """As :meth:`connections`, but filled, unless it is this thread that fills it."""
        opened = self.connections()
        if self._is_unfilled and self._filler != threading.get_ident():
            with self._renewing:
                if self._is_unfilled:
                    with self._filling(), self._lock.within(PATIENCE):
                        self._fill()
            opened = self.connections()
        return opened

    def _renew(self, opened: Connections, why: DriverError) -> None:
        """Open what another process has made in the meantime, or make a new database, unless
        another thread has done so."""
        with self._renewing:
            if self._opened is not opened:
                return
            if opened.path == self._scratch:
                raise why
            with self._filling(), self._lock.within(PATIENCE) as alone:
                # One that is locked may have been so by a process that has filled it meanwhile.
                busy = isinstance(why, IndexBusyError)
                if alone and not busy and (opened.is_there() or not opened.path.exists()):
                    self._use(self._make_anew(opened.path, why))
                else:
                    self._use(self._open(alone))
                opened.close()
                self._fill()

    def _return(self, opened: Connections) -> None:
        """Leave the temporary place, if the directory can hold a database again, and no other
        process is at it."""
        with self._renewing, self._lock.within(0) as alone:
            if self._opened is not opened:
                return
            self._returning = time.monotonic() + RETURN
            if not alone:
                return
            try:
                found = self._in_its_place()
            except (CacheFSError, OSError) as error:
                log.debug("no index can be in %s yet: %s", self._cache_dir, error)
                return
            with self._filling():
                self._use(found)
                opened.close()
                place.remove_scratch(opened.path)
                self._scratch = None
                log.warning("the index of %s is in its place again", self._cache_dir)
                self._fill()

    def _use(self, found: Connections) -> None:
        """Have *found* instead of what was open. Nobody asks it before a :meth:`_fill` succeeds:
        where this one fails, whoever asks next tries again."""
        self._is_unfilled = True
        self._opened = found

    def _fill(self) -> None:
        """Fill the open database from the files. Raises DriverError."""
        try:
            self._made_anew()
        except OSError as error:
            raise DriverError(
                f"the index of {self._cache_dir} cannot be made of the files: {error}"
            ) from error
        self._is_unfilled = False

    @contextmanager
    def _filling(self) -> Iterator[None]:
        """Nobody asks the database before the block has filled it: an image that it does not know
        yet would be taken for one that is not cached."""
        before, self._filler = self._filler, threading.get_ident()
        try:
            yield
        finally:
            self._filler = before

    def _in_its_place(self) -> Connections:
        try:
            path = self._find()
            place.prepare(path, self._cache_dir)
            return Connections(path)
        except CacheFSError:
            return self._replace(self._path)[0]

    def _find(self) -> Path:
        """The database to be opened. Raises as :func:`cachefs.drivers.place.find`."""
        if self._is_elsewhere:
            private_dir(self._cache_dir)
            return self._path
        return place.find(self._cache_dir)

    def _open(self, alone: bool) -> Connections:
        """The database that is there, or a new one; a temporary one where this process is not
        *alone*: what another is at is neither opened nor replaced."""
        path = self._path
        if not alone:
            return self._make_temporary(IndexBusyError(f"index {path}: another process is at it"))
        try:
            path = self._find()
            place.prepare(path, self._cache_dir)
            return Connections(path)
        except (CacheFSError, OSError) as error:
            return self._make_anew(path, error)

    def _make_anew(self, path: Path, why: Exception) -> Connections:
        """An empty database, once the one at *path* is set aside; where that cannot be done, in a
        temporary place, for as long as the cache is open."""
        again, self._renewed = time.monotonic() - self._renewed < RENEWAL, time.monotonic()
        try:
            if again:
                raise DriverError("the last one has just been made")
            connections, aside = self._replace(path)
            done = f"set aside as {aside}" if aside is not None else "gone"
        except (CacheFSError, OSError) as trouble:
            log.debug("no index can be made in %s: %s", self._cache_dir, trouble)
            return self._make_temporary(why)
        self._warn(why, done)
        return connections

    def _make_temporary(self, why: Exception) -> Connections:
        self._returning = time.monotonic() + RETURN
        self._scratch = self._scratch or place.scratch()
        place.prepare(self._scratch, self._scratch.parent)
        connections = Connections(self._scratch)
        self._warn(why, f"left as it is, until this process ends {self._scratch} is used")
        return connections

    def _warn(self, why: Exception, done: str) -> None:
        log.warning(ANEW, why, done, LOST[file_record.is_possible(str(self._cache_dir))])

    def _replace(self, path: Path) -> tuple[Connections, Path | None]:
        """Made before the old one is touched: a full disk is no reason to lose an index."""
        private_dir(self._cache_dir)
        own = self._path
        new = own.with_name(f"{own.name}.{os.getpid()}.{threading.get_ident()}")
        aside = None
        try:
            place.prepare(new, self._cache_dir)
            Connections(new).close()
            for old in {path, own}:
                if os.path.lexists(old):
                    aside = place.set_aside(self._cache_dir, old)
                else:
                    place.remove_side_files(old)
            new.rename(own)
        finally:
            new.unlink(missing_ok=True)
            place.remove_side_files(new)
        return Connections(self._find()), aside

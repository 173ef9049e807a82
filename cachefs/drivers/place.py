"""Where the sqlite driver's database stands, and who may open it.

It is ``CACHE_DIR/.cachefs/cache.db``, and ``CACHE_DIR/cache.db`` is a symbolic link to it. SQLite
follows a link and keeps its log and its locks beside the file that the link leads to
(https://sqlite.org/lang_attach.html says nothing of it; ``unixFullPathname`` in ``os_unix.c`` does
it), so a real Glance opens the database by its own path, finds nothing among the images that it
would take for one, and no other user gets at the locks: directory and files are their owner's.

A database that stands where Glance made it is taken over by exchanging it for the link, and only
while a write lease (``F_SETLEASE``, fcntl(2)) says that nobody else has it open; else it is used
where it stands, and taken over another time. Owns names, modes and owners; reads no table.
"""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import tempfile
from contextlib import closing
from pathlib import Path

from cachefs.drivers.index import SQLITE_ERRORS
from cachefs.drivers.private import give_to_owner, private_dir
from cachefs.errors import IndexLostError

NAME = "cache.db"
SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database (https://sqlite.org/tempfiles.html)."""

LINK = f".cachefs/{NAME}"
"""What the link says."""

KEPT_ASIDE = 9
"""Databases that are kept when they could not be used; the last one's place is used again."""

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
_SMALL = 0.1  # seconds to wait for a database whose log is to be folded


def find(cache_dir: Path) -> Path:
    """The database to be opened: ours, once Glance's name for it leads there, or Glance's, where it
    stands and is in use. What stands in its place and is none is set aside. Raises OSError, and
    IndexLostError for a database that is damaged."""
    own = private_dir(cache_dir) / NAME
    name = cache_dir / NAME
    for _ in range(10):  # another process may be at it
        try:
            found = name.lstat()
        except FileNotFoundError:
            if _make_link(name):
                return own
            continue
        if stat.S_ISLNK(found.st_mode) and str(name.readlink()) == LINK:
            return own
        if not stat.S_ISREG(found.st_mode) or _is_database(own):
            try:
                set_aside(cache_dir, name)
            except OSError:
                return own  # Glance will not find it; all else works
        elif not _take_over(name, own) and _exists(name):
            return own if _is_fixed(name) else name
    return own


def prepare(path: Path, cache_dir: Path) -> None:
    """Make the database at *path* its owner's alone, before SQLite opens it; an empty one where
    there is none. SQLite gives its side files the mode and the owner of the database. Raises
    IndexLostError for what is no file, or a file of a user who is not to be trusted, OSError."""
    if not _exists(path):
        remove_side_files(path)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        give_to_owner(path, cache_dir)
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise IndexLostError(f"index {path}: it is no file")
    if found.st_uid not in {0, os.geteuid(), cache_dir.stat().st_uid}:
        raise IndexLostError(f"index {path}: it is user {found.st_uid}'s")
    for each in (path, *side_files(path)):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if stat.S_IMODE(each.lstat().st_mode) & 0o077 and not each.is_symlink():
                each.chmod(0o600)


def side_files(path: Path) -> list[Path]:
    """The files that SQLite may keep beside a database."""
    return [path.with_name(path.name + suffix) for suffix in SIDE_FILES]


def remove_side_files(path: Path) -> None:
    """Remove what SQLite has kept beside a database that is gone: it would play the log of that one
    into the next one that gets the name. Raises OSError."""
    for each in side_files(path):
        each.unlink(missing_ok=True)


def set_aside(cache_dir: Path, path: Path) -> Path:
    """Move what stands at *path*, with what SQLite keeps beside it, out of the way; where it is
    now. Raises OSError."""
    directory = private_dir(cache_dir) / "aside"
    directory.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.count(1):
        target = directory / f"{path.name}.{number}"
        if not _exists(target) or (number >= KEPT_ASIDE and target.is_file()):
            break
    path.rename(target)
    for old, new in zip(side_files(path), side_files(target), strict=True):
        new.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            old.rename(new)
    return target


def scratch() -> Path:
    """A place for a database for as long as this process lives: where the cache directory can hold
    none. :func:`remove_scratch` removes it."""
    return Path(tempfile.mkdtemp(prefix="cachefs-index-")) / NAME


def remove_scratch(path: Path) -> None:
    """Remove what :func:`scratch` has made."""
    shutil.rmtree(path.parent, ignore_errors=True)


# Inside


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _make_link(name: Path) -> bool:
    """Make the link; False where something stands there by now. Without symbolic links (vfat) or
    leave to make one, Glance does without our records."""
    try:
        name.symlink_to(LINK)
    except FileExistsError:
        return False
    except OSError:
        return True
    give_to_owner(name, name.parent)
    return True


def _is_database(path: Path) -> bool:
    """Whether there is a database that anything was ever written to."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _is_fixed(path: Path) -> bool:
    """Whether the file cannot be written: immutable (``chattr +i``), or not ours to write."""
    if _is_open_here(path):
        return False  # and is not opened: see _take_over
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError as error:
        return error.errno in {errno.EPERM, errno.EACCES, errno.EROFS}
    return False


def _take_over(name: Path, own: Path) -> bool:
    """Exchange Glance's database for the link to it; False where it is in use, or cannot be."""
    if _is_open_here(name):
        return False  # to open and close it once more would drop SQLite's locks (fcntl(2))
    if not _fold(name):
        return False
    try:
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Whoever opens it now waits for us, and we would hear of it by a signal: one that is
        # ignored unless somebody asks for it, and not SIGIO, which kills.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        own.unlink(missing_ok=True)
        own.symlink_to(LINK)
        _exchange(own, name)
        if fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK and not any(
            _exists(path) for path in side_files(name)
        ):
            return True
        # It waits in open(2), and will look for the log by the old name: as if nothing had been.
        _exchange(own, name)
    except OSError:
        pass
    finally:
        os.close(fd)  # and with it the lease
    if own.is_symlink():
        own.unlink()
    return False


def _is_open_here(path: Path) -> bool:
    """Whether this process has the file open; not so one that is gone."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return False
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.path.samestat(descriptor.stat(), wanted):
                return True
    return False


def _fold(name: Path) -> bool:
    """Copy a log back that an earlier process has left, so that the database is one file; False
    where it is locked. Raises IndexLostError for what is no database."""
    if not any(_exists(path) for path in side_files(name)):
        return True
    try:
        with closing(sqlite3.connect(name, timeout=_SMALL, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError:
        return False
    except SQLITE_ERRORS as error:
        raise IndexLostError(f"index {name}: {error}") from error
    return not any(_exists(path) for path in side_files(name))


def _exchange(one: Path, other: Path) -> None:
    """Give each the other's name, at once (``renameat2(2)``, ``RENAME_EXCHANGE``)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    except AttributeError as error:  # an old C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))

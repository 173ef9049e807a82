"""Opening a file below a directory so that nothing leads out of it.

Owns the walk: each step is taken from the descriptor of the last, symbolic links are followed by
hand, and one that leads out of the directory is refused, as ``openat2(2)`` does with
``RESOLVE_BENEATH``, which Python has not and old container runtimes forbid; and unlike there, an
absolute link to a place below the directory is allowed. Also whether others may read what was
opened. Knows nothing of images.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAX_LINKS: Final = 40
"""As the kernel's (``path_resolution(7)``)."""

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class OutsideError(Exception):
    """A symbolic link leads out of the directory; the text is the link."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A regular file, open for reading as *fd*. *private* is true where others may not read it: no
    ``o+r`` on the file, or no ``o+x`` on any directory from ``/`` down to it."""

    fd: int
    private: bool


@contextmanager
def open_beneath(top: Path, name: str) -> Generator[Opened | None, None, None]:
    """The file *name* below the directory *top*, closed when the block is left; None for what is no
    regular file. Raises OutsideError, and OSError as ``open`` does."""
    steps = [os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    fd = -1
    try:
        _walk(steps, top, name)
        if stat.S_ISREG(os.fstat(steps[-1]).st_mode):
            fd = os.open(f"/proc/self/fd/{steps[-1]}", _READ)
        yield Opened(fd, _is_private(steps)) if fd >= 0 else None
    finally:
        for each in [*steps, fd]:
            if each >= 0:
                os.close(each)


def _walk(steps: list[int], top: Path, name: str) -> None:
    """Push a descriptor for each step of the way on *steps*, whose last is then the file's."""
    parts, links = deque([name]), _MAX_LINKS
    while parts:
        part = parts.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            if len(steps) == 1:
                raise OutsideError(name)
            os.close(steps.pop())
            continue
        fd = os.open(part, _STEP, dir_fd=steps[-1])
        mode = os.fstat(fd).st_mode
        steps.append(fd)
        if stat.S_ISLNK(mode):
            links -= 1
            if links < 0:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            parts.extendleft(reversed(_follow(steps, top, name).split("/")))
            continue
        if parts and not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _follow(steps: list[int], top: Path, name: str) -> str:
    """Take the link off the end of *steps*, and all but *top* where it is absolute; where it leads
    from there."""
    target = os.readlink("", dir_fd=steps[-1])
    os.close(steps.pop())
    if target.startswith("/"):
        target = _below(top, target, name)
        while len(steps) > 1:
            os.close(steps.pop())
    return target


def _below(top: Path, target: str, name: str) -> str:
    """The absolute *target* of a link as a path from *top* on, by whichever name of it."""
    for directory in (str(top), os.path.realpath(top)):
        if target == directory or target.startswith(directory.rstrip("/") + "/"):
            return target[len(directory) :]
    raise OutsideError(name)


def _is_private(steps: list[int]) -> bool:
    """Whether others may not read the file that *steps* lead to, the first of them the source's
    directory: by the directories that the file lies in, whichever links have led there."""
    *directories, file = steps
    return (
        not os.fstat(file).st_mode & stat.S_IROTH
        or not all(os.fstat(each).st_mode & stat.S_IXOTH for each in directories)
        or _is_hidden(directories[0])
    )


def _is_hidden(directory: int) -> bool:
    """Whether others may not get to the open directory: by the modes of those that it lies in now.
    Also where they cannot be told, since one of them has just been moved, say."""
    path = Path(f"/proc/self/fd/{directory}").readlink()
    if not path.is_absolute():  # it is not below our root
        return True
    try:
        return not all(each.lstat().st_mode & stat.S_IXOTH for each in path.parents)
    except OSError:
        return True

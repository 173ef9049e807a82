"""Opening a file below a directory so that nothing leads out of it.

Owns the walk: each step is taken from the descriptor of the last, symbolic links are followed by
hand, and one that leads out of the directory is refused, as ``openat2(2)`` does with
``RESOLVE_BENEATH``, which Python has not and old container runtimes forbid; and unlike there, an
absolute link to a place below the directory is allowed. Knows nothing of images.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MAX_LINKS: Final = 40
"""As the kernel's (``path_resolution(7)``)."""

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class OutsideError(Exception):
    """A symbolic link leads out of the directory; the text is the link."""


class HiddenError(Exception):
    """Others may not read the file, or not get to it; the text is what has which mode."""


@contextmanager
def open_beneath(top: Path, name: str, *, public: bool) -> Generator[int | None, None, None]:
    """A descriptor to read the file *name* below the directory *top*, closed when the block is
    left; None for what is no regular file.

    With *public* only what every user may read: the file, and the directories from *top* on down,
    grant it to others. Raises OutsideError, HiddenError, and OSError as ``open`` does.
    """
    steps = [os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    fd = -1
    try:
        if public:
            _check_others(steps[0], stat.S_IXOTH, str(top))
        _walk(steps, top, name, public=public)
        status = os.fstat(steps[-1])
        if stat.S_ISREG(status.st_mode):
            if public:
                _check_others(steps[-1], stat.S_IROTH, repr(name))
            fd = os.open(f"/proc/self/fd/{steps[-1]}", _READ)
        yield fd if fd >= 0 else None
    finally:
        for each in [*steps, fd]:
            if each >= 0:
                os.close(each)


def _walk(steps: list[int], top: Path, name: str, *, public: bool) -> None:
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
        if stat.S_ISDIR(mode) and public:
            _check_others(fd, stat.S_IXOTH, repr(part))


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


def _check_others(fd: int, bit: int, what: str) -> None:
    mode = os.fstat(fd).st_mode
    if not mode & bit:
        raise HiddenError(f"{what} has mode {stat.S_IMODE(mode):04o}")

"""Where a mount's directories lie: a cache removes files in its directory, so that directory has
nothing to do with a source, and none of the mount's is seen through the mount.

Owns the question whether two directories overlap, however they are named: by symbolic links, or by
bind mounts of one filesystem. Knows directories only; nothing is made."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cachefs.errors import MountError
from cachefs.kernel import mountinfo
from cachefs.settings import Settings

Place = tuple[str, Path]
"""A filesystem, and a directory as it is called within it."""


def check_places(settings: Settings) -> None:
    """Raise MountError where the cache directory is a source's directory, or the mountpoint, or
    holds one or lies in one."""
    table = mountinfo.mounts()
    cache = settings.cache_dir
    for source in (settings.source, *settings.fallbacks):
        directory = _directory(source)
        if directory is not None and _overlap(cache, directory, table):
            raise MountError(
                f"the cache directory {cache} {_relation(cache, directory)} the source {directory}:"
                " a cache removes files; name another with --cache-dir"
            )
    if _overlap(cache, settings.mountpoint, table):
        raise MountError(
            f"the cache directory {cache} {_relation(cache, settings.mountpoint)} the mountpoint"
            f" {settings.mountpoint}: name another with --cache-dir"
        )


def _directory(source: str) -> Path | None:
    """The directory that a source is, or None where it is none."""
    if "://" not in source:
        return Path(source)
    scheme, _, _ = source.partition("://")
    return Path(unquote(urlsplit(source).path)) if scheme.lower() == "file" else None


def _overlap(one: Path, other: Path, table: list[mountinfo.MountInfo]) -> bool:
    names = _resolved(one), _resolved(other)
    if _nested(*names):
        return True
    if _is_below(names[0], names[1]) or _is_below(names[1], names[0]):
        return True
    (device, path), (other_device, other_path) = (_place(name, table) for name in names)
    return device == other_device and _nested(path, other_path)


def _nested(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _is_below(one: Path, other: Path) -> bool:
    """Whether *one* is the directory *other*, or has it among those above it."""
    try:
        status = other.stat()
    except OSError:  # not there yet
        return False
    return any(os.path.samestat(status, each) for each in _statuses((one, *one.parents)))


def _statuses(paths: tuple[Path, ...]) -> Iterator[os.stat_result]:
    for path in paths:
        try:
            yield path.stat()
        except OSError:
            continue


def _resolved(path: Path) -> Path:
    """*path* without symbolic links, as far as it is there. Raises MountError for a loop of
    them."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError until Python 3.13
        raise MountError(f"{path}: {os.strerror(errno.ELOOP)}") from error


def _place(path: Path, table: list[mountinfo.MountInfo]) -> Place:
    """Where a resolved path lies: the same for two names of one directory by bind mounts."""
    by_path = {mount.mountpoint: mount for mount in table}
    for above in (path, *path.parents):
        mount = by_path.get(above)
        if mount is not None:
            return mount.device, Path(mount.root) / path.relative_to(above)
    return "", path


def _relation(cache: Path, other: Path) -> str:
    one, two = _resolved(cache), _resolved(other)
    if one in two.parents:
        return "holds"
    return "lies below" if two in one.parents else "is, or overlaps with,"

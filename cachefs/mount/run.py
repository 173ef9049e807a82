"""``cachefs mount`` from the checks to the exit status; in the background it is the supervisor that
stays.

Imports neither pyfuse3 nor trio: those are the worker's (:mod:`cachefs.mount.worker`), a process of
its own that may die, or be replaced by a newer one, while the mount stays."""

import errno
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cachefs.cache.claim import claim
from cachefs.cache.layout import Layout
from cachefs.cache.lock import own
from cachefs.cache.trust import open_lock
from cachefs.errors import CacheDirectoryError, MountError
from cachefs.kernel import liveness, mountinfo
from cachefs.kernel.liveness import Liveness
from cachefs.kernel.mounting import MountOptions
from cachefs.mount.checks import check
from cachefs.mount.footprint import Footprint
from cachefs.mount.logs import log_file, log_to, more
from cachefs.settings import Settings
from cachefs.settings.document import to_document
from cachefs.settings.running import new_mount_id
from cachefs.settings.setting import DEFAULT
from cachefs.supervise.background import in_background
from cachefs.supervise.supervisor import Supervisor
from cachefs.transport.base import TransportInfo
from cachefs.transport.probe import UnavailableError, probe
from cachefs.units import human_size

log = logging.getLogger(__name__)

ENDING = 5.0
"""Seconds that are given to a daemon whose mount is gone to let go of the cache directory: killed,
it has its memory to give back before its locks are free."""

_LOOK_EVERY = 0.05  # seconds


def run(settings: Settings) -> int:
    """Mount and serve. Returns the exit status: in the foreground when it is unmounted, else as
    soon as the mount answers. Raises :class:`~cachefs.errors.CacheFSError` when it cannot be
    mounted. One that has never served leaves nothing behind."""
    settings = check(settings)
    footprint = Footprint(settings.cache_dir, log_file(settings))
    served, lock = False, -1

    def on_ready() -> None:
        nonlocal served
        served = True

    try:
        layout = _layout(settings)
        lock = _claim(layout.private_dir)
        _mark(lock, layout.base, settings.mountpoint)
        return _serve(settings, layout, lock, on_ready)
    finally:
        if not served:
            footprint.remove(owned=lock >= 0)
        if lock >= 0:
            os.close(lock)


def _serve(settings: Settings, layout: Layout, lock: int, on_ready: Callable[[], None]) -> int:
    try:
        log_to(settings)  # before the fork, while what goes wrong can still be said plainly
    except OSError as error:
        raise MountError(
            f"cannot write the log {settings.log_file}: {error.strerror}; name another with "
            "--log-file"
        ) from error
    _check_limit(settings)
    try:
        info = probe(layout.base, settings.transport)
    except UnavailableError as error:
        raise MountError(
            f"the relay cannot run here: {error}; leave --transport at auto, which takes what works"
        ) from error
    if settings.foreground:
        return _supervise(settings, info, lock, on_ready)
    in_background(functools.partial(_supervise, settings, info, lock))
    on_ready()
    return 0


def _check_limit(settings: Settings) -> None:
    """Say of a limit that someone gave and that means nothing, what limits instead."""
    if settings.given[Settings.max_size.name].origin == DEFAULT or settings.max_size.percent:
        return
    disk = os.statvfs(settings.cache_dir)
    total = disk.f_blocks * disk.f_frsize
    if settings.max_size.size > total:
        text = (
            f"max-size {settings.max_size} is more than the filesystem of {settings.cache_dir} has "
            f"({human_size(total)}): it is min-free ({settings.min_free}) that limits the cache"
        )
        log.info("%s", text)
        if not settings.foreground:
            sys.stderr.write(f"cachefs: warning: {text}\n")


def _layout(settings: Settings) -> Layout:
    layout = Layout(settings.cache_dir)
    try:
        claim(layout, adopt=settings.adopt)
    except CacheDirectoryError as error:
        raise MountError(str(error)) from error
    except OSError as error:
        raise MountError(
            f"cannot make the cache directory {settings.cache_dir}: {error.strerror}; name another "
            "with --cache-dir"
        ) from error
    return layout


def _supervise(
    settings: Settings, info: TransportInfo, lock: int, ready: Callable[[], None]
) -> int:
    """Hold the mount until it is unmounted; the exit status. A worker that could not begin has said
    why on stderr; MountError for what it could not say."""
    mountpoint = settings.mountpoint
    supervisor = Supervisor(
        # -P: not from the working directory, where a user may keep a mountpoint `cachefs`.
        [sys.executable, "-P", "-m", "cachefs.mount.worker"],
        str(mountpoint),
        info,
        mount_options(settings),
        document=to_document(settings, new_mount_id()),
        claim=lock,
        on_ready=ready,
    )
    try:
        status = supervisor.run()
    except OSError as error:
        why = error.strerror
        if error.errno == errno.EINVAL and settings.options:
            why = f"the kernel does not take -o {','.join(settings.options)}: leave it out"
        raise MountError(f"cannot mount {mountpoint}: {why}") from error
    if status and not supervisor.has_served and not supervisor.was_told:
        raise MountError(f"cannot mount {mountpoint}: {supervisor.reason}{more(settings)}")
    return status


def mount_options(settings: Settings) -> MountOptions:
    """How to mount: everybody may read what root mounts, and only the owner what another user does,
    unless ``-o allow_other`` says otherwise (which fuse.conf must permit)."""
    extra = set(settings.options) - {"allow_other", "default_permissions"}
    return MountOptions(
        allow_other=os.getuid() == 0 or "allow_other" in settings.options,
        extra=tuple(sorted(extra)),
    )


def _claim(private: Path) -> int:
    """The descriptor that makes this the only mount of the cache directory, until it and its copies
    are closed."""
    try:
        fd = open_lock(private / "daemon")
    except OSError as error:
        raise _unusable(private.parent, error) from error
    try:
        _own_after_predecessor(fd, private)
    except BaseException:
        os.close(fd)
        raise
    if os.fstat(fd).st_nlink == 0:  # of a mount that failed, and has just cleaned up
        os.close(fd)
        raise MountError(f"the cache directory {private.parent} has just been removed: try again")
    return fd


def _own_after_predecessor(fd: int, private: Path) -> None:
    """Own the claimed file, once who had it is gone. Raises MountError where its mount lives, or it
    does not end."""
    deadline = time.monotonic() + ENDING
    while True:
        try:
            return own(fd)
        except BlockingIOError:
            other = _claimed_for(fd)
            if other is not None and _is_served_from(other, private.parent):
                raise _in_use(private.parent, other) from None
            if time.monotonic() > deadline:
                raise _held(private.parent, other) from None
        time.sleep(_LOOK_EVERY)


def _mark(lock: int, cache_dir: Path, mountpoint: Path) -> None:
    """Name the mountpoint in the claimed file: a worker that has lost its supervisor, and the claim
    with it, is found by that. Raises MountError where there is one."""
    other = _claimed_for(lock)
    if other is not None and _is_served_from(other, cache_dir):
        raise _in_use(cache_dir, other)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, os.fsencode(mountpoint), 0)
    except OSError as error:
        raise _unusable(cache_dir, error) from error


def _unusable(cache_dir: Path, error: OSError) -> MountError:
    return MountError(
        f"cannot write to the cache directory {cache_dir}: {error.strerror}; make room, or name "
        "another with --cache-dir"
    )


def _claimed_for(fd: int) -> Path | None:
    content = os.pread(fd, 4096, 0)
    return Path(os.fsdecode(content)) if content.startswith(b"/") and b"\0" not in content else None


def _in_use(cache_dir: Path, mountpoint: Path) -> MountError:
    return MountError(
        f"another daemon is using the cache directory {cache_dir}, for the mount at {mountpoint}: "
        f"`cachefs umount {mountpoint}`, or name another with --cache-dir"
    )


def _held(cache_dir: Path, mountpoint: Path | None) -> MountError:
    """Somebody has the directory, and no mount of it is to be seen."""
    if mountpoint is None:
        where = "has no mount yet: wait for it to end"
    else:
        where = (
            f"its mount at {mountpoint} is not to be seen here: it ends with its last reader, or is"
            " another container's; wait"
        )
    return MountError(
        f"another daemon is using the cache directory {cache_dir}, and {where}, or name another "
        "with --cache-dir"
    )


def _is_served_from(mountpoint: Path, cache_dir: Path) -> bool:
    """Whether a mount lives there that is served from the cache directory; so also where it does
    not answer."""
    found = mountinfo.find(mountpoint)
    if found is None or not found.kind.startswith("fuse"):
        return False
    match liveness.look(found.mountpoint):
        case Liveness.HANGS:
            return True
        case Liveness.ANSWERS:
            status = liveness.read(found.mountpoint / "control" / "status")
            try:
                document = json.loads(status or b"null")
                return bool(document["cache_dir"] == str(cache_dir))
            except (ValueError, TypeError, KeyError):
                return False
    return False

"""``cachefs mount`` from the checks to the exit status; in the background it is the supervisor that
stays.

Imports neither pyfuse3 nor trio: those are the worker's (:mod:`cachefs.mount.worker`), a process of
its own that may die, or be replaced by a newer one, while the mount stays."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cachefs.cache.layout import Layout
from cachefs.cache.lock import own
from cachefs.errors import MountError
from cachefs.kernel.mounting import MountOptions
from cachefs.mount.checks import check
from cachefs.mount.logs import log_to
from cachefs.settings import Settings
from cachefs.settings.document import to_document
from cachefs.settings.running import new_mount_id
from cachefs.supervise.background import in_background
from cachefs.supervise.supervisor import Supervisor
from cachefs.transport.base import TransportInfo
from cachefs.transport.probe import UnavailableError, probe


def run(settings: Settings) -> int:
    """Mount and serve. Returns the exit status: in the foreground when it is unmounted, else as
    soon as the mount answers. Raises :class:`~cachefs.errors.CacheFSError` when it cannot be
    mounted."""
    check(settings)
    layout = _layout(settings)
    try:
        log_to(settings)  # before the fork, while what goes wrong can still be said plainly
    except OSError as error:
        raise MountError(f"cannot write the log: {error}") from error
    try:
        info = probe(layout.base, settings.transport)
    except UnavailableError as error:
        raise MountError(f"the relay cannot run here: {error}") from error
    if settings.foreground:
        return _supervise(settings, layout, info, lambda: None)
    in_background(functools.partial(_supervise, settings, layout, info))
    return 0


def _layout(settings: Settings) -> Layout:
    layout = Layout(settings.cache_dir)
    try:
        layout.create()
    except OSError as error:
        raise MountError(f"cache directory {settings.cache_dir}: {error.strerror}") from error
    return layout


def _supervise(
    settings: Settings, layout: Layout, info: TransportInfo, ready: Callable[[], None]
) -> int:
    """Hold the mount until it is unmounted; the exit status. The worker has said why it failed."""
    claim = _claim(layout.private_dir)
    try:
        supervisor = Supervisor(
            # -P: not from the working directory, where a user may keep a mountpoint `cachefs`.
            [sys.executable, "-P", "-m", "cachefs.mount.worker"],
            str(settings.mountpoint),
            info,
            mount_options(settings),
            document=to_document(settings, new_mount_id()),
            claim=claim,
            on_ready=ready,
        )
        return supervisor.run()
    except OSError as error:
        why = error.strerror
        if error.errno == errno.EINVAL and settings.options:
            why = f"the kernel does not take -o {','.join(settings.options)}"
        raise MountError(f"cannot mount {settings.mountpoint}: {why}") from error
    finally:
        os.close(claim)


def mount_options(settings: Settings) -> MountOptions:
    """How to mount: everybody may read what root mounts, and only the owner what another user does,
    unless ``-o allow_other`` says otherwise (which fuse.conf must permit)."""
    extra = set(settings.options) - {"allow_other", "default_permissions"}
    return MountOptions(
        allow_other=os.getuid() == 0 or "allow_other" in settings.options,
        extra=tuple(sorted(extra)),
    )


def _claim(private: Path) -> int:
    """The descriptor that makes this the only mount of the cache directory."""
    fd = os.open(private / "daemon", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        own(fd)
    except BlockingIOError:
        os.close(fd)
        raise MountError(f"another daemon is using the cache directory {private.parent}") from None
    return fd

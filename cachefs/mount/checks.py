"""What can be said before anything is made or mounted, each in one clear line: what is wrong, with
what, and what to do; and dead mounts in the way."""

import errno
import grp
import logging
import os
import shutil
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cachefs.errors import InvalidValueError, MountError
from cachefs.kernel import device as fuse_device
from cachefs.kernel import liveness, mountinfo, mounting
from cachefs.kernel.liveness import Liveness
from cachefs.mount.places import check_places
from cachefs.settings import Settings

log = logging.getLogger(__name__)

_FUSE_CONF = Path("/etc/fuse.conf")


def check(settings: Settings) -> Settings:
    """Raise MountError or InvalidValueError where mounting cannot succeed; detach a dead mount.

    Gives the settings with the mountpoint as the kernel calls it. INVARIANT: nobody looks it up by
    another name after that: a symbolic link may lead elsewhere by the time the mount is tuned,
    found dead or taken away."""
    _check_device()
    group_id(settings)
    mountpoint = _check_mountpoint(settings.mountpoint)
    settings = settings.replace(
        Settings.mountpoint, mountpoint, settings.given[Settings.mountpoint.name].origin
    )
    for source in (settings.source, *settings.fallbacks):
        _check_source(source, mountpoint)
    if os.geteuid() != 0:
        _check_user(settings)
    check_places(settings)
    return settings


def group_id(settings: Settings) -> int | None:
    """The group that may write control files, or None. Raises InvalidValueError for an unknown
    one."""
    if settings.control_group is None:
        return None
    if settings.control_group.isdigit():
        return int(settings.control_group)
    try:
        return grp.getgrnam(settings.control_group).gr_gid
    except KeyError:
        raise InvalidValueError(f"there is no group {settings.control_group!r}") from None


def _check_device() -> None:
    try:
        os.close(fuse_device.open_device())
    except PermissionError:
        raise MountError(
            f"no permission to open {fuse_device.DEVICE}: ask its owner (chmod 666 is usual), "
            "or mount as root"
        ) from None
    except OSError as error:
        raise MountError(
            f"cannot open {fuse_device.DEVICE} ({error.strerror}): load the kernel's fuse module "
            "(modprobe fuse), or, in a container, pass the device in"
        ) from error


def _check_user(settings: Settings) -> None:
    """What fusermount3(1) will refuse an ordinary user."""
    if shutil.which("fusermount3") is None:
        raise MountError(
            "fusermount3 is not installed, and without it only root may mount: install the package "
            "fuse3"
        )
    if "allow_other" in settings.options and not _others_allowed():
        raise MountError(
            f"-o allow_other is not allowed to users: {_FUSE_CONF} needs a line user_allow_other"
        )
    if not os.access(settings.mountpoint, os.W_OK):
        raise MountError(
            f"no permission to write to the mountpoint {settings.mountpoint}: a user may mount "
            "only on a directory of his own"
        )


def _others_allowed() -> bool:
    try:
        lines = _FUSE_CONF.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _check_source(source: str, mountpoint: Path) -> None:
    """A directory that the mount would hide, the daemon would look for through its own mount."""
    if "://" not in source:
        directory = Path(source)
    elif source.lower().startswith("file://"):
        directory = Path(unquote(urlsplit(source).path))
    else:
        return
    resolved = directory.resolve()
    try:
        same = resolved == mountpoint or directory.samefile(mountpoint)
        is_directory = directory.is_dir()
    except FileNotFoundError:
        raise MountError(
            f"the source directory {directory} does not exist: name the directory that the images "
            "are in, or a URL"
        ) from None
    except OSError:
        return  # not ours to look at, which its own check says
    if not is_directory:
        raise MountError(
            f"the source {directory} is not a directory: name the directory that the images are in"
        )
    if same:
        raise MountError(
            f"{mountpoint} is both the source and the mountpoint: mount on another, empty directory"
        )
    if mountpoint in resolved.parents:
        raise MountError(
            f"the source {directory} lies below the mountpoint {mountpoint}, which would hide it: "
            "mount on another, empty directory"
        )


def _check_mountpoint(mountpoint: Path) -> Path:
    """The mountpoint without symbolic links, where something can be mounted."""
    found = mountinfo.find(mountpoint)
    if found is not None:
        _make_way(found.mountpoint)
    try:
        real = mountpoint.resolve(strict=True)
        status = real.stat()
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise MountError(
                f"the mountpoint {mountpoint} does not exist: mkdir {mountpoint}"
            ) from error
        raise MountError(f"the mountpoint {mountpoint}: {error.strerror}") from error
    except RuntimeError as error:  # until Python 3.13, a loop of links
        raise MountError(f"the mountpoint {mountpoint}: {os.strerror(errno.ELOOP)}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"the mountpoint {mountpoint} is not a directory: name an empty one")
    return real


def _make_way(mounted: Path) -> None:
    """Detach a dead mount; MountError for one that lives."""
    match liveness.look(mounted):
        case Liveness.DEAD:
            log.warning("detaching %s, whose daemon is gone", mounted)
            try:
                gone = mounting.unmount(mounted)
            except OSError as error:
                raise MountError(
                    f"cannot detach the dead mount at {mounted}: {error.strerror}"
                ) from error
            if not gone:
                raise MountError(f"cannot detach the dead mount at {mounted}")
            if mountinfo.is_mounted(mounted):  # there were several
                _make_way(mounted)
        case Liveness.HANGS:
            raise MountError(
                f"something is mounted at {mounted} already and does not answer: "
                f"`cachefs umount --lazy {mounted}` takes it away"
            )
        case _:
            raise MountError(
                f"something is mounted at {mounted} already: `umount {mounted}`, or name another "
                "mountpoint"
            )

"""Unmounting: asking the kernel, waiting for the daemon, and saying who is in the way.

Works on a mount whose daemon hangs or is dead.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cachefs.cli.daemon import ask, fuse_mount, proven
from cachefs.cli.output import one_line
from cachefs.errors import MountError
from cachefs.kernel import mountinfo, processes
from cachefs.kernel.mountinfo import MountInfo

LET_GO_SECONDS = 30.0
"""How long the daemon may take to end once it is unmounted: it has transactions to abort."""

_LOOP_DEVICES = Path("/sys/block")


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount the cachefs at *path* and wait for its daemon to end. *lazy* takes the mountpoint
    away even while the mount is in use; its daemon ends with the last use, and is not waited for.

    Raises :class:`~cachefs.errors.MountError` when nothing of ours is mounted there, when it is
    in use (naming by whom), or when the daemon does not end.
    """
    mount = fuse_mount(path)
    # Opened before: a number may be another process's by the time the mount is gone.
    with proven(mount, ask(mount.mountpoint)) as served:
        _ask_the_kernel(mount, lazy)
        deadline = time.monotonic() + LET_GO_SECONDS
        for process in () if lazy else (served.supervisor, served.worker):
            if process is not None and not process.wait(deadline - time.monotonic()):
                raise MountError(
                    f"{mount.mountpoint} is unmounted, but its daemon (pid {process.pid}) goes on "
                    f"after {LET_GO_SECONDS:.0f} s: its log says with what; `kill {process.pid}` "
                    "ends it"
                )


def _ask_the_kernel(mount: MountInfo, lazy: bool) -> None:
    """Run umount(8) as root, else fusermount3(1), which is set-uid."""
    # Not canonicalised: umount(8) would look at the mountpoint, and wait for a daemon that hangs.
    command, lazily = (
        (["umount", "-c"], "-l") if os.geteuid() == 0 else (["fusermount3", "-u"], "-z")
    )
    words = [*command, *([lazily] if lazy else []), "--", str(mount.mountpoint)]
    try:
        result = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MountError(
            f"cannot unmount {mount.mountpoint}: {command[0]} is not installed"
        ) from error
    if result.returncode == 0:
        return
    if "busy" not in result.stderr:
        raise MountError(f"cannot unmount {mount.mountpoint}: {one_line(result.stderr)}")
    culprits = ", ".join(users_of(mount)) or _unseen()
    raise MountError(
        f"{mount.mountpoint} is busy: used by {culprits}; end that, or detach it all the same with "
        "`cachefs umount --lazy`"
    )


def _unseen() -> str:
    return (
        "something that is no process"
        if os.geteuid() == 0
        else "a process that only root can see (`sudo cachefs umount` names it)"
    )


def users_of(mount: MountInfo) -> Iterator[str]:
    """What keeps the mount busy, in words: each process as ``name (pid)``, mounts below it, and
    loop devices on files of it. Of other users' processes only root sees any."""
    for pid in processes.all_processes():
        if processes.uses(pid, mount.mount_id, mount.mountpoint):
            name = processes.name_of(pid)
            if name:  # else it has just ended
                yield f"{name} ({pid})"
    for other in mountinfo.mounts():
        if other.mountpoint != mount.mountpoint and other.mountpoint.is_relative_to(
            mount.mountpoint
        ):
            yield f"the mount {other.mountpoint}"
    for device in sorted(_LOOP_DEVICES.glob("loop*")):
        try:
            backing = (device / "loop" / "backing_file").read_text().rstrip("\n")
        except OSError:
            continue  # it has no file
        if Path(backing).is_relative_to(mount.mountpoint):
            yield f"/dev/{device.name} ({backing})"

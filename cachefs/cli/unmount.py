"""Unmounting: asking the kernel, waiting for the daemon, and saying who is in the way.

Works on a mount whose daemon hangs or is dead.
"""

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from cachefs.cli.mounts import mounted_at
from cachefs.cli.output import one_line
from cachefs.errors import MountError

STATUS_SECONDS = 2.0
"""How long a daemon may take to say who it is; a hanging one must not keep us from unmounting."""

LET_GO_SECONDS = 30.0
"""How long the daemon may take to end once it is unmounted: it has transactions to abort."""


def unmount(path: Path) -> None:
    """Unmount the cachefs at *path* and wait for its daemon to end.

    Raises :class:`~cachefs.errors.MountError` when nothing of ours is mounted there, when it is
    in use (naming the processes), or when the daemon does not end.
    """
    mounted = mounted_at(path)
    if mounted is None:
        raise MountError(f"no cachefs is mounted at {path}")
    mountpoint = mounted.mountpoint
    with ExitStack() as stack:
        # Opened before: a number may be another process's by the time the mount is gone.
        daemons = {}
        for pid in _daemons(mountpoint):
            try:
                daemons[pid] = os.pidfd_open(pid)
            except OSError:
                continue  # ended, or of a namespace that we do not see: nothing to wait for
            stack.callback(os.close, daemons[pid])
        _ask_the_kernel(mountpoint)
        deadline = time.monotonic() + LET_GO_SECONDS
        for pid, pidfd in daemons.items():
            ended, _, _ = select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
            if not ended:
                raise MountError(f"{mountpoint} is unmounted, but its daemon (pid {pid}) goes on")


def _ask_the_kernel(mountpoint: Path) -> None:
    """Run umount(8) as root, else fusermount3(1), which is set-uid."""
    # Not canonicalised: umount(8) would look at the mountpoint, and wait for a daemon that hangs.
    command = ["umount", "-c"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    try:
        result = subprocess.run(
            [*command, "--", str(mountpoint)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise MountError(f"{command[0]} is not installed") from error
    if result.returncode == 0:
        return
    users = ", ".join(_users(mountpoint))
    if users:
        raise MountError(f"{mountpoint} is busy: used by {users}")
    raise MountError(f"cannot unmount {mountpoint}: {one_line(result.stderr)}")


def _daemons(mountpoint: Path) -> list[int]:
    """The processes that serve the mount, by its own account; none when it does not answer."""
    try:
        # A process of its own: it can be killed when the daemon hangs, where a read of ours could
        # not be given up, and would keep the mount busy.
        answer = subprocess.run(
            ["cat", "--", str(mountpoint / "control" / "status")],
            capture_output=True,
            check=True,
            timeout=STATUS_SECONDS,
        )
        worker = json.loads(answer.stdout).get("worker")
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return []  # a dead daemon holds nothing that could be waited for
    pids = (worker.get("supervisor"), worker.get("pid")) if isinstance(worker, dict) else ()
    return [pid for pid in pids if isinstance(pid, int) and pid > 0]


def _users(mountpoint: Path) -> Iterator[str]:
    """``name (pid)`` of each process that holds a file or directory below *mountpoint*.

    By the links in ``/proc/PID`` (proc(5)), which only root sees of other users' processes.
    """
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        links = [process / "cwd", process / "root", *_listed(process / "fd")]
        if any(_below(link, mountpoint) for link in links):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue  # it has just ended
            yield f"{name} ({process.name})"


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _below(link: Path, mountpoint: Path) -> bool:
    try:
        return Path(os.readlink(link)).is_relative_to(mountpoint)  # noqa: PTH115 - not touching it
    except OSError:
        return False

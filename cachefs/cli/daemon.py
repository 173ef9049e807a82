"""Which processes serve a mount: what the mount says of itself, and what the kernel says to that.

A control file is a file: anyone can make a directory that names any process in it, and a number may
be another process's by now. So a command signals and waits for a process only where it is proven:

- the mountpoint is a FUSE mount of ours by the kernel's table, which names the user who made it;
- the worker has a worker's argument vector, and holds the device of this very connection (fdinfo
  says so since Linux 6.17; before that, of some FUSE connection);
- the supervisor is the worker's parent;
- both belong to the user who made the mount: at worst, a command of root's does to a process what
  its own user could do;
- and a descriptor of the process, opened before all that, says that it lives still.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachefs.cli.mounts import ours
from cachefs.errors import MountError
from cachefs.kernel import liveness, mountinfo, processes
from cachefs.kernel.mountinfo import MountInfo
from cachefs.kernel.processes import Handle

WORKER = "cachefs.mount.worker"
"""In the argument vector of a worker."""


@dataclass(frozen=True, slots=True)
class Named:
    """The processes that a mount names in its ``status``; 0 where it names none. *orphaned*: the
    worker itself says that its supervisor is gone."""

    worker: int = 0
    supervisor: int = 0
    orphaned: bool = False

    @classmethod
    def by(cls, document: object) -> "Named":
        """Those in the document of ``control/status``."""
        worker = document.get("worker") if isinstance(document, dict) else None
        if not isinstance(worker, dict):
            return cls()
        pid, supervisor = worker.get("pid"), worker.get("supervisor", 0)
        return cls(_number(pid), _number(supervisor), orphaned=supervisor is None)


def _number(value: object) -> int:
    return value if type(value) is int and value > 1 else 0


@dataclass(frozen=True, slots=True)
class Served:
    """The proven processes of a mount; None for one that is not proven, and *why* not."""

    worker: Handle | None = None
    supervisor: Handle | None = None
    why: str = ""


def fuse_mount(path: Path) -> MountInfo:
    """The mount of ours whose mountpoint *path* is, by the kernel's table; MountError where there
    is none."""
    found = mountinfo.find(path)
    if found is None or ours(found) is None or found.owner is None:
        raise MountError(f"no cachefs is mounted at {path}")
    return found


@contextmanager
def proven(mount: MountInfo, named: Named) -> Iterator[Served]:
    """The processes that *mount* names, as far as they are its own."""
    with ExitStack() as stack:
        worker = supervisor = None
        why = ""
        try:
            worker = _worker(mount, named, stack)
            supervisor = _supervisor(mount, named, worker, stack)
        except _UnprovenError as error:
            why = str(error)
        except PermissionError:
            why = "only root, or the user who mounted it, may see its processes"
        except FileNotFoundError:
            why = "its processes have just ended"
        yield Served(worker, supervisor, why)


class _UnprovenError(Exception):
    """A process is not proven to be the mount's; the text says why not."""


def _worker(mount: MountInfo, named: Named, stack: ExitStack) -> Handle:
    worker = stack.enter_context(_opened(named.worker, "worker"))
    _check_owner(mount, worker)
    held = processes.fuse_connections(worker.pid)
    is_worker = WORKER in processes.arguments(worker.pid)
    if not is_worker or held.isdisjoint({mount.connection, processes.UNKNOWN}):
        raise _UnprovenError(f"process {worker.pid}, which it names, does not serve it")
    _check_alive(worker)
    return worker


def _supervisor(mount: MountInfo, named: Named, worker: Handle, stack: ExitStack) -> Handle:
    if has_lost_supervisor(named):
        raise _UnprovenError(
            f"its supervisor is gone, its worker (pid {worker.pid}) goes on alone: "
            f"{REMEDY.format(mount.mountpoint)}"
        )
    supervisor = stack.enter_context(_opened(named.supervisor, "supervisor"))
    _check_owner(mount, supervisor)
    if processes.parent(worker.pid) != supervisor.pid:
        raise _UnprovenError(f"process {supervisor.pid}, which it names, is not its supervisor")
    _check_alive(worker)
    _check_alive(supervisor)
    return supervisor


REMEDY = "nothing would replace it; to mend that, `cachefs umount {0}` and mount it again"
"""What to do about a supervisor that is gone; to be filled with the mountpoint."""


def has_lost_supervisor(named: Named) -> bool:
    """Whether the worker that is *named* goes on without its supervisor, as far as is to be seen
    from here."""
    if named.orphaned:
        return True
    if not named.worker or not named.supervisor:
        return False
    try:
        is_worker = WORKER in processes.arguments(named.worker)
        return is_worker and processes.parent(named.worker) != named.supervisor
    except OSError:
        return False  # of another namespace, or just replaced


def ask(mountpoint: Path) -> Named:
    """The processes that the mount names; none where it does not answer in time: a dead daemon
    holds nothing that could be waited for."""
    content = liveness.read(mountpoint / "control" / "status")
    try:
        return Named.by(json.loads(content or b"null"))
    except ValueError:
        return Named()


def _opened(pid: int, role: str) -> Handle:
    if not pid:
        raise _UnprovenError(f"it names no {role}")
    try:
        return Handle(pid)
    except ProcessLookupError:
        raise MountError(f"its {role} (pid {pid}) is gone, or of another PID namespace") from None


def _check_owner(mount: MountInfo, process: Handle) -> None:
    if processes.users(process.pid) != {mount.owner}:
        raise _UnprovenError(
            f"process {process.pid}, which it names, is not of the user who mounted it"
        )


def _check_alive(process: Handle) -> None:
    if not process.is_alive:
        raise _UnprovenError(f"process {process.pid} has just ended")

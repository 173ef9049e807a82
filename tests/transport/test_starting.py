"""A worker that cannot be started: no process or descriptor is left, or no interpreter is there.
And one that is killed as soon as it serves."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cachefs.kernel import mountinfo, mounting
from cachefs.kernel.mounting import MountOptions
from cachefs.supervise.process import WorkerProcess, spawn
from cachefs.supervise.protocol import Inheritance
from cachefs.supervise.supervisor import Supervisor
from cachefs.transport.base import TransportInfo
from tests.support.mounted import LIMIT, Mounted, eventually, limited, mounted, result

MIB = 1 << 20
PATIENT = ["first_pause=60", "longest_pause=60", "settled=1000"]
MODES = ["supervised-relay", "supervised-plain"]
Without = Callable[[Mounted], AbstractContextManager[None]]


@contextmanager
def no_interpreter(mount: Mounted) -> Iterator[None]:
    """No worker can be started in the block: what should be executed is not there."""
    python = mount.directory / "python"
    python.rename(python.with_suffix(".away"))
    try:
        yield
    finally:
        python.with_suffix(".away").rename(python)


@contextmanager
def no_descriptors(mount: Mounted) -> Iterator[None]:
    """The supervisor can open nothing in the block."""
    pid = mount.server.pid
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    free = next(number for number in range(len(used) + 1) if number not in used)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def refused(mount: Mounted) -> int:
    """How many workers could not be started."""
    return mount.log.read_text().count("a worker cannot be started: ")


def opened(pid: int | str) -> int:
    """The process's descriptors, but for one with which it looks at another process, or itself."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            count += not str(path.readlink()).startswith("/proc/")
    return count


@pytest.mark.parametrize("without", [no_interpreter, no_descriptors])
def test_an_upgrade_that_cannot_be_started_changes_nothing(
    without: Without,
) -> None:
    with mounted("supervised-relay", {"plain": MIB}) as mount:
        pid, descriptors = mount.worker(), opened(mount.server.pid)
        with without(mount):
            for count in (1, 2, 3):
                mount.server.send_signal(signal.SIGHUP)
                eventually(lambda count=count: refused(mount) == count)
            time.sleep(1.2)  # more than twice as long as the supervisor looks away
        assert mount.log.read_text().count(f"; worker {pid} goes on") == 3
        assert mount.worker() == pid
        assert limited((mount / "plain").read_bytes) == (mount.source / "plain").read_bytes()
        assert eventually(lambda: opened(mount.server.pid) == descriptors)
        mount.server.send_signal(signal.SIGHUP)
        assert mount.new_worker(pid)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_death_a_worker_that_cannot_be_started_is_tried_again(mode: str) -> None:
    """The pause grows as after deaths, and no request has crashed: none is quarantined."""
    words = ["first_pause=0.01", "longest_pause=0.1", "quarantine_after=2", "give_up_after=1000"]
    with mounted(mode, {"plain": MIB, "lateopen": 10}, *words) as mount:
        descriptors, pid = opened(mount.server.pid), mount.worker()
        reader = mount.spawn("print(len(open(sys.argv[1], 'rb').read()))", "lateopen")
        mount.wait_for_waiting("lateopen")
        with no_interpreter(mount):
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: refused(mount) >= 8)
            assert eventually(lambda: opened(mount.server.pid) <= descriptors)
        assert eventually(lambda: mountinfo.is_mounted(mount.path) and mount.new_worker(pid))
        assert eventually(lambda: opened(mount.server.pid) == descriptors)
        mount.go()
        if mode == "supervised-relay":
            assert result(reader) == "10"
        assert limited((mount / "plain").read_bytes) == (mount.source / "plain").read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_after_many_workers_that_cannot_be_started_it_gives_up_and_says_why(mode: str) -> None:
    with mounted(mode, {"plain": MIB}, "give_up_after=4", "longest_pause=0.1") as mount:
        with no_interpreter(mount):
            mount.kill_worker()
            assert mount.server.wait(LIMIT) == 1
        assert "4 workers died in a row, the last: a worker cannot be" in mount.log.read_text()
        assert refused(mount) == 3 + 2  # the last is the reason, too: logged and printed
        assert not mountinfo.is_mounted(mount.path)


@pytest.mark.parametrize("without", [no_interpreter, no_descriptors])
def test_a_plain_mount_is_made_anew_by_an_upgrade_that_cannot_be_started_at_once(
    without: Without,
) -> None:
    """The old worker has left by then; that it served ends the row of deaths before it."""
    words = ["give_up_after=3", "first_pause=5"]
    with mounted("supervised-plain", {"plain": MIB}, *words) as mount:
        first = mount.kill_worker()
        second = mount.new_worker(first)
        time.sleep(1.5)  # longer than Timeouts.settled
        with without(mount):
            mount.server.send_signal(signal.SIGHUP)
            eventually(lambda: refused(mount) == 2)
        assert eventually(lambda: mountinfo.is_mounted(mount.path) and mount.new_worker(second))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["stop", "unmount"])
def test_it_ends_while_the_next_start_is_put_off(mode: str, end: str) -> None:
    with mounted(mode, {"plain": MIB}, *PATIENT) as mount:
        with no_interpreter(mount):
            mount.kill_worker()
            eventually(lambda: refused(mount) == 1)
        if end == "stop" or mode == "supervised-plain":  # nothing is mounted then
            mount.server.terminate()
        else:
            mounting.unmount(mount.path)
        assert mount.server.wait(LIMIT) == 0
        assert not mountinfo.is_mounted(mount.path)


@pytest.mark.parametrize("missing", ["python", "pidfd"])
def test_a_worker_that_cannot_be_started_leaves_no_descriptor_and_no_process(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    def pidfd_open(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(subprocess, "Popen", Popen)
    python = sys.executable
    if missing == "python":
        python += "-is-not-here"
    else:
        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    before = opened("self")
    inheritance = Inheritance(TransportInfo("plain", False, ""), "/nowhere", MountOptions())
    with pytest.raises(OSError) as caught:
        spawn([python, "-c", "import time; time.sleep(60)"], inheritance, 0)
    assert caught.value.errno == (errno.ENOENT if missing == "python" else errno.EMFILE)
    assert opened("self") == before
    assert [process.returncode for process in started] == [-signal.SIGKILL][: len(started)]
    assert len(started) == (missing == "pidfd")


def test_a_first_worker_that_cannot_be_started_raises_and_unmounts(tmp_path: Path) -> None:
    before = opened("self")
    relay = TransportInfo("relay", True, "")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    supervisor = Supervisor([str(tmp_path / "nothing")], str(mountpoint), relay)
    with pytest.raises(FileNotFoundError, match="nothing"):
        supervisor.run()
    assert not mountinfo.is_mounted(mountpoint)
    assert opened("self") == before


SPEAKS_AND_DIES = """
import json, os, signal, socket
inherited = json.loads(os.environ["CACHEFS_WORKER"])
supervisor = socket.socket(fileno=inherited["control"])
if inherited["restarts"]:
    supervisor.send(b"unmounted")
else:
    supervisor.send(b"ready")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_first_worker_that_is_killed_as_soon_as_it_serves_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had said that it serves since it was last listened to, so it passed for one that never
    had, and the mount was given up."""
    listen = WorkerProcess.listen
    early: set[int] = set()

    def listen_too_early(self: WorkerProcess, now: float) -> list[bytes]:
        if self.pid in early:
            return listen(self, now)
        early.add(self.pid)
        self.process.wait(10)
        return []

    monkeypatch.setattr(WorkerProcess, "listen", listen_too_early)
    ready: list[bool] = []
    supervisor = Supervisor(
        [sys.executable, "-c", SPEAKS_AND_DIES],
        str(tmp_path),
        TransportInfo("plain", False, ""),
        on_ready=lambda: ready.append(True),
    )
    assert supervisor.run() == 0
    assert ready == [True]
    assert supervisor.restarts == 1

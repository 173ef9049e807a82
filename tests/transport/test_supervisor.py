"""A mount that outlives its workers: kills, stuck workers, upgrades, ends."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cachefs.kernel import mountinfo, mounting
from tests.support.disks import small_disk
from tests.support.mounted import LIMIT, ROOT, Mounted, eventually, limited, mounted, result

MIB = 1 << 20
SUM = "import hashlib; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
HOLD = """
f = open(sys.argv[1], 'rb', buffering=0)
print('open', flush=True)
for line in sys.stdin:
    try:
        print(len(os.pread(f.fileno(), 4096, int(line))), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


def digest(mount: Mounted, name: str) -> str:
    return hashlib.sha256((mount.source / name).read_bytes()).hexdigest()


def ask(holder: "subprocess.Popen[bytes]", offset: int) -> str:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(f"{offset}\n".encode())
    holder.stdin.flush()
    return limited(holder.stdout.readline).decode().strip()  # type: ignore[union-attr]


def hold(mount: Mounted, name: str) -> "subprocess.Popen[bytes]":
    holder = mount.spawn(HOLD, name)
    assert holder.stdout is not None
    assert limited(holder.stdout.readline) == b"open\n"
    return holder


def test_the_supervisor_imports_neither_pyfuse3_nor_trio() -> None:
    code = "import sys, cachefs.supervise.supervisor, cachefs.transport.probe;"
    code += "sys.exit(bool({'trio', 'pyfuse3'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20, check=False).returncode
        == 0
    )


def test_readers_survive_kills_of_the_worker() -> None:
    files: dict[str, bytes | int] = {"slow": 60 * MIB, "here": 60 * MIB, "img": 60 * MIB}
    with mounted("supervised-relay", files) as mount:
        readers = {name: mount.spawn(SUM, name) for name in files}
        holder = hold(mount, "img")
        for _ in range(5):
            pid = mount.kill_worker()
            mount.new_worker(pid)
        for name, reader in readers.items():
            assert result(reader, 60) == digest(mount, name)
        assert ask(holder, MIB) == "4096"


def test_opens_survive_kills_and_nothing_leaks() -> None:
    """Opens and closes go on while workers are killed at random; counts come out even."""
    files: dict[str, bytes | int] = {f"img{'q' * (n % 2)}{n}": 64 * 1024 for n in range(10)} | {
        "plain": 64 * 1024
    }
    code = """
import time
end = time.monotonic() + 12
count = 0
while time.monotonic() < end:
    for path in sys.argv[1:]:
        with open(path, 'rb') as f:
            assert len(f.read()) == 65536
        count += 1
print('done', count)
"""
    with mounted("supervised-relay", files) as mount:
        work = [mount.spawn(code, *files) for _ in range(2)]
        kills = 0
        while any(process.poll() is None for process in work):
            time.sleep(0.05)
            pid = mount.kill_worker()
            kills += 1
            mount.new_worker(pid)
        outcomes = [result(process) for process in work]
        assert all(outcome.startswith("done") for outcome in outcomes)
        assert kills >= 5
        eventually(lambda: len(mount.stats()["open_nodes"]) == 1)
        assert mount.stats()["open_nodes"] == {str(1 << 40): 1}


@pytest.fixture
def own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A filesystem on which nobody else takes or frees room, for temporary directories."""
    with small_disk(tmp_path / "disk", 256) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        yield


@pytest.mark.usefixtures("own_disk")
def test_the_space_of_unlinked_files_is_back_after_kills_and_the_last_close() -> None:
    with mounted("supervised-relay", {"img": 50 * MIB}) as mount:
        holder = hold(mount, "img")
        inode = (mount.source / "img").stat().st_ino

        def is_held() -> bool:
            """Whether some process or the kernel still keeps the file: its blocks are not free."""
            return free() < before + 45 * MIB

        def free() -> int:
            os.sync()
            info = os.statvfs(mount.source)
            return info.f_bfree * info.f_frsize

        for _ in range(3):
            pid = mount.kill_worker()
            mount.new_worker(pid)
        before = free()
        mount.command("unlink img")
        assert inode
        assert is_held()
        assert ask(holder, 49 * MIB) == "4096"
        holder.communicate(timeout=LIMIT)
        eventually(lambda: not is_held(), 10)


def test_a_request_of_a_killed_worker_is_answered_by_the_next() -> None:
    with mounted("supervised-relay", {"lateopen": 10}) as mount:
        pid = mount.worker()
        process = mount.spawn("print(open(sys.argv[1], 'rb').read(5).__len__())", "lateopen")
        mount.wait_for_waiting("lateopen")
        os.kill(pid, signal.SIGKILL)
        mount.new_worker(pid)
        mount.go()
        assert result(process) == "5"


@pytest.mark.parametrize("how", ["stopped", "busy"])
def test_a_worker_that_stops_answering_is_replaced(how: str) -> None:
    words = ["beat_timeout=1.5", "beat_interval=0.2"]
    with mounted("supervised-relay", {"nap-once": MIB, "plain": MIB}, *words) as mount:
        pid = mount.worker()
        if how == "stopped":
            os.kill(pid, signal.SIGSTOP)
            reader = mount.spawn(SUM, "plain")
            name = "plain"
        else:
            reader = mount.spawn(SUM, "nap-once")
            name = "nap-once"
        assert result(reader) == digest(mount, name)
        assert mount.new_worker(pid)
        assert "silent" in mount.log.read_text()


LOOK = """
try:
    print(os.stat(sys.argv[1]).st_size)
except OSError as error:
    print(error.errno in (errno.ENOTCONN, errno.ECONNABORTED))
"""


@contextmanager
def stuck_notification(mount: Mounted) -> Iterator[subprocess.Popen[bytes]]:
    """A notification under way that waits in the kernel for a lookup, whose process this gives."""
    control = os.open(mount / "stats", os.O_WRONLY)
    try:
        looker = mount.spawn(LOOK, "later-one")
        mount.wait_for_waiting("later-one")
        os.write(control, b"entry nothing")
        eventually(lambda: notifying(mount.worker(), stuck=True))
        yield looker
    finally:
        os.close(control)


def notifying(worker: int, *, stuck: bool = False) -> list[int]:
    """The process that writes the worker's notifications, if there is one; if it is *stuck*."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"notify_process.py" not in (process / "cmdline").read_bytes():
                continue
            states = [states_of(task) for task in process.glob("task/*")]
            is_stuck = any(state == "D" for state, _ in states)
            if any(parent == worker for _, parent in states) and (is_stuck or not stuck):
                found.append(int(process.name))
    return found


def states_of(task: Path) -> tuple[str, int]:
    """A thread's state and the parent of its process."""
    state, parent = (task / "stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def test_a_worker_that_is_killed_while_a_notification_is_stuck_leaves_nothing_behind() -> None:
    """The notification waits for a lookup that only the next worker answers."""
    with mounted("supervised-relay", {"later-one": 10}) as mount:
        pid = mount.worker()
        with stuck_notification(mount) as looker:
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{pid}").exists())
            assert looker.poll() is None, "the lookup waits for the next worker"
            mount.go()
            assert result(looker) == "10"
        assert mount.worker() != pid
        assert "cannot die" not in mount.log.read_text()


@pytest.mark.parametrize("mode", ["supervised-relay", "supervised-plain"])
@pytest.mark.parametrize("supervised", [True, False], ids=["supervised", "alone"])
def test_readers_are_freed_when_nobody_is_left_while_a_notification_is_stuck(
    mode: str, supervised: bool
) -> None:
    with mounted(mode, {"later-one": 10}) as mount:
        pid = mount.worker()
        with stuck_notification(mount) as looker:
            if not supervised or mode == "supervised-relay":
                mount.server.kill()
                mount.server.wait()
            os.kill(pid, signal.SIGKILL)
            assert result(looker) == "True"


def test_a_notifying_process_that_is_killed_is_started_again() -> None:
    with mounted("supervised-relay", {"plain": 10}) as mount:
        (mount / "stats").write_text("entry nothing")
        (first,) = eventually(lambda: notifying(mount.worker()))
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{first}/exe").exists())

        def another() -> list[int]:
            (mount / "stats").write_text("entry nothing")
            return [pid for pid in notifying(mount.worker()) if pid != first]

        assert eventually(another)


def test_an_upgrade_hands_over_without_a_failed_request() -> None:
    code = """
import time
end = time.monotonic() + 5
while time.monotonic() < end:
    for path in sys.argv[1:]:
        with open(path, 'rb') as f:
            assert len(f.read()) == 65536
print('done')
"""
    files: dict[str, bytes | int] = {"img": 65536, "plain": 65536, "slow": 65536}
    with mounted("supervised-relay", files) as mount:
        work = [mount.spawn(code, *files) for _ in range(2)]
        pids = [mount.worker()]
        for _ in range(3):
            mount.server.send_signal(signal.SIGHUP)
            pids.append(mount.new_worker(pids[-1]))
        assert [result(process) for process in work] == ["done", "done"]
        assert len(set(pids)) == 4
        assert "died" not in mount.log.read_text()
        assert mount.stats()["info"][0] == "relay"


def test_an_upgrade_asked_for_during_another_follows_it() -> None:
    """The one under way may have read the old code."""
    with mounted("supervised-relay", {"plain": MIB}) as mount:
        mount.server.send_signal(signal.SIGHUP)
        time.sleep(0.05)
        mount.server.send_signal(signal.SIGHUP)
        eventually(lambda: mount.log.read_text().count(" serves ") == 3)
        assert "the upgrade waits" in mount.log.read_text()


def test_an_upgrade_that_does_not_come_up_changes_nothing() -> None:
    with mounted("supervised-relay", {"plain": MIB}) as mount:
        pid = mount.worker()
        (mount.directory / "command").write_text("raise SystemExit('this version is broken')")
        mount.server.send_signal(signal.SIGHUP)
        eventually(lambda: "upgrade failed" in mount.log.read_text())
        assert mount.worker() == pid
        (mount.directory / "command").unlink()
        mount.server.send_signal(signal.SIGHUP)
        assert mount.new_worker(pid)


def test_an_upgrade_waits_for_requests_under_way() -> None:
    with mounted("supervised-relay", {"lateopen": 10}) as mount:
        pid = mount.worker()
        process = mount.spawn("print(len(open(sys.argv[1], 'rb').read()))", "lateopen")
        mount.wait_for_waiting("lateopen")
        mount.server.send_signal(signal.SIGHUP)
        eventually(lambda: "ready to take over" in mount.log.read_text())
        time.sleep(0.2)
        mount.go()
        assert result(process) == "10"
        mount.new_worker(pid)
        assert "killing" not in mount.log.read_text()


def test_an_upgrade_resends_what_the_old_worker_cannot_finish() -> None:
    with mounted("supervised-relay", {"stuckopen-once": 10}, "leave_timeout=1") as mount:
        pid = mount.worker()
        process = mount.spawn("print(len(open(sys.argv[1], 'rb').read()))", "stuckopen-once")
        mount.wait_for_waiting("stuckopen-once")
        mount.server.send_signal(signal.SIGHUP)
        assert result(process) == "10"
        assert mount.worker() != pid


def test_a_request_that_kills_every_worker_fails_and_the_mount_lives() -> None:
    with mounted("supervised-relay", {"crash": 10, "plain": MIB}) as mount:
        process = mount.spawn("open(sys.argv[1])", "crash")
        assert "Errno 5" in result(process)
        assert limited((mount / "plain").read_bytes) == (mount.source / "plain").read_bytes()


def test_after_many_deaths_it_gives_up_and_says_why() -> None:
    words = ["give_up_after=4", "longest_pause=0.1"]
    with mounted("supervised-relay", {"plain": MIB}, *words) as mount:
        (mount.directory / "command").write_text("raise SystemExit(7)")
        mount.kill_worker()
        assert mount.server.wait(LIMIT) == 1
        assert "4 workers died in a row" in mount.log.read_text()
        assert "exited with status 7" in mount.log.read_text()
        assert not mountinfo.is_mounted(mount.path)


def test_a_first_worker_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    for name in ("source", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "command").write_text("raise SystemExit(3)")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.supervise",
            "relay",
            tmp_path / "source",
            tmp_path / "mnt",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "exited with status 3" in done.stderr
    assert not mountinfo.is_mounted(tmp_path / "mnt")


@pytest.mark.parametrize("mode", ["supervised-relay", "supervised-plain"])
def test_unmounting_ends_supervisor_and_worker(mode: str) -> None:
    with mounted(mode, {"plain": MIB}) as mount:
        pid = mount.worker()
        mounting.unmount(mount.path)
        assert mount.server.wait(LIMIT) == 0
        assert not Path(f"/proc/{pid}").exists()


def test_unmounting_while_no_worker_lives_ends_the_supervisor() -> None:
    words = ["first_pause=60", "longest_pause=60", "settled=1000"]
    with mounted("supervised-relay", {"plain": MIB}, *words) as mount:
        (mount.directory / "command").write_text("raise SystemExit(7)")
        mount.kill_worker()
        eventually(lambda: "status 7" in mount.log.read_text())
        mounting.unmount(mount.path)
        assert mount.server.wait(LIMIT) == 0


@pytest.mark.parametrize("mode", ["supervised-relay", "supervised-plain"])
def test_sigterm_ends_both_and_unmounts(mode: str) -> None:
    with mounted(mode, {"plain": MIB}) as mount:
        pid = mount.worker()
        mount.server.terminate()
        assert mount.server.wait(LIMIT) == 0
        assert not Path(f"/proc/{pid}").exists()
        assert not mountinfo.is_mounted(mount.path)


def test_a_passthrough_file_is_read_while_no_worker_lives() -> None:
    words = ["first_pause=60", "longest_pause=60", "settled=1000"]
    with mounted("supervised-relay", {"img": MIB}, *words) as mount:
        holder = hold(mount, "img")
        (mount.directory / "command").write_text("raise SystemExit(7)")
        mount.kill_worker()
        eventually(lambda: "status 7" in mount.log.read_text())
        assert ask(holder, 4096) == "4096"


def test_plain_is_mounted_anew_after_a_kill() -> None:
    with mounted("supervised-plain", {"plain": MIB}) as mount:
        pid = mount.kill_worker()
        mount.new_worker(pid)
        assert limited((mount / "plain").read_bytes) == (mount.source / "plain").read_bytes()


def test_many_readers_survive_a_kill() -> None:
    files: dict[str, bytes | int] = {"slow": 8 * MIB, "here": 8 * MIB, "img": 8 * MIB}
    with mounted("supervised-relay", files) as mount:

        def read(name: str) -> bool:
            return (mount / name).read_bytes() == (mount.source / name).read_bytes()

        with ThreadPoolExecutor(30) as pool:
            work = [pool.submit(read, name) for name in list(files) * 20]
            pid = mount.kill_worker()
            mount.new_worker(pid)
            assert all(limited(lambda future=future: future.result(), 60) for future in work)

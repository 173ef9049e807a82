"""A command acts on a process only after the kernel has said that it is the mount's own."""

import json
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cachefs_mount import CACHEFS, Mounted
from support.processes import is_alive, run, wait_for

from cachefs.cli.daemon import Named, fuse_mount, proven
from cachefs.kernel import mountinfo

from .conftest import MakeMount


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no mount's, and that any signal would end."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def pids(mount: Mounted) -> Named:
    return Named.by(mount.status())


@pytest.mark.parametrize("command", [["upgrade", "--mount"], ["umount"]])
def test_no_process_that_a_directory_of_plain_files_names_is_signalled_or_waited_for(
    tmp_path: Path, stranger: subprocess.Popen[bytes], command: list[str]
) -> None:
    (tmp_path / "control").mkdir()
    worker = {"pid": stranger.pid, "supervisor": stranger.pid}
    (tmp_path / "control" / "status").write_text(json.dumps({"worker": worker}))
    done = run(*CACHEFS, *command, str(tmp_path), check=False)
    assert done.status == 1
    assert done.stderr == f"cachefs: no cachefs is mounted at {tmp_path}\n"
    assert is_alive(stranger.pid)


def test_a_mount_is_proven_to_be_served_by_its_worker_and_its_supervisor(mount: Mounted) -> None:
    named = pids(mount)
    with proven(fuse_mount(mount.mountpoint), named) as served:
        assert served.worker is not None
        assert served.supervisor is not None
        assert (served.worker.pid, served.supervisor.pid) == (named.worker, named.supervisor)


def test_no_other_process_is_taken_for_the_mounts_own(
    make_mount: MakeMount, stranger: subprocess.Popen[bytes]
) -> None:
    first, second = make_mount(), make_mount()
    mine, others = pids(first), pids(second)
    for wrong in (
        Named(stranger.pid, mine.supervisor),
        Named(others.worker, others.supervisor),  # also of cachefs, but of another mount
        Named(mine.supervisor, os.getpid()),
        Named(),
    ):
        with proven(fuse_mount(first.mountpoint), wrong) as served:
            assert served.supervisor is None
            assert served.why
    for wrong in (Named(mine.worker, stranger.pid), Named(mine.worker, others.supervisor)):
        with proven(fuse_mount(first.mountpoint), wrong) as served:
            assert served.worker is not None
            assert served.supervisor is None


def test_a_process_of_another_user_than_the_mounts_is_not_its_own(mount: Mounted) -> None:
    found = fuse_mount(mount.mountpoint)
    claimed = mountinfo.MountInfo(
        found.device, found.root, found.mountpoint, found.kind, found.source, 0, "rw,user_id=1000"
    )
    with proven(claimed, pids(mount)) as served:
        assert served.worker is None
        assert "not of the user who mounted it" in served.why


@pytest.fixture
def orphaned(make_mount: MakeMount) -> Iterator[Mounted]:
    """A mount whose worker has lost its supervisor."""
    mount = make_mount()
    mount.expect("the supervisor is gone")
    named = pids(mount)
    assert mount.process is not None
    mount.process.kill()
    mount.process.wait()
    mount.process = None
    yield mount
    run("umount", "-l", str(mount.mountpoint), check=False)
    wait_for(lambda: not is_alive(named.worker), "the worker to end")


@pytest.mark.parametrize("words", [["ls"], ["status"], ["status", "--json"], ["queue", "x"]])
def test_every_command_says_that_the_supervisor_is_gone_and_does_its_work(
    orphaned: Mounted, words: list[str]
) -> None:
    orphaned.expect("could not fetch")
    done = orphaned.cli(*words)
    (line,) = done.stderr.splitlines()
    assert line.startswith("cachefs: warning: the supervisor of ")
    assert "is gone" in line
    assert "cachefs umount" in line


def test_upgrade_without_a_supervisor_is_one_line_and_changes_nothing(orphaned: Mounted) -> None:
    before = pids(orphaned)
    done = orphaned.cli("upgrade", check=False)
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert "supervisor is gone" in line
    assert pids(orphaned) == before


def test_umount_waits_for_a_worker_that_has_lost_its_supervisor(orphaned: Mounted) -> None:
    worker = pids(orphaned).worker
    run(*CACHEFS, "umount", str(orphaned.mountpoint))
    assert not is_alive(worker)


def test_an_upgrade_of_a_plain_mount_says_what_it_costs_and_is_done_with_yes_only(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(options=["--transport", "plain"])
    before = pids(mount)
    done = mount.cli("upgrade", check=False)
    assert done.status == 2
    said = done.stderr.splitlines()[-1]
    assert "unmounts it and mounts it anew" in said
    assert "--yes" in said
    assert pids(mount) == before
    mount.expect("plain transport cannot hand over")
    assert "has taken over" in mount.cli("upgrade", "--yes", timeout=60).text
    after = pids(mount)
    assert after.supervisor == before.supervisor
    assert after.worker != before.worker


def test_a_busy_mount_names_who_has_mapped_a_file_of_it(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, _ = mount.origin.new()
    mount.fetch(name)
    fd = os.open(mount.image(name), os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ):
        os.close(fd)
        done = run(*CACHEFS, "umount", str(mount.mountpoint), check=False)
    assert done.status == 1
    assert f"({os.getpid()})" in done.stderr


def test_a_busy_mount_names_a_mount_below_it_and_a_loop_device(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, _ = mount.origin.new(2**20)
    mount.fetch(name)
    below = mount.mountpoint / "control" / "queue"
    device = run("losetup", "--show", "--read-only", "-f", mount.image(name)).text.strip()
    try:
        run("mount", "-t", "tmpfs", "none", str(below))
        done = run(*CACHEFS, "umount", str(mount.mountpoint), check=False)
        assert done.status == 1
        assert f"the mount {below}" in done.stderr
        assert f"{device} (" in done.stderr
    finally:
        run("umount", str(below), check=False)
        run("losetup", "-d", device)


def test_umount_lazy_takes_a_busy_mount_away(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, data = mount.origin.new()
    mount.fetch(name)
    with open(mount.image(name), "rb") as file:
        run(*CACHEFS, "umount", "--lazy", str(mount.mountpoint))
        assert not mountinfo.is_mounted(mount.mountpoint)
        assert file.read() == data
    mount.wait_ended()


def test_a_hanging_daemon_does_not_keep_umount_from_unmounting(make_mount: MakeMount) -> None:
    mount = make_mount()
    named = pids(mount)
    for pid in (named.supervisor, named.worker):
        os.kill(pid, signal.SIGSTOP)
    try:
        done = run(*CACHEFS, "umount", str(mount.mountpoint), check=False)
        assert done.status in (0, 1)
        assert mountinfo.is_mounted(mount.mountpoint) is (done.status == 1)
        assert done.status == 0 or "busy" in done.stderr
    finally:
        for pid in (named.supervisor, named.worker):
            os.kill(pid, signal.SIGCONT)

"""The daemon's life: in the background, ended by umount and signals, dead and detached."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.processes import failure, is_alive, run, wait_for

from cachefs.kernel import mountinfo

from .conftest import MakeMount


@pytest.fixture
def background(make_mount: MakeMount) -> Iterator[tuple[Mounted, int]]:
    """A mount made as users make one, and its daemon's pid."""
    mount = make_mount(running=False)
    done = run(*mount.command, "--log-file", str(mount.log))
    assert (done.stdout, done.stderr) == (b"", "")
    # At once, without waiting: the command has said that it answers.
    pid = mount.status()["worker"]["supervisor"]  # type: ignore[index]
    try:
        yield mount, pid
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not is_alive(pid), "the daemon to end")


def test_mount_returns_once_it_answers(background: tuple[Mounted, int]) -> None:
    mount, _ = background
    name, data = mount.origin.new()
    assert mount.cat(name) == data


def test_a_daemon_in_the_background_holds_nothing_of_its_terminal(
    background: tuple[Mounted, int],
) -> None:
    _, pid = background
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) != os.getsid(0)


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]], ids=" ".join)
def test_umount_ends_the_daemon_and_leaves_nothing(
    background: tuple[Mounted, int], command: list[str]
) -> None:
    mount, pid = background
    run(*command, str(mount.mountpoint))
    assert not mountinfo.is_mounted(mount.mountpoint)
    wait_for(lambda: not is_alive(pid), "the daemon to end")
    assert list(mount.mountpoint.iterdir()) == []


def test_cachefs_umount_returns_once_the_daemon_has_ended(
    background: tuple[Mounted, int],
) -> None:
    mount, pid = background
    run(*mount.program, "umount", str(mount.mountpoint))
    assert not mountinfo.is_mounted(mount.mountpoint)
    assert not is_alive(pid)
    run(*mount.command, "--log-file", str(mount.log))  # the cache directory is free again
    run(*mount.program, "umount", str(mount.mountpoint))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_cleanly(
    background: tuple[Mounted, int], number: signal.Signals
) -> None:
    mount, pid = background
    name, _ = mount.origin.new()
    mount.cat(name)
    mount.wait_listed("cached", name)
    os.kill(pid, number)
    wait_for(lambda: not is_alive(pid), "the daemon to end")
    assert not mountinfo.is_mounted(mount.mountpoint)
    mount.start()
    assert mount.record(f"cached/{name}")["hits"] == 1


def test_a_signal_at_the_very_moment_of_mounting_leaves_nothing_mounted(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(running=False)
    for _ in range(5):
        with mount.start_tool(*mount.command, "--foreground") as daemon:
            wait_for(lambda: mountinfo.is_mounted(mount.mountpoint), "the mount")
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert not mountinfo.is_mounted(mount.mountpoint)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_foreground_process_with_status_0(
    make_mount: MakeMount, number: signal.Signals
) -> None:
    mount = make_mount()
    mount.stop(number)  # asserts that it was clean


def test_umount_ends_a_foreground_process_with_status_0(make_mount: MakeMount) -> None:
    mount = make_mount()
    run("umount", str(mount.mountpoint))
    mount.wait_ended()


def test_a_signal_ends_the_daemon_while_an_image_is_open(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, _ = mount.origin.new()
    mount.fetch(name)
    with open(mount.image(name), "rb"):
        mount.stop()


def test_umount_of_a_mount_in_use_is_refused_and_names_the_user(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, _ = mount.origin.new()
    mount.fetch(name)
    with mount.start_tool("sleep", "30"), open(mount.image(name), "rb"):
        done = run(*mount.program, "umount", str(mount.mountpoint), check=False)
        assert done.status == 1
        assert "busy" in done.stderr
        assert str(os.getpid()) in done.stderr
    assert mount.listed() == [name]


def test_kill_9_leaves_a_dead_mount_that_the_next_mount_detaches(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.expect("detaching .* whose daemon is gone")
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.kill()
    assert failure(os.listdir, mount.images) in {"ENOTCONN", "ECONNABORTED"}
    mount.start()
    table = Path("/proc/self/mountinfo").read_text()
    assert table.count(f" {mount.mountpoint} ") == 1
    assert mount.cat(name) == data


def test_a_dead_mount_is_taken_away_by_cachefs_umount(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.kill()
    run(*mount.program, "umount", str(mount.mountpoint))
    assert not mountinfo.is_mounted(mount.mountpoint)


def test_the_descriptors_of_the_daemon_do_not_grow_with_use(make_mount: MakeMount) -> None:
    mount = make_mount()
    open_files = Path(f"/proc/{mount.status()['worker']['pid']}/fd")  # type: ignore[index]

    def of_removed() -> list[str]:
        targets = []
        for number in os.listdir(open_files):
            with suppress(FileNotFoundError):  # closed since it was listed
                targets.append(os.readlink(open_files / number))
        return [target for target in targets if target.startswith(f"{mount.cache_dir}/image-")]

    def use() -> int:
        for _ in range(20):
            name, _ = mount.origin.new(1000)
            mount.cat(name)
            mount.wait_listed("cached", name)
            mount.cat(name)
            mount.remove(f"cached/{name}")
        # What the kernel may be about to open once more is kept for a second.
        wait_for(lambda: not of_removed(), "the files of removed images to be closed")
        return len(os.listdir(open_files))

    assert use() + 3 >= use()


def test_a_log_file_is_written_where_it_was_asked_for(background: tuple[Mounted, int]) -> None:
    mount, _ = background
    assert "serving" in mount.log.read_text()


def test_a_daemon_started_from_a_pipe_does_not_keep_it_open(make_mount: MakeMount) -> None:
    mount = make_mount(running=False)
    with subprocess.Popen(
        [*mount.command, "--log-file", str(mount.log)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.communicate(timeout=20)[0] == b""
    run(*mount.program, "umount", str(mount.mountpoint))

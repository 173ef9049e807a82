"""Where a mount is: through symbolic links, in the way of its own source, and what a mount that
failed leaves behind (nothing)."""

import os
import signal
from pathlib import Path

import pytest
from support.cachefs_mount import CACHEFS, Mounted
from support.processes import is_alive, run

from cachefs.kernel import mountinfo

from .conftest import MakeMount

TRANSPORTS = pytest.mark.parametrize("transport", ["auto", "plain"])


def linked(make_mount: MakeMount, transport: str) -> Mounted:
    """A mount, not running, whose mountpoint is named by a link below a link."""
    mount = make_mount(running=False, options=["--transport", transport])
    real = mount.home / "real"
    (real / "there").mkdir(parents=True)
    (mount.home / "by").symlink_to(real)
    (real / "link").symlink_to("there")
    mount.mountpoint = mount.home / "by" / "link"
    mount.images, mount.control = mount.mountpoint / "images", mount.mountpoint / "control"
    return mount


@TRANSPORTS
def test_readahead_is_set_for_a_mountpoint_through_a_link(
    make_mount: MakeMount, transport: str
) -> None:
    mount = linked(make_mount, transport)
    mount.start()
    device = mountinfo.mount_device(mount.mountpoint)
    assert Path("/sys/class/bdi", str(device), "read_ahead_kb").read_text() == "1024\n"


@TRANSPORTS
def test_a_second_mount_at_a_mountpoint_through_a_link_is_refused(
    make_mount: MakeMount, transport: str
) -> None:
    mount = linked(make_mount, transport)
    mount.start()
    for name in (mount.mountpoint, mount.home / "real" / "there"):
        words = [*CACHEFS, "mount", mount.url, str(name), "--cache-dir", str(mount.home / "other")]
        done = run(*words, check=False)
        assert done.status == 1
        assert "something is mounted" in done.stderr
        assert not (mount.home / "other").exists()


@TRANSPORTS
def test_SIGTERM_unmounts_a_mountpoint_whose_link_leads_elsewhere_by_now(
    make_mount: MakeMount, transport: str
) -> None:
    mount = linked(make_mount, transport)
    mount.start()
    real = mount.home / "real" / "there"
    (mount.home / "real" / "link").unlink()
    (mount.home / "real" / "link").symlink_to(mount.home)
    assert mount.process is not None
    mount.process.send_signal(signal.SIGTERM)
    mount.wait_ended()
    assert not mountinfo.is_mounted(real)


@TRANSPORTS
def test_a_dead_mount_at_a_mountpoint_through_a_link_is_detached(
    make_mount: MakeMount, transport: str
) -> None:
    mount = linked(make_mount, transport)
    mount.start()
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.kill()
    mount.expect("detaching .* whose daemon is gone")
    mount.start()
    assert mount.cat(name) == data


def test_a_mount_that_hangs_is_not_waited_for(make_mount: MakeMount) -> None:
    mount = make_mount()
    worker = mount.status()["worker"]
    assert isinstance(worker, dict)
    pids = worker["supervisor"], worker["pid"]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        words = [*CACHEFS, "mount", mount.url, str(mount.mountpoint)]
        done = run(*words, "--cache-dir", str(mount.home / "other"), check=False)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert done.status == 1
    assert "does not answer" in done.stderr


@pytest.mark.parametrize("name", ["origin", "link", "origin/.", "FILE"])
def test_the_source_as_its_own_mountpoint_is_refused_at_once(
    make_mount: MakeMount, name: str
) -> None:
    mount = make_mount(running=False)
    (mount.home / "link").symlink_to(mount.origin.directory)
    source = mount.origin.directory.as_uri() if name == "FILE" else str(mount.origin.directory)
    mountpoint = mount.home / ("origin" if name == "FILE" else name)
    cache = ["--cache-dir", str(mount.home / "new" / "cache")]
    done = run(*CACHEFS, "mount", source, str(mountpoint), *cache, check=False)
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert "is both the source and the mountpoint" in line
    assert not (mount.home / "new").exists()


def test_a_source_that_the_mount_would_hide_is_refused(make_mount: MakeMount) -> None:
    mount = make_mount(running=False)
    done = run(*CACHEFS, "mount", mount.url, str(mount.home), check=False)
    assert done.status == 1
    assert "would hide it" in done.stderr


def names(top: Path) -> set[Path]:
    return set(top.rglob("*"))


@pytest.mark.parametrize("foreground", [(), ("--foreground",)], ids=["background", "foreground"])
@pytest.mark.parametrize("existing", [False, True], ids=["no-directory", "empty-directory"])
@pytest.mark.parametrize(
    "words",
    [
        ("--source-missing",),
        ("-o", "no_such_option"),
        ("-o", "no_such_option", "--transport", "plain"),
        ("--control-group", "no-such-group"),
        ("--log-file", "/proc/no/log"),
    ],
    ids=" ".join,
)
def test_a_mount_that_fails_leaves_nothing_behind(
    make_mount: MakeMount, words: tuple[str, ...], existing: bool, foreground: tuple[str, ...]
) -> None:
    mount = make_mount(running=False)
    mount.cache_dir = mount.home / "above" / "cache"
    if existing:
        mount.cache_dir.mkdir(parents=True)
    if words == ("--source-missing",):
        mount.url, words = str(mount.home / "missing"), ()
    logs = [] if "--log-file" in words else ["--log-file", str(mount.home / "new.log")]
    before = names(mount.home)
    done = run(*mount.command, *words, *logs, *foreground, check=False)
    assert done.status == 1
    assert not mountinfo.is_mounted(mount.mountpoint)
    left = names(mount.home) - before - {mount.home / "new.log"}
    assert left == set()
    log = mount.home / "new.log"
    assert not log.exists() or log.stat().st_size > 0
    assert names(mount.home) >= before


def test_a_mount_that_fails_leaves_a_cache_that_was_there_as_it_was(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.stop()
    done = run(*mount.command, "-o", "no_such_option", check=False)
    assert done.status == 1
    mount.start()
    assert mount.listed() == [name]
    assert mount.cat(name) == data


def test_a_mount_that_is_refused_leaves_the_cache_of_the_one_that_runs(
    make_mount: MakeMount,
) -> None:
    mount = make_mount()
    name, _ = mount.origin.new()
    mount.fetch(name)
    before = names(mount.cache_dir)
    other = mount.home / "elsewhere"
    other.mkdir()
    words = [*CACHEFS, "mount", mount.url, str(other), "--cache-dir", str(mount.cache_dir)]
    done = run(*words, check=False)
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert f"for the mount at {mount.mountpoint}" in line
    assert names(mount.cache_dir) >= before


@TRANSPORTS
def test_a_cache_directory_whose_worker_has_lost_its_supervisor_is_in_use(
    make_mount: MakeMount, transport: str
) -> None:
    mount = make_mount(options=["--transport", transport])
    mount.expect("the supervisor is gone")
    worker = mount.worker()
    assert mount.process is not None
    mount.process.kill()
    mount.process.wait()
    mount.process = None
    other = mount.home / "elsewhere"
    other.mkdir()
    words = [*CACHEFS, "mount", mount.url, str(other), "--cache-dir", str(mount.cache_dir)]
    done = run(*words, check=False)
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert f"`cachefs umount {mount.mountpoint}`" in line
    run(*CACHEFS, "umount", str(mount.mountpoint))
    assert not is_alive(worker)
    run(*words)
    run(*CACHEFS, "umount", str(other))

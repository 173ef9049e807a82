"""Starting: what cannot be mounted is one clear line and exit status 1, and nothing is mounted."""

import os
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.processes import Done, run

from cachefs.kernel import mountinfo

from .conftest import MakeMount


@pytest.fixture
def unmounted(make_mount: MakeMount) -> Mounted:
    """All that a mount needs, not mounted."""
    return make_mount(running=False)


def fails(mount: Mounted, *words: str, status: int = 1, command: list[str] | None = None) -> str:
    """The one line with which mounting fails, in the background and in the foreground alike."""
    lines = []
    for foreground in ((), ("--foreground",)):
        mount.log.write_text("")
        done = run(*(command or mount.command), *words, *foreground, check=False)
        assert done.status == status
        assert done.stdout == b""
        assert not mountinfo.is_mounted(mount.mountpoint)
        lines.append(one_line(done))
    return lines[0]


def one_line(done: Done) -> str:
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("cachefs: ")
    return line


def replaced(mount: Mounted, old: object, new: object) -> list[str]:
    return [str(new) if word == str(old) else word for word in mount.command]


def test_a_source_directory_that_is_missing(unmounted: Mounted) -> None:
    missing = unmounted.home / "missing"
    line = fails(unmounted, command=replaced(unmounted, unmounted.url, missing))
    assert f"{missing} does not exist" in line


def test_a_file_as_a_source(unmounted: Mounted) -> None:
    file = unmounted.home / "file"
    file.touch()
    line = fails(unmounted, command=replaced(unmounted, unmounted.url, file))
    assert f"{file} is not a directory" in line


def test_a_source_of_an_unknown_scheme(unmounted: Mounted) -> None:
    line = fails(unmounted, command=replaced(unmounted, unmounted.url, "ftp://host/images/"))
    assert "ftp" in line


def test_a_mountpoint_that_is_missing(unmounted: Mounted) -> None:
    unmounted.mountpoint.rmdir()
    line = fails(unmounted)
    assert f"{unmounted.mountpoint} does not exist" in line


def test_a_mountpoint_that_is_a_file(unmounted: Mounted) -> None:
    unmounted.mountpoint.rmdir()
    unmounted.mountpoint.touch()
    assert "is not a directory" in fails(unmounted)


def test_a_mountpoint_that_is_in_use(make_mount: MakeMount) -> None:
    mount = make_mount()
    other = replaced(mount, mount.cache_dir, mount.home / "other-cache")
    done = run(*other, check=False)
    assert done.status == 1
    assert "mounted" in one_line(done)
    assert mount.status()["images"] == 0


def test_a_cache_directory_in_use_by_another_daemon(make_mount: MakeMount) -> None:
    first, second = make_mount(), make_mount(running=False)
    line = fails(second, command=replaced(second, second.cache_dir, first.cache_dir))
    assert f"another daemon is using the cache directory {first.cache_dir}" in line
    assert first.status()["images"] == 0


def test_a_cache_directory_below_the_mountpoint(unmounted: Mounted) -> None:
    inside = unmounted.mountpoint / "cache"
    line = fails(unmounted, command=replaced(unmounted, unmounted.cache_dir, inside))
    assert "below the mountpoint" in line


def test_a_cache_directory_that_cannot_be_made(unmounted: Mounted) -> None:
    file = unmounted.home / "file"
    file.touch()
    line = fails(unmounted, command=replaced(unmounted, unmounted.cache_dir, file / "cache"))
    assert str(file) in line


def test_an_unknown_control_group(unmounted: Mounted) -> None:
    assert "no-such-group" in fails(unmounted, "--control-group", "no-such-group")


@pytest.mark.parametrize(
    "words",
    [
        ("--max-size", "much"),
        ("--max-size", "-1"),
        ("--max-size", "101%"),
        ("--min-free", ""),
        ("--stall-time", "soon"),
        ("--driver", "oracle"),
        ("--on-miss", "shrug"),
        ("--max-fetches", "0"),
        ("--log-level", "loud"),
        ("--no-such-option",),
        ("one", "argument", "more"),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_a_usage_error(unmounted: Mounted, words: tuple[str, ...]) -> None:
    done = run(*unmounted.command, *words, check=False)
    assert done.status == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert not mountinfo.is_mounted(unmounted.mountpoint)
    assert not unmounted.cache_dir.exists()


@pytest.mark.parametrize("text", ["max-size = 'much'", "nonsense = 1", "not TOML", "\udcff"])
def test_a_bad_configuration_file_is_named(unmounted: Mounted, text: str) -> None:
    file = unmounted.home / "cachefs.toml"
    file.write_bytes(os.fsencode(text))
    assert str(file) in fails(unmounted, "--config", str(file))


def test_an_unknown_mount_option(unmounted: Mounted) -> None:
    done = run(*unmounted.command, "-o", "no_such_option", check=False)
    assert done.status == 1
    assert "no_such_option" in done.stderr
    assert not mountinfo.is_mounted(unmounted.mountpoint)


def test_without_a_driver_that_works_sqlite_serves_after_one_warning(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(running=False, driver="xattr")
    shm = Path("/dev/shm", f"cachefs-test-{os.getpid()}")  # before Linux 6.6, without user xattrs
    mount.cache_dir = shm
    mount.expect("sqlite")
    try:
        mount.start()
        warnings = [line for line in mount.new_lines() if " WARNING " in line]
        driver = mount.status()["driver"]
        assert (driver, len(warnings)) in (("xattr", 0), ("sqlite", 1))
        mount.stop()
    finally:
        run("rm", "-rf", str(shm))


@pytest.mark.parametrize(("groups", "error"), [("4242", ""), ("4243", "Permission denied")])
def test_members_of_the_control_group_may_write_and_nobody_else(
    make_mount: MakeMount, groups: str, error: str
) -> None:
    mount = make_mount(options=["--control-group", "4242"])
    name, _ = mount.origin.new()
    # Into the mount as root, for the directories above it are root's alone; then another user.
    place = ["env", f"--chdir={mount.mountpoint}", "setpriv", "--reuid=65534", "--regid=65534"]
    done = run(*place, f"--groups={groups}", "touch", f"control/queue/{name}", check=False)
    assert error in done.stderr
    assert (done.status == 0) is (not error)
    if not error:
        mount.wait_listed("cached", name)
    assert run(*place, "--clear-groups", "cat", "control/status").stdout

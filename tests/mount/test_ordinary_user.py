"""An ordinary user mounts through fusermount3.

Where /dev/fuse is root's alone (a container; udev makes it 0666), or Python lies below root's home,
the user could not. So the tests run in a mount namespace of their own, in which a device node that
everybody may open, and nothing else, lies over /dev/fuse. Outside nothing changes.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cachefs_mount import CACHEFS
from support.images import Images
from support.processes import Done, run, start, wait_for

import cachefs

USER = 65534
"""nobody, who owns nothing here."""

_ROOT = Path(cachefs.__file__).parent.parent


class User:
    """An ordinary user in a namespace of their own, with a source directory."""

    def __init__(self, home: Path, holder: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.mountpoint = home / "mnt"
        self.origin = Images(home / "origin")
        # Not nsenter --wd: that directory would be the one outside, without the mount.
        place = ["env", f"--chdir={home}", f"HOME={home}"]
        self._enter = ["nsenter", "-t", str(holder.pid), "-m", *place]

    def as_root(self, *command: str, check: bool = True) -> Done:
        return run(*self._enter, *command, check=check)

    def run(self, *command: str, check: bool = True) -> Done:
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        place = ["env", f"PYTHONPATH={_ROOT}", "PYTHONDONTWRITEBYTECODE=1"]
        return run(*self._enter, *user, *place, *command, check=check)

    def mount(self, *options: str, check: bool = True) -> Done:
        words = ["mount", str(self.origin.directory), str(self.mountpoint), *options]
        return self.run(*CACHEFS, *words, "--min-free", "0", check=check)


def reveal(hidden: set[Path], stash: Path) -> list[str]:
    """Shell commands that let everybody reach the *hidden*: the first directory above one that is
    root's alone is covered by an empty one, in which all below it are put back."""
    covered: dict[Path, list[Path]] = {}
    for path in hidden:
        closed = next((top for top in reversed(path.parents) if not top.stat().st_mode & 1), None)
        if closed is not None and hidden.isdisjoint(path.parents):
            covered.setdefault(closed, []).append(path)
    keep, cover, put_back = [], [], []
    for closed, paths in covered.items():
        cover.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}")
        for path in paths:
            old, kept = shlex.quote(str(path)), f"{stash}-{len(keep)}"
            keep.append(f"mkdir {kept} && mount --bind {old} {kept}")
            put_back.append(f"mkdir -p {old} && mount --move {kept} {old}")
    return keep + cover + put_back


@pytest.fixture
def user() -> Iterator[User]:
    # Not tmp_path, which lies below a directory of root's alone.
    home = Path(tempfile.mkdtemp(prefix="cachefs-user-"))
    try:
        run("mknod", "-m", "666", str(home / "fuse"), "c", "10", "229")
        (home / "mnt").mkdir()
        (home / "origin").mkdir()
        for path in (home, home / "mnt", home / "origin"):
            path.chmod(0o755)
            os.chown(path, USER, USER)
        script = ["set -e", f"mount --bind {home}/fuse /dev/fuse"]
        script += reveal({Path(sys.base_prefix), Path(sys.prefix), _ROOT}, home / "stash")
        script += [f"touch {home}/ready", "exec sleep 300"]
        private = ["unshare", "--mount", "--propagation", "private"]
        holder = start(*private, "sh", "-c", "\n".join(script))
        try:
            wait_for(lambda: (home / "ready").exists() or holder.poll() is not None, "a namespace")
            assert holder.poll() is None, holder.communicate()[1].decode()
            user = User(home, holder)
            yield user
            user.as_root("umount", "-l", str(home / "mnt"), check=False)
        finally:
            holder.kill()
            holder.communicate()
    finally:
        shutil.rmtree(home)


@pytest.fixture
def mounted(user: User) -> Iterator[User]:
    user.mount()
    yield user
    user.run(*CACHEFS, "umount", str(user.mountpoint))
    assert str(user.mountpoint) not in user.run("cat", "/proc/self/mountinfo").text


def test_an_ordinary_user_mounts_reads_and_unmounts(mounted: User) -> None:
    name, data = mounted.origin.new()
    assert mounted.run("cat", f"mnt/images/{name}").stdout == data
    assert name in mounted.run(*CACHEFS, "ls", "--mount", "mnt").text
    assert "fuse.cachefs" in mounted.run("cat", "/proc/self/mounts").text


def test_the_cache_is_in_the_users_own_cache_directory(mounted: User) -> None:
    name, _ = mounted.origin.new()
    mounted.run(*CACHEFS, "queue", "--mount", "mnt", "--wait", name)
    (cache_dir,) = (mounted.home / ".cache" / "cachefs").iterdir()
    assert (cache_dir / name).stat().st_uid == USER


def test_an_ordinary_user_operates_the_mount(mounted: User) -> None:
    mounted.run("sh", "-c", "echo 1G > mnt/control/max_size")
    assert mounted.run("cat", "mnt/control/max_size").text == "1G\n"
    assert (
        mounted.run("stat", "-c", "%u", "mnt/images", "mnt/control").text.split() == [str(USER)] * 2
    )


def refused(user: User, *options: str) -> str:
    """The one line of a mount that fails, the same in the background and in the foreground."""
    lines = set()
    for foreground in ((), ("--foreground",)):
        done = user.mount(*options, *foreground, check=False)
        assert done.status == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("cachefs: ")
        lines.add(line)
    (line,) = lines
    assert str(user.mountpoint) not in user.run("cat", "/proc/self/mountinfo").text
    assert not list((user.home / ".cache").rglob("*")), "something is left behind"
    return line


def test_allow_other_without_user_allow_other_says_which_line_is_missing(user: User) -> None:
    line = refused(user, "-o", "allow_other")
    assert "allow_other" in line
    assert "/etc/fuse.conf needs a line user_allow_other" in line


def test_a_mountpoint_of_another_user_is_named(user: User) -> None:
    os.chown(user.mountpoint, 0, 0)
    line = refused(user)
    assert f"no permission to write to the mountpoint {user.mountpoint}" in line
    assert "of his own" in line


def test_a_device_that_the_user_may_not_open_is_named(user: User) -> None:
    (user.home / "fuse").chmod(0o600)
    line = refused(user)
    assert "no permission to open /dev/fuse" in line
    assert "root" in line


def test_without_fusermount3_a_user_is_told_what_to_install(user: User) -> None:
    (user.home / "empty").write_text("")
    helper = shutil.which("fusermount3")
    assert helper is not None
    user.as_root("mount", "--bind", str(user.home / "empty"), str(Path(helper).resolve()))
    line = refused(user)
    assert "fusermount3 is not installed" in line
    assert "install" in line


def test_a_transport_that_the_user_cannot_have_says_what_to_do(user: User) -> None:
    line = refused(user, "--transport", "relay")
    assert "the relay cannot run here" in line
    assert "auto" in line


def test_a_cache_directory_that_the_user_may_not_write_is_named(user: User) -> None:
    line = refused(user, "--cache-dir", "/usr/share/cachefs")
    assert "cannot make the cache directory /usr/share/cachefs: Permission denied" in line


def test_a_users_own_mount_is_proven_to_be_served_by_their_processes(mounted: User) -> None:
    before = mounted.run("cat", "mnt/control/status").text
    done = mounted.run(*CACHEFS, "upgrade", "--mount", "mnt", check=False)
    assert done.status == 2  # it is theirs, and plain
    assert "--yes" in done.stderr
    assert mounted.run("cat", "mnt/control/status").text == before


def test_a_source_that_the_user_may_not_read_is_one_clear_line(user: User) -> None:
    os.chown(user.origin.directory, 0, 0)
    user.origin.directory.chmod(0o700)
    done = user.mount(check=False)
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("cachefs: no permission to read directory")


def test_an_image_that_the_user_may_not_read_is_EACCES(mounted: User) -> None:
    name, _ = mounted.origin.new()
    path = mounted.origin.directory / name
    os.chown(path, 0, 0)
    path.chmod(0o600)
    assert "Permission denied" in mounted.run("cat", f"mnt/images/{name}", check=False).stderr


def test_a_mountpoint_of_somebody_else_is_refused(user: User) -> None:
    os.chown(user.mountpoint, 0, 0)
    done = user.mount(check=False)
    assert done.status == 1
    assert "cachefs: " in done.stderr
    assert str(user.mountpoint) not in user.run("cat", "/proc/self/mountinfo").text

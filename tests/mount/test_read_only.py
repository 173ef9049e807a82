"""Nothing below images/ can be changed, whoever tries and however; nor can the tree's shape."""

import os
import socket
from collections.abc import Callable

import pytest
from support.cachefs_mount import Mounted
from support.processes import failure, wait_for

REFUSED = ("EROFS", "EACCES", "EPERM")
Change = Callable[[str, str], object]
"""Does something to an image, with the name of one that does not exist at hand."""


def open_to(flags: int) -> Change:
    def change(image: str, _: str) -> None:
        os.close(os.open(image, flags))

    return change


def make_socket(_: str, fresh: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(os.path.dirname(fresh))  # the path of a socket is short
        try:
            server.bind(os.path.basename(fresh))
        finally:
            os.chdir(here)


CHANGES: dict[str, Change] = {
    "write": open_to(os.O_WRONLY),
    "read and write": open_to(os.O_RDWR),
    "append": open_to(os.O_WRONLY | os.O_APPEND),
    "truncate by open": open_to(os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda image, _: os.truncate(image, 0),
    "lengthen": lambda image, _: os.truncate(image, 10**6),
    "rename": os.rename,
    "move out": lambda image, fresh: os.rename(image, f"{os.path.dirname(image)}/../out"),
    "link": os.link,
    "symlink": os.symlink,
    "unlink": lambda image, _: os.unlink(image),
    "mkdir": lambda _, fresh: os.mkdir(fresh),
    "create": lambda _, fresh: os.open(fresh, os.O_WRONLY | os.O_CREAT),
    "create anew": lambda _, fresh: os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "mknod": lambda _, fresh: os.mknod(fresh),
    "mkfifo": lambda _, fresh: os.mkfifo(fresh),
    "socket": make_socket,
    "chmod": lambda image, _: os.chmod(image, 0o777),
    "chown": lambda image, _: os.chown(image, 1, 1),
    "setxattr": lambda image, _: os.setxattr(image, "user.cachefs.hits", b"7"),
    "setxattr of another name": lambda image, _: os.setxattr(image, "user.mine", b"7"),
    "removexattr": lambda image, _: os.removexattr(image, "user.cachefs.hits"),
    "utime": lambda image, _: os.utime(image, (1, 1)),
}


@pytest.mark.parametrize("state", ["cached", "uncached"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_an_image_cannot_be_changed(mount: Mounted, change: Change, state: str) -> None:
    name, data = mount.origin.new(1000)
    if state == "cached":
        mount.fetch(name)
    names = mount.listed()
    before = mount.kept()
    assert failure(change, mount.image(name), mount.image("fresh")) in REFUSED
    assert mount.listed() == names
    assert mount.kept() == before
    assert mount.cat(name) == data


@pytest.mark.parametrize("state", ["cached", "uncached"])
def test_trying_to_write_counts_no_hit_and_fetches_nothing(mount: Mounted, state: str) -> None:
    name, _ = mount.origin.new(1000)
    if state == "cached":
        mount.fetch(name)
    wait_for(lambda: mount.status()["fetching"] == 0, "the fetch to wind up")
    before = mount.status()
    assert failure(os.open, mount.image(name), os.O_WRONLY) in REFUSED
    after = mount.status()
    assert [after[key] for key in ("hits", "misses", "fetching")] == [
        before[key] for key in ("hits", "misses", "fetching")
    ]


@pytest.mark.parametrize("name", ["images", "control", "control/queue", "control/status"])
def test_what_makes_up_the_tree_cannot_be_removed_or_renamed(mount: Mounted, name: str) -> None:
    path = mount.mountpoint / name
    assert failure(os.rmdir if path.is_dir() else os.unlink, path) in REFUSED
    assert failure(os.rename, path, mount.mountpoint / "other") in REFUSED
    assert path.exists()


@pytest.mark.parametrize("place", ["", "control", "control/queue", "control/cached"])
def test_no_directory_can_be_made_anywhere(mount: Mounted, place: str) -> None:
    assert failure(os.mkdir, mount.mountpoint / place / "fresh") in REFUSED


@pytest.mark.parametrize("place", ["control", "control/cached", "control/incomplete"])
def test_no_file_can_be_made_where_none_means_anything(mount: Mounted, place: str) -> None:
    path = mount.mountpoint / place / "fresh"
    assert failure(os.open, path, os.O_WRONLY | os.O_CREAT) in REFUSED


@pytest.mark.parametrize("name", ["control/max_size", "control/queue"])
def test_control_files_keep_their_modes_and_owners(mount: Mounted, name: str) -> None:
    path = mount.mountpoint / name
    assert failure(os.chmod, path, 0o777) in REFUSED
    assert failure(os.chown, path, 1, 1) in REFUSED

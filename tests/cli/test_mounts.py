"""Finding the mounts of cachefs in the kernel's table."""

from pathlib import Path

import pytest

from cachefs.cli.mounts import Mounted, check_mount, only_mount, parse_mountinfo
from cachefs.errors import MountError

TABLE = rb"""22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
40 28 0:35 / /run/user/1000/doc rw,nosuid,nodev shared:20 - fuse.portal portal rw,user_id=1000
41 28 0:36 / /mnt/my\040images rw,nosuid shared:21 master:3 - fuse.cachefs https://h/a\040b/ rw
42 28 0:37 / /srv/tab\011\134slash rw - fuse cachefs rw,user_id=0
43 28 0:38 / /mnt/cachefsish rw - fuse.cachefsish cachefs rw
44 28 0:39 / /home/cachefs rw - ext4 cachefs rw
45 28 0:36 /images /jail/images rw,nosuid shared:21 - fuse.cachefs https://h/a\040b/ rw
46 28 0:40 / /mnt/hidden rw - fuse.cachefs /srv/x rw
47 46 0:41 / /mnt/hidden rw - tmpfs tmpfs rw
48 28 0:42 / /mnt/\303\274ber rw - fuse.cachefs /srv/\303\274 rw
not a line of it
"""


def test_mounts_of_cachefs_are_told_from_all_others() -> None:
    assert parse_mountinfo(TABLE) == [
        Mounted(Path("/mnt/my images"), "https://h/a b/"),
        Mounted(Path("/srv/tab\t\\slash"), "cachefs"),
        Mounted(Path("/mnt/über"), "/srv/ü"),
    ]


def test_the_only_mount_needs_no_name() -> None:
    assert only_mount([Mounted(Path("/mnt"), "x")]) == Path("/mnt")


def test_without_a_mount_the_user_is_told_to_say_where() -> None:
    with pytest.raises(MountError, match="--mount MOUNTPOINT"):
        only_mount([])


def test_among_several_mounts_all_are_named() -> None:
    with pytest.raises(MountError, match=r"/a, /b.*--mount MOUNTPOINT"):
        only_mount([Mounted(Path("/a"), "x"), Mounted(Path("/b"), "y")])


def test_a_directory_without_control_files_is_no_mount(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="is not a cachefs mount"):
        check_mount(tmp_path)

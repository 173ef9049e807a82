"""images/: what ordinary tools see of it, with each driver, from each kind of source."""

import hashlib
import os
import stat
import time
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.images import Images
from support.processes import failure, run, wait_for

from .conftest import KINDS, MakeMount

pytestmark = pytest.mark.parametrize("kind", KINDS, scope="module")


def hits(mount: Mounted, image_id: str) -> object:
    return mount.record(f"cached/{image_id}")["hits"]


def test_cat_gives_the_bytes_of_the_origin(mount: Mounted) -> None:
    name, data = mount.origin.new()
    assert mount.cat(name) == data


def test_a_cached_image_is_read_without_the_origin(mount: Mounted) -> None:
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.origin.remove(name)
    assert mount.cat(name) == data


def test_sha256sum_cmp_and_cp_agree_with_the_origin(mount: Mounted) -> None:
    name, data = mount.origin.new(3_000_000)
    mount.fetch(name)
    assert run("sha256sum", mount.image(name)).text.split()[0] == hashlib.sha256(data).hexdigest()
    run("cmp", mount.image(name), str(mount.origin.directory / name))
    run("cp", mount.image(name), str(mount.home / "copy"))
    assert (mount.home / "copy").read_bytes() == data


def test_dd_reads_a_part(mount: Mounted) -> None:
    name, data = mount.origin.new()
    part = run("dd", f"if={mount.image(name)}", "bs=1000", "skip=7", "count=3", "status=none")
    assert part.stdout == data[7000:10_000]


def test_ls_lists_cached_images_only(mount: Mounted) -> None:
    cached, uncached = mount.origin.new()[0], mount.origin.new()[0]
    mount.fetch(cached)
    os.stat(mount.image(uncached))
    names = run("ls", str(mount.images)).text.split()
    assert cached in names
    assert uncached not in names


def test_an_image_is_a_file_of_mode_0444_in_a_directory_of_mode_0555(
    make_mount: MakeMount, kind: tuple[str, str], open_home: Path
) -> None:
    mount = make_mount(driver=kind[0], source=kind[1], images=Images(open_home))
    name, data = mount.origin.new()
    mount.fetch(name)
    shown = run("stat", "-c", "%A %s", str(mount.images), mount.image(name)).text.split()
    assert shown[0] == "dr-xr-xr-x"
    assert shown[2:] == ["-r--r--r--", str(len(data))]


def test_an_uncached_image_looks_like_a_cached_one(
    make_mount: MakeMount, kind: tuple[str, str], open_home: Path
) -> None:
    mount = make_mount(driver=kind[0], source=kind[1], images=Images(open_home))
    name, data = mount.origin.new()
    status = os.stat(mount.image(name))
    assert stat.filemode(status.st_mode) == "-r--r--r--"
    assert status.st_size == len(data)


def test_stat_of_an_uncached_image_fetches_nothing(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    os.stat(mount.image(name))
    assert name not in mount.listed("incomplete")
    assert name not in mount.listed("cached")


def test_reading_an_uncached_image_caches_it(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.cat(name)
    mount.wait_listed("cached", name)
    assert name in mount.listed()


def test_every_open_counts_one_hit(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    assert hits(mount, name) == 0
    for count in (1, 2, 3):
        mount.cat(name)
        assert hits(mount, name) == count


def test_the_open_that_fetches_counts_one_hit(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.cat(name)
    mount.wait_listed("cached", name)
    assert hits(mount, name) == 1


def test_stat_ls_and_getfattr_count_no_hit(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    run("stat", mount.image(name))
    run("ls", "-l", str(mount.images))
    run("getfattr", "-d", mount.image(name))
    assert hits(mount, name) == 0


def test_status_counts_hits_and_misses(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    before = mount.status()
    mount.cat(name)
    mount.wait_listed("cached", name)
    wait_for(lambda: name not in mount.listed("incomplete"), "the fetch to end")
    mount.cat(name)
    after = mount.status()
    assert after["misses"] == before["misses"] + 1  # type: ignore[operator]
    assert after["hits"] == before["hits"] + 1  # type: ignore[operator]


def test_an_open_moves_last_accessed_to_now(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    before = time.time()
    mount.cat(name)
    assert before <= mount.record(f"cached/{name}")["last_accessed"] <= time.time()  # type: ignore[operator]


def test_getfattr_shows_the_record_of_a_cached_image(mount: Mounted) -> None:
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.touch(f"pinned/{name}")
    mount.cat(name)
    shown = run("getfattr", "-d", "--absolute-names", mount.image(name)).text
    lines = [line for line in shown.splitlines() if line.startswith("user.")]
    values = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    record = mount.record(f"cached/{name}")
    assert values == {
        "user.cachefs.state": "cached",
        "user.cachefs.hits": "1",
        "user.cachefs.size": str(len(data)),
        "user.cachefs.checksum": record["checksum"],
        "user.cachefs.fetched": str(record["fetched"]),
        "user.cachefs.last_accessed": str(record["last_accessed"]),
        "user.cachefs.pinned": "1",
    }


def test_an_uncached_image_has_the_state_absent(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    assert os.getxattr(mount.image(name), "user.cachefs.state") == b"absent"


def test_an_attribute_that_images_do_not_have_is_ENODATA(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    assert failure(os.getxattr, mount.image(name), "user.other") == "ENODATA"


def test_an_unknown_image_is_ENOENT(mount: Mounted) -> None:
    assert failure(os.stat, mount.image("unknown")) == "ENOENT"
    assert "No such file" in run("cat", mount.image("unknown"), check=False).stderr


def test_df_shows_max_size_and_what_is_left_of_it(mount: Mounted) -> None:
    name, data = mount.origin.new(2_000_000)
    mount.write("max_size", "64M")
    mount.fetch(name)
    shown = run("df", "-B1", "--output=size,used,avail", str(mount.mountpoint)).text
    size, used, free = map(int, shown.splitlines()[1].split())
    cached = int(mount.show("size"))
    assert cached >= len(data)
    assert size == 64 * 2**20
    assert cached <= used < cached + 64 * 4096 + 2**20
    assert free == size - used

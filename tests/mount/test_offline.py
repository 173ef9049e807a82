"""With the origin down, and after a daemon's death: what is cached is served, nothing is lost."""

import hashlib
import os

import pytest
from support.cachefs_mount import NGINX, Mounted
from support.processes import failure, run, wait_for

from .conftest import MakeMount


@pytest.fixture(params=["sqlite", "xattr"])
def offline(request: pytest.FixtureRequest, make_mount: MakeMount) -> Mounted:
    """A mount with one cached image, started again while its server is down."""
    mount = make_mount(driver=request.param, source=NGINX)
    mount.origin.put("cached", 3_000_000)
    mount.origin.put("uncached", 1000)
    mount.fetch("cached")
    mount.server.stop()
    mount.restart()
    return mount


def test_a_mount_starts_and_serves_its_images_while_the_origin_is_down(offline: Mounted) -> None:
    digest = hashlib.sha256((offline.origin.directory / "cached").read_bytes()).hexdigest()
    assert offline.listed() == ["cached"]
    assert run("sha256sum", offline.image("cached")).text.split()[0] == digest


def test_only_uncached_images_are_out_of_reach_while_the_origin_is_down(offline: Mounted) -> None:
    offline.expect(r"\(EHOSTUNREACH\)")
    assert failure(os.stat, offline.image("uncached")) == "EHOSTUNREACH"
    assert failure(os.stat, offline.image("cached")) == ""


def test_uncached_images_are_back_with_the_origin(offline: Mounted) -> None:
    offline.expect(r"\(EHOSTUNREACH\)")
    assert failure(os.stat, offline.image("uncached")) == "EHOSTUNREACH"
    offline.server.start()
    # A source that failed is left alone for a second.
    wait_for(lambda: failure(os.stat, offline.image("uncached")) == "", "the image")
    assert len(offline.cat("uncached")) == 1000
    (source,) = offline.status()["sources"]  # type: ignore[misc]
    assert source["healthy"] is True


@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
def test_hits_pins_and_order_survive_kill_9(make_mount: MakeMount, driver: str) -> None:
    mount = make_mount(driver=driver)
    mount.expect("detaching")
    names = [mount.origin.new()[0] for _ in range(3)]
    mount.fetch(*names)
    mount.cat(names[2])
    mount.cat(names[0])
    mount.cat(names[0])
    mount.touch(f"pinned/{names[1]}")
    before = {name: mount.record(f"cached/{name}") for name in names}
    assert [before[name]["hits"] for name in names] == [2, 0, 1]
    mount.kill()
    mount.start()
    after = {name: mount.record(f"cached/{name}") for name in names}
    assert after == before


@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
def test_records_are_the_same_after_a_clean_restart(make_mount: MakeMount, driver: str) -> None:
    mount = make_mount(driver=driver)
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.cat(name)
    before = mount.record(f"cached/{name}")
    mount.restart()
    assert mount.record(f"cached/{name}") == before
    assert mount.cat(name) == data


def test_a_fetch_that_kill_9_cut_off_is_never_shown_as_cached(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, limit_rate="2m")
    mount.expect("detaching")
    data = mount.origin.put("big", 6 * 2**20)
    mount.touch("queue/big")
    mount.wait_listed("incomplete", "big")
    mount.kill()
    mount.start()
    assert mount.listed() == []
    mount.wait_listed("cached", "big")
    assert mount.cat("big") == data


def test_a_file_without_a_record_is_adopted_and_one_gone_is_dropped(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, _ = mount.origin.new()
    mount.fetch(name)
    mount.stop()
    (mount.cache_dir / name).rename(mount.cache_dir / "adopted")
    mount.start()
    assert mount.listed() == ["adopted"]
    assert int(mount.show("size")) == 100_000

"""control/: what each of its files does, with each driver, from each kind of source."""

import json
import os
import stat
import time

import pytest
from support.cachefs_mount import Mounted
from support.processes import failure, run, wait_for

from cachefs.fetcher.prefetch import POLL

from .conftest import KINDS

pytestmark = pytest.mark.parametrize("kind", KINDS, scope="module")

KEYS = {
    *("image_id", "size", "hits", "last_accessed", "last_modified", "checksum"),  # Glance's
    *("state", "pinned", "fetched", "source", "error"),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("", 0o555),
        ("queue", 0o755),
        ("enqueue", 0o644),
        ("cached", 0o755),
        ("incomplete", 0o755),
        ("invalid", 0o755),
        ("pinned", 0o755),
        ("prune", 0o644),
        ("clean", 0o644),
        ("max_size", 0o644),
        ("min_free", 0o644),
        ("stall_time", 0o644),
        ("size", 0o444),
        ("status", 0o444),
        ("config", 0o444),
    ],
)
def test_a_control_file_shows_who_may_write_it(mount: Mounted, name: str, mode: int) -> None:
    assert oct(stat.S_IMODE(os.stat(mount.control / name).st_mode)) == oct(mode)


def test_size_is_the_bytes_cached(mount: Mounted) -> None:
    name, data = mount.origin.new()
    before = int(mount.show("size"))
    mount.fetch(name)
    assert int(mount.show("size")) == before + len(data)


def test_status_is_one_document_with_the_documented_keys(mount: Mounted) -> None:
    status = mount.status()
    assert status.keys() >= {
        *("size", "max_size", "min_free", "images", "hits", "misses", "evictions"),
        *("queued", "fetching", "invalid", "sources", "transport", "worker"),
    }
    (source,) = status["sources"]  # type: ignore[misc]
    assert source.keys() == {"url", "healthy", "error"}
    assert source["healthy"] is True
    assert status["transport"].keys() >= {"mode", "passthrough", "why"}  # type: ignore[attr-defined]
    assert status["worker"].keys() >= {"pid", "started", "restarts"}  # type: ignore[attr-defined]
    assert status["driver"] == mount.driver


def test_status_names_the_process_that_answers(mount: Mounted) -> None:
    pid = mount.status()["worker"]["pid"]  # type: ignore[index]
    assert b"cachefs" in run("cat", f"/proc/{pid}/cmdline").stdout


def test_status_counts_the_cached_images(mount: Mounted) -> None:
    name, data = mount.origin.new()
    before = mount.status()
    mount.fetch(name)
    after = mount.status()
    assert after["images"] == before["images"] + 1  # type: ignore[operator]
    assert after["size"] == before["size"] + len(data)  # type: ignore[operator]


def test_a_cached_image_has_a_record_with_the_documented_keys(mount: Mounted) -> None:
    name, data = mount.origin.new()
    before = time.time()
    mount.fetch(name)
    record = mount.record(f"cached/{name}")
    assert record.keys() >= KEYS
    assert record["image_id"] == name
    assert record["size"] == len(data)
    assert record["state"] == "cached"
    assert record["pinned"] is False
    assert record["error"] is None
    digest = run("sha256sum", str(mount.origin.directory / name)).text.split()[0]
    assert record["checksum"] == f"sha256:{digest}"
    assert before <= record["fetched"] <= time.time()  # type: ignore[operator]
    assert str(record["source"]).rstrip("/").endswith(mount.url.rstrip("/"))


def test_a_record_is_one_line_of_json(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    assert mount.show(f"cached/{name}").count("\n") == 1


def test_ls_of_cached_lists_what_is_cached(mount: Mounted) -> None:
    names = [mount.origin.new()[0] for _ in range(3)]
    mount.fetch(*names)
    shown = run("ls", str(mount.control / "cached")).text.split()
    assert set(names) <= set(shown)
    assert shown == sorted(mount.listed(), key=shown.index)


def test_rm_of_a_cached_record_evicts_the_image(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    mount.remove(f"cached/{name}")
    assert name not in mount.listed()
    assert name not in mount.listed("cached")
    assert not (mount.cache_dir / name).exists()


def test_rm_of_an_image_that_is_not_cached_is_ENOENT(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    assert failure(os.unlink, mount.control / "cached" / name) == "ENOENT"


def test_touch_pins_and_rm_unpins(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    mount.touch(f"pinned/{name}")
    assert name in mount.listed("pinned")
    assert mount.record(f"pinned/{name}")["pinned"] is True
    assert mount.record(f"cached/{name}")["pinned"] is True
    mount.remove(f"pinned/{name}")
    assert name not in mount.listed("pinned")
    assert mount.record(f"cached/{name}")["pinned"] is False


def test_rm_of_a_pinned_image_is_EBUSY(mount: Mounted) -> None:
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.touch(f"pinned/{name}")
    refused = run("rm", f"{mount.control}/cached/{name}", check=False)
    assert refused.status == 1
    assert "busy" in refused.stderr
    assert mount.cat(name) == data


def test_pinning_twice_changes_nothing(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    mount.touch(f"pinned/{name}")
    mount.touch(f"pinned/{name}")
    assert name in mount.listed("pinned")


def test_pinning_what_is_not_cached_queues_it_and_pins_it_then(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.touch(f"pinned/{name}")
    assert name in mount.listed("pinned")
    mount.wait_listed("cached", name)
    assert mount.record(f"pinned/{name}")["pinned"] is True
    assert failure(os.unlink, mount.control / "cached" / name) == "EBUSY"
    mount.remove(f"pinned/{name}")
    mount.remove(f"cached/{name}")


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 * 2**20), ("10G", 10 * 2**30), ("10GiB", 10 * 2**30), ("123456789", 123456789)],
)
def test_max_size_takes_sizes(mount: Mounted, text: str, size: int) -> None:
    run("sh", "-c", f"echo {text} > {mount.control}/max_size")
    assert mount.status()["max_size"] == size


def test_max_size_takes_a_share_of_the_disk(mount: Mounted) -> None:
    mount.write("max_size", "5%")
    disk = os.statvfs(mount.cache_dir)
    assert mount.status()["max_size"] == disk.f_blocks * disk.f_frsize * 5 // 100
    mount.write("max_size", "1G")


@pytest.mark.parametrize(
    ("name", "text"),
    [("max_size", "10G"), ("min_free", "1M"), ("min_free", "0"), ("stall_time", "3600")],
)
def test_a_setting_reads_as_it_was_written(mount: Mounted, name: str, text: str) -> None:
    mount.write(name, text)
    assert mount.show(name) == f"{text}\n"


def test_a_setting_can_be_written_by_tee_and_dd(mount: Mounted) -> None:
    run("sh", "-c", f"echo 2G | tee {mount.control}/max_size")
    assert mount.show("max_size") == "2G\n"
    run("sh", "-c", f"echo 3G | dd of={mount.control}/max_size status=none")
    assert mount.show("max_size") == "3G\n"


def test_prune_reports_what_it_dropped(mount: Mounted) -> None:
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.write("max_size", "1G")
    run("sh", "-c", f"echo > {mount.control}/prune")
    assert json.loads(mount.show("prune")) == {"files": 0, "bytes": 0}
    assert mount.cat(name) == data


def test_clean_removes_failures_and_reports_them(mount: Mounted) -> None:
    mount.expect("could not fetch")
    mount.touch("queue/unknown-to-clean")
    mount.wait_listed("invalid", "unknown-to-clean")
    count = len(mount.listed("invalid"))
    run("sh", "-c", f"echo 1 > {mount.control}/clean")
    assert json.loads(mount.show("clean")) == {"invalid": count, "stalled": 0}
    assert mount.listed("invalid") == []


def test_clean_removes_partial_files_older_than_the_stall_time(mount: Mounted) -> None:
    partial = mount.cache_dir / "incomplete" / "left-behind"
    partial.write_bytes(b"x" * 1000)
    os.utime(partial, (1, 1))
    run("sh", "-c", f"echo 60 > {mount.control}/clean")
    assert json.loads(mount.show("clean"))["stalled"] == 1
    assert not partial.exists()


def test_an_image_that_the_source_lacks_ends_in_invalid_with_the_reason(mount: Mounted) -> None:
    mount.expect("could not fetch 'lacking'")
    mount.touch("queue/lacking")
    mount.wait_listed("invalid", "lacking")
    record = mount.record("invalid/lacking")
    assert record.keys() >= KEYS
    assert record["state"] == "invalid"
    assert "not found" in str(record["error"])
    assert "lacking" not in mount.listed("queue")
    assert mount.status()["invalid"] == len(mount.listed("invalid"))


def test_rm_forgets_a_failure(mount: Mounted) -> None:
    mount.expect("could not fetch")
    mount.touch("queue/forgotten")
    mount.wait_listed("invalid", "forgotten")
    mount.remove("invalid/forgotten")
    assert "forgotten" not in mount.listed("invalid")


def test_touching_the_queue_tries_a_failed_image_again(mount: Mounted) -> None:
    mount.expect("could not fetch")
    mount.touch("queue/late")
    mount.wait_listed("invalid", "late")
    data = mount.origin.put("late", 1000)
    mount.fetch("late")
    assert "late" not in mount.listed("invalid")
    assert mount.cat("late") == data


def test_touching_the_queue_fetches_the_image(mount: Mounted) -> None:
    name, data = mount.origin.new()
    mount.touch(f"queue/{name}")
    mount.wait_listed("cached", name)
    assert name not in mount.listed("queue")
    assert (mount.cache_dir / name).read_bytes() == data


def test_queueing_what_is_cached_is_EEXIST(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    refused = run("touch", f"{mount.control}/queue/{name}", check=False)
    assert refused.status == 1
    assert "exists" in refused.stderr


def test_enqueue_takes_one_id_per_line(mount: Mounted) -> None:
    names = [mount.origin.new()[0] for _ in range(5)]
    run("sh", "-c", f"printf '%s\\n' {' '.join(names)} > {mount.control}/enqueue")
    mount.wait_listed("cached", *names)


def test_enqueue_passes_over_what_is_cached(mount: Mounted) -> None:
    cached, fresh = mount.origin.new()[0], mount.origin.new()[0]
    mount.fetch(cached)
    mount.write("enqueue", f"{cached}\n{fresh}")
    mount.wait_listed("cached", fresh)


def test_what_is_queued_in_the_cache_directory_is_noticed(mount: Mounted) -> None:
    assert POLL < 1, "it is noticed within a second"
    name, _ = mount.origin.new(10)
    (mount.cache_dir / "queue" / name).touch()
    wait_for(lambda: name in mount.listed(), "the image to be fetched")


@pytest.mark.parametrize("name", ["size", "status"])
def test_a_read_only_control_file_refuses_to_be_written(mount: Mounted, name: str) -> None:
    refused = run("sh", "-c", f"echo 1 | tee {mount.control}/{name}", check=False)
    assert refused.status != 0
    assert "not permitted" in refused.stderr or "denied" in refused.stderr

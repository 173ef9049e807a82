"""The command line on a real mount."""

import contextlib
import json
import os
import subprocess

import pytest
from support.cachefs_mount import CACHEFS, NGINX, Mounted
from support.processes import run

from .conftest import MakeMount


def names_of(text: str) -> set[str]:
    return {str(record["image_id"]) for record in json.loads(text)}


def test_ls_shows_the_cached_images(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    header, *lines = mount.cli("ls").text.splitlines()
    assert header.split()[0] == "SIZE"
    assert name in {line.split()[-1] for line in lines}


def test_ls_json_is_a_list_of_records(mount: Mounted) -> None:
    name, data = mount.origin.new()
    mount.fetch(name)
    records = json.loads(mount.cli("ls", "--json").text)
    (record,) = (record for record in records if record["image_id"] == name)
    assert (record["size"], record["state"]) == (len(data), "cached")


def test_ls_all_shows_failures_with_their_reasons(mount: Mounted) -> None:
    mount.expect("could not fetch")
    mount.touch("queue/not-there")
    mount.wait_listed("invalid", "not-there")
    (line,) = (line for line in mount.cli("ls", "--all").text.splitlines() if "not-there" in line)
    assert "invalid" in line
    assert "not found" in line


def test_status_is_for_people_and_status_json_for_programs(mount: Mounted) -> None:
    assert "max size" in mount.cli("status").text
    assert json.loads(mount.cli("status", "--json").text).keys() == mount.status().keys()


def test_queue_returns_at_once(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    assert mount.cli("queue", name).text == f"{name} is queued\n"
    mount.wait_listed("cached", name)


def test_queue_wait_returns_when_all_are_cached(mount: Mounted) -> None:
    names = [mount.origin.new()[0] for _ in range(3)]
    said = mount.cli("queue", "--wait", *names).text
    assert set(names) <= set(mount.listed())
    assert f"{names[0]} is cached" in said


def test_queue_wait_fails_when_one_fails_and_says_why(mount: Mounted) -> None:
    mount.expect("could not fetch 'lacking'")
    name, _ = mount.origin.new()
    done = mount.cli("queue", "--wait", "lacking", name, check=False)
    assert done.status == 1
    assert "cachefs: lacking: " in done.stderr
    assert "not found" in done.stderr
    assert name in mount.listed()


def test_queue_says_what_is_cached_already(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    done = mount.cli("queue", "--wait", name)
    assert "cached already" in done.text


def test_rm_evicts(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    assert mount.cli("rm", name).text == f"{name} is evicted\n"
    assert name not in mount.listed()


def test_rm_of_an_unknown_image_fails(mount: Mounted) -> None:
    done = mount.cli("rm", "unknown", check=False)
    assert done.status == 1
    assert done.stderr.startswith("cachefs: unknown is ")


def test_pin_keeps_rm_off_and_unpin_lets_it(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    mount.cli("pin", name)
    refused = mount.cli("rm", name, check=False)
    assert refused.status == 1
    assert "pinned" in refused.stderr
    mount.cli("unpin", name)
    mount.cli("rm", name)


def test_pin_of_what_is_not_cached_queues_it(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    assert mount.cli("pin", name).text.startswith(f"{name} is ")
    mount.wait_listed("cached", name)
    assert mount.record(f"cached/{name}")["pinned"] is True


def test_prune_says_what_it_evicted(mount: Mounted) -> None:
    assert mount.cli("prune").text == "evicted 0 images, 0 B\n"
    assert json.loads(mount.cli("prune", "--json").text) == {"files": 0, "bytes": 0}


@pytest.mark.parametrize("words", [(), ("--stall-time", "0"), ("--stall-time", "1h")])
def test_clean_forgets_failures(mount: Mounted, words: tuple[str, ...]) -> None:
    mount.expect("could not fetch")
    mount.touch("queue/to-clean")
    mount.wait_listed("invalid", "to-clean")
    assert "invalid and 0 stalled" in mount.cli("clean", *words).text
    assert mount.listed("invalid") == []


@pytest.mark.parametrize("words", [("rm", ".."), ("queue", ""), ("pin", "a/b"), ("rm", "queue")])
def test_a_bad_id_is_a_usage_error(mount: Mounted, words: tuple[str, ...]) -> None:
    assert mount.cli(*words, check=False).status == 2


def test_a_directory_that_is_no_mount_is_one_clear_line(mount: Mounted) -> None:
    done = run(*mount.program, "ls", "--mount", str(mount.home), check=False)
    assert done.status == 1
    assert done.stderr == f"cachefs: {mount.home} is not a cachefs mount\n"


def test_a_dead_mount_is_one_clear_line(make_mount: MakeMount) -> None:
    dead = make_mount()
    dead.kill()
    for command in ("ls", "status", "prune"):
        done = dead.cli(command, check=False)
        assert done.status == 1
        assert done.stderr.startswith("cachefs: ")
        assert "daemon is gone" in done.stderr


def alone(mount: Mounted, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command where this mount is the only cachefs, whatever else the machine has: in a
    mount namespace of its own."""
    others = (
        "awk '$3 == \"fuse.cachefs\" {print $2}' /proc/self/mounts | while read -r path; do "
        f'test "$(printf %b "$path")" = "{mount.mountpoint}" || umount -l "$(printf %b "$path")"; '
        'done; exec "$@"'
    )
    return subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", others, "sh", *mount.program, *words),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_the_mount_can_be_left_out_where_there_is_one(mount: Mounted) -> None:
    done = alone(mount, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cache_dir"] == str(mount.cache_dir)


def test_the_mount_must_be_said_where_there_are_several(
    mount: Mounted, make_mount: MakeMount
) -> None:
    other = make_mount()
    done = run(*mount.program, "ls", check=False)
    assert done.status == 1
    assert str(mount.mountpoint) in done.stderr
    assert str(other.mountpoint) in done.stderr


def test_queue_wait_tells_of_the_progress(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, limit_rate="2m")
    mount.origin.put("slow", 3 * 2**20)
    said = mount.cli("queue", "--wait", "slow").text.splitlines()
    assert said == [
        "slow is queued",
        "slow is being fetched, 3.0 MiB",
        "slow is cached, 3.0 MiB",
    ]


def test_queue_wait_shows_a_progress_bar_on_a_terminal(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, limit_rate="2m")
    mount.origin.put("slow", 6 * 2**20)
    ours, theirs = os.openpty()
    try:
        words = [*CACHEFS, "queue", "--wait", "--mount", str(mount.mountpoint), "slow"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        with subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        ) as p:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
                while data := os.read(ours, 4096):
                    shown += data
            assert p.wait(20) == 0
    finally:
        os.close(ours)
    assert b"6.0/6.0 MiB" in shown
    assert shown.count(b"\r") > 3, "it is drawn again and again"
    assert mount.listed("cached") == ["slow"]

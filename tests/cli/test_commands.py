"""What the commands print, touch and unlink, and how they end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from support.control_tree import FakeMount

from cachefs.cli import main
from cachefs.cli.output import local_time, one_line
from cachefs.image import State

Run = Callable[..., Result]
STATUS = {
    "size": 3 * 2**30,
    "max_size": 10 * 2**30,
    "min_free": "5%",
    "images": 12,
    "hits": 100,
    "misses": 3,
    "evictions": 1,
    "queued": 2,
    "fetching": 1,
    "invalid": 0,
    "sources": [
        {"url": "https://a/", "healthy": True, "error": None},
        {"url": "https://b/", "healthy": False, "error": "refused:\n\x1b[31mno"},
    ],
    "transport": {"mode": "plain", "passthrough": False, "why": "Linux 6.1 is before 6.9"},
    "worker": {"pid": 41, "started": 1.7e9, "restarts": 2},
}


def test_ls_shows_cached_images_only(fake: FakeMount, cachefs: Run) -> None:
    fake.put("debian 12.iso", size=3 * 2**29, hits=7, last_accessed=1.7e9, pinned=True)
    fake.put("arriving", State.INCOMPLETE)
    result = cachefs("ls")
    assert result.exit_code == 0
    header, line = result.output.splitlines()
    assert header.split() == ["SIZE", "HITS", "LAST", "USED", "PINNED", "ID"]
    assert line.split() == [
        "1.5",
        "GiB",
        "7",
        *local_time(1.7e9).split(),
        "yes",
        "debian",
        "12.iso",
    ]


def test_ls_all_shows_every_state_and_the_errors(fake: FakeMount, cachefs: Run) -> None:
    fake.put("a")
    fake.put("b", State.INCOMPLETE, progress=5)
    fake.put("c", State.QUEUED)
    fake.put("d", State.INVALID, error="wrong\nchecksum")
    lines = cachefs("ls", "--all").output.splitlines()[1:]
    assert [line.split()[5] for line in lines] == ["cached", "incomplete", "queued", "invalid"]
    assert lines[3].endswith("d (wrong checksum)")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_ls_json_is_one_array_of_records(fake: FakeMount, cachefs: Run, count: int) -> None:
    for number in range(count):
        fake.put(f"img-{number}", hits=number)
    records = json.loads(cachefs("ls", "--json").output)
    assert sorted(record["hits"] for record in records) == list(range(count))
    assert all(record["state"] == "cached" for record in records)


def test_status_is_readable_and_free_of_terminal_escapes(fake: FakeMount, cachefs: Run) -> None:
    fake.write_status(STATUS)
    output = cachefs("status").output
    assert "12, 3.0 GiB" in output
    assert "10.0 GiB (30% used)" in output
    assert "https://b/ (failing: refused: ?[31mno)" in output
    assert "plain, no passthrough (Linux 6.1 is before 6.9)" in output
    assert "pid 41" in output


def test_status_of_a_daemon_that_says_less_is_still_readable(fake: FakeMount, cachefs: Run) -> None:
    fake.write_status({"images": 1})
    result = cachefs("status")
    assert result.exit_code == 0
    assert "min free   ?" in result.output


def test_status_json_is_the_document(fake: FakeMount, cachefs: Run) -> None:
    fake.write_status(STATUS)
    assert json.loads(cachefs("status", "--json").output) == STATUS


def test_a_control_file_that_is_not_json_is_one_line(fake: FakeMount, cachefs: Run) -> None:
    (fake.control / "status").write_text("<html>\n")
    result = cachefs("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("cachefs: ")
    assert result.stderr.count("\n") == 1


def test_queue_touches_the_queue_file(fake: FakeMount, cachefs: Run) -> None:
    result = cachefs("queue", "a b", "~%#ü")
    assert result.exit_code == 0
    assert result.output == "a b is queued\n~%#ü is queued\n"
    assert sorted(path.name for path in (fake.control / "queue").iterdir()) == ["a b", "~%#ü"]


def test_rm_takes_the_image_from_where_it_stands(fake: FakeMount, cachefs: Run) -> None:
    for image_id, state in zip("abcd", State, strict=False):
        if state is not State.ABSENT:
            fake.put(image_id, state)
    fake.put("e", State.INVALID)
    result = cachefs("rm", "b", "c", "d", "e")
    assert result.output == "b is unqueued\nc is cancelled\nd is evicted\ne is forgotten\n"
    assert not any(files for _, _, files in os.walk(fake.control / "cached"))


def test_rm_prefers_the_cached_image(fake: FakeMount, cachefs: Run) -> None:
    fake.put("a")
    (fake.control / "invalid" / "a").touch()
    assert cachefs("rm", "a").output == "a is evicted\n"
    assert (fake.control / "invalid" / "a").exists()


def test_one_failure_does_not_keep_the_others_from_being_done(
    fake: FakeMount, cachefs: Run
) -> None:
    fake.put("there")
    result = cachefs("rm", "missing", "there")
    assert result.exit_code == 1
    assert result.stderr == "cachefs: missing is neither cached nor queued\n"
    assert result.stdout == "there is evicted\n"


def test_pin_and_unpin_are_a_file_each(fake: FakeMount, cachefs: Run) -> None:
    assert cachefs("pin", "a").output == "a is pinned\n"
    assert (fake.control / "pinned" / "a").exists()
    assert cachefs("unpin", "a").exit_code == 0
    again = cachefs("unpin", "a")
    assert (again.exit_code, again.stderr) == (1, "cachefs: a is not pinned\n")


@pytest.mark.parametrize("command", ["queue", "rm", "pin", "unpin"])
@pytest.mark.parametrize("image_id", ["", ".x", "a/b", "queue", "a\nb", "x" * 256])
def test_a_bad_id_is_a_usage_error(cachefs: Run, command: str, image_id: str) -> None:
    assert cachefs(command, "--", image_id).exit_code == 2


@pytest.mark.parametrize(
    "args", [["queue"], ["ls", "--nope"], ["nope"], ["clean", "--stall-time", "x"]]
)
def test_wrong_usage_ends_in_2(args: list[str]) -> None:
    assert CliRunner().invoke(main, args).exit_code == 2


def test_a_mountpoint_that_is_none_ends_in_1() -> None:
    result = CliRunner().invoke(main, ["ls", "--mount", "/nonexistent"])
    assert result.exit_code == 1
    assert result.stderr == "cachefs: /nonexistent is not a cachefs mount\n"


def test_umount_of_what_is_not_mounted_is_one_line(fake: FakeMount) -> None:
    result = CliRunner().invoke(main, ["umount", str(fake.root)])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "no cachefs is mounted at" in result.stderr


def test_control_c_ends_the_wait_in_130_and_leaves_the_image_queued(fake: FakeMount) -> None:
    fake.put("slow", State.QUEUED)
    with subprocess.Popen(
        [
            *(sys.executable, "-c", "from cachefs.cli import main; main()"),
            *("queue", "--wait", "--mount", str(fake.root), "slow"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "slow is queued\n"
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == 130
    assert error in ("", "cachefs: interrupted; still queued: slow\n")
    assert (fake.control / "queue" / "slow").exists()


def test_version_and_help_need_no_mount() -> None:
    assert CliRunner().invoke(main, ["--version"]).exit_code == 0
    assert CliRunner().invoke(main, ["mount", "--help"]).exit_code == 0


def test_foreign_text_becomes_one_printable_line() -> None:
    assert one_line("a\r\n b\t\x1b[2J\x00c\u202e") == "a b ?[2J?c?"

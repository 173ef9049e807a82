"""Every failure says what happened, to what, and what to do: one line, in words, of no exception's
name and no errno's number."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cachefs_mount import CACHEFS, Mounted
from support.processes import Done, run

from .conftest import MakeMount

_JARGON = re.compile(r"Errno|errno|\w+Error\b|Traceback|\[\w+ \d+\]|\bNone\b|repr|<\w+")
"""What only a programmer would understand."""


def said(done: Done) -> str:
    """The one line that a failure printed; of a usage error, the last. In the foreground what is
    logged meanwhile stands there, too."""
    assert done.status in (1, 2)
    lines = [line for line in done.stderr.strip().splitlines() if " INFO " not in line]
    if done.status == 2:
        assert lines[-1].startswith("Error: ")
    else:
        assert len(lines) == 1
        assert lines[0].startswith("cachefs: ")
    assert not _JARGON.search(lines[-1])
    return lines[-1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with ``src``, ``mnt``, a ``file``, a full, a read-only and a small filesystem."""
    for name in ("src", "mnt", "ro", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad.toml").write_text("max-size = 'much'\nmin-free =")
    (tmp_path / "unknown.toml").write_text("maxsize = 1")
    run("mount", "-t", "tmpfs", "-o", "size=1M,ro", "none", str(tmp_path / "ro"))
    run("mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path / "full"))
    run("dd", "if=/dev/zero", f"of={tmp_path}/full/filler", "bs=4k", check=False)
    try:
        yield tmp_path
    finally:
        run("umount", str(tmp_path / "ro"), check=False)
        run("umount", str(tmp_path / "full"), check=False)


MOUNTS = [
    ("no/src mnt", "no/src does not exist", "name the directory"),
    ("file mnt", "file is not a directory", "name the directory"),
    ("src no/mnt", "no/mnt does not exist", "mkdir"),
    ("src file", "file is not a directory", "name an empty one"),
    ("src src", "both the source and the mountpoint", "mount on another"),
    ("src mnt --cache-dir file/c", "file/c", "--cache-dir"),
    ("src mnt --cache-dir ro/c", "Read-only file system", "--cache-dir"),
    ("src mnt --cache-dir full/c", "full/c", "No space left|no room"),
    ("src mnt --cache-dir mnt/c", "mnt/c", "mountpoint"),
    ("src mnt --log-file no/log", "no/log", "--log-file"),
    ("src mnt --config no/file", "configuration file .*no/file", "No such file"),
    ("src mnt --config bad.toml", "bad.toml", "not TOML"),
    ("src mnt --config unknown.toml", "unknown 'maxsize'", "known are"),
    ("src mnt --max-size much", "'much' is not a size", "such as"),
    ("src mnt --timeout soon", "'soon' is not a time", "such as"),
    ("src mnt --driver oracle", "oracle", "sqlite"),
    ("src mnt --control-group nogrp", "no group 'nogrp'", "nogrp"),
    ("src mnt -o nonsense", "mnt: the kernel does not take -o nonsense", "leave it out"),
    ("src mnt -o nonsense --transport plain", "libfuse does not know -o nonsense", "leave it out"),
    ("ftp://h/x/ mnt", "'ftp'", "https://"),
    ("http:h/x/ mnt", "is no URL", "https://HOST"),
    ("http://h:x/ mnt", "URL", "bad host or port"),
]


@pytest.mark.parametrize(("words", "what", "remedy"), MOUNTS, ids=[each[0] for each in MOUNTS])
@pytest.mark.parametrize("foreground", [(), ("--foreground",)], ids=["background", "foreground"])
def test_a_mount_that_fails_says_what_is_wrong_with_what_and_what_to_do(
    place: Path, words: str, what: str, remedy: str, foreground: tuple[str, ...]
) -> None:
    if "--cache-dir" not in words:
        words += " --cache-dir c"
    done = subprocess.run(
        [*CACHEFS, "mount", *words.split(), *foreground],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    line = said(Done(done.returncode, done.stdout.encode(), done.stderr))
    assert re.search(what, line)
    assert re.search(remedy, line)
    assert not (place / "c").exists()


def test_a_limit_beyond_the_disk_is_said_at_the_mount(make_mount: MakeMount) -> None:
    mount = make_mount(running=False, options=["--max-size", "5000T"])
    done = run(*mount.command, "--log-file", str(mount.log))
    run(*mount.program, "umount", str(mount.mountpoint))
    (line,) = done.stderr.splitlines()
    assert "max-size 5000T is more than the filesystem of" in line
    assert "min-free" in line


COMMANDS = [
    ("rm unknown", "unknown is neither cached nor queued"),
    ("unpin unknown", "unknown is not pinned"),
    ("rm .hidden", "'.hidden'"),
    ("queue --priority high x", "'high'"),
    ("clean --stall-time soon", "'soon'"),
    ("frobnicate", "'frobnicate'"),
    ("ls --frobnicate", "--frobnicate"),
]


@pytest.mark.parametrize(("words", "what"), COMMANDS, ids=[each[0] for each in COMMANDS])
def test_a_command_that_fails_says_what_is_wrong_with_what(
    mount: Mounted, words: str, what: str
) -> None:
    assert what in said(mount.cli(*words.split(), check=False))


def test_a_mount_in_use_says_what_by(mount: Mounted) -> None:
    with mount.start_tool("sh", "-c", f"cd {mount.mountpoint} && exec sleep 60") as tool:
        os.waitid(os.P_PID, tool.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        while os.readlink(f"/proc/{tool.process.pid}/cwd") != str(mount.mountpoint):
            assert tool.process.poll() is None
        line = said(run(*CACHEFS, "umount", str(mount.mountpoint), check=False))
    assert f"{mount.mountpoint} is busy" in line
    assert f"({tool.process.pid})" in line
    assert "--lazy" in line


# What a fetch says, in the record and in the log

WRONG = f"{'0' * 64}  wrong\n"


@pytest.mark.parametrize("by", ["queue", "read"])
@pytest.mark.parametrize(
    ("image_id", "why"),
    [("lacking", "not found"), ("wrong", "checksum is sha256:"), ("large", "max_size")],
)
def test_a_failed_fetch_names_image_and_source_in_the_record_and_in_the_log(
    make_mount: MakeMount, image_id: str, why: str, by: str
) -> None:
    mount = make_mount(options=["--max-size", "1M"])
    mount.expect("")  # whatever it says: that is what the test is about
    mount.origin.put("wrong", 1000)
    mount.origin.put("large", 2 * 2**20)
    (mount.origin.directory / "SHA256SUMS").write_text(WRONG)
    if by == "queue":
        mount.touch(f"queue/{image_id}")
        mount.wait_listed("invalid", image_id)
        error = str(mount.record(f"invalid/{image_id}")["error"])
        assert image_id in error
        assert why in error
        assert not _JARGON.search(error)
        if image_id != "large":  # which has nothing to do with any source
            assert str(mount.origin.directory) in error
    else:
        run("cat", mount.image(image_id), check=False)
        if image_id == "lacking":
            return  # an answer, not a failure
    lines = [line for line in mount.new_lines() if why in line]
    assert any(image_id in line and str(mount.origin.directory) in line for line in lines), lines
    assert not any(_JARGON.search(line.partition(": ")[2]) for line in lines)

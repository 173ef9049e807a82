"""Credentials of a source are nowhere where another user, or a reader of logs, could see them."""

import os
import subprocess
from pathlib import Path

import pytest
from support.cachefs_mount import CACHEFS, Mounted
from support.processes import run, wait_for

from .conftest import MakeMount

SECRETS = ("s3cr3tpw", "t0k3nvalue", "0th3rpw")
URL = "http://user:s3cr3tpw@127.0.0.1:9/x/?token=t0k3nvalue"
FALLBACK = "http://user:0th3rpw@127.0.0.1:9/y/"


def secrets_in(text: str | bytes) -> set[str]:
    plain = text.decode(errors="replace") if isinstance(text, bytes) else text
    return {secret for secret in SECRETS if secret in plain}


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def tree(top: Path) -> bytes:
    """Every name, file, link and extended attribute below *top*."""
    found = []
    for path in top.rglob("*"):
        found.append(os.fsencode(path))
        if path.name not in ("images", "prune", "clean", "events") and path.is_file():
            found.append(path.read_bytes())
            found += [
                os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")
            ]
    return b"\n".join(found)


@pytest.fixture
def secret_mount(make_mount: MakeMount) -> Mounted:
    """A mount in the background of sources that have credentials, and that are down."""
    mount = make_mount(running=False)
    mount.url = URL
    mount.log = mount.home / "private.log"
    mount.expect("cannot connect", "could not fetch")
    done = run(*mount.command, "--fallback", FALLBACK, "--log-file", str(mount.log))
    assert (done.stdout, done.stderr) == (b"", "")
    return mount


def test_credentials_are_in_no_argument_vector_log_record_control_file_or_mount_table(
    secret_mount: Mounted,
) -> None:
    mount = secret_mount
    worker = mount.status()["worker"]
    assert isinstance(worker, dict)
    pids = worker["supervisor"], worker["pid"]
    try:
        run("cat", mount.image("some"), check=False)
        mount.touch("queue/other")
        wait_for(lambda: "other" in mount.log.read_text(), "a failure in the log")
        for pid in pids:
            assert not secrets_in(command_line(pid))
        assert b"http://127.0.0.1:9/x/" in command_line(pids[0])
        assert not secrets_in(mount.log.read_bytes())
        assert not secrets_in(tree(mount.control))
        assert not secrets_in(Path("/proc/self/mountinfo").read_bytes())
    finally:
        run(*mount.program, "umount", str(mount.mountpoint))
    assert not secrets_in(tree(mount.cache_dir))


def test_a_log_file_is_its_owners_alone(secret_mount: Mounted) -> None:
    run(*secret_mount.program, "umount", str(secret_mount.mountpoint))
    assert secret_mount.log.stat().st_mode & 0o777 == 0o600


def test_a_foreground_mount_hides_its_arguments_and_stays_the_same_process(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(running=False)
    mount.url = URL
    mount.start()
    assert mount.process is not None
    assert not secrets_in(command_line(mount.process.pid))
    assert str(mount.mountpoint).encode() in command_line(mount.process.pid)


@pytest.mark.parametrize(
    "words",
    [
        ("http:user:s3cr3tpw@127.0.0.1/x/", "MNT"),
        ("https:/user:s3cr3tpw@127.0.0.1/x/", "MNT"),
        ("user:s3cr3tpw@127.0.0.1/x/", "MNT"),
        ("http://user:p/s3cr3tpw@127.0.0.1/x/", "MNT"),
        ("ftp://user:s3cr3tpw@127.0.0.1/x/", "MNT"),
        ("http://user:s3cr3tpw@/x/", "MNT"),
        ("http://user:s3cr3tpw@127.0.0.1/x/#y", "MNT"),
        ("/", "MNT", "--fallback", "nfs://user:s3cr3tpw@h/"),
        ("/", "MNT", "--max-size", f"http://user:{'s3cr3tpw' * 9}@h/"),
        ("/", "MNT", "--driver", "http://user:s3cr3tpw@h/"),
        ("/", "MNT", "http://user:s3cr3tpw@h/"),
        ("/", "MNT", "--http://user:s3cr3tpw@h/"),
        ("/", "http://user:s3cr3tpw@h/"),
    ],
)
def test_no_error_of_mount_quotes_credentials(tmp_path: Path, words: tuple[str, ...]) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    given = [str(mountpoint) if word == "MNT" else word for word in words]
    done = run(*CACHEFS, "mount", *given, "--cache-dir", str(tmp_path / "c"), check=False)
    assert done.status in (1, 2)
    assert done.stderr
    assert not secrets_in(done.stderr)


@pytest.mark.parametrize(
    "toml",
    [
        'max-size = "http://user:s3cr3tpw@h/"',
        'log-level = "http://user:s3cr3tpw@h/"',
        '"http://user:s3cr3tpw@h/" = 1',
        'fallback = "user:s3cr3tpw@h/"',
        'fallback = "http:user:s3cr3tpw@h/"',
        "fallback = http://user:s3cr3tpw@h/",
        '[a."http://user:s3cr3tpw@h/"]\n[a."http://user:s3cr3tpw@h/"]',
    ],
)
def test_no_error_of_a_configuration_file_quotes_credentials(tmp_path: Path, toml: str) -> None:
    file = tmp_path / "cachefs.toml"
    file.write_text(toml)
    done = run(*CACHEFS, "mount", "/srv", str(tmp_path), "--config", str(file), check=False)
    assert done.status == 1
    assert str(file) in done.stderr
    assert not secrets_in(done.stderr)


def test_the_source_may_be_said_with_its_credentials_by_a_file(make_mount: MakeMount) -> None:
    mount = make_mount(running=False)
    file = mount.home / "cachefs.toml"
    file.write_text(f'source = "{URL}"\n')
    file.chmod(0o600)
    mount.url = "http://127.0.0.1:9/x/"
    mount.start("--config", str(file))
    assert mount.process is not None
    config = mount.show("config")
    assert f"file {file}" in config
    assert not secrets_in(config)


def test_credentials_in_a_file_that_all_may_read_are_warned_of(make_mount: MakeMount) -> None:
    mount = make_mount(running=False)
    file = mount.home / "cachefs.toml"
    file.write_text(f'fallback = "{FALLBACK}"\n')
    file.chmod(0o644)
    words = [*mount.command, "--log-file", str(mount.log), "--config", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    run(*mount.program, "umount", str(mount.mountpoint))
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cachefs: warning: {file} has credentials")
    assert "chmod 600" in line

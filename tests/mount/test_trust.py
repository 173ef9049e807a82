"""Which bytes a mount takes from its source for right, and which files it shows."""

import gzip
import hashlib
import os
import random
import signal
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from support.cachefs_mount import CACHEFS, DIRECTORY, NGINX, Mounted, mounted
from support.images import Images
from support.misbehaving import Exchange, misbehaving
from support.processes import failure, run, wait_for

from .conftest import MakeMount

CONTENT = random.Random(8).randbytes(6 * 2**20)
SUMS = f"{hashlib.sha256(CONTENT).hexdigest()}  disk.img\n".encode()
BUCKET = "location / { try_files $uri @no; } location @no { return 403; }"
PAGES = (
    "location / { try_files $uri @no; } location @no { default_type text/html; return 200 'x'; }"
)


def redirector(sums: bytes) -> Callable[[Exchange], None]:
    """Sends each request to the next of three mirrors, each with an ETag and a date of its own."""
    numbers = count()

    def answer(exchange: Exchange) -> None:
        uri = exchange.uri
        if uri == "/SHA256SUMS" and sums:
            exchange.send_file(sums, {"ETag": '"sums"'})
        elif uri == "/disk.img":
            to = f"/mirror{next(numbers) % 3}/disk.img"
            exchange.send_head(302, {"Location": to, "Content-Length": 0})
        elif not uri.endswith("/disk.img"):
            exchange.send_head(404, {"Content-Length": 0})
        elif exchange.headers.get("if-match", f'"{uri[7]}"') != f'"{uri[7]}"':
            exchange.send_head(412, {"Content-Length": 0})
        else:
            date = f"Tue, 03 Nov 2026 10:00:0{uri[7]} GMT"
            exchange.send_file(CONTENT, {"ETag": f'"{uri[7]}"', "Last-Modified": date})

    return answer


@pytest.mark.parametrize("sums", [SUMS, b""], ids=["summed", "unsummed"])
def test_an_image_behind_a_redirector_of_mirrors_is_read(
    make_mount: MakeMount, sums: bytes
) -> None:
    with misbehaving(redirector(sums)) as server:
        mount = make_mount(source=server.url)
        assert mount.cat("disk.img") == CONTENT
        mount.wait_listed("cached", "disk.img")
        assert mount.record("cached/disk.img")["verified"] is bool(sums)
        mount.clean_up()


@pytest.mark.parametrize("extra", [BUCKET, PAGES], ids=["bucket", "pages"])
def test_an_image_of_a_server_that_never_says_404_is_read(
    make_mount: MakeMount, extra: str
) -> None:
    mount = make_mount(source=NGINX, extra=extra)
    data = mount.origin.put("disk.img", CONTENT)
    assert mount.cat("disk.img") == data
    mount.wait_listed("cached", "disk.img")
    assert mount.record("cached/disk.img")["verified"] is True
    assert failure(os.open, mount.image("absent"), os.O_RDONLY) == "ENOENT"


@pytest.mark.parametrize("source", [DIRECTORY, NGINX])
@pytest.mark.parametrize(
    "sums",
    [gzip.compress(SUMS, mtime=0), b"", SUMS.decode().encode("utf-16-le")],
    ids=["gzip", "empty", "no byte order mark"],
)
def test_beside_a_list_that_cannot_be_read_no_image_is(
    make_mount: MakeMount, source: str, sums: bytes
) -> None:
    mount = make_mount(source=source)
    mount.origin.put("disk.img", b"X" + CONTENT[1:])
    (mount.origin.directory / "SHA256SUMS").write_bytes(sums)
    mount.expect(r"cannot verify images: 'SHA256SUMS'.*\(EIO\)")
    assert failure(os.open, mount.image("disk.img"), os.O_RDONLY) == "EIO"
    assert mount.listed() == []


@pytest.mark.parametrize("kind", ["utf-16", "size", "path"])
@pytest.mark.parametrize("source", [DIRECTORY, NGINX])
def test_wrong_bytes_are_found_out_by_a_list_in_another_hand(
    make_mount: MakeMount, source: str, kind: str
) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    lines = {
        "utf-16": SUMS.decode().encode("utf-16"),
        "size": f"{digest} {len(CONTENT)} disk.img\n".encode(),
        "path": f"{digest}  images/disk.img\n".encode(),
    }
    mount = make_mount(source=source)
    mount.origin.put("disk.img", b"X" + CONTENT[1:])
    (mount.origin.directory / "SHA256SUMS").write_bytes(lines[kind])
    mount.expect("could not fetch 'disk.img'", r"\(EIO\)", "checksum is sha256")
    with pytest.raises(OSError) as caught:
        Path(mount.image("disk.img")).read_bytes()
    assert caught.value.errno == 5
    assert mount.listed() == []


def test_a_mount_shows_nothing_that_a_link_leads_out_of_the_source_to(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    mount = make_mount()
    (tmp_path / "shadow").write_bytes(b"root:x")
    (mount.origin.directory / "link").symlink_to(tmp_path / "shadow")
    mount.expect(r"leads out of the source.*\(EACCES\)")
    assert failure(os.open, mount.image("link"), os.O_RDONLY) == "EACCES"


def as_stranger(mount: Mounted, name: str) -> str:
    """What becomes of a read by another user, who has been given the directory."""
    who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = run("env", "-C", str(mount.images), *who, "cat", name, check=False)
    assert done.status == 0 or "Permission denied" in done.stderr, done.stderr
    return "read" if done.status == 0 else "refused"


HIDDEN = ["file", "directory", "parent", "nothing"]


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's mount is his own")
@pytest.mark.parametrize("transport", ["relay", "plain"])
@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_others_may_not_read_at_the_source_they_never_read_through_a_mount(
    open_home: Path, hidden: str, driver: str, transport: str
) -> None:
    images = Images(open_home / "above" / "origin")
    inner = images.directory / "inner"
    inner.mkdir()
    (inner / "img").write_bytes(CONTENT)
    (images.directory / "img").symlink_to("inner/img")
    if hidden == "file":
        (inner / "img").chmod(0o600)
    elif hidden != "nothing":
        {"directory": inner, "parent": images.directory.parent}[hidden].chmod(0o700)
    expected = "read" if hidden == "nothing" else "refused"
    # Slow enough to be looked at under way.
    options = ["--transport", transport, "--bandwidth", "4M", "--uid", "65534", "--mode", "0444"]
    with mounted(open_home / "mount", images=images, driver=driver, options=options) as mount:
        if hidden != "nothing":
            assert as_stranger(mount, "img") == "refused"
            assert mount.listed("cached") == []
        with Path(mount.image("img")).open("rb") as file:
            assert file.read(10) == CONTENT[:10]
            if hidden != "nothing":
                assert as_stranger(mount, "img") == "refused"
                assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o400
            assert file.read() == CONTENT[10:]
            mount.wait_listed("cached", "img")
            assert as_stranger(mount, "img") == expected
            if transport == "relay":
                mount.expect("SIGKILL")
                before = mount.worker()
                os.kill(before, signal.SIGKILL)
                wait_for(lambda: mount.worker() != before, "another worker")
                assert as_stranger(mount, "img") == expected
                file.seek(0)
                assert file.read() == CONTENT
        mount.restart()
        assert as_stranger(mount, "img") == expected
        assert mount.cat("img") == CONTENT


def test_a_source_that_is_refused_at_the_start_is_one_line_in_the_log(tmp_path: Path) -> None:
    log, place = tmp_path / "log", tmp_path / "mnt"
    place.mkdir()
    twice = "http://127.0.0.1:1/"
    words = ["mount", twice, "--fallback", twice, str(place), "--log-file", str(log)]
    words += ["--cache-dir", str(tmp_path / "cache")]
    done = run(*CACHEFS, *words, check=False)
    assert done.status == 1
    assert "the same source is given twice" in done.stderr
    assert len(log.read_text().splitlines()) == 1

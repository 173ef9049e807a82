"""Which bytes a mount takes from its source for right, and which files it shows."""

import gzip
import hashlib
import os
import random
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from support.cachefs_mount import DIRECTORY, NGINX
from support.misbehaving import Exchange, misbehaving
from support.processes import failure

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


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's mount is his own")
def test_a_mount_of_root_shows_nothing_that_others_may_not_read_at_the_source(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    mount = make_mount()
    mount.origin.put("private", b"12345")
    (mount.origin.directory / "private").chmod(0o600)
    (tmp_path / "shadow").write_bytes(b"root:x")
    (mount.origin.directory / "link").symlink_to(tmp_path / "shadow")
    mount.expect(r"not every user may read it.*\(EACCES\)", r"leads out of the source.*\(EACCES\)")
    for name in ("private", "link"):
        assert failure(os.open, mount.image(name), os.O_RDONLY) == "EACCES"

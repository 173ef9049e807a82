"""Mirrors, content networks, buckets: servers behind one name that do not agree, or say "not there"
in words of their own."""

import gzip
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from email.utils import formatdate
from itertools import count
from pathlib import Path

import pytest
from support.misbehaving import Exchange, misbehaving
from support.origin import Origin, nginx

from cachefs.errors import (
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
    SourceTimeoutError,
    SourceUnreachableError,
)
from cachefs.sources import Source
from cachefs.sources.http import http_source

CONTENT = bytes(range(256)) * 16
SUMS = f"{hashlib.sha256(CONTENT).hexdigest()}  img\n".encode()
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def quick(url: str) -> Source:
    return http_source(url, connect_timeout=1, read_timeout=0.7)


def read(source: Source, start: int = 0, stop: int = len(CONTENT)) -> bytes:
    return b"".join(source.read(source.stat("img"), start, stop))


@pytest.fixture(autouse=True)
def img(images: Path) -> None:
    (images / "img").write_bytes(CONTENT)


class Mirrors:
    """A redirector: each request for the image goes to the next of three mirrors, of which each has
    an ETag and a date of its own."""

    def __init__(self, sums: bytes = b"", *, etags: bool = True) -> None:
        self.sums = sums
        self.etags = etags
        self.numbers = count()
        self.content = CONTENT
        self.sent: list[tuple[str, str | None]] = []

    def __call__(self, exchange: Exchange) -> None:
        uri = exchange.uri
        if uri == "/img":
            to = f"/mirror{next(self.numbers) % 3}/img"
            exchange.send_head(302, {"Location": to, "Content-Length": 0})
        elif uri.endswith("/img"):
            number = uri.removeprefix("/mirror")[0]
            self.sent.append((uri, exchange.headers.get("range")))
            headers = {"Last-Modified": f"Tue, 03 Nov 2026 10:00:0{number} GMT"}
            if self.etags:
                headers["ETag"] = f'"{number}"'
            wanted = exchange.headers.get("if-match")
            if wanted is not None and wanted != headers.get("ETag"):
                exchange.send_head(412, {"Content-Length": 0})
            else:
                exchange.send_file(self.content, headers)
        elif uri == "/SHA256SUMS" and self.sums:
            exchange.send_file(self.sums, {"ETag": '"sums"'})
        else:
            exchange.send_head(404, {"Content-Length": 0})


@pytest.mark.parametrize("etags", [True, False])
def test_with_a_digest_mirrors_that_differ_in_etag_and_date_are_one_source(etags: bool) -> None:
    with misbehaving(Mirrors(SUMS, etags=etags)) as server:
        source = quick(server.url)
        image = source.stat("img")
        assert str(image.digest) == DIGEST
        assert image.ranges
        parts = [b"".join(source.read(image, at, at + 512)) for at in range(0, len(CONTENT), 512)]
        assert b"".join(parts) == CONTENT
        assert {source.stat("img").version for _ in range(3)} == {str(image.digest)}


def test_with_a_digest_an_image_that_changed_with_its_list_is_seen_to_have(images: Path) -> None:
    (images / "SHA256SUMS").write_bytes(SUMS)
    for name in ("img", "SHA256SUMS"):
        os.utime(images / name, (1, 1))
    with nginx(images) as origin:
        source = http_source(origin.url)
        image = source.stat("img")
        (images / "img").write_bytes(CONTENT[::-1])
        (images / "SHA256SUMS").write_text(f"{'ab' * 32}  img\n")
        with pytest.raises(ImageChangedError):
            list(source.read(image, 0, 512))


def test_with_a_digest_an_image_put_right_is_of_another_version(images: Path) -> None:
    (images / "SHA256SUMS").write_bytes(SUMS)
    os.utime(images / "img", (1, 1))
    with nginx(images) as origin:
        source = http_source(origin.url)
        before = source.stat("img")
        (images / "img").write_bytes(CONTENT)
        after = source.stat("img")
        assert (after.version != before.version, after.digest) == (True, before.digest)


def test_with_a_digest_another_size_is_another_image_at_once() -> None:
    mirrors = Mirrors(SUMS)
    with misbehaving(mirrors) as server:
        source = quick(server.url)
        image = source.stat("img")
        mirrors.content = CONTENT + b"more"
        with pytest.raises(ImageChangedError):
            list(source.read(image, 0, 512))


@pytest.mark.parametrize("etags", [True, False])
def test_without_a_digest_the_version_that_was_described_is_asked_for_until_its_mirror_answers(
    etags: bool,
) -> None:
    with misbehaving(Mirrors(etags=etags)) as server:
        source = quick(server.url)
        image = source.stat("img")
        assert image.digest is None
        for _ in range(3):
            assert b"".join(source.read(image, 512, 1024)) == CONTENT[512:1024]


def test_without_a_digest_mirrors_that_differ_are_read_in_one_stream() -> None:
    mirrors = Mirrors()
    with misbehaving(mirrors) as server:
        source = quick(server.url)
        list(source.read(source.stat("img"), 0, 512))
        image = source.stat("img")
        assert (image.ranges, image.version) == (False, None)
        mirrors.sent.clear()
        assert b"".join(source.read(image, 0, image.size)) == CONTENT
        assert [range_ for _, range_ in mirrors.sent] == [None]


def test_an_image_that_has_really_changed_is_not_taken_for_mirrors(images: Path) -> None:
    with nginx(images) as origin:
        source = http_source(origin.url)
        image = source.stat("img")
        os.utime(images / "img", (1, 1_000_000_000))
        with pytest.raises(ImageChangedError):
            list(source.read(image, 0, 512))
        assert source.stat("img").ranges


BUCKET = "location / { try_files $uri @no; } location @no { return 403 '<Error/>'; }"
PAGES = (
    "location / { try_files $uri @no; } location @no { default_type text/html; return 200 'x'; }"
)
SAYS_405 = "location / { try_files $uri @no; } location @no { return 405; }"


@pytest.mark.parametrize("extra", [BUCKET, PAGES, SAYS_405], ids=["bucket", "pages", "405"])
def test_what_a_server_says_of_all_it_does_not_have_means_not_there(
    images: Path, extra: str
) -> None:
    with nginx(images, extra=extra) as origin:
        source = http_source(origin.url)
        assert source.stat("img").digest is None
        assert read(source) == CONTENT
        with pytest.raises(ImageNotFoundError, match="as for any"):
            source.stat("absent")


@pytest.mark.parametrize("extra", [BUCKET, PAGES, SAYS_405], ids=["bucket", "pages", "405"])
def test_a_list_at_such_a_server_counts(images: Path, extra: str) -> None:
    (images / "SHA256SUMS").write_bytes(SUMS)
    with nginx(images, extra=extra) as origin:
        assert str(http_source(origin.url).stat("img").digest) == DIGEST


def test_a_page_of_unknown_length_means_not_there_too() -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/img":
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        else:
            exchange.send_head(200, {"Content-Type": "text/html", "Transfer-Encoding": "chunked"})
            exchange.send(b"1\r\nx\r\n0\r\n\r\n")

    with misbehaving(answer) as server:
        source = quick(server.url)
        assert source.stat("img").digest is None
        with pytest.raises(ImageNotFoundError):
            source.stat("absent")


def test_text_that_is_answered_for_any_name_is_no_list() -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/img":
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        else:
            exchange.send_file(b"nothing here", {"Content-Type": "text/plain"})

    with misbehaving(answer) as server:
        assert quick(server.url).stat("img").digest is None


def test_a_list_that_a_server_refuses_which_says_404_elsewhere_is_an_error(images: Path) -> None:
    with nginx(images, refuse={"/SHA256SUMS": 403}) as origin:
        source = http_source(origin.url)
        with pytest.raises(SourceRefusedError, match="cannot verify images: 'SHA256SUMS'"):
            source.stat("img")


def test_405_is_not_an_absent_image(images: Path) -> None:
    with nginx(images, refuse={"/": 405}) as origin:
        with pytest.raises(SourceError, match="405") as caught:
            http_source(origin.url).stat("img")
        assert not isinstance(caught.value, ImageNotFoundError)


@pytest.mark.parametrize("status", [403, 405, 501])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_refuses_head_is_asked_with_get(
    images: Path, status: int, ranges: bool
) -> None:
    no_head = f"if ($request_method = HEAD) {{ return {status}; }}"
    (images / "empty").touch()
    with nginx(images, ranges=ranges, extra=no_head) as origin:
        source = http_source(origin.url)
        source.check()
        assert source.stat("img").ranges == ranges
        assert read(source) == CONTENT
        assert source.stat("empty").size == 0


def encoded(exchange: Exchange) -> None:
    if exchange.uri in ("/img", "/img.gz"):
        exchange.send_file(
            gzip.compress(CONTENT, mtime=0), {"Content-Encoding": "gzip", "ETag": '"1"'}
        )
    else:
        exchange.send_head(404, {"Content-Length": 0})


def test_an_image_in_a_coding_that_was_not_asked_for_is_refused() -> None:
    with misbehaving(encoded) as server:  # noqa: SIM117 reads better
        with pytest.raises(SourceError, match=r"'img' at .*Content-Encoding 'gzip'"):
            quick(server.url).stat("img")


def test_a_coding_that_begins_after_the_look_is_refused(images: Path) -> None:
    with nginx(images) as origin:
        image = http_source(origin.url).stat("img")
    with misbehaving(encoded) as server, pytest.raises(SourceError, match="Content-Encoding"):
        list(quick(server.url).read(image, 0, 512))


def test_a_compressed_file_whose_server_calls_it_so_is_the_file_itself() -> None:
    with misbehaving(encoded) as server:
        source = quick(server.url)
        image = source.stat("img.gz")
        data = b"".join(source.read(image, 0, image.size))
        assert gzip.decompress(data) == CONTENT


def test_a_list_in_a_coding_that_was_not_asked_for_is_an_error() -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/img":
            exchange.send_file(b"X" + CONTENT[1:], {"ETag": '"1"'})
        elif exchange.uri == "/SHA256SUMS":
            exchange.send_file(gzip.compress(SUMS, mtime=0), {"Content-Encoding": "gzip"})
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:  # noqa: SIM117 reads better
        with pytest.raises(SourceError, match=r"cannot verify images: 'SHA256SUMS' at .*gzip"):
            quick(server.url).stat("img")


def test_a_list_of_unknown_length_is_read() -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/img":
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        elif exchange.uri == "/SHA256SUMS":
            exchange.send_head(200, {"Transfer-Encoding": "chunked"})
            exchange.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(SUMS), SUMS))
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:
        assert str(quick(server.url).stat("img").digest) == DIGEST


@pytest.mark.parametrize("chunked", [True, False])
def test_a_list_that_is_cut_off_is_an_error(chunked: bool) -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/img":
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        elif exchange.uri == "/SHA256SUMS" and chunked:
            exchange.send_head(200, {"Transfer-Encoding": "chunked"})
            exchange.send(b"%x\r\n%s\r\n" % (len(SUMS), SUMS))
        elif exchange.uri == "/SHA256SUMS":
            exchange.send_head(200, {"Content-Length": 2 * len(SUMS)})
            exchange.send(SUMS)
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:  # noqa: SIM117 reads better
        with pytest.raises(SourceError, match="cannot verify images"):
            quick(server.url).stat("img")


def test_a_list_without_an_etag_is_asked_for_by_its_date(images: Path) -> None:
    (images / "other").write_bytes(b"1")
    (images / "SHA512SUMS").write_text(f"{'ab' * 64}  img\n{'cd' * 64}  other\n")
    now = [0.0]
    with nginx(images, etag=False) as origin:
        source = http_source(origin.url, clock=lambda: now[0])
        source.stat("img")
        now[0] += 5
        origin.forget_requests()
        assert str(source.stat("other").digest) == f"sha512:{'cd' * 64}"
        assert [(each.uri, each.status) for each in origin.requests()] == [
            ("/other", 206),
            ("/SHA512SUMS", 304),
        ]


def test_a_list_with_neither_etag_nor_date_is_not_asked_for_with_each_image(images: Path) -> None:
    (images / "other").write_bytes(b"1")
    (images / "SHA512SUMS").write_text(f"{'ab' * 64}  img\n{'cd' * 64}  other\n")
    now = [0.0]
    with nginx(images, etag=False, last_modified=False) as origin:
        source = http_source(origin.url, clock=lambda: now[0])
        source.stat("img")
        now[0] += 5
        origin.forget_requests()
        assert str(source.stat("other").digest) == f"sha512:{'cd' * 64}"
        assert [each.uri for each in origin.requests()] == ["/other"]


@pytest.mark.parametrize("kind", ["html", "json"])
def test_a_list_is_found_in_the_servers_listing(images: Path, kind: str) -> None:
    name = "Fedora Cloud-42 & 43-CHECKSUM"
    (images / name).write_text(f"SHA256 (img) = {'ab' * 32}\n")
    with nginx(images.parent, extra=f"autoindex on; autoindex_format {kind};") as origin:
        source = http_source(f"{origin.url}images%20here/")
        assert str(source.stat("img").digest) == f"sha256:{'ab' * 32}"


def test_a_listing_that_fails_or_lies_is_no_listing() -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/img":
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        elif exchange.uri == "/":
            page = b"<a href=http://x/><a href='../up-CHECKSUM'><a href=\"//h/x-CHECKSUM\">"
            exchange.send_head(200, {"Content-Type": "text/html", "Content-Length": 2 * len(page)})
            exchange.send(page)
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:
        assert quick(server.url).stat("img").digest is None
        assert not [each for each in server.requests if "-CHECKSUM" in each and "img" not in each]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date", "none", "nonsense", "past"])
def test_how_long_a_source_wants_to_be_left_alone_is_told(status: int, form: str) -> None:
    text = {
        "seconds": "7",
        "date": formatdate(4_000_000_000, usegmt=True),
        "none": None,
        "nonsense": "soon",
        "past": formatdate(1_000_000_000, usegmt=True),
    }[form]
    expected = {"seconds": 7.0, "date": 86400.0, "none": None, "nonsense": None, "past": 0.0}

    def answer(exchange: Exchange) -> None:
        dated = {"Retry-After": text} if text else {}
        exchange.send_head(status, {"Content-Length": 0, **dated})

    with misbehaving(answer) as server:
        source = quick(server.url)
        calls: list[Callable[[], object]] = [lambda: source.stat("img"), source.check]
        for call in calls:
            with pytest.raises(SourceError, match=f"{status}") as caught:
                call()
            assert caught.value.retry_after == expected[form]


@pytest.mark.parametrize("where", ["/img", "/SHA256SUMS"])
def test_a_list_or_a_range_that_is_refused_for_now_tells_for_how_long(
    images: Path, where: str
) -> None:
    with nginx(images) as origin:
        image = http_source(origin.url).stat("img")

    def answer(exchange: Exchange) -> None:
        if exchange.uri == where:
            exchange.send_head(429, {"Content-Length": 0, "Retry-After": 3})
        elif exchange.uri == "/img":
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:
        source = quick(server.url)
        with pytest.raises(SourceError) as caught:
            list(source.read(image, 0, 512)) if where == "/img" else source.stat("img")
        assert caught.value.retry_after == 3.0


def test_credentials_do_not_follow_a_redirect_to_another_host(images: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    def elsewhere(exchange: Exchange) -> None:
        seen.append((exchange.uri, exchange.headers.get("authorization")))
        body = CONTENT if exchange.uri == "/img" else SUMS
        exchange.send_file(body, {"ETag": '"1"'})

    with misbehaving(elsewhere) as other:

        def answer(exchange: Exchange) -> None:
            if exchange.uri.startswith(("/img?", "/SHA256SUMS?")):
                to = other.url.rstrip("/") + exchange.uri.partition("?")[0]
                exchange.send_head(302, {"Location": to, "Content-Length": 0})
            else:
                exchange.send_head(404, {"Content-Length": 0})

        with misbehaving(answer) as server:
            source = quick(server.url.replace("//", "//user:secret@") + "?token=hidden")
            assert read(source) == CONTENT
    assert {uri for uri, _ in seen} == {"/img", "/SHA256SUMS"}
    assert {authorization for _, authorization in seen} == {None}


@pytest.fixture
def own_authority(tmp_path: Path) -> Path:
    """The PEM file of an authority, whose certificate for 127.0.0.1 is in server.pem."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    new += ["-nodes", "-days", "2"]
    own = [*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=An authority of our own"]
    server = [*new, "-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=localhost"]
    server += ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
    server += ["-addext", "basicConstraints=critical,CA:FALSE"]
    for command in (own, server):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "ca.pem"


@pytest.fixture
def secure(images: Path, own_authority: Path) -> Iterator[Origin]:
    directory = own_authority.parent
    (images / "SHA256SUMS").write_bytes(SUMS)
    with nginx(images, tls=(directory / "server.pem", directory / "server.key")) as origin:
        yield origin


def test_a_certificate_of_an_unknown_authority_is_an_error_that_says_what_to_do(
    secure: Origin,
) -> None:
    source = http_source(secure.secure_url)
    calls: list[Callable[[], object]] = [lambda: source.stat("img"), source.check]
    for call in calls:
        with pytest.raises(SourceUnreachableError, match=r"UnknownIssuer.*SSL_CERT_FILE"):
            call()


def test_the_authorities_in_ssl_cert_file_are_trusted(
    secure: Origin, own_authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(own_authority))
    source = http_source(secure.secure_url)
    source.check()
    assert str(source.stat("img").digest) == DIGEST
    assert read(source) == CONTENT


def test_a_proxy_of_the_environment_is_asked_for_images_and_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(exchange: Exchange) -> None:
        name = exchange.uri.removeprefix("http://images.invalid/a/")
        if name in ("img", "SHA256SUMS"):
            exchange.send_file({"img": CONTENT, "SHA256SUMS": SUMS}[name], {"ETag": '"1"'})
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        source = quick("http://images.invalid/a/")
        assert str(source.stat("img").digest) == DIGEST
        assert read(source) == CONTENT


def test_a_secret_in_the_query_is_in_no_log_and_no_message(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    cut = [True]

    def answer(exchange: Exchange) -> None:
        assert exchange.uri.endswith("?token=hidden")
        if exchange.uri.startswith("/img"):
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        elif cut.pop() if cut else False:
            return  # urllib3 tries again, and would say so with the URL
        else:
            exchange.send_head(500, {"Content-Length": 0})

    with misbehaving(answer) as server:
        source = quick(f"{server.url}?token=hidden")
        with pytest.raises(SourceError, match="cannot verify") as caught:
            source.stat("img")
    assert len(server.requests) > 2
    assert "hidden" not in caplog.text + str(caught.value)


def test_a_list_at_a_byte_a_time_holds_up_no_image_that_another_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cachefs.sources.loading.PATIENCE", 0.3)

    def answer(exchange: Exchange) -> None:
        if exchange.uri in ("/img", "/slow"):
            exchange.send_file(CONTENT, {"ETag": '"1"'})
        elif exchange.uri == "/SHA512SUMS":
            exchange.send_head(200, {"Content-Length": 2**20})
            while not exchange.ended.wait(0.05):
                exchange.send(b"#")
        elif exchange.uri == "/SHA256SUMS":
            exchange.send_file(SUMS, {"ETag": '"1"'})
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:
        source = quick(server.url)
        assert str(source.stat("img").digest) == DIGEST
        for _ in range(3):
            with pytest.raises(SourceTimeoutError, match="'SHA512SUMS' has been arriving for"):
                source.stat("slow")
        assert server.requests.count("GET /SHA512SUMS") == 1

"""What only an HTTP server can do to us."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.misbehaving import Exchange, misbehaving
from support.origin import Origin, nginx

from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    InvalidValueError,
    SourceError,
    SourceRefusedError,
    SourceTimeoutError,
    SourceUnavailableError,
    SourceUnreachableError,
)
from cachefs.sources import Source, SourceImage
from cachefs.sources.http import http_source

MIB = 2**20
CONTENT = bytes(range(256)) * 16
ETAG = {"ETag": '"one"'}


def fetch(source: Source, image: SourceImage) -> bytes:
    return b"".join(source.read(image, 0, image.size))


def quick(url: str) -> Source:
    """A source without patience."""
    return http_source(url, connect_timeout=1, read_timeout=0.7)


@pytest.fixture(autouse=True)
def img(images: Path) -> None:
    (images / "img").write_bytes(CONTENT)


def test_one_request_describes_an_image_and_its_answers_are_reused(origin: Origin) -> None:
    source = http_source(origin.url)
    source.stat("img")
    asked = [(each.method, each.uri) for each in origin.requests()]
    assert asked.count(("GET", "/img")) == 1
    assert len(asked) == 13
    origin.forget_requests()
    source.stat("img")
    assert [(each.uri, each.range, each.status) for each in origin.requests()] == [
        ("/img", "bytes=0-0", 206)
    ]


def test_a_prefix_is_asked_for_once_encoded_and_with_single_slashes(
    images: Path, origin: Origin
) -> None:
    (images / "a%b c").mkdir()
    (images / "a%b c" / "d#e").write_bytes(b"1")
    for prefix in ("a%25b%20c", "a%25b%20c/"):
        origin.forget_requests()
        http_source(origin.url + prefix).stat("d#e")
        assert origin.requests()[0].uri == "/a%25b%20c/d%23e"


def test_no_coding_but_the_image_itself_is_accepted(images: Path) -> None:
    with nginx(images, gzip=True) as origin:
        source = http_source(origin.url)
        image = source.stat("img")
        assert (image.size, fetch(source, image)) == (len(CONTENT), CONTENT)
        assert {each.accept_encoding for each in origin.requests()} == {"identity"}


def test_connections_are_reused(origin: Origin) -> None:
    source = http_source(origin.url)
    for _ in range(5):
        image = source.stat("img")
        fetch(source, image)
        b"".join(source.read(image, 5, 50))
    # A connection goes back to the pool a moment after its last byte: now and then, too late.
    requests = origin.requests()
    assert len({each.connection for each in requests}) * 3 < len(requests)


@pytest.mark.parametrize(
    ("etag", "last_modified"), [(True, False), (False, True), (False, False), (True, True)]
)
def test_a_server_need_not_send_etag_or_date(images: Path, etag: bool, last_modified: bool) -> None:
    with nginx(images, etag=etag, last_modified=last_modified) as origin:
        source = http_source(origin.url)
        image = source.stat("img")
        assert (image.version is not None) == (etag or last_modified)
        assert fetch(source, image) == CONTENT
        assert b"".join(source.read(image, 3, 9)) == CONTENT[3:9]


@pytest.mark.parametrize("etag", [True, False])
def test_a_change_is_seen_with_and_without_etag(images: Path, etag: bool) -> None:
    with nginx(images, etag=etag) as origin:
        source = http_source(origin.url)
        image = source.stat("img")
        os.utime(images / "img", (1, 1_000_000_000))
        with pytest.raises(ImageChangedError):
            fetch(source, image)


def test_an_etag_is_a_precondition_of_the_read(origin: Origin) -> None:
    source = http_source(origin.url)
    image = source.stat("img")
    origin.forget_requests()
    fetch(source, image)
    assert [each.if_match for each in origin.requests()] == [image.version]


def test_a_server_without_ranges_is_read_from_the_start_only(images: Path) -> None:
    with nginx(images, ranges=False) as origin:
        source = http_source(origin.url)
        image = source.stat("img")
        assert not image.ranges
        assert fetch(source, image) == CONTENT
        assert b"".join(source.read(image, 0, 9)) == CONTENT[:9]
        with pytest.raises(SourceError, match="no ranges"):
            list(source.read(image, 3, 9))


def test_a_server_without_ranges_is_not_asked_for_one_each_time(images: Path) -> None:
    with nginx(images, ranges=False) as origin:
        source = http_source(origin.url)
        source.stat("img")
        origin.forget_requests()
        source.stat("img")
        assert [each.method for each in origin.requests()] == ["HEAD"]


def test_an_empty_image_of_a_server_that_answers_416_can_be_read() -> None:
    def answer(exchange: Exchange) -> None:
        if exchange.uri != "/img":
            exchange.send_head(404, {"Content-Length": 0})
        elif exchange.wanted:
            exchange.send_head(416, {"Content-Range": "bytes */0", "Content-Length": 0})
        else:
            exchange.send_head(200, {"Content-Length": 0})

    with misbehaving(answer) as server:
        source = quick(server.url)
        image = source.stat("img")
        assert (image.size, fetch(source, image)) == (0, b"")


def test_redirects_are_followed(images: Path) -> None:
    with nginx(images, redirect={"/old/": "/"}) as origin:
        source = http_source(origin.url + "old/")
        assert fetch(source, source.stat("img")) == CONTENT


def test_credentials_are_sent_and_never_shown(images: Path) -> None:
    with nginx(images, users={"me": "p@ss/word"}) as origin:
        address = origin.url.replace("//", "//me:p%40ss%2Fword@")
        source = http_source(address + "?token=hush")
        source.check()
        assert fetch(source, source.stat("img")) == CONTENT
        assert all("token=hush" in each.uri for each in origin.requests())
        assert source.url == origin.url
        with pytest.raises(ImageNotFoundError) as absent:
            source.stat("absent")
        origin.stop()
        with pytest.raises(SourceUnreachableError) as unreachable:
            source.stat("img")
        for text in (str(absent.value), str(unreachable.value)):
            assert "word" not in text
            assert "hush" not in text


def test_missing_credentials_fail_the_check_and_the_stat(images: Path) -> None:
    with nginx(images, users={"me": "word"}) as origin:
        source = http_source(origin.url)
        with pytest.raises(SourceRefusedError):
            source.check()
        with pytest.raises(SourceRefusedError):
            source.stat("img")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, SourceRefusedError),
        (403, SourceRefusedError),
        (404, ImageNotFoundError),
        (410, ImageNotFoundError),
        (500, SourceUnavailableError),
        (503, SourceUnavailableError),
        (504, SourceTimeoutError),
    ],
)
def test_a_status_is_an_error_of_ours_in_one_line(
    images: Path, status: int, error: type[CacheFSError]
) -> None:
    with nginx(images, refuse={"/sub/": status}) as origin:
        with pytest.raises(error) as caught:
            http_source(origin.url + "sub/").stat("img")
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)
        assert "'img' at http://127.0.0.1" in str(caught.value)


def test_a_login_page_is_no_image(images: Path) -> None:
    with nginx(images, login_page=True) as origin, pytest.raises(SourceError, match="HTML page"):
        http_source(origin.url).stat("img")


def test_a_login_page_that_appears_later_is_no_image(images: Path) -> None:
    with nginx(images, etag=False) as origin:
        image = http_source(origin.url).stat("img")
    with nginx(images, login_page=True) as other, pytest.raises(SourceError, match="HTML page"):
        list(http_source(other.url).read(image, 0, image.size))


def test_a_login_page_is_no_list_of_digests(images: Path) -> None:
    page = "location = /SHA256SUMS { default_type text/html; return 200 '<html>'; }"
    with nginx(images, extra=page) as origin, pytest.raises(SourceError, match="cannot verify"):
        http_source(origin.url).stat("img")


@pytest.mark.parametrize(
    ("status", "error"), [(403, SourceRefusedError), (500, SourceError), (504, SourceTimeoutError)]
)
@pytest.mark.parametrize("name", ["MD5SUMS", "img.sha512"])
def test_a_checksum_file_that_cannot_be_had_is_an_error(
    images: Path, name: str, status: int, error: type[CacheFSError]
) -> None:
    with nginx(images, refuse={f"/{name}": status}) as origin:  # noqa: SIM117 reads better
        with pytest.raises(error, match="cannot verify"):
            http_source(origin.url).stat("img")


def test_a_known_list_of_digests_is_asked_for_conditionally(images: Path) -> None:
    (images / "other").write_bytes(b"1")
    (images / "SHA512SUMS").write_text(f"{'ab' * 64}  img\n{'cd' * 64}  other\n")
    now = [0.0]
    with nginx(images) as origin:
        source = http_source(origin.url, clock=lambda: now[0])
        source.stat("img")
        now[0] += 5
        origin.forget_requests()
        digest = source.stat("other").digest
        assert digest is not None
        assert digest.hex == "cd" * 64
        assert [(each.uri, each.status) for each in origin.requests()] == [
            ("/other", 206),
            ("/SHA512SUMS", 304),
        ]


def test_an_outage_is_unreachable_and_ends_with_it(origin: Origin) -> None:
    source = http_source(origin.url)
    image = source.stat("img")
    origin.stop()
    calls: list[Callable[[], object]] = [
        source.check,
        lambda: source.stat("img"),
        lambda: fetch(source, image),
    ]
    for call in calls:
        with pytest.raises(SourceUnreachableError, match="Connection refused"):
            call()
    origin.start()
    source.check()
    assert fetch(source, source.stat("img")) == CONTENT


def test_an_unknown_host_is_unreachable() -> None:
    source = http_source("http://no-such-host.invalid/")
    with pytest.raises(SourceUnreachableError):
        source.stat("img")
    with pytest.raises(SourceUnreachableError):
        source.check()


def test_plain_http_behind_an_https_url_is_unreachable(origin: Origin) -> None:
    with pytest.raises(SourceUnreachableError):
        http_source(origin.url.replace("http:", "https:")).stat("img")


def test_a_server_that_says_nothing_times_out(origin: Origin) -> None:
    source = quick(origin.url)
    source.check()
    origin.freeze()
    with pytest.raises(SourceTimeoutError):
        source.stat("img")
    with pytest.raises(SourceTimeoutError):
        source.check()
    origin.thaw()
    assert source.stat("img").size == len(CONTENT)


def test_a_download_that_stalls_times_out(images: Path) -> None:
    (images / "big").write_bytes(os.urandom(32 * MIB))
    with nginx(images) as origin:
        source = quick(origin.url)
        image = source.stat("big")
        pieces = source.read(image, 0, image.size)
        next(pieces)
        origin.freeze()
        with pytest.raises(SourceTimeoutError):
            list(pieces)


def test_a_download_may_take_longer_than_any_one_read(image: SourceImage) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.send_head(200, ETAG | {"Content-Length": len(CONTENT)})
        for start in range(0, len(CONTENT), 256):
            exchange.send(CONTENT[start : start + 256])
            exchange.ended.wait(0.1)

    with misbehaving(answer) as server:
        began = time.monotonic()
        assert fetch(quick(server.url), image) == CONTENT
        assert time.monotonic() - began > 1.4


def test_an_outage_half_way_is_an_error_not_an_end(images: Path) -> None:
    (images / "big").write_bytes(os.urandom(32 * MIB))
    with nginx(images, limit_rate="16m") as origin:
        source = quick(origin.url)
        image = source.stat("big")
        pieces = source.read(image, 0, image.size)
        next(pieces)
        origin.stop()
        with pytest.raises(SourceError):
            list(pieces)


def test_closing_half_way_stops_the_download(images: Path) -> None:
    with (images / "huge").open("wb") as file:
        file.truncate(1024 * MIB)
    with nginx(images) as origin:
        source = http_source(origin.url)
        image = source.stat("huge")
        origin.forget_requests()
        pieces = source.read(image, 0, image.size)
        next(pieces)
        pieces.close()
        deadline = time.monotonic() + 5
        while not origin.requests() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 0 < origin.bytes_sent() < 64 * MIB


def test_a_server_that_fails_is_asked_twice_at_most(images: Path) -> None:
    with nginx(images, refuse={"/sub/": 503}) as origin:
        with pytest.raises(SourceError):
            http_source(origin.url + "sub/").stat("img")
        assert len(origin.requests()) <= 2


def properly(exchange: Exchange, **headers: object) -> None:
    if exchange.uri == "/img":
        exchange.send_file(CONTENT, {**ETAG, **headers})
    else:
        exchange.send_head(404, {"Content-Length": 0})


@pytest.fixture
def image() -> Iterator[SourceImage]:
    """What a well-behaved server said of the image."""
    with misbehaving(properly) as server:
        yield quick(server.url).stat("img")


def sends_another_version_whatever_if_match_says(exchange: Exchange) -> None:
    exchange.send_file(CONTENT[::-1], {"ETag": '"two"'})


def sends_another_size(exchange: Exchange) -> None:
    exchange.send_file(CONTENT + b"more", ETAG)


def stops_early(exchange: Exchange) -> None:
    exchange.send_file(CONTENT[:600], ETAG, size=len(CONTENT))


def sends_fewer_bytes_than_the_range(exchange: Exchange) -> None:
    exchange.send_head(
        206,
        ETAG | {"Content-Range": f"bytes 500-999/{len(CONTENT)}", "Content-Length": 100},
    )
    exchange.send(CONTENT[500:600])


def sends_more_bytes_than_the_range(exchange: Exchange) -> None:
    exchange.send_head(
        206,
        ETAG | {"Content-Range": f"bytes 500-999/{len(CONTENT)}", "Content-Length": 600},
    )
    exchange.send(CONTENT[500:1100])


def sends_another_range(exchange: Exchange) -> None:
    exchange.send_head(
        206,
        ETAG | {"Content-Range": f"bytes 0-499/{len(CONTENT)}", "Content-Length": 500},
    )
    exchange.send(CONTENT[:500])


def ignores_the_range(exchange: Exchange) -> None:
    exchange.send_head(200, ETAG | {"Content-Length": len(CONTENT)})
    exchange.send(CONTENT)


def has_lost_its_etag(exchange: Exchange) -> None:
    exchange.send_file(CONTENT)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (sends_another_version_whatever_if_match_says, ImageChangedError),
        (sends_another_size, ImageChangedError),
        (has_lost_its_etag, ImageChangedError),
        (stops_early, SourceUnavailableError),
        (sends_fewer_bytes_than_the_range, SourceError),
        (sends_more_bytes_than_the_range, SourceError),
        (sends_another_range, SourceError),
        (ignores_the_range, SourceError),
    ],
)
def test_a_server_that_lies_is_found_out(
    image: SourceImage, answer: Callable[[Exchange], None], error: type[CacheFSError]
) -> None:
    with misbehaving(answer) as server:
        with pytest.raises(error) as caught:
            list(quick(server.url).read(image, 500, 1000))
        assert type(caught.value) is error


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda exchange: None, SourceUnreachableError),
        (lambda exchange: exchange.stall(), SourceTimeoutError),
        (lambda exchange: exchange.connection.sendall(b"SSH-2.0-x\r\n\r\n"), SourceError),
        (lambda exchange: exchange.send_head(200, ETAG), SourceError),
        (lambda exchange: exchange.send_head(206, ETAG | {"Content-Length": 1}), SourceError),
        (
            lambda exchange: exchange.send_head(302, {"Location": "/img", "Content-Length": 0}),
            SourceError,
        ),
    ],
    ids=["closes", "stalls", "not HTTP", "no length", "no Content-Range", "redirects in a circle"],
)
def test_an_answer_that_describes_nothing_is_an_error(
    answer: Callable[[Exchange], None], error: type[CacheFSError]
) -> None:
    with misbehaving(answer) as server:
        with pytest.raises(error) as caught:
            quick(server.url).stat("img")
        assert "\n" not in str(caught.value)


def test_words_of_the_server_are_not_taken_for_obstores() -> None:
    words = b"\nDebug source:\nHttpError {\n    kind: Timeout,\n  status: 404,\n}\n"

    def answer(exchange: Exchange) -> None:
        exchange.send_head(500, {"Content-Length": len(words)})
        exchange.send(words)

    with misbehaving(answer) as server:
        with pytest.raises(SourceError, match="500") as caught:
            quick(server.url).stat("img")
        assert type(caught.value) is SourceUnavailableError


def test_a_weak_etag_is_compared_but_not_asked_for() -> None:
    asked: list[str | None] = []

    def answer(exchange: Exchange) -> None:
        asked.append(exchange.headers.get("if-match"))
        properly(exchange, ETag='W/"one"')

    with misbehaving(answer) as server:
        source = quick(server.url)
        image = source.stat("img")
        assert image.version == 'W/"one"'
        assert fetch(source, image) == CONTENT
    assert set(asked) == {None}


@pytest.mark.parametrize(
    "location",
    ["http://", "http:///x", "http://host:port/", "http://[::1/", "http://h/#x", "http://h:99999/"],
)
def test_a_bad_url_is_an_invalid_value(location: str) -> None:
    with pytest.raises(InvalidValueError):
        http_source(location)

"""What goes wrong at the source, as the errno that a reader sees and the words in the record."""

import hashlib
import os

import pytest
from support.cachefs_mount import DIRECTORY, NGINX, Mounted
from support.misbehaving import Exchange, misbehaving
from support.processes import failure, run, wait_for

from .conftest import MakeMount


def queued_failure(mount: Mounted, image_id: str) -> str:
    """Why an image could not be fetched from the queue."""
    mount.expect(f"could not fetch '{image_id}'")
    mount.touch(f"queue/{image_id}")
    mount.wait_listed("invalid", image_id)
    return str(mount.record(f"invalid/{image_id}")["error"])


@pytest.mark.parametrize("source", [DIRECTORY, NGINX])
def test_an_unknown_image_is_ENOENT(make_mount: MakeMount, source: str) -> None:
    mount = make_mount(source=source)
    assert failure(os.open, mount.image("unknown"), os.O_RDONLY) == "ENOENT"


def test_with_on_miss_enoent_an_uncached_image_does_not_exist(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, options=["--on-miss", "enoent"])
    name, data = mount.origin.new()
    assert failure(os.stat, mount.image(name)) == "ENOENT"
    assert mount.server.requests() == []
    mount.fetch(name)
    assert mount.cat(name) == data


def test_an_image_that_the_server_refuses_is_EACCES(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, refuse={"/secret": 403})
    mount.expect(r"\(EACCES\)")
    assert failure(os.open, mount.image("secret"), os.O_RDONLY) == "EACCES"
    mount.touch("queue/secret")  # credentials may be put right
    wait_for(lambda: mount.record("queue/secret")["error"], "the image to wait")
    assert "refuses" in str(mount.record("queue/secret")["error"])
    assert mount.listed("invalid") == []


def test_a_server_that_is_down_is_EHOSTUNREACH(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX)
    name, _ = mount.origin.new()
    mount.server.stop()
    mount.expect(r"\(EHOSTUNREACH\)")
    assert "No route to host" in run("cat", mount.image(name), check=False).stderr
    (source,) = mount.status()["sources"]  # type: ignore[misc]
    assert source["healthy"] is False
    assert "connect" in source["error"]


def test_a_queued_image_waits_out_a_short_outage(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX)
    name, data = mount.origin.new()
    mount.server.stop()
    mount.touch(f"queue/{name}")
    wait_for(lambda: any("asking for" in line for line in mount.new_lines()), "a retry")
    mount.server.start()
    mount.wait_listed("cached", name)
    assert mount.cat(name) == data


def test_a_gateway_that_times_out_is_ETIMEDOUT(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, refuse={"/slow": 504})
    mount.expect(r"\(ETIMEDOUT\)")
    assert failure(os.open, mount.image("slow"), os.O_RDONLY) == "ETIMEDOUT"


def test_a_server_that_says_nothing_is_ETIMEDOUT(make_mount: MakeMount) -> None:
    with misbehaving(Exchange.stall) as server:
        mount = make_mount(source=server.url, options=["--timeout", "1"])
        mount.expect(r"\(ETIMEDOUT\)")
        assert failure(os.open, mount.image("any"), os.O_RDONLY) == "ETIMEDOUT"
        mount.clean_up()


def test_an_image_larger_than_max_size_is_ENOSPC_and_evicts_nothing(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(options=["--max-size", "300000"])
    mount.expect("ENOSPC", "could not fetch 'huge'")
    kept, _ = mount.origin.new(100_000)
    mount.fetch(kept)
    mount.origin.put("huge", 300_001)
    assert "No space left" in run("cat", mount.image("huge"), check=False).stderr
    assert mount.listed() == [kept]
    assert "max_size" in str(mount.record("invalid/huge")["error"])


def test_no_room_beside_pinned_images_is_ENOSPC_and_evicts_nothing(make_mount: MakeMount) -> None:
    mount = make_mount(options=["--max-size", "300000", "--timeout", "1"])
    mount.expect("ENOSPC", "could not fetch")
    pinned, other = (mount.origin.new(100_000)[0] for _ in range(2))
    mount.fetch(pinned, other)
    mount.touch(f"pinned/{pinned}")
    large, _ = mount.origin.new(250_000)
    assert "No space left" in run("cat", mount.image(large), check=False).stderr
    assert any(f"pinned '{pinned}'" in line for line in mount.new_lines())
    assert mount.listed() == sorted([pinned, other])
    assert mount.listed("invalid") == []


@pytest.mark.parametrize("source", [DIRECTORY, NGINX])
@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
def test_wrong_bytes_of_a_queued_image_go_to_invalid_with_the_reason(
    make_mount: MakeMount, driver: str, source: str
) -> None:
    mount = make_mount(driver=driver, source=source)
    data = mount.origin.put("wrong", 100_000, digest="0" * 64)
    reason = queued_failure(mount, "wrong")
    assert "sha256" in reason
    assert (mount.cache_dir / "invalid" / "wrong").read_bytes() == data
    assert mount.listed() == []
    mount.remove("invalid/wrong")
    assert not (mount.cache_dir / "invalid" / "wrong").exists()


def test_wrong_bytes_that_are_tried_again_are_not_invalid_yet(make_mount: MakeMount) -> None:
    tries = []

    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/wrong":
            exchange.send_file(b"x" * 1000)
        elif exchange.uri == "/SHA256SUMS":
            tries.append(exchange)
            if len(tries) > 1:
                exchange.stall()
            exchange.send_file(b"0" * 64 + b"  wrong\n")
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:
        mount = make_mount(source=server.url)
        mount.expect("could not fetch 'wrong'")
        mount.touch("queue/wrong")
        wait_for(lambda: len(tries) == 2, "the second try")
        assert mount.listed("incomplete") == ["wrong"]
        assert "sha256" in str(mount.record("incomplete/wrong")["error"])
        assert mount.listed("invalid") == []
        assert failure(os.unlink, mount.control / "invalid/wrong") == "ENOENT"
        mount.remove("incomplete/wrong")
        assert mount.listed("incomplete") == []
        assert "sha256" in str(mount.record("invalid/wrong")["error"])
        mount.clean_up()


@pytest.mark.parametrize("source", [DIRECTORY, NGINX])
def test_a_checksum_that_was_put_right_counts_at_the_next_try(
    make_mount: MakeMount, source: str
) -> None:
    mount = make_mount(source=source)
    data = mount.origin.put("late", 100_000, digest="0" * 64)
    digests = mount.origin.directory / "SHA256SUMS"
    os.utime(digests, (1, 1))  # nginx tells versions by seconds
    queued_failure(mount, "late")
    digests.write_text(f"{hashlib.sha256(data).hexdigest()}  late\n")
    mount.fetch("late")
    assert mount.listed("invalid") == []
    assert mount.cat("late") == data


@pytest.mark.parametrize("source", [DIRECTORY, NGINX])
@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_a_reader_of_wrong_bytes_gets_EIO(make_mount: MakeMount, source: str, size: int) -> None:
    mount = make_mount(source=source)
    mount.expect("could not fetch 'wrong'", r"\(EIO\)", "wrong")
    mount.origin.put("wrong", size, digest="0" * 64)
    read = run("cat", mount.image("wrong"), check=False)
    assert read.status == 1
    assert "Input/output error" in read.stderr
    assert mount.listed() == []


def test_wrong_bytes_by_a_checksum_file_of_their_own_go_to_invalid(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.origin.put("wrong", 1000, digest="")
    (mount.origin.directory / "wrong.sha256").write_text("0" * 64 + "\n")
    assert "sha256" in queued_failure(mount, "wrong")


def test_a_login_page_with_status_200_is_no_image(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, login_page=True)
    mount.expect(r"\(EIO\)")
    assert failure(os.open, mount.image("any"), os.O_RDONLY) == "EIO"
    assert mount.listed() == []
    assert mount.kept().keys() <= {".cachefs/daemon", ".cachefs/lock"}


def test_a_source_directory_that_goes_away_is_no_missing_image(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, _ = mount.origin.new()
    mount.expect(r"\(EHOSTUNREACH\)")
    mount.origin.directory.rename(mount.home / "away")
    assert failure(os.stat, mount.image(name)) == "EHOSTUNREACH"


def test_a_server_that_cuts_the_download_off_does_not_make_a_short_image(
    make_mount: MakeMount,
) -> None:
    data = b"x" * 100_000

    def answer(exchange: Exchange) -> None:
        if exchange.uri != "/cut":
            exchange.send_head(404, {"Content-Length": 0})
        elif exchange.wanted == (0, 1):
            exchange.send_file(data)
        else:
            exchange.send_head(200, {"Content-Length": len(data)})
            exchange.send(data[:50_000])

    with misbehaving(answer) as server:
        mount = make_mount(source=server.url)
        mount.expect(r"\(EIO\)", "could not fetch", "fails, and is left alone")
        read = run("cat", mount.image("cut"), check=False)
        assert read.status == 1
        assert mount.listed() == []
        mount.clean_up()

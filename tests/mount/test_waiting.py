"""What passes is waited for, on real mounts: an origin that is rate limited, restarting, away or
killed half way; room that others have."""

import json
import os
import threading

import pytest
from support.cachefs_mount import NGINX, Mounted
from support.images import Images
from support.misbehaving import Exchange, misbehaving
from support.origin import nginx
from support.processes import wait_for

from .conftest import MakeMount

MIB = 2**20
AWAY = "fails, and is left alone"


@pytest.mark.parametrize("status", [429, 503])
def test_a_queued_image_waits_out_an_origin_that_refuses_everybody_for_a_while(
    make_mount: MakeMount, status: int
) -> None:
    data = os.urandom(MIB)
    limited = threading.Event()
    limited.set()

    def answer(exchange: Exchange) -> None:
        if limited.is_set():
            exchange.send_head(status, {"Content-Length": 0, "Retry-After": 1})
        elif exchange.uri == "/disk.img":
            exchange.send_file(data, {"ETag": '"1"'})
        else:
            exchange.send_head(404, {"Content-Length": 0})

    with misbehaving(answer) as server:
        mount = make_mount(source=server.url)
        mount.expect(AWAY)
        mount.touch("queue/disk.img")
        wait_for(lambda: mount.record("queue/disk.img")["error"], "the image to wait")
        record = mount.record("queue/disk.img")
        assert record["state"] == "queued"
        assert record["waiting"] == "source"
        assert str(status) in str(record["error"])
        assert mount.listed("queue") == ["disk.img"]
        assert mount.listed("invalid") == []
        limited.clear()
        mount.wait_listed("cached", "disk.img")
        assert mount.cat("disk.img") == data
        mount.clean_up()


def test_what_is_queued_is_not_invalid_whatever_became_of_it_before(make_mount: MakeMount) -> None:
    """Who saw a failure that had yet to leave the queue touched what was queued, in vain."""

    def answer(exchange: Exchange) -> None:
        exchange.send_head(503, {"Content-Length": 0, "Retry-After": 1000})

    with misbehaving(answer) as server:
        mount = make_mount(source=server.url)
        mount.expect(AWAY)
        mount.touch("queue/disk.img")
        mount.wait_listed("queue", "disk.img")
        rejected = mount.cache_dir / "invalid" / "disk.img"
        rejected.write_bytes(b"of an earlier try, a Glance's say")
        assert mount.listed("invalid") == []
        assert mount.status()["invalid"] == 0
        for tool in ("cat", "rm"):
            refused = mount.run(tool, f"{mount.control}/invalid/disk.img", check=False)
            assert "No such file" in refused.stderr
        assert rejected.exists()
        mount.remove("queue/disk.img")
        assert mount.listed("invalid") == ["disk.img"]
        assert mount.record("invalid/disk.img")["state"] == "invalid"
        mount.clean_up()


def test_queued_images_wait_for_room_and_each_is_fetched_once(make_mount: MakeMount) -> None:
    """Ten of 20 MiB under 50 MiB: six of them ended in invalid/."""
    mount = make_mount(source=NGINX, options=["--max-size", str(5 * MIB)])
    names = [f"image-{number}" for number in range(10)]
    for name in names:
        mount.origin.put(name, 2 * MIB)
    mount.write("enqueue", "\n".join(names))
    wait_for(lambda: not mount.listed("queue") + mount.listed("incomplete"), "the queue", 60)
    assert mount.listed("invalid") == []
    assert len(mount.listed()) == 2
    assert mount.status()["evictions"] == 8
    for name in names:
        assert mount.server.bytes_sent(f"/{name}") <= 2 * MIB + 10


def test_a_queued_image_waits_for_what_is_pinned_and_is_fetched_once_it_is_not(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(options=["--max-size", "300000"])
    pinned, _ = mount.origin.new(200_000)
    mount.fetch(pinned)
    mount.touch(f"pinned/{pinned}")
    name, _ = mount.origin.new(200_000)
    mount.touch(f"queue/{name}")
    record: dict[str, object] = {}

    def waits() -> bool:
        """Between two tries it is in queue/, else in incomplete/."""
        done = mount.run("cat", f"{mount.control}/queue/{name}", check=False)
        record.update(json.loads(done.stdout) if done.status == 0 else {})
        return bool(record.get("error"))

    wait_for(waits, "the image to wait")
    assert record["waiting"] == "room"
    assert f"pinned '{pinned}'" in str(record["error"])
    mount.remove(f"pinned/{pinned}")
    mount.wait_listed("cached", name)
    assert mount.listed() == [name]


def test_parallel_readers_of_what_fits_one_after_another_all_get_their_bytes(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(source=NGINX, options=["--max-size", str(3 * MIB)], limit_rate="4m")
    images = {
        f"image-{number}": mount.origin.put(f"image-{number}", 2 * MIB) for number in range(4)
    }
    got: dict[str, bytes] = {}

    def read(name: str) -> None:
        got[name] = mount.cat(name)

    readers = [threading.Thread(target=read, args=(name,)) for name in images]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert got == images
    assert mount.listed("invalid") == []


def test_a_reader_that_waits_for_room_can_be_killed(make_mount: MakeMount) -> None:
    mount = make_mount(options=["--max-size", "300000"])
    pinned, _ = mount.origin.new(200_000)
    mount.fetch(pinned)
    mount.touch(f"pinned/{pinned}")
    name, _ = mount.origin.new(200_000)
    with mount.start_tool("cat", mount.image(name)) as reader:
        mount.wait_listed("incomplete", name)
        wait_for(lambda: mount.record(f"incomplete/{name}")["error"], "the reader to wait")
        assert f"pinned '{pinned}'" in str(mount.record(f"incomplete/{name}")["error"])
        reader.process.terminate()
        reader.wait()
    wait_for(lambda: not mount.listed("incomplete"), "the wait to end")
    mount.expect("no room")


def test_a_fallback_goes_on_at_the_same_byte_when_the_origin_is_killed(
    make_mount: MakeMount, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mirror = Images(tmp_path_factory.mktemp("mirror"))
    data = mirror.put("img", 12 * MIB)
    with nginx(mirror.directory) as other:
        mount: Mounted = make_mount(
            source=NGINX, limit_rate="2m", options=["--fallback", other.url]
        )
        mount.expect(AWAY)
        mount.origin.put("img", data)
        assert [each["healthy"] for each in mount.status()["sources"]]  # type: ignore[attr-defined] == [None, None]
        with mount.start_tool("sha256sum", mount.image("img")) as reader:
            mount.wait_listed("incomplete", "img")
            wait_for(lambda: mount.record("incomplete/img")["progress"], "some progress")
            mount.server.stop()
            assert reader.wait(30) == 0
        mount.wait_listed("cached", "img")
        assert mount.cat("img") == data
        first, second = mount.status()["sources"]  # type: ignore[misc]
        assert (first["healthy"], second["healthy"]) == (False, True)
        sent = other.bytes_sent("/img")
        assert 0 < sent < len(data)
        mount.clean_up()

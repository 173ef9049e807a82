"""Images that are read while they come: what is served when, and who may give up."""

import os
import signal
import time

import pytest
from support.cachefs_mount import DIRECTORY, NGINX, Mounted
from support.misbehaving import Exchange, misbehaving
from support.processes import PATIENCE, failure, run, wait_for

from .conftest import MakeMount

MIB = 2**20
LONG = 16 * MIB


@pytest.fixture
def slow(make_mount: MakeMount) -> Mounted:
    """A mount whose image ``slow``, 16 MiB, takes several seconds on each connection."""
    mount = make_mount(source=NGINX, limit_rate="2m")
    mount.origin.put("slow", LONG)
    return mount


def original(mount: Mounted, image_id: str) -> bytes:
    return (mount.origin.directory / image_id).read_bytes()


def stalling(exchange: Exchange) -> None:
    """Describe ``stalled``, 4 MiB; send a quarter of any larger part of it, and fall silent."""
    if exchange.uri != "/stalled":
        exchange.send_head(404, {"Content-Length": 0})
    elif exchange.wanted == (0, 1):
        exchange.send_file(b"x", size=4 * MIB)
    else:
        start, stop = exchange.wanted or (0, 4 * MIB)
        head = {"Content-Length": stop - start}
        if exchange.wanted:
            head["Content-Range"] = f"bytes {start}-{stop - 1}/{4 * MIB}"  # type: ignore[assignment]
        exchange.send_head(206 if exchange.wanted else 200, head)
        exchange.send(b"x" * ((stop - start) // 4))
        exchange.stall()


def test_the_first_bytes_are_served_while_the_rest_is_fetched(slow: Mounted) -> None:
    head = run("dd", f"if={slow.image('slow')}", "bs=4k", "count=1", "status=none")
    assert head.stdout == original(slow, "slow")[:4096]
    assert slow.listed("incomplete") == ["slow"]


def test_the_last_bytes_do_not_wait_for_those_before(slow: Mounted) -> None:
    with open(slow.image("slow"), "rb", buffering=0) as file:
        tail = os.pread(file.fileno(), 4096, LONG - 4096)
        assert slow.listed("incomplete") == ["slow"]
    assert tail == original(slow, "slow")[-4096:]


def test_an_image_that_is_being_fetched_is_not_listed(slow: Mounted) -> None:
    with open(slow.image("slow"), "rb", buffering=0) as file:
        file.read(1)
        assert slow.listed() == slow.listed("cached") == []


def test_a_fetch_goes_on_when_its_reader_has_gone(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, limit_rate="2m")
    data = mount.origin.put("slow", 3 * MIB)
    run("head", "-c", "10", mount.image("slow"))
    mount.wait_listed("cached", "slow")
    assert mount.cat("slow") == data


def test_many_readers_of_an_uncached_image_cost_one_download(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, limit_rate="4m")
    data = mount.origin.put("shared", 3 * MIB)
    tools = [mount.start_tool("cmp", mount.image("shared"), mount.origin.directory / "shared")]
    tools += [mount.start_tool("cat", mount.image("shared")) for _ in range(7)]
    for tool in tools:
        with tool:
            assert tool.wait() == 0
    mount.wait_listed("cached", "shared")
    assert len(data) <= mount.server.bytes_sent("/shared") <= len(data) + 100


@pytest.mark.parametrize("source", [DIRECTORY, NGINX])
def test_every_open_around_the_moment_of_publication_is_counted(
    make_mount: MakeMount, source: str
) -> None:
    mount = make_mount(source=source)
    for number in range(10):
        name, data = mount.origin.new(200_000)
        opens = 0
        deadline = time.monotonic() + PATIENCE
        left = 5
        while left and time.monotonic() < deadline:
            with open(mount.image(name), "rb") as file:
                assert file.read() == data
            opens += 1
            left -= name in mount.listed("cached")
        wait_for(lambda: not mount.listed("incomplete"), "the fetch to end")
        assert (number, mount.record(f"cached/{name}")["hits"]) == (number, opens)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("tool", ["cat", "dd"])
def test_a_reader_of_a_stalled_image_is_interrupted_at_once(
    make_mount: MakeMount, tool: str, number: signal.Signals
) -> None:
    with misbehaving(stalling) as server:
        mount = make_mount(source=server.url)
        mount.expect("read: the fetch of 'stalled' was cancelled")
        path = mount.image("stalled")
        command = ["cat", path] if tool == "cat" else ["dd", f"if={path}", "bs=1M"]
        with mount.start_tool(*command) as reader:
            wait_for(lambda: mount.listed("incomplete") == ["stalled"], "the fetch to begin")
            wait_for(lambda: blocked_in_read(reader.process.pid), "the reader to block")
            reader.process.send_signal(number)
            assert reader.wait() == -number
        assert mount.status()["fetching"] == 1
        mount.remove("incomplete/stalled")
        assert mount.clean_up() == []


def blocked_in_read(pid: int) -> bool:
    """Whether the process waits in read(2), system call 0 or 63."""
    with open(f"/proc/{pid}/syscall") as file:
        return file.read().split()[0] in ("0", "63")


def test_a_lookup_that_the_origin_does_not_answer_is_interrupted_at_once(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(source=NGINX)
    name, data = mount.origin.new()
    mount.server.freeze()
    with mount.start_tool("stat", mount.image(name)) as reader:
        with pytest.raises(Exception, match="timed out"):
            reader.wait(0.5)
        reader.process.send_signal(signal.SIGINT)
        assert reader.wait() == -signal.SIGINT
    mount.server.thaw()
    assert mount.cat(name) == data


def test_other_images_are_served_while_one_stalls(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX)
    name, data = mount.origin.new()
    other, _ = mount.origin.new()
    mount.fetch(name)
    mount.server.freeze()
    with mount.start_tool("cat", mount.image(other)):
        assert mount.cat(name, timeout=PATIENCE) == data
        assert mount.listed() == [name]
    mount.server.thaw()


def test_an_eviction_does_not_stop_the_directory_while_a_look_up_waits(
    make_mount: MakeMount,
) -> None:
    """Which would wait in the kernel for the directory, and all others behind it."""
    mount = make_mount(source=NGINX)
    names = [mount.origin.new()[0] for _ in range(3)]
    mount.fetch(*names)
    other, _ = mount.origin.new()
    mount.expect("lookup: ")
    mount.server.freeze()
    with mount.start_tool("cat", mount.image(other)) as reader:
        wait_for(lambda: is_opening(reader.process.pid), "the look-up to wait")
        for name in names[1:]:
            mount.remove(f"cached/{name}")
        for _ in range(3):
            listed = mount.run("ls", str(mount.images), timeout=5).stdout.split()
            assert listed == [names[0].encode()]
    mount.server.thaw()


def is_opening(pid: int) -> bool:
    """Whether the process waits in openat(2), system call 257 or 56."""
    with open(f"/proc/{pid}/syscall") as file:
        return file.read().split()[0] in ("257", "56")


def test_the_daemon_ends_on_sigterm_while_a_reader_waits(make_mount: MakeMount) -> None:
    with misbehaving(stalling) as server:
        mount = make_mount(source=server.url)
        mount.expect("read: the daemon ended")
        with mount.start_tool("cat", mount.image("stalled")) as reader:
            mount.wait_listed("incomplete", "stalled")
            wait_for(lambda: blocked_in_read(reader.process.pid), "the reader to block")
            mount.stop()
            assert reader.wait() == 1


def test_an_outage_while_reading_is_an_error_at_last_and_no_image(slow: Mounted) -> None:
    slow.expect("slow", r"\((EIO|EHOSTUNREACH)\)", "fails, and is left alone")
    with slow.start_tool("cat", slow.image("slow")) as reader:
        slow.wait_listed("incomplete", "slow")
        wait_for(lambda: slow.record("incomplete/slow")["progress"], "some progress")
        slow.server.stop()
        assert reader.wait(30) == 1
    assert slow.listed() == []
    assert slow.listed("invalid") == []
    wait_for(lambda: slow.listed("queue") == ["slow"], "the image to wait for its source")
    wait_for(lambda: slow.record("queue/slow")["error"], "its record to say why")
    slow.server.start()
    slow.wait_listed("cached", "slow")


def test_a_short_outage_while_reading_is_not_noticed(slow: Mounted) -> None:
    copy = slow.home / "copy"
    slow.expect("is left alone")
    with slow.start_tool("cp", slow.image("slow"), str(copy)) as reader:
        slow.wait_listed("incomplete", "slow")
        wait_for(lambda: slow.record("incomplete/slow")["progress"], "some progress")
        slow.server.stop()
        wait_for(lambda: any("again in" in line for line in slow.new_lines()), "a retry")
        slow.server.start()
        assert reader.wait(40) == 0
    assert copy.read_bytes() == original(slow, "slow")


def test_an_image_that_changes_while_it_is_fetched_is_EIO(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, limit_rate="500k")
    mount.expect("slow", r"\(EIO\)")
    mount.origin.put("slow", 8 * MIB)
    with mount.start_tool("cat", mount.image("slow")) as reader:
        mount.wait_listed("incomplete", "slow")
        wait_for(lambda: mount.record("incomplete/slow")["progress"], "some progress")
        mount.origin.put("slow", 8 * MIB)
        mount.server.stop()
        mount.server.start()
        assert reader.wait(20) == 1
    assert mount.listed() == []


def test_with_on_miss_enoent_an_image_that_is_being_fetched_does_not_exist_yet(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(source=NGINX, limit_rate="1m", options=["--on-miss", "enoent"])
    mount.origin.put("slow", 2 * MIB)
    mount.touch("queue/slow")
    mount.wait_listed("incomplete", "slow")
    assert failure(os.stat, mount.image("slow")) == "ENOENT"
    mount.wait_listed("cached", "slow")
    assert failure(os.stat, mount.image("slow")) == ""

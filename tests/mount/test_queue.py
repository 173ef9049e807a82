"""The queue while the origin is slow: order, cancelling, other processes, restarts."""

import os
import sys

import pytest
from support.cachefs_mount import NGINX, Mounted
from support.processes import failure, run, wait_for

from .conftest import MakeMount

QUIETLY = (r"could not fetch", r"\((EIO|ETIMEDOUT|EHOSTUNREACH)\)")


@pytest.fixture(params=["sqlite", "xattr"])
def frozen(request: pytest.FixtureRequest, make_mount: MakeMount) -> Mounted:
    """A mount of five images whose server has stopped to answer, so that nothing leaves the
    queue."""
    mount = make_mount(driver=request.param, source=NGINX, options=["--max-fetches", "1"])
    for number in range(5):
        mount.origin.put(f"q{number}", 1000)
    mount.server.freeze()
    return mount


@pytest.fixture
def slow(make_mount: MakeMount) -> Mounted:
    """A mount of an image that takes several seconds to come."""
    mount = make_mount(source=NGINX, limit_rate="1m")
    mount.origin.put("slow", 8 * 2**20)
    return mount


def test_enqueue_reads_as_the_queue_in_its_order(frozen: Mounted) -> None:
    frozen.write("enqueue", "q3\nq1\nq2")
    frozen.touch("queue/q0")
    assert frozen.show("enqueue") == "q3\nq1\nq2\nq0\n"
    assert frozen.listed("queue") == ["q0", "q1", "q2", "q3"]
    assert frozen.status()["queued"] == 4


def test_rm_takes_an_image_out_of_the_queue(frozen: Mounted) -> None:
    frozen.write("enqueue", "q1\nq2")
    frozen.remove("queue/q2")
    assert frozen.show("enqueue") == "q1\n"
    frozen.server.thaw()
    frozen.wait_listed("cached", "q1")
    assert frozen.listed("cached") == ["q1"]


def test_rm_of_what_is_not_queued_is_ENOENT(frozen: Mounted) -> None:
    assert failure(os.unlink, frozen.control / "queue" / "q1") == "ENOENT"


def test_a_queued_image_has_a_record(frozen: Mounted) -> None:
    frozen.touch("queue/q1")
    record = frozen.record("queue/q1")
    assert record["image_id"] == "q1"
    assert record["state"] == "queued"
    assert record["hits"] == 0


def test_touching_a_queued_image_leaves_it_in_its_place(frozen: Mounted) -> None:
    frozen.write("enqueue", "q1\nq2")
    frozen.touch("queue/q1")
    assert frozen.show("enqueue") == "q1\nq2\n"


def test_the_queue_and_its_order_survive_kill_9(frozen: Mounted) -> None:
    frozen.write("enqueue", "q3\nq1\nq2")
    frozen.kill()
    frozen.expect("detaching .*, whose daemon is gone")
    frozen.start()
    assert frozen.show("enqueue") == "q3\nq1\nq2\n"
    frozen.server.thaw()
    frozen.wait_listed("cached", "q1", "q2", "q3")


def test_the_queue_survives_a_restart(frozen: Mounted) -> None:
    frozen.write("enqueue", "q3\nq1\nq2")
    frozen.stop()
    assert sorted(path.name for path in (frozen.cache_dir / "queue").iterdir()) == [
        "q1",
        "q2",
        "q3",
    ]
    frozen.start()
    assert frozen.show("enqueue") == "q3\nq1\nq2\n"


def test_images_are_fetched_in_queue_order(frozen: Mounted) -> None:
    frozen.write("enqueue", "q3\nq1\nq2")
    frozen.server.thaw()
    frozen.wait_listed("cached", "q1", "q2", "q3")
    fetched = {name: frozen.record(f"cached/{name}")["fetched"] for name in ("q1", "q2", "q3")}
    assert sorted(fetched, key=fetched.__getitem__) == ["q3", "q1", "q2"]  # type: ignore[arg-type]


@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
def test_failures_survive_kill_9_with_their_reasons(make_mount: MakeMount, driver: str) -> None:
    mount = make_mount(driver=driver)
    mount.expect("could not fetch 'missing'", "detaching")
    mount.touch("queue/missing")
    mount.wait_listed("invalid", "missing")
    before = mount.record("invalid/missing")
    mount.kill()
    mount.start()
    assert mount.record("invalid/missing") == before


def test_what_the_library_queues_is_noticed(make_mount: MakeMount) -> None:
    mount = make_mount()
    name, _ = mount.origin.new(10)
    queue = (
        "import sys; from cachefs import ImageCache; "
        "assert ImageCache(sys.argv[1]).queue_image(sys.argv[2])"
    )
    run(sys.executable, "-c", queue, str(mount.cache_dir), name)
    wait_for(lambda: name in mount.listed(), "the image to be fetched")


def test_queueing_what_is_being_fetched_is_EEXIST(slow: Mounted) -> None:
    slow.touch("queue/slow")
    slow.wait_listed("incomplete", "slow")
    path = slow.control / "queue" / "slow"
    assert failure(os.open, path, os.O_WRONLY | os.O_CREAT) == "EEXIST"


def test_an_image_being_fetched_shows_its_progress(slow: Mounted) -> None:
    slow.touch("queue/slow")
    slow.wait_listed("incomplete", "slow")
    wait_for(lambda: slow.record("incomplete/slow")["progress"], "some progress")
    record = slow.record("incomplete/slow")
    assert record["state"] == "incomplete"
    assert record["size"] == 8 * 2**20
    assert 0 < record["progress"] < 8 * 2**20  # type: ignore[operator]
    assert slow.status()["fetching"] == 1
    assert slow.listed("queue") == []


def test_rm_of_an_incomplete_image_cancels_its_fetch(slow: Mounted) -> None:
    slow.touch("queue/slow")
    slow.wait_listed("incomplete", "slow")
    slow.remove("incomplete/slow")
    wait_for(lambda: not slow.listed("incomplete"), "the fetch to end")
    assert slow.listed("queue") == slow.listed("cached") == slow.listed("invalid") == []
    assert list((slow.cache_dir / "incomplete").iterdir()) == []


def test_a_reader_of_a_cancelled_fetch_gets_an_error(slow: Mounted) -> None:
    slow.expect(*QUIETLY)
    with slow.start_tool("cat", slow.image("slow")) as reader:
        slow.wait_listed("incomplete", "slow")
        slow.remove("incomplete/slow")
        assert reader.wait() == 1


def test_clean_leaves_an_image_that_is_being_fetched_alone(slow: Mounted) -> None:
    slow.touch("queue/slow")
    slow.wait_listed("incomplete", "slow")
    slow.write("clean", "0")
    assert slow.listed("incomplete") == ["slow"]

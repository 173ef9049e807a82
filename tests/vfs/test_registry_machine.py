"""The registry of opens against a model of the kernel: open, read, close, evict, publish, refetch,
and workers that die, in any order.

The test is the kernel: it knows the names it has looked up, what it has open and how often, and
asks each new worker's filesystem for the rest. ``CACHEFS_EXAMPLES`` is how many sequences to try
(25); a long run has thousands, and ``-o faulthandler_timeout=0``."""

import errno
import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from support.worker_process import WorkerProcess, WorkerServer, worker_server

from cachefs.vfs.inodes import NodeKind, split

EXAMPLES = int(os.environ.get("CACHEFS_EXAMPLES", "25"))

MIB = 2**20
SIZES = {"small": 300_000, "large": 2_500_000}
ROOMY, TIGHT = 64 * MIB, 2_700_000  # which is too little for both
IDS = st.sampled_from(sorted(SIZES))
LIMITS = st.sampled_from([ROOMY, TIGHT])
WHICH = st.integers(0, 5)
PAGE = 4096


@dataclass(frozen=True)
class Version:
    """One version of an image, as the origin has or had it."""

    image_id: str
    number: int
    data: bytes = field(repr=False)


@dataclass
class Opened:
    """What the kernel has open: *opens* of the node *inode*. Its bytes must be there where it is
    *sure*, else they may have been lost with their fetch. *reads* are under way."""

    inode: int
    version: Version
    sure: bool
    opens: int = 0
    reads: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def is_lazy(self) -> bool:
        return split(self.inode)[0] == NodeKind.LAZY


class Origin:
    """The directory of images, and what its files were called in each version."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "origin"
        self.gates = base / "gates"
        self.directory.mkdir()
        self.gates.mkdir()
        self.named: dict[str, Version] = {}
        self.current: dict[str, Version] = {}
        for image_id in SIZES:
            self.replace(image_id)

    def replace(self, image_id: str) -> Version:
        number = self.current[image_id].number + 1 if image_id in self.current else 1
        data = random.Random(f"{image_id} {number}").randbytes(SIZES[image_id] + 1000 * number)
        fresh = self.directory / ".fresh"
        fresh.write_bytes(data)
        fresh.rename(self.directory / image_id)
        status = (self.directory / image_id).stat()
        version = self.current[image_id] = Version(image_id, number, data)
        self.named[f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"] = version
        self.named[f"sha256:{digest(data)}"] = version
        return version

    def hold_back(self, image_id: str) -> None:
        (self.gates / image_id).touch()

    def deliver(self) -> None:
        for gate in self.gates.iterdir():
            gate.unlink()

    def held_back(self, image_id: str) -> bool:
        return (self.gates / image_id).exists()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Kernel:
    """The model, and every step that it can take; a test by name is a sequence of these."""

    def __init__(
        self, server: WorkerServer, base: Path, *, max_size: int = ROOMY, last_close: str = "keep"
    ) -> None:
        self.server = server
        self.cache_dir = base / "cache"
        self.cache_dir.mkdir()
        self.origin = Origin(base)
        self.max_size = max_size
        self.last_close = last_close
        self.opened: dict[int, Opened] = {}
        self.names: dict[str, int] = {}
        self.lookups: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.versions: dict[int, Version] = {}
        self.pinned: set[str] = set()
        self.over = 0
        self.does = self.start(first=True)

    def start(self, *, first: bool = False) -> WorkerProcess:
        return self.server.start(
            cache_dir=str(self.cache_dir),
            origin=str(self.origin.directory),
            gates=str(self.origin.gates),
            max_size=self.max_size,
            on_last_close=self.last_close,
            open_nodes={inode: opened.opens for inode, opened in self.opened.items()},
            first=first,
        )

    # What the kernel does

    def send_open(self, image_id: str, *, known: bool = False) -> int:
        """By the node that is *known* for the name, or by a look-up."""
        nodeid = self.names.get(image_id) if known else None
        return self.does.send("open", image_id=image_id, nodeid=nodeid)

    def open(self, image_id: str, *, known: bool = False) -> Opened | None:
        return self.take_open(image_id, self.send_open(image_id, known=known))

    def take_open(self, image_id: str, ticket: int) -> Opened | None:
        answer = self.does.wait(ticket)
        for nodeid, size in answer["looked_up"]:
            self.looked_up(image_id, nodeid, size)
        if "errno" in answer:
            name = errno.errorcode[answer["errno"]]
            assert (name, self.max_size) == ("ENOSPC", TIGHT), f"open of {image_id}: {name}"
            return None
        inode = answer["nodeid"]
        assert answer["handle"] == inode
        named = answer["version"]  # none where a node that is open has lost its name
        version = self.origin.named[named] if named else self.versions[inode]
        assert version.image_id == image_id
        assert self.versions.setdefault(inode, version) == version
        assert self.sizes[inode] == len(version.data), "the kernel knows it by another size"
        opened = self.opened.setdefault(inode, Opened(inode, version, sure=False))
        opened.opens += 1
        if opened.opens == 1:
            newest = self.origin.current[image_id] == version and self.max_size == ROOMY
            opened.sure = newest or not opened.is_lazy
        return opened

    def look_up(self, image_id: str) -> None:
        self.looked_up(image_id, **self.does.call("look_up", image_id=image_id))

    def looked_up(self, image_id: str, nodeid: int, size: int) -> None:
        self.lookups[nodeid] = self.lookups.get(nodeid, 0) + 1
        self.names[image_id] = nodeid
        self.sizes[nodeid] = size

    def close(self, opened: Opened) -> None:
        """Never while it is read: the kernel sends RELEASE after the last answer to a READ."""
        if not opened.reads:
            self.does.call("close", handle=opened.inode)
            self.closed(opened)

    def closed(self, opened: Opened) -> None:
        opened.opens -= 1
        if not opened.opens:
            del self.opened[opened.inode]

    def read(self, opened: Opened, start: int, stop: int) -> None:
        """To the end, or a read that goes on where the origin may hold its bytes back."""
        ticket = self.does.send("read", handle=opened.inode, start=start, stop=stop)
        opened.reads.append((ticket, start, stop))
        if not (opened.is_lazy and any(self.origin.gates.iterdir())):
            self.finish_reads(opened)

    def read_part(self, opened: Opened, part: tuple[int, int]) -> None:
        """So many bytes, from the start or from the end on."""
        start, size, length = *part, len(opened.version.data)
        start = start % length
        self.read(opened, start, min(start + size, length))

    def finish_reads(self, opened: Opened) -> None:
        while opened.reads:
            ticket, start, stop = opened.reads.pop()
            answer = self.does.wait(ticket)
            if "errno" in answer:
                name = errno.errorcode[answer["errno"]]
                assert not opened.sure, f"read of {opened}: {name}"
            else:
                assert answer["digest"] == digest(opened.version.data[start:stop]), opened

    def forget(self, which: int) -> None:
        """Drop what is cached of one node that is not open."""
        closed = [inode for inode in self.lookups if inode not in self.opened]
        if closed:
            inode = closed[which % len(closed)]
            lookups = self.lookups.pop(inode)
            self.names = {name: nodeid for name, nodeid in self.names.items() if nodeid != inode}
            self.does.call("forget", nodeid=inode, lookups=lookups)

    # What an operator does

    def evict(self, image_id: str) -> bool:
        return self.operate("evict", image_id, "ENOENT", "EBUSY")

    def cancel(self, image_id: str) -> None:
        self.doubt(image_id)
        self.operate("cancel", image_id, "ENOENT")

    def pin(self, image_id: str, pinned: bool) -> None:
        self.operate("pin", image_id, "ENOENT", pinned=pinned)
        self.pinned = self.pinned | {image_id} if pinned else self.pinned - {image_id}

    def toggle_pin(self, image_id: str) -> None:
        self.pin(image_id, image_id not in self.pinned)

    def queue(self, image_id: str) -> None:
        self.operate("queue", image_id, "EEXIST")

    def operate(self, command: str, image_id: str, *otherwise: str, **rest: object) -> bool:
        answer = self.does.call(command, image_id=image_id, **rest)
        name = errno.errorcode[answer["errno"]] if "errno" in answer else ""
        assert name in {"", *otherwise}, f"{command} {image_id}: {name}"
        return not name

    def publish(self, image_id: str) -> None:
        """Queue it, and wait until it has come."""
        self.deliver()
        was_busy = bool(self.does.call("report")["under_way"])
        queued = self.operate("queue", image_id, "EEXIST")
        arrived = self.does.call("arrive", image_id=image_id)
        if self.max_size == ROOMY and not (was_busy and self.last_close == "cancel"):
            assert arrived["cached"], arrived["error"]
        if queued and arrived["cached"] and not was_busy:
            opened = self.open(image_id)
            assert opened is not None
            assert opened.version == self.origin.current[image_id]
            self.close(opened)

    def replace(self, image_id: str) -> None:
        """Another version at the origin: what has not been fetched by now may never be."""
        self.doubt(image_id)
        self.origin.replace(image_id)

    def refetch(self, image_id: str) -> None:
        self.replace(image_id)
        self.pin(image_id, False)
        self.evict(image_id)
        self.publish(image_id)

    def hold_back(self, image_id: str) -> None:
        self.origin.hold_back(image_id)

    def open_held_back(self, image_id: str) -> None:
        self.hold_back(image_id)
        self.open(image_id)

    def deliver(self) -> None:
        self.origin.deliver()
        for opened in self.opened.values():
            self.finish_reads(opened)

    def doubt(self, image_id: str) -> None:
        complete = self.does.call("report")["complete"]
        for opened in self.opened.values():
            if opened.version.image_id == image_id and opened.inode not in complete:
                opened.sure = False

    # What becomes of workers

    def kill(self) -> None:
        """``kill -9``, and the next."""
        self.does.kill()
        self.take_over()

    def end(self) -> None:
        """The next after a graceful end."""
        self.does.end()
        self.take_over()

    def take_over(self) -> None:
        """The next worker: the kernel sends it again what was not answered."""
        self.does = self.start()
        for opened in self.opened.values():
            reads, opened.reads = opened.reads, []
            for _, start, stop in reads:
                ticket = self.does.send("read", handle=opened.inode, start=start, stop=stop)
                opened.reads.append((ticket, start, stop))

    def kill_in_open(self, image_id: str, *, known: bool) -> None:
        """Before the kernel has the answer: what was opened is nobody's."""
        self.does.wait(self.send_open(image_id, known=known))
        self.kill()

    def kill_in_close(self, opened: Opened) -> None:
        """After the file was closed, before it was counted: the next is told again."""
        if not opened.reads:
            self.does.call("close", handle=opened.inode)
            self.kill()
            self.close(opened)

    def kill_in_eviction(self, image_id: str) -> None:
        self.does.send("evict", image_id=image_id)
        self.kill()

    def evict_while_opening(self, image_id: str) -> None:
        """By a look-up: a name that was stale before the eviction would be stale twice."""
        eviction = self.does.send("evict", image_id=image_id)
        self.take_open(image_id, self.send_open(image_id))
        self.does.wait(eviction)

    # What always holds

    def check(self) -> None:
        report = self.does.call("report")
        self.check_limit(report)
        counted = {str(inode): opened.opens for inode, opened in self.opened.items()}
        assert report["opens"] == counted
        self.check_bytes()

    def check_limit(self, report: dict[str, Any]) -> None:
        """What is accounted for is what there is, and within the limit; above a limit that was
        lowered it never grows, and is what is open, pinned or under way."""
        parts = [report[part] for part in ("cached", "reserved", "rejected", "held")]
        assert sum(parts) == report["measured"], parts
        assert sum(parts) <= max(report["limit"], self.over)
        self.over = sum(parts) if self.over and sum(parts) > report["limit"] else 0

    def limit(self, max_size: int) -> None:
        """By ``control/max_size``."""
        report = self.does.call("limit", max_size=max_size)
        self.max_size = max_size
        self.over = sum(report[part] for part in ("cached", "reserved", "rejected", "held"))

    def check_bytes(self) -> None:
        """Of every open file, what is there to be read at once."""
        ranges = {
            str(inode): [(0, PAGE), (len(opened.version.data) - PAGE, len(opened.version.data))]
            for inode, opened in self.opened.items()
        }
        found = self.does.call("peek", ranges=ranges)["digests"]
        for inode, opened in self.opened.items():
            for (start, stop), seen in zip(ranges[str(inode)], found[str(inode)], strict=True):
                if seen is not None:
                    assert seen == digest(opened.version.data[start:stop]), opened
                assert seen is not None or opened.is_lazy, opened

    def check_end(self) -> None:
        """After the last close nothing is left of anything."""
        self.deliver()
        for opened in list(self.opened.values()):
            self.read(opened, 0, len(opened.version.data))
            while opened.inode in self.opened:
                self.close(opened)
        self.does.call("settle")
        report = self.does.call("report")
        assert report["opens"] == {}
        assert report["descriptors"] == []
        assert names(self.cache_dir / ".cachefs" / "held") == []
        assert report["reserved"] == report["held"] == 0
        assert names(self.cache_dir / "incomplete") == []
        cached = [self.cache_dir / name for name in SIZES]
        assert report["cached"] == sum(path.stat().st_size for path in cached if path.exists())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Machine(RuleBasedStateMachine):
    """Any sequence of the kernel's steps. What is drawn depends on nothing that a worker does, or a
    sequence could not be tried again; *which* of the open files, say, is one by number."""

    server: WorkerServer

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="cachefs-registry-"))
        self.kernel: Kernel | None = None
        self.steps: list[str] = []

    def teardown(self) -> None:
        try:
            if self.kernel is not None:
                self.step(Kernel.check_end)
        finally:
            if self.kernel is not None:
                self.kernel.does.close()
            shutil.rmtree(self.base)

    def step(self, take: Callable[..., object], *arguments: object, **rest: object) -> None:
        """Take a step, and look at everything; an error says what led to it."""
        self.steps.append(f"{take.__name__} {arguments} {rest}")
        try:
            take(self.kernel, *arguments, **rest)
            if take is not Kernel.check_end:
                self.kernel.check()
        except BaseException as error:
            error.add_note("\n".join(self.steps))
            raise

    def step_with(self, which: int, take: Callable[..., object], **rest: object) -> None:
        """Take a step with one of the open files, if there are any."""
        opened = list(self.kernel.opened.values())
        if opened:
            self.step(take, opened[which % len(opened)], **rest)

    @initialize(max_size=LIMITS, last_close=st.sampled_from(["keep", "cancel"]))
    def mount(self, max_size: int, last_close: str) -> None:
        self.steps.append(f"mount {max_size} {last_close}")
        self.kernel = Kernel(self.server, self.base, max_size=max_size, last_close=last_close)

    @rule(image_id=IDS, known=st.booleans())
    def open(self, image_id: str, known: bool) -> None:
        self.step(Kernel.open, image_id, known=known)

    @rule(which=WHICH, part=st.sampled_from([(0, PAGE), (MIB, PAGE), (-PAGE, PAGE), (0, 3 * MIB)]))
    def read(self, which: int, part: tuple[int, int]) -> None:
        self.step_with(which, Kernel.read_part, part=part)

    @rule(which=WHICH)
    def close(self, which: int) -> None:
        self.step_with(which, Kernel.close)

    @rule(which=WHICH)
    def kill_in_close(self, which: int) -> None:
        self.step_with(which, Kernel.kill_in_close)

    @rule(which=WHICH)
    def forget(self, which: int) -> None:
        self.step(Kernel.forget, which)

    @rule(
        image_id=IDS,
        take=st.sampled_from([Kernel.evict, Kernel.evict_while_opening, Kernel.kill_in_eviction]),
    )
    def evict(self, image_id: str, take: Callable[..., object]) -> None:
        self.step(take, image_id)

    @rule(
        image_id=IDS,
        take=st.sampled_from(
            [Kernel.publish, Kernel.refetch, Kernel.queue, Kernel.open_held_back, Kernel.look_up]
        ),
    )
    def fetch(self, image_id: str, take: Callable[..., object]) -> None:
        self.step(take, image_id)

    @rule(
        image_id=IDS,
        take=st.sampled_from([Kernel.cancel, Kernel.replace, Kernel.hold_back, Kernel.toggle_pin]),
    )
    def disturb(self, image_id: str, take: Callable[..., object]) -> None:
        self.step(take, image_id)

    @rule(image_id=IDS, known=st.booleans())
    def kill_in_open(self, image_id: str, known: bool) -> None:
        self.step(Kernel.kill_in_open, image_id, known=known)

    @rule(max_size=LIMITS)
    def limit(self, max_size: int) -> None:
        self.step(Kernel.limit, max_size)

    @rule(take=st.sampled_from([Kernel.deliver, Kernel.kill, Kernel.end]))
    def go_on(self, take: Callable[..., object]) -> None:
        self.step(take)


@pytest.fixture(scope="module")
def server() -> Iterator[WorkerServer]:
    with worker_server() as server:
        yield server


@pytest.mark.timeout(60 + 10 * EXAMPLES)
def test_whatever_happens_nothing_is_left_after_the_last_close(server: WorkerServer) -> None:
    run_state_machine_as_test(
        type("ServedMachine", (Machine,), {"server": server}),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def kernel(server: WorkerServer, tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(server, tmp_path)
    try:
        yield kernel
    finally:
        kernel.does.close()


def test_what_was_cancelled_while_it_was_open_is_counted_and_released_by_the_next_worker(
    kernel: Kernel,
) -> None:
    kernel.hold_back("large")
    kernel.open("large")
    kernel.cancel("large")
    kernel.kill()
    kernel.check()
    kernel.check_end()


def test_two_fetches_of_an_image_of_which_one_was_cancelled_are_taken_up(kernel: Kernel) -> None:
    kernel.hold_back("large")
    kernel.open("large")
    kernel.replace("large")
    kernel.cancel("large")
    kernel.open("large")
    kernel.kill()
    kernel.check()
    kernel.check_end()


def test_a_name_known_in_one_version_is_not_opened_as_another(kernel: Kernel) -> None:
    kernel.look_up("large")
    kernel.replace("large")
    kernel.hold_back("large")
    kernel.queue("large")
    kernel.does.call("depart", image_id="large")
    kernel.open("large", known=True)
    kernel.check()
    kernel.check_end()

"""A worker of a mount without a kernel: the real filesystem over a cache directory, which does what
the process at the other end of a socket, in the kernel's place, tells it.

``python -m support.registry_worker FD`` starts no worker but a server that forks one for each
request, so that a start costs no imports; :mod:`support.worker_process` is the other end. Knows
nothing of what a test expects."""

import contextlib
import ctypes
import errno
import faulthandler
import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import trio

from cachefs import vfs
from cachefs.cache import Layout, Store, Usage
from cachefs.cache.layout import files_in
from cachefs.control import TransportStatus, WorkerStatus
from cachefs.errors import CacheFSError, errno_of
from cachefs.mount.filesystem import Filesystem, limits_of
from cachefs.settings import RunningSettings, Settings
from cachefs.settings.load import load
from cachefs.sources import SourceImage
from cachefs.sources.directory import DirectorySource
from cachefs.units import Amount
from cachefs.vfs.inodes import CONTROL_INODE, IMAGES_INODE
from cachefs.vfs.open_images import ImageFile, LazyFile

MIB = 2**20
CALLER: Any = SimpleNamespace(pid=0, uid=0, gid=0)
NOT_COUNTED = ("cache.db", ".cachefs/cache.db", ".cachefs/lock")
"""What a worker has open below its cache directory as long as it lives."""
READ_SIZE = 2**18
SETTLE = 20.0
"""Seconds after which what should come to rest is taken not to."""
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of linux/prctl.h


class GatedSource(DirectorySource):
    """A directory that delivers no more than the first MiB of a large image, and nothing of a small
    one, while there is a file of its name among *gates*."""

    def __init__(self, directory: str, gates: Path) -> None:
        super().__init__(directory)
        self._gates = gates

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        free = MIB if image.size > MIB else 0
        for piece in super().read(image, start, stop):
            start += len(piece)
            while start > free and (self._gates / image.image_id).exists():
                time.sleep(0.003)
            yield piece


class NoKernel:
    """What is told to forget, and has nothing to forget."""

    def invalidate_inode(self, nodeid: int) -> None: ...

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> None: ...


class Worker:
    """The filesystem, and a command for everything that a kernel or an operator does to it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        cache_dir = Path(plan["cache_dir"])
        settings = load(
            plan["origin"],
            "/nowhere",
            {
                "cache_dir": cache_dir,
                "max_size": Amount(size=plan["max_size"]),
                "min_free": Amount(size=0),
                "timeout": 0.3,  # a reader's patience where there is no room
                "on_last_close": plan["on_last_close"],
            },
            environ={},
        )
        self._cache_dir = cache_dir
        self.store = Store(cache_dir, limits_of(settings))
        self._running = RunningSettings(settings, "mount", Layout(cache_dir))
        self.filesystem = Filesystem(
            self._running,
            self.store,
            GatedSource(plan["origin"], Path(plan["gates"])),
            worker=WorkerStatus(os.getpid(), time.time()),
            transport=TransportStatus("relay", True, ""),
        )
        self.filesystem.connect(NoKernel())
        self._operations = self.filesystem.operations
        self._files = self.filesystem.image_files
        self._fetcher = self.filesystem._fetcher

    async def begin(self, nursery: trio.Nursery) -> None:
        counts = {int(nodeid): opens for nodeid, opens in self._plan["open_nodes"].items()}
        await self.filesystem.begin(nursery, counts, first=self._plan["first"])

    # What the kernel does

    async def look_up(self, image_id: str) -> dict[str, Any]:
        entry = await self._operations.lookup(IMAGES_INODE, image_id.encode(), CALLER)
        return {"nodeid": entry.st_ino, "size": entry.st_size}

    async def open(self, image_id: str, nodeid: int | None) -> dict[str, Any]:
        """As the kernel does: by the node that it knows for the name, and once more by a look-up
        where that is stale."""
        looked_up: list[tuple[int, int]] = []
        for last in (False, True):
            if nodeid is None:
                found = await self.look_up(image_id)
                nodeid = found["nodeid"]
                looked_up.append((found["nodeid"], found["size"]))
            grant = self._files.open(nodeid, os.O_RDONLY)
            if grant is None:
                try:
                    info = await self._operations.open(nodeid, os.O_RDONLY, CALLER)
                except pyfuse3.FUSEError as error:
                    if error.errno != errno.ESTALE or last:
                        return {"errno": error.errno, "looked_up": looked_up}
                    nodeid = None
                    continue
                grant = self._files.opened(info.fh)
            assert grant is not None
            return {
                "nodeid": nodeid,
                "handle": grant.handle,
                "version": _version(grant.file),
                "looked_up": looked_up,
            }
        raise AssertionError

    async def read(self, handle: int, start: int, stop: int) -> dict[str, Any]:
        """From the descriptor where one is granted, else through pyfuse3's handler."""
        digest = hashlib.sha256()
        for offset in range(start, stop, READ_SIZE):
            end = min(stop, offset + READ_SIZE)
            grant = self._files.opened(handle)
            fd = grant and (grant.read_fd(offset, end) if grant.fd is None else grant.fd)
            if fd is None:
                digest.update(await self._operations.read(handle, offset, end - offset))
            else:
                digest.update(os.pread(fd, end - offset, offset))
        return {"digest": digest.hexdigest()}

    async def close(self, handle: int) -> dict[str, Any]:
        grant = self._files.opened(handle)
        if grant is not None:
            grant.close()
        else:
            await self._operations.release(handle)
        return {}

    async def forget(self, nodeid: int, lookups: int) -> dict[str, Any]:
        await self._operations.forget([(nodeid, lookups)])
        return {}

    # What an operator does

    async def evict(self, image_id: str) -> dict[str, Any]:
        return await self._remove("cached", image_id)

    async def cancel(self, image_id: str) -> dict[str, Any]:
        return await self._remove("incomplete", image_id)

    async def queue(self, image_id: str) -> dict[str, Any]:
        directory = await self._operations.lookup(CONTROL_INODE, b"queue", CALLER)
        info, entry = await self._operations.create(
            directory.st_ino, image_id.encode(), 0o644, os.O_WRONLY, CALLER
        )
        await self._operations.release(info.fh)
        await self._operations.forget([(entry.st_ino, 1)])
        return {}

    async def pin(self, image_id: str, pinned: bool) -> dict[str, Any]:
        await trio.to_thread.run_sync(self.store.pin, image_id, pinned)
        return {}

    async def _remove(self, directory: str, image_id: str) -> dict[str, Any]:
        node = await self._operations.lookup(CONTROL_INODE, directory.encode(), CALLER)
        await self._operations.unlink(node.st_ino, image_id.encode(), CALLER)
        return {}

    # What a test wants to know

    async def arrive(self, image_id: str) -> dict[str, Any]:
        """Wait until the image is neither queued nor under way, or waits for room."""

        def under_way() -> bool:
            return self._is_wanted(image_id) or self._fetcher.is_under_way(image_id)

        await _until(lambda: not under_way(), f"{image_id} to arrive")
        failure = self.store.failure(image_id)
        return {
            "cached": self.store.quick.get(image_id) is not None,
            "error": failure and failure.error,
        }

    async def depart(self, image_id: str) -> dict[str, Any]:
        """Wait until the image is under way."""
        await _until(lambda: image_id in self._fetcher.flights, f"{image_id} to depart")
        return {}

    def _is_wanted(self, image_id: str) -> bool:
        """Whether the image is queued, and not without room."""
        waiting = self._fetcher.waiting(image_id)
        waits = waiting is not None and waiting.waits_for == "room"
        return self.store.quick.is_queued(image_id) and not waits

    async def settle(self) -> dict[str, Any]:
        """Wait until nothing is fetched, queued (but for what waits for room) or kept for the next
        open."""

        def busy() -> bool:
            fetcher = self._fetcher
            return bool(
                fetcher.under_way()
                or fetcher._prefetcher._fetching
                or any(map(self._is_wanted, self.store.queued_ids()))
                or self._files.idle._files
                or not self.filesystem._images.expected.idle
            )

        await _until(lambda: not busy(), "everything to settle")
        return {}

    async def limit(self, max_size: int) -> dict[str, Any]:
        """As ``control/max_size`` does."""

        def change() -> None:
            self._running.change(Settings.max_size, str(max_size))
            self.filesystem._evictor.keep_limits()

        await trio.to_thread.run_sync(change)
        return await self.report()

    async def report(self) -> dict[str, Any]:
        def measure() -> tuple[Usage, int]:
            with self.store._lock:
                return self.store.usage(), self._measured()

        usage, measured = await trio.to_thread.run_sync(measure)
        with trio.move_on_after(SETTLE):  # a fetch closes its file a moment after its end
            while measured != usage.cached + usage.reserved + usage.rejected + usage.held:
                await trio.sleep(0.002)
                usage, measured = await trio.to_thread.run_sync(measure)
        registry = self.filesystem.open_files
        return {
            "opens": {str(grant.handle): grant.opens for grant in registry if grant.opens},
            "complete": [grant.handle for grant in registry if _is_complete(grant.file)],
            "under_way": sorted(self._fetcher.under_way()),
            "limit": usage.limit,
            "cached": usage.cached,
            "reserved": usage.reserved,
            "rejected": usage.rejected,
            "held": usage.held,
            "measured": measured,
            "descriptors": self._descriptors(),
        }

    def _measured(self) -> int:
        """The bytes of all files of images, whatever leads to them: each once."""
        sizes: dict[int, int] = {}
        layout = Layout(self._cache_dir)
        for directory in (layout.base, layout.incomplete_dir, layout.invalid_dir, layout.held_dir):
            for name, status in files_in(directory):
                if not name.startswith(("cache.db", ".")) and not name.endswith((".json", ".new")):
                    sizes[status.st_ino] = status.st_size
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(link.readlink()).startswith(f"{layout.base}/"):
                    status = link.stat()
                    if not status.st_nlink:
                        sizes[status.st_ino] = status.st_size
        return sum(sizes.values())

    async def peek(self, ranges: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
        """The digests of the ranges of open files that can be read without waiting, else None."""
        found: dict[str, list[str | None]] = {}
        for handle, wanted in ranges.items():
            grant = self._files.opened(int(handle))
            found[handle] = []
            for start, stop in wanted:
                fd = grant.read_fd(start, stop) if grant else None
                data = None if fd is None else os.pread(fd, stop - start, start)
                found[handle].append(data and hashlib.sha256(data).hexdigest())
        return {"digests": found}

    def _descriptors(self) -> list[str]:
        found = []
        for link in Path("/proc/self/fd").iterdir():
            try:
                target = str(link.readlink())
            except FileNotFoundError:  # that of the listing itself
                continue
            name = target.removeprefix(f"{self._cache_dir}/")
            kept = name.startswith(NOT_COUNTED) or Path(target).is_dir()  # being listed
            if name != target and not kept:
                found.append(name)
        return sorted(found)


def _version(file: object) -> str:
    """What the file is: its digest where it is cached, the origin's name for it where not yet, and
    nothing where it is held without a name."""
    if isinstance(file, LazyFile):
        return file.flight.image.version or ""
    assert isinstance(file, ImageFile)
    return file.entry.checksum or ""


def _is_complete(file: object) -> bool:
    return not isinstance(file, LazyFile) or file.flight.state == "published"


async def _until(condition: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(SETTLE) as waiting:
        while not condition():  # noqa: ASYNC110 - nobody tells us
            await trio.sleep(0.002)
    assert not waiting.cancelled_caught, f"waited {SETTLE} s for {what}"


async def obey(sock: socket.socket, plan: dict[str, Any]) -> None:
    """Serve until told to end, or until the socket is closed. Commands run side by side, as
    requests do."""
    commands = trio.socket.from_stdlib_socket(sock)
    worker = Worker(plan)

    async def run(ticket: int, work: Callable[..., Awaitable[dict[str, Any]]], rest: Any) -> None:
        answer: dict[str, Any]
        try:
            answer = await work(**rest)
        except pyfuse3.FUSEError as error:
            answer = {"errno": error.errno}
        except (CacheFSError, OSError) as error:
            answer = {"errno": errno_of(error)}
        except Exception:  # noqa: BLE001 - shown by the test
            answer = {"bug": traceback.format_exc()}
        await commands.send(json.dumps({"ticket": ticket, **answer}).encode())

    try:
        async with trio.open_nursery() as nursery:
            await worker.begin(nursery)
            await commands.send(json.dumps({"ticket": 0}).encode())
            while message := await commands.recv(MIB):
                order = json.loads(message)
                name = order.pop("command")
                if name == "end":
                    break
                ticket = order.pop("ticket")
                nursery.start_soon(run, ticket, getattr(worker, name), order)
            nursery.cancel_scope.cancel()
    finally:
        worker.store.close()


def work(sock: socket.socket, plan: dict[str, Any]) -> int:
    """The life of one worker; its exit status."""
    vfs.idle.IDLE_SECONDS = 0.02
    vfs.expected.KEPT_SECONDS = 0.2
    faulthandler.register(signal.SIGUSR1)
    try:
        trio.run(obey, sock, plan)
    except BaseException:  # noqa: BLE001 - all that is left to do is to tell
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Fork a worker for each request: a plan and the worker's end of a socket. The answer is a
    pidfd."""
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MIB, 1)
        if not message:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        pid = os.fork()
        if not pid:
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
            control.close()
            status = work(socket.socket(fileno=descriptors[0]), json.loads(message))
            sys.stderr.flush()
            os._exit(status)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(control, [b"started"], [pidfd])
        os.close(pidfd)
        os.close(descriptors[0])


if __name__ == "__main__":
    main()

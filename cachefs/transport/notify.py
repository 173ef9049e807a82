"""Notifications to the kernel, in order, written by a process of their own.

INVARIANT: no thread of a process that answers requests, or that holds a lock, ever writes one. An
invalidation takes the directory's lock in the kernel (``fuse_reverse_inval_entry``), and the lock
holder may be waiting for an answer from us; the write then blocks until that answer is given, in
state D. A worker that is killed meanwhile could not end, and would keep every descriptor and lock
of its own from the next worker, which alone can give the answer. So they go through a pipe to
:mod:`.notify_process`, which has the device and nothing else; who writes to the pipe can be killed.

Owns the queue, the thread that fills the pipe and the process at its other end, which takes a while
to start: it is started before the first notification, and again if it was killed. Knows nothing of
what the messages mean.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Final

log = logging.getLogger(__name__)

_PROGRAM: Final = Path(__file__).with_name("notify_process.py")
_WAITING_MAX: Final = 100_000
"""Notifications that may wait; with more, the kernel believes a name as long as it was told to."""
_PAUSE: Final = 1.0  # seconds between two starts of the process


class Notifier:
    """A queue of messages for the device of descriptor *device*.

    *lifeline* is the reading end of a pipe whose writing end is held by all who may serve the
    mount, -1 where there is none. None says that only this process serves it: then *device* is this
    object's own, and closed with it.
    """

    def __init__(self, device: int, lifeline: int | None) -> None:
        self._device = device
        self._lifeline = lifeline
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._started = -_PAUSE
        self._closed = False

    def start(self) -> None:
        """Start the process. Does not wait for it."""
        self.send(b"")  # of which nothing is written

    def send(self, message: bytes) -> None:
        """Have *message* written in turn. Never blocks. What the kernel says of it nobody hears:
        ENOENT is a node or name that it does not know, ENODEV an unmounted filesystem."""
        if self._closed or self._queue.qsize() > _WAITING_MAX:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cachefs-notify", daemon=True)
            self._thread.start()
        self._queue.put(message)

    def close(self) -> None:
        """Stop after what is queued; does not wait for it."""
        self._closed = True
        self._queue.put(None)
        if self._thread is None:
            self._run()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                self._pass_on(message)
            except OSError as error:
                log.warning("the kernel cannot be told that a name is gone: %s", error)
            except Exception:
                log.exception("notification")
        if self._lifeline is None:
            os.close(self._device)
        self._end_process()

    def _pass_on(self, message: bytes) -> None:
        while True:
            if self._pipe < 0:
                self._start_process()
            try:
                os.write(self._pipe, message)  # one write, at most PIPE_BUF long: all or nothing
                return
            except BrokenPipeError:
                log.warning("the process that writes notifications was ended; starting another")
                self._end_process()

    def _start_process(self) -> None:
        time.sleep(max(self._started + _PAUSE - time.monotonic(), 0))
        self._started = time.monotonic()
        reading, self._pipe = os.pipe()
        lifeline = reading if self._lifeline is None else self._lifeline
        passed = (self._device, reading, lifeline)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), *map(str, passed)],
                pass_fds=[fd for fd in passed if fd >= 0],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
        except BaseException:
            os.close(self._pipe)
            self._pipe = -1
            raise
        finally:
            os.close(reading)

    def _end_process(self) -> None:
        """It ends with its pipe, or is ended already; what is stuck in the kernel ends later."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        if self._process is not None:
            self._process.wait()
            self._process = None

"""Notifications to the kernel, written by a thread of their own, in order.

INVARIANT: no task that answers requests ever writes one. An invalidation takes the directory's lock
in the kernel (``fuse_reverse_inval_entry``), and the lock holder may be waiting for an answer from
us; the write then blocks until that answer is given.

Owns the queue and the thread; knows nothing of what the messages mean.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)


class Notifier:
    """A queue of calls that may block, made one after another by one daemon thread.

    The thread starts with the first call. It may sit in the kernel when the process is killed; the
    process then stays a zombie until the next worker has answered what it waits for (see
    :mod:`.supervisor`, which does not wait for it).
    """

    def __init__(self, name: str = "cachefs-notify") -> None:
        self._name = name
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, function: Callable[[], object]) -> None:
        """Have *function* called in turn. Never blocks. An OSError is logged at debug level only:
        ENOENT is a node or name that the kernel does not know, ENODEV an unmounted filesystem."""
        if self._closed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._queue.put(function)

    def close(self) -> None:
        """Stop after what is queued; does not wait for it."""
        self._closed = True
        self._queue.put(None)

    def _run(self) -> None:
        while True:
            function = self._queue.get()
            if function is None:
                return
            try:
                function()
            except OSError as error:
                log.debug("notification: %s", error)
            except Exception:
                log.exception("notification")

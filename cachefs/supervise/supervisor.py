r"""The small parent that holds ``/dev/fuse`` and replaces its workers.

Owns the mount, the descriptors that outlive a worker (the device; the table of
:mod:`~cachefs.transport.open_table`), the worker processes and the clock by which they are judged.
Imports neither pyfuse3 nor trio, reads no message and answers none: there is little here to go
wrong.

A worker's life::

    started --(standby)--> waiting --GO--> serving --DRAIN--> leaving --> gone
       \______________________________________/  \__ dies, or is silent and killed __/

- **Dies** (any exit that was not announced): the next is started after a pause that grows with the
  deaths in a row, and has the kernel resend. The pause is 0 for the first. A worker that served for
  ``settled`` seconds ends the row. After ``quarantine_after`` crashes (deaths other than by an
  operator's SIGKILL) the next one answers EIO to what is resent
  (:mod:`cachefs.transport.exchange`). After ``give_up_after`` deaths in a row the mount is
  detached. The first worker of all gets one try: no reader has anything to lose yet.
- **Silent** for ``beat_timeout``: SIGKILL, then as above. A worker that waits, for a lock that a
  stranger holds, say, is not: its heart beats from its start, and it has not come up late either.
- **Upgrade** (SIGHUP, :meth:`Supervisor.upgrade`): a second worker is started from the same
  command, which now means the new code. It shakes hands with libfuse and waits. Then the first
  drains and exits, and the second gets GO. INVARIANT: never do two workers have their turn at once:
  GO is sent when the other is gone. If the second dies or does not report in ``start_timeout``, the
  first goes on and nothing else happens. Asked for while a worker is starting, it waits for that.
- **Cannot be started** (no process or descriptor is left, or an upgrade is just replacing the
  interpreter): a death, though no crash; of an upgrade's second, as if that had died.
- **Unmounted**: the device polls POLLERR; the worker sees ENODEV, says so and exits; so do we.

INVARIANT: a killed worker is replaced even if it cannot be reaped: one of its threads may wait in
the kernel (for a disk, say), and nothing of what it holds is waited for
(:mod:`cachefs.kernel.ghosts`). After SIGKILL no thread runs any code of ours again, so the next may
begin. INVARIANT: no reader waits for an answer once nobody is left to give it: the last of us
aborts the connection, or the notifying process answers
(:mod:`cachefs.transport.notify_process`).

The mount outlives the supervisor's death too, as long as its worker lives; nothing restarts either.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cachefs.kernel import device as fuse_device
from cachefs.kernel import mountinfo, mounting
from cachefs.kernel.mounting import MountOptions
from cachefs.supervise.process import WorkerProcess, spawn
from cachefs.supervise.protocol import (
    DRAIN,
    GO,
    READY,
    STANDBY,
    STOP,
    TOLD_WHY,
    UNMOUNTED,
    WAITING,
    Inheritance,
    seal,
)
from cachefs.transport.base import TransportInfo
from cachefs.transport.open_table import OpenTable
from cachefs.vfs import shown

log = logging.getLogger(__name__)

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_UPGRADE_FAILED: Final = "upgrade failed, %s; worker %d goes on"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """When the supervisor loses patience. Seconds, except the count."""

    beat_interval: float = 1.0
    beat_timeout: float = 15.0
    start_timeout: float = 60.0
    leave_timeout: float = 10.0
    kill_grace: float = 1.0
    settled: float = 0.3
    first_pause: float = 0.05
    longest_pause: float = 5.0
    quarantine_after: int = 5
    give_up_after: int = 20


class Supervisor:
    """Runs *command* as the worker of a mount at *mountpoint* until it is unmounted.

    *command* is an argument vector that composes a filesystem over
    :class:`cachefs.mount.attachment.Attachment`; it is run anew for each worker, so an upgraded
    installation takes effect with the next one. *document* is handed to each worker and to no
    other process: no other user can read it. *claim* is a descriptor that each worker holds, too,
    and that stays the caller's. *on_ready* is called once, when the first worker answers.
    """

    def __init__(
        self,
        command: Sequence[str],
        mountpoint: str,
        info: TransportInfo,
        options: MountOptions | None = None,
        *,
        document: bytes = b"",
        claim: int = -1,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.info = info
        self.reason = ""
        self._told = False
        self.restarts = 0
        self._command = list(command)
        self._mountpoint = mountpoint
        self._options = options or MountOptions()
        self._timeouts = timeouts or Timeouts()
        self._clock = clock
        self._on_ready = on_ready
        self._device = self._table = self._shown = -1
        self._document = seal(document)
        self._claim = claim
        self._lifeline, self._alive = os.pipe2(os.O_CLOEXEC)
        self._current: WorkerProcess | None = None
        self._next: WorkerProcess | None = None
        self._ghosts: list[WorkerProcess] = []
        self._start_at: float | None = None
        self._deaths = self._crashes = 0
        self._served = False
        self._stop_by: float | None = None
        self._upgrade_wanted = False
        self._unmounted = False
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # --- the interface ------------------------------------------------------------------------

    def run(self) -> int:
        """Mount, serve until unmounted or stopped; 0, or 1 when given up (then :attr:`reason` says
        why). To be called in the main thread: it takes SIGTERM and SIGINT for :meth:`stop`, SIGHUP
        for :meth:`upgrade`. Raises :class:`OSError`."""
        handlers = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS}
        handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_signal)
        try:
            self._mount()
            self._current = self._start(turn=True)
            while not self._over:
                self._wait()
                self._check()
        finally:
            self._clean_up()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.reason and self._served:
            log.error("gave up on %s: %s", self._mountpoint, self.reason)
        return 1 if self.reason else 0

    @property
    def has_served(self) -> bool:
        """Whether a worker has ever answered."""
        return self._served

    @property
    def was_told(self) -> bool:
        """Whether the worker that could not begin has said why, on stderr."""
        return self._told

    def stop(self) -> None:
        """Detach the mount, let the worker finish what it has, and end. From a signal handler or
        any thread."""
        os.write(self._wake_w, b"t")

    def upgrade(self) -> None:
        """Start the command anew and hand over. From a signal handler or any thread."""
        os.write(self._wake_w, b"u")

    # --- the loop -----------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self.upgrade()
        else:
            self.stop()

    @property
    def _over(self) -> bool:
        if self._current is not None or self._next is not None:
            return False
        return bool(self.reason) or self._unmounted or self._stop_by is not None

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._wake_r, select.POLLIN)
        if self._device >= 0 and not self._unmounted:
            poller.register(self._device, 0)  # POLLERR
        for worker in self._workers():
            poller.register(worker.control, select.POLLIN)
            poller.register(worker.pidfd, select.POLLIN)
        for ghost in self._ghosts:
            poller.register(ghost.pidfd, select.POLLIN)
        soon = self._timeouts.kill_grace / 2
        if self._start_at is not None:
            soon = min(soon, max(self._start_at - self._clock(), 0))
        events = dict(poller.poll(int(soon * 1000) + 1))
        if events.get(self._device, 0) & (select.POLLERR | select.POLLHUP):
            self._on_unmounted()
        if self._wake_r in events:
            for wish in os.read(self._wake_r, 64).decode("ascii"):
                if wish == "t":
                    self._on_stop()
                else:
                    self._on_upgrade()

    def _workers(self) -> list[WorkerProcess]:
        return [worker for worker in (self._current, self._next) if worker is not None]

    def _check(self) -> None:
        """Hear what workers say, then judge them by the clock."""
        now = self._clock()
        for worker in self._workers():
            for word in worker.listen(now):
                self._on_word(worker, word, now)
        for worker in self._workers():
            self._judge(worker, now)
        for ghost in list(self._ghosts):
            if ghost.process.poll() is not None:
                self._ghosts.remove(ghost)
                ghost.close()
        if self._start_at is not None and now >= self._start_at:
            self._restart(now)
        if self._upgrade_wanted and self._is_settled:
            self._on_upgrade()

    def _on_word(self, worker: WorkerProcess, word: bytes, now: float) -> None:
        if word == READY:
            worker.ready_at = now
            log.info("worker %d serves %s", worker.pid, self._mountpoint)
            if not self._served:
                self._served = True
                self._on_ready()
        elif word == STANDBY and worker is self._next:
            worker.standby = True
            if self._current is not None:
                log.info("worker %d is ready to take over from %d", worker.pid, self._current.pid)
                self._leave(self._current, DRAIN, now)
            else:
                self._hand_over()
        elif word == WAITING and self._served:
            worker.started = now  # the lock holder's time is not this worker's
        elif word == UNMOUNTED and not self._is_remounting(worker):
            worker.unmounted = True
            self._unmounted = True

    def _is_remounting(self, worker: WorkerProcess) -> bool:
        """Whether it was us who took the mount away from under the worker, for an upgrade: it may
        see that before it hears that it is to leave."""
        leaving = worker.leave_by is not None and self._stop_by is None
        return leaving and self.info.mode == "plain" and not self._unmounted

    def _judge(self, worker: WorkerProcess, now: float) -> None:
        timeouts = self._timeouts
        if worker.process.poll() is not None:
            for word in worker.listen(now):  # its last, said since it was heard
                if word in (READY, UNMOUNTED):
                    self._on_word(worker, word, now)
            self._on_gone(worker, worker.how_it_ended, now)
        elif worker.killed_at is not None:
            if now - worker.killed_at > timeouts.kill_grace:
                self._ghosts.append(worker)
                self._on_gone(worker, f"worker {worker.pid} was killed and cannot die", now)
        elif worker.leader_is_dead:
            worker.kill(now)
        elif worker.leave_by is not None and now > worker.leave_by:
            log.warning("worker %d does not leave; killing it", worker.pid)
            worker.kill(now)
        elif now - worker.heard > timeouts.beat_timeout:
            log.error("worker %d is silent for %.0f s; killing it", worker.pid, now - worker.heard)
            worker.silent = True
            worker.kill(now)
        elif not worker.is_up and now - worker.started > timeouts.start_timeout:
            log.error("worker %d does not come up; killing it", worker.pid)
            worker.kill(now)

    # --- what happens -------------------------------------------------------------------------

    def _on_gone(self, worker: WorkerProcess, how: str, now: float) -> None:
        if worker not in self._ghosts:
            worker.close()
        if worker is self._next:
            self._next = None
            if self._current is not None:
                log.error(_UPGRADE_FAILED, how, self._current.pid)
                return
        if worker is self._current:
            self._current = None
        if self._unmounted or self._stop_by is not None or worker.unmounted:
            return
        self.restarts += 1
        self._end_row(worker, now)
        if self._next is not None:
            if self._next.standby:
                self._hand_over()
            return  # one that is still starting reports, or dies and comes here
        if self.info.mode == "plain":
            self._abort()  # a worker that cannot die keeps libfuse's device open
            self._detach()
        if worker.leave_by is not None:  # it left to be replaced, as we asked it to
            self._start_at = now
        else:
            self._on_death(worker, how, now)

    def _end_row(self, worker: WorkerProcess, now: float) -> None:
        alive_until = worker.heard if worker.silent else now
        if worker.ready_at is not None and alive_until - worker.ready_at >= self._timeouts.settled:
            self._deaths = self._crashes = 0

    def _on_death(self, worker: WorkerProcess, how: str, now: float) -> None:
        # A SIGKILL that is not ours is an operator's, and no fault of any request.
        self._crashes += worker.silent or worker.process.returncode != -signal.SIGKILL
        if not self._served and worker.process.returncode == TOLD_WHY:
            self.reason, self._told = how, True
            return
        self._count_death(how, now)

    def _count_death(self, how: str, now: float) -> None:
        self._deaths += 1
        log.error("%s", how)
        if not self._served or self._deaths >= self._timeouts.give_up_after:
            self.reason = f"{self._deaths} workers died in a row, the last: {how}"
            return
        pause = 0.0
        if self._deaths > 1:
            pause = self._timeouts.first_pause * 2 ** min(self._deaths - 2, 20)
        self._start_at = now + min(pause, self._timeouts.longest_pause)

    def _hand_over(self) -> None:
        assert self._next is not None
        self._current, self._next = self._next, None
        self._current.heard = self._current.started = self._clock()
        self._current.standby = False
        self._current.tell(GO)

    def _leave(self, worker: WorkerProcess, word: bytes, now: float) -> None:
        worker.leave_by = now + self._timeouts.leave_timeout
        worker.tell(word)

    @property
    def _is_settled(self) -> bool:
        """Whether a worker serves that shall stay, and none is starting."""
        worker = self._current
        serves = worker is not None and worker.ready_at is not None and worker.leave_by is None
        return serves and self._next is None

    def _on_upgrade(self) -> None:
        self._upgrade_wanted = False
        if self._stop_by is not None or self._unmounted:
            log.warning("no upgrade now: it is ending")
        elif self._current is None or not self._is_settled:
            # What starts now may have read the old code: it serves first, then is replaced too.
            self._upgrade_wanted = True
            log.info("the upgrade waits: a worker is just starting")
        elif self.info.mode == "plain":
            log.warning("plain transport cannot hand over: the mount is made anew")
            self._leave(self._current, DRAIN, self._clock())
            self._detach()
        else:
            try:
                self._next = self._start(turn=False)
            except OSError as error:
                how = f"a worker cannot be started: {error}"
                log.error(_UPGRADE_FAILED, how, self._current.pid)

    def _on_stop(self) -> None:
        if self._stop_by is not None:
            return
        now = self._clock()
        self._stop_by = now + self._timeouts.leave_timeout
        self._start_at = None
        self._detach()
        for worker in self._workers():
            self._leave(worker, STOP, now)

    def _on_unmounted(self) -> None:
        self._unmounted = True
        self._start_at = None
        for worker in self._workers():
            worker.leave_by = self._clock() + self._timeouts.leave_timeout

    # --- processes ----------------------------------------------------------------------------

    def _mount(self) -> None:
        if mountinfo.is_mounted(self._mountpoint) and mounting.is_dead(self._mountpoint):
            log.warning("detaching a dead mount from %s", self._mountpoint)
            mounting.unmount(self._mountpoint)
        if self.info.mode == "relay":
            self._table = OpenTable.create()
            self._shown = shown.create()
            self._device = fuse_device.open_device()
            mounting.mount(self._device, self._mountpoint, self._options)

    def _start(self, *, turn: bool) -> WorkerProcess:
        inheritance = Inheritance(
            info=self.info,
            mountpoint=self._mountpoint,
            options=self._options,
            device=self._device,
            table=self._table,
            shown=self._shown,
            document=self._document,
            lifeline=self._lifeline,
            alive=self._alive,
            claim=self._claim,
            turn=turn,
            restarts=self.restarts,
            quarantine=self._crashes >= self._timeouts.quarantine_after,
            beat_interval=self._timeouts.beat_interval,
        )
        return spawn(self._command, inheritance, self._clock())

    def _restart(self, now: float) -> None:
        self._start_at = None
        try:
            self._current = self._start(turn=True)
        except OSError as error:
            self._count_death(f"a worker cannot be started: {error}", now)

    def _abort(self) -> None:
        """Free the readers of a mount that nobody serves any more."""
        found = mountinfo.find(self._mountpoint)
        if found is not None and found.kind == f"fuse.{self._options.subtype}":
            mounting.abort(self._mountpoint)

    def _detach(self) -> None:
        try:
            mounting.unmount(self._mountpoint)
        except OSError as error:
            log.error("cannot unmount %s: %s", self._mountpoint, error)

    def _clean_up(self) -> None:
        for worker in self._workers():
            worker.kill(self._clock())
            worker.close()
        if not self._unmounted and (self._device >= 0 or self._served):
            self._abort()
            self._detach()
        own = (self._device, self._table, self._shown, self._document)
        for fd in (*own, self._lifeline, self._alive, self._wake_r, self._wake_w):
            if fd >= 0:
                os.close(fd)

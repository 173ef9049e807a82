"""Kills of the worker while directories are listed and images evicted: what a killed worker's
notifications to the kernel may leave stuck.

Owns the mount, the programs that use it, all in processes of their own, and the killing. The
process that kills looks at the mount in no other way than by the kernel's tables and the daemon's
log: it must be able to tell, and to end, a hang.

    found = NotifyKills(home, transport="relay", driver="xattr", kills=300, seed=7).run()
    assert not found.troubles
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .cachefs_mount import Mounted
from .connections import Connection
from .images import Images
from .processes import is_alive, wait_for

HANG = 45.0
"""Seconds after which a system call on the mount counts as one that hangs."""

_IMAGES = 24
_IMAGE = 40_000  # bytes
_KEPT = 14  # images that fit below --max-size

_PROGRAM = """
import errno, hashlib, json, os, random, sys, time
kind, top, report, seed = sys.argv[1:5]
true = json.loads(sys.argv[5])
rng = random.Random(seed)
state = {"calls": 0, "longest": 0.0, "began": 0.0, "errors": {}, "wrong": []}
out = os.open(report, os.O_WRONLY | os.O_CREAT, 0o644)

def tell():
    os.pwrite(out, json.dumps(state).encode().ljust(1024), 0)

def read(name):
    with open(f"{top}/images/{name}", "rb", buffering=0) as file:
        data = file.readall()
    if hashlib.sha256(data).hexdigest() != true[name]:
        state["wrong"] = [*state["wrong"], name][:20]

def evict(name):
    try:
        os.unlink(f"{top}/control/cached/{name}")
    except FileNotFoundError:
        pass
    try:
        os.close(os.open(f"{top}/control/queue/{name}", os.O_CREAT | os.O_WRONLY))
    except FileExistsError:
        pass

def call():
    if kind == "ls":
        os.listdir(f"{top}/images")
    elif kind == "stat":
        os.stat(f"{top}/images/{rng.choice(list(true))}")
    else:
        {"read": read, "evict": evict}[kind](rng.choice(list(true)))

names = errno.errorcode
while True:
    state["began"] = time.monotonic()
    tell()
    try:
        call()
    except OSError as error:
        name = names.get(error.errno, str(error.errno))
        state["errors"][name] = state["errors"].get(name, 0) + 1
        time.sleep(0.01)
    state["longest"] = max(state["longest"], time.monotonic() - state["began"])
    state["calls"] += 1
    if kind == "evict":
        time.sleep(0.002)
"""


@dataclass(slots=True)
class Found:
    """What came of it. *longest* is the longest that one call of a program took, in seconds, by
    the program; *errors* are how often a call failed, by errno; *troubles* must be empty."""

    kills: int = 0
    seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        longest = ", ".join(f"{kind} {value:.2f} s" for kind, value in sorted(self.longest.items()))
        return (
            f"{self.kills} kills in {self.seconds:.0f} s, calls {dict(self.calls)}, longest"
            f" {longest}, errors {dict(self.errors)}, troubles {self.troubles}"
        )


class NotifyKills:
    """One run below *home*, which must be empty; *transport* and *driver* as of ``cachefs mount``.
    The same *seed* draws the same images and times."""

    def __init__(
        self, home: Path, *, transport: str, driver: str, kills: int, seed: int = 0
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.mount = Mounted(
            home,
            str(home / "origin"),
            driver=driver,
            options=["--transport", transport, "--max-size", str(_KEPT * _IMAGE)],
        )
        self.mount.origin = Images(home / "origin")
        self._plain = transport == "plain"
        self._kills = kills
        self._killed = 0
        self._connections: set[Connection] = set()
        self._random = random.Random(seed)
        self._seed = seed
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._found = Found()

    def run(self) -> Found:
        """Mount, kill, and take everything away; nothing raises but what has nothing to do with
        the mount."""
        began = time.monotonic()
        true = {}
        for number in range(_IMAGES):
            name = f"image-{number:02}"
            true[name] = hashlib.sha256(self.mount.origin.put(name, _IMAGE)).hexdigest()
        try:
            self.mount.start()
            for kind in ("ls", "ls2", "stat", "read", "evict", "evict2"):
                self._start(kind, true)
            while self._found.kills < self._kills and not self._found.troubles:
                self._kill_one()
            self._settle()
        finally:
            self._found.seconds = time.monotonic() - began
            self._end()
        return self._found

    # --- inside -------------------------------------------------------------------------------

    def _start(self, kind: str, true: dict[str, str]) -> None:
        report = self.mount.home / f"{kind}.json"
        words = [kind.rstrip("2"), str(self.mount.mountpoint), str(report), f"{self._seed}{kind}"]
        self._programs[kind] = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, *words, json.dumps(true)],
            stdin=subprocess.DEVNULL,
        )
        wait_for(lambda: report.exists() and report.stat().st_size, f"{kind} to begin")

    def _kill_one(self) -> None:
        worker = self._serving()
        if worker == 0:
            return
        # Served for longer than Timeouts.settled, it is no death in a row.
        time.sleep(0.35 + self._random.random() * 0.3)
        self._killed = worker
        connection = Connection.of(self.mount.mountpoint)
        if connection is not None:
            self._connections.add(connection)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
            self._found.kills += 1

    def _serving(self) -> int:
        """The worker that serves, by the log; 0 where none comes, which is a trouble."""
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline:
            for line in reversed(self.mount.log.read_text(errors="replace").splitlines()):
                _, found, rest = line.partition(" worker ")
                if found and f" serves {self.mount.mountpoint}" in rest:
                    pid = int(rest.split()[0])
                    if pid != self._killed and is_alive(pid):
                        return pid
                    break
            if not self._look():
                return 0
            time.sleep(0.01)
        self._found.troubles.append(f"no worker serves after {HANG:.0f} s")
        return 0

    def _look(self) -> bool:
        """Whether no program hangs, or has ended."""
        for kind, process in self._programs.items():
            state = self._state(kind)
            since = time.monotonic() - state["began"]
            if process.poll() is not None:
                self._found.troubles.append(f"{kind} ended with {process.returncode}")
            elif since > HANG:
                self._found.troubles.append(f"{kind} hangs for {since:.0f} s")
        return not self._found.troubles

    def _state(self, kind: str) -> dict[str, float]:
        while True:
            try:
                state: dict[str, float] = json.loads(
                    (self.mount.home / f"{kind}.json").read_bytes()
                )
            except json.JSONDecodeError:  # read while it was written
                continue
            return state

    def _settle(self) -> None:
        """After the last kill, each program gets through some more calls."""
        if self._found.troubles or not self._serving():
            return
        calls = {kind: self._state(kind)["calls"] for kind in self._programs}
        deadline = time.monotonic() + HANG
        for kind, before in calls.items():
            while self._state(kind)["calls"] < before + 3:
                if time.monotonic() > deadline or not self._look():
                    self._found.troubles.append(f"{kind} does not go on")
                    return
                time.sleep(0.01)

    def _free(self) -> None:
        """Fail whatever is stuck in the kernel: also of a mount that was detached already."""
        self.mount.abort()
        for connection in self._connections:
            connection.abort()

    def _end(self) -> None:
        found = self._found
        for kind, process in self._programs.items():
            state: dict[str, object] = dict(self._state(kind))
            found.calls[kind] = int(state["calls"])  # type: ignore[call-overload]
            found.longest[kind] = float(state["longest"])  # type: ignore[arg-type]
            found.errors.update(state["errors"])  # type: ignore[arg-type]
            if state["wrong"]:
                found.troubles.append(f"wrong bytes of {state['wrong']}")
            process.kill()
        if found.troubles:  # frees whatever is stuck in the kernel
            self._free()
        timer = threading.Timer(30, self._free)
        timer.daemon = True
        timer.start()
        for kind, process in self._programs.items():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                found.troubles.append(f"{kind} cannot be ended: process {process.pid}")
        found.troubles += self.mount.clean_up()
        timer.cancel()
        timer.join()

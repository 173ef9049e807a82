# ruff: noqa: T201
# Its output is its interface; pyfuse3 and the protocols have the types.
"""Serve smallfs under a supervisor: the parent process of a test mount that outlives its workers.

usage: python -m tests.support.supervise relay|plain SOURCE MOUNTPOINT [LIMIT=SECONDS]...
Prints "ready" once the mount answers; logs to standard error. The file ``SOURCE/../command``, if it
exists when a worker is started, replaces the program that serves (for upgrades that go wrong).
``SOURCE/../python`` is what workers are started with: without it, none can be.
"""

import logging
import shlex
import sys
from pathlib import Path

from cachefs.supervise.supervisor import Supervisor, Timeouts
from cachefs.transport.base import TransportInfo


def main() -> int:
    mode, source, mountpoint, *rest = sys.argv[1:]
    assert "trio" not in sys.modules
    assert "pyfuse3" not in sys.modules
    logging.basicConfig(level=logging.INFO, format="%(process)d supervisor: %(message)s")
    timeouts = {name: float(value) for name, value in (word.split("=") for word in rest)}
    if "give_up_after" in timeouts:
        timeouts["give_up_after"] = int(timeouts["give_up_after"])
    info = (
        TransportInfo("relay", True, "") if mode == "relay" else TransportInfo("plain", False, "")
    )
    worker = (
        "import os, sys; c = os.path.join(sys.argv[1], '..', 'command'); "
        "os.path.exists(c) and exec(open(c).read()); sys.argv[1:1] = ['worker']; "
        "from tests.support.smallfs import main; main()"
    )
    python = Path(source).parent / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    command = [str(python), "-c", worker, source, mountpoint]
    supervisor = Supervisor(
        command,
        mountpoint,
        info,
        timeouts=Timeouts(**timeouts),  # type: ignore[arg-type]
        on_ready=lambda: print("ready", flush=True),
    )
    status = supervisor.run()
    print("over", status, supervisor.reason, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

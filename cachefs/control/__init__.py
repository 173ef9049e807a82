"""``control/``: the cache operated with ``cat``, ``echo``, ``touch`` and ``rm``.

:mod:`~cachefs.control.table` declares every file in one table; :mod:`~cachefs.control.files` and
:mod:`~cachefs.control.records` are the two kinds there are; :mod:`~cachefs.control.operator` is
what they act on."""

from cachefs.control.operator import Operator, TransportStatus, WorkerStatus
from cachefs.control.table import TABLE, build

__all__ = ["TABLE", "Operator", "TransportStatus", "WorkerStatus", "build"]

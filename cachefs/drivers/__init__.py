"""Indexes of the cached images: the contract, and how a driver is chosen by name."""

from cachefs.drivers.base import Driver, Entry, GlanceRecord, QuickDriver, Totals, file_id
from cachefs.drivers.file_record import describe, is_marked_private
from cachefs.drivers.registry import DEFAULT, DRIVERS, open_driver

__all__ = [
    "DEFAULT",
    "DRIVERS",
    "Driver",
    "Entry",
    "GlanceRecord",
    "QuickDriver",
    "Totals",
    "describe",
    "file_id",
    "is_marked_private",
    "open_driver",
]

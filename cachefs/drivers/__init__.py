"""Indexes of the cached images: the contract, and how a driver is chosen by name."""

from cachefs.drivers.base import Driver, Entry, GlanceRecord, Totals
from cachefs.drivers.registry import DEFAULT, DRIVERS, open_driver

__all__ = ["DEFAULT", "DRIVERS", "Driver", "Entry", "GlanceRecord", "Totals", "open_driver"]

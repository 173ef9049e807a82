"""Indexes of the cached images: the contract, and how a driver is chosen by name."""

from cachefs.drivers.base import Driver, Entry, Totals
from cachefs.drivers.registry import open_driver

__all__ = ["Driver", "Entry", "Totals", "open_driver"]

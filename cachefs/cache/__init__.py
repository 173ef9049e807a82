"""The cache of one directory: decisions, reservations, publishing. No trio, no FUSE, no sources."""

from cachefs.cache.capacity import Limits, Usage
from cachefs.cache.held import Held
from cachefs.cache.image_cache import ImageCache
from cachefs.cache.layout import Layout
from cachefs.cache.lock import share
from cachefs.cache.open_image import OpenImage
from cachefs.cache.partial import CHUNK, PartialMap, Version
from cachefs.cache.queue import Failure
from cachefs.cache.quick import QuickStore, Waiting
from cachefs.cache.refusals import Kept, Refusals, Refused
from cachefs.cache.store import Store
from cachefs.cache.transaction import Hasher, Transaction
from cachefs.cache.writeback import begin_writeback

__all__ = [
    "CHUNK",
    "Failure",
    "Hasher",
    "Held",
    "ImageCache",
    "Kept",
    "Layout",
    "Limits",
    "OpenImage",
    "PartialMap",
    "QuickStore",
    "Refusals",
    "Refused",
    "Store",
    "Transaction",
    "Usage",
    "Version",
    "Waiting",
    "begin_writeback",
    "share",
]

"""The cache of one directory: decisions, reservations, publishing. No trio, no FUSE, no sources."""

from cachefs.cache.image_cache import ImageCache
from cachefs.cache.queue import Failure
from cachefs.cache.room import Limits, Usage
from cachefs.cache.store import OpenImage, Store
from cachefs.cache.transaction import Hasher, Transaction

__all__ = [
    "Failure",
    "Hasher",
    "ImageCache",
    "Limits",
    "OpenImage",
    "Store",
    "Transaction",
    "Usage",
]

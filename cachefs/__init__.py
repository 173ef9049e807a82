"""cachefs: an LRU cache of large immutable images, as a filesystem and as a library."""

from cachefs.cache import ImageCache
from cachefs.errors import CacheFSError
from cachefs.image import check_image_id

__version__ = "0.1.0"

__all__ = ["CacheFSError", "ImageCache", "check_image_id"]

"""Where images come from: directories, HTTP servers, object stores, and chains of them."""

from cachefs.sources.base import Source, SourceImage
from cachefs.sources.chain import members
from cachefs.sources.locate import open_source

__all__ = ["Source", "SourceImage", "members", "open_source"]

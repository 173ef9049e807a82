"""Where images come from: directories, HTTP servers, object stores, and chains of them."""

from cachefs.sources.base import Source, SourceImage
from cachefs.sources.chain import ChainSource, Member, chain_of
from cachefs.sources.health import Health, is_passing
from cachefs.sources.locate import open_source

__all__ = [
    "ChainSource",
    "Health",
    "Member",
    "Source",
    "SourceImage",
    "chain_of",
    "is_passing",
    "open_source",
]

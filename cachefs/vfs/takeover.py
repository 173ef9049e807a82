"""Taking up what an earlier worker of the mount had open.

The transport's table says which nodes are open and how often; ``.cachefs/held`` has the files that
lost their names, and notes of those that were being fetched. From both this makes the registry
(:mod:`cachefs.vfs.open_files`) what it was, before any request is answered. What was kept for an
open that the kernel is about to try once more (:mod:`cachefs.vfs.expected`) is kept again.

INVARIANT: a held file is taken for an image only if it was published: the file of a fetch that
failed, or was cancelled, is full of holes.

INVARIANT: every image that the kernel has open is in the registry, readable or not, so that its
last close releases what is held for it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from cachefs.cache import Held, Kept, QuickStore
from cachefs.errors import CacheFSError, StaleError
from cachefs.fetcher import Fetcher
from cachefs.image import Digest
from cachefs.sources import SourceImage
from cachefs.vfs.expected import Expected
from cachefs.vfs.holding import COMPLETE
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.in_threads import at_once_or
from cachefs.vfs.inodes import NodeKind, split
from cachefs.vfs.nodes import NOBODY, OpenFile
from cachefs.vfs.open_files import OpenFiles

log = logging.getLogger(__name__)


class Takeover:
    """Takes up open images into *files*. For the event loop."""

    def __init__(
        self,
        files: OpenFiles,
        images: ImageFiles,
        store: QuickStore,
        held: Held,
        fetcher: Fetcher,
        *,
        expected: Expected,
        keep_for_open: Callable[[int, SourceImage], None],
    ) -> None:
        self._files = files
        self._images = images
        self._store = store
        self._held = held
        self._fetcher = fetcher
        self._expected = expected
        self._keep_for_open = keep_for_open
        self._open_nodes: dict[int, int] = {}
        self._kept: list[Kept] = []

    async def run(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        """Take up what is cached of *open_nodes*, each with how often it is open, and of what the
        worker before has kept for an open that is about to come; :meth:`go_on` takes up the rest.
        Release all else: left by a worker that was killed in an open, or by an earlier mount where
        this worker is the mount's *first*. What cannot be taken up is logged, and its readers get
        EIO. Nothing may be evicted before this returns: what is open is not known to be."""
        kept = () if first else self._expected.taken_over()
        self._open_nodes = dict(open_nodes)
        self._kept = [each for each in kept if each.inode not in open_nodes]
        named = {each.inode for each in self._kept if each.image is None}  # else fetched anew
        self._held.keep_only(() if first else {*open_nodes, *named})
        await self._take_up_all(NodeKind.CACHED)

    async def go_on(self) -> None:
        """Take up what was being fetched: the fetcher runs by now."""
        await self._take_up_all(NodeKind.LAZY)

    async def _take_up_all(self, kind: NodeKind) -> None:
        for inode, opens in self._open_nodes.items():
            if split(inode)[0] == kind:
                self._files.grant(await self._take_up(inode), inode, opens)
        for each in self._kept:
            if split(each.inode)[0] == kind:
                await self._keep(each)

    async def _keep(self, kept: Kept) -> None:
        """Keep what the worker before has kept, for as long; nobody has read anything of it."""
        kind, serial = split(kept.inode)
        try:
            if kind == NodeKind.LAZY and kept.image is not None:
                self._keep_for_open(serial, _noted_image(kept.image))
                return
            file = await self._reopen(kept.inode)
            if file is not None:
                self._expected.keep(self._files.keep(file), kept)
                return
        except (CacheFSError, OSError) as error:
            log.info("what was kept as %d for an open cannot be had: %s", kept.inode, error)
        self._held.release(kept.inode)

    async def _take_up(self, inode: int) -> OpenFile:
        """Open the image again, or what stands for one that is lost."""
        try:
            file = await self._reopen(inode)
        except (CacheFSError, OSError) as error:
            log.warning("what was open as %d cannot be read on: %s", inode, error)
            file = None
        return file or self._images.lost(inode)

    async def _reopen(self, inode: int) -> OpenFile | None:
        """None where the image's fetch had failed or was cancelled. Raises why a fetch cannot go
        on."""
        kind, serial = split(inode)
        if kind == NodeKind.LAZY:
            return await self._reopen_lazy(inode)
        entry = await at_once_or(
            lambda: self._store.by_inode(serial), lambda: self._store.waiting.by_inode(serial)
        )
        if entry is None:
            return self._images.open_held(inode)
        return await self._images.reopen(inode, entry.image_id)

    async def _reopen_lazy(self, inode: int) -> OpenFile | None:
        members = self._held.noted(inode)
        if members is None:
            return None
        complete = members.pop(COMPLETE, False)
        image = _noted_image(members)
        if not complete and self._held.is_incomplete(inode, image.image_id):
            flight = self._fetcher.start(image)
            if flight.image != image:
                raise StaleError(f"image {image.image_id!r} is being fetched in another version")
            flight.insist()  # its readers have begun, whoever has cached the image since
            return await self._images.lazy(split(inode)[1], flight, NOBODY)
        if not complete:
            # Killed between the publication and the note of it, or it never was published.
            if not self._held.is_published(inode, image.image_id):
                return None
            self._images.note(image, inode, complete=True)
        return self._images.open_held(inode, image.image_id, private=image.private)


def _noted_image(members: dict[str, Any]) -> SourceImage:
    """What :func:`dataclasses.asdict` made of a SourceImage, as one again. Raises StaleError where
    it makes no sense, as another version's may not."""
    try:
        digest = members["digest"]
        return SourceImage(**{**members, "digest": Digest(**digest) if digest else None})
    except (KeyError, TypeError, ValueError) as error:
        raise StaleError(f"the note of it makes no sense: {error!r}") from error

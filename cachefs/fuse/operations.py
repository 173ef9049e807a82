"""pyfuse3's requests, turned into calls of nodes and back.

Owns open directories and the shape of replies. Knows no file by name and decides nothing: which
inode number is what, who may do what and what a file holds are the tree's."""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from cachefs.errors import NotPermittedError, ReadOnlyError
from cachefs.fuse.boundary import answers
from cachefs.fuse.listings import Listings
from cachefs.image import MAX_ID_BYTES
from cachefs.vfs.handles import inode_of
from cachefs.vfs.inodes import Serials
from cachefs.vfs.nodes import NOBODY, Attributes, Caller, Directory, OpenFile, StatFS
from cachefs.vfs.open_files import OpenFiles
from cachefs.vfs.tree import Tree

PAGE = 256
"""Names asked of a listing at once; a reply to the kernel holds some 20 to 200."""

BLOCK = 4096
"""Bytes of a block in statfs."""

_WRITING = os.O_WRONLY | os.O_RDWR


class Operations(pyfuse3.Operations):
    """The filesystem of *tree*; *files* is the registry of what is open, *statfs* measures."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        tree: Tree,
        serials: Serials,
        files: OpenFiles,
        statfs: Callable[[], Awaitable[StatFS]],
    ) -> None:
        super().__init__()
        self._tree = tree
        self._files = files
        self._listings = Listings(serials)
        self._statfs = statfs
        self._uid, self._gid = os.getuid(), os.getgid()
        self._started_ns = time.time_ns()  # for nodes that have no times of their own

    # Names

    @answers
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = await self._directory(parent_inode).lookup(name, _caller(ctx))
        return self._entry(node.attributes())

    @answers
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, lookups in inode_list:
            self._tree.forget(inode, lookups)

    @answers
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        node, file = await self._directory(parent_inode).create(name, _caller(ctx))
        attributes = node.attributes()
        grant = self._files.grant(file, attributes.inode)
        return FileInfo(fh=FileHandleT(grant.handle), direct_io=file.direct), self._entry(
            attributes
        )

    @answers
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._directory(parent_inode).unlink(name)

    # Attributes

    @answers
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._entry((await self._tree.node_when_free(inode)).attributes())

    @answers
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = await self._tree.node_when_free(inode)
        if fields.update_size:
            node.truncate()
        if fields.update_atime or fields.update_mtime:
            node.touch()
        if fields.update_mode or fields.update_uid or fields.update_gid:
            self._refuse(inode)
        return self._entry(node.attributes())

    @answers
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        if not name.startswith(b"user."):  # `ls -l` asks for ACLs and labels of each file
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        try:
            node = await self._tree.node_when_free(inode)
            return (await node.xattrs())[os.fsdecode(name)]
        except KeyError:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR) from None

    @answers
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        node = await self._tree.node_when_free(inode)
        return [XAttrNameT(name.encode()) for name in await node.xattrs()]

    @answers
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = await self._statfs()
        stat = StatvfsData()
        stat.f_bsize = stat.f_frsize = BLOCK
        stat.f_blocks = space.total // BLOCK
        stat.f_bfree = stat.f_bavail = space.free // BLOCK
        stat.f_files, stat.f_namemax = space.images, MAX_ID_BYTES
        return stat

    # Files

    @answers
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        writing = bool(flags & _WRITING)
        file = await self._tree.open(inode, _caller(ctx), writing=writing)
        grant = self._files.grant(file, inode)
        return FileInfo(
            fh=FileHandleT(grant.handle),
            direct_io=file.direct,
            keep_cache=not file.direct,
        )

    @answers
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, and replies before anything else runs: see vfs.reader
        file = await self._file(fh)
        return await file.read(off, size)  # type: ignore[return-value]

    @answers
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        file = await self._file(fh)
        return await file.write(off, buf)

    @answers
    async def release(self, fh: FileHandleT) -> None:
        grant = self._files.opened(fh)
        if grant is not None:  # else it was opened through an earlier worker
            grant.close()

    # Directories

    @answers
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self._directory(inode)
        return FileHandleT(self._listings.new_number(inode))

    @answers
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        listing = self._listings.get(fh) if start_id else None
        if listing is None:  # from the start; or forgotten, or an earlier worker's
            listing = await self._directory(inode_of(fh)).open_listing()
            self._listings.keep(fh, listing)
        position = start_id
        while page := await listing.page(position, PAGE):
            for item in page:
                entry = self._entry(item.attributes)
                if not pyfuse3.readdir_reply(
                    token, FileNameT(item.name.encode()), entry, item.position
                ):
                    return
                listing.listed(item)
                position = item.position

    @answers
    async def releasedir(self, fh: FileHandleT) -> None:
        self._listings.release(fh)

    # What no file here allows

    @answers
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        self._refuse(parent_inode)

    @answers
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._refuse(parent_inode)

    @answers
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._refuse(parent_inode)

    @answers
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._refuse(parent_inode)

    @answers
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._refuse(inode)

    @answers
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        self._refuse(parent_inode_old)

    @answers
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        self._refuse(inode)

    @answers
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        self._refuse(inode)

    # Inside

    def _refuse(self, inode: int) -> NoReturn:
        if self._tree.is_image(inode):
            raise ReadOnlyError("images are read-only")
        raise NotPermittedError("control files cannot be changed in this way")

    async def _file(self, handle: int) -> OpenFile:
        """What is open under *handle*; what was opened through an earlier worker is opened anew.
        Raises StaleError."""
        grant = self._files.opened(handle)
        if grant is None:
            node = await self._tree.node_when_free(inode_of(handle))
            file = await node.open(NOBODY, writing=True)
            grant = self._files.resume(handle, file)
        return grant.file

    def _directory(self, inode: int) -> Directory:
        node = self._tree.node(inode)
        if not isinstance(node, Directory):
            raise NotADirectoryError(20, "not a directory")
        return node

    def _entry(self, attributes: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(attributes.inode)
        entry.st_mode = ModeT(attributes.mode)
        entry.st_nlink = 2 if attributes.is_directory else 1
        entry.st_size = attributes.size
        entry.st_blocks = -(-attributes.size // 512)
        entry.st_blksize = BLOCK
        entry.st_uid = self._uid if attributes.uid is None else attributes.uid
        entry.st_gid = self._gid if attributes.gid is None else attributes.gid
        modified, accessed = attributes.mtime_ns, attributes.atime_ns
        entry.st_mtime_ns = self._started_ns if modified is None else modified
        entry.st_ctime_ns = entry.st_mtime_ns
        entry.st_atime_ns = self._started_ns if accessed is None else accessed
        entry.entry_timeout = attributes.entry_timeout
        entry.attr_timeout = attributes.attr_timeout
        return entry


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.pid, ctx.uid, ctx.gid)

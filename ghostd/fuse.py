"""The FUSE edge: translates between pyfuse3 and the filesystem, and nothing else.

`_door` is the one way in: it turns answers of the filesystem into errno, counts and times every
request, and turns anything unexpected into EIO with a log line, because one uncaught exception
would end the mount.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import pyfuse3
import structlog
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError, StorageFailed, StorageFull
from ghostd import errors
from ghostd.filesystem import NAME_MAX, AttributeChanges, Caller, Filesystem
from ghostd.inodes import ROOT_INO, Inode
from ghostd.listings import Listings
from ghostd.orbit_xattrs import PREFIX
from ghostd.reader import ReadTimeout
from ghostd.remote_files import RemoteFiles
from syncer.remotes.errors import Busy, Changed, Denied, Missing, RemoteError, Unreachable

log = structlog.get_logger(__name__)

ERRNO: dict[type[OrbitError], int] = {
    errors.NotFound: errno.ENOENT,
    errors.AlreadyExists: errno.EEXIST,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.TooManyLinks: errno.EMLINK,
    errors.FileTooLarge: errno.EFBIG,
    errors.NoSpaceLeft: errno.ENOSPC,
    errors.NotPermitted: errno.EPERM,
    errors.InvalidArgument: errno.EINVAL,
    errors.NoAttribute: errno.ENODATA,
    errors.AttributeTooLarge: errno.ENOSPC,
    errors.NotSupported: errno.EOPNOTSUPP,
    errors.StaleHandle: errno.ESTALE,
    errors.ReadOnly: errno.EROFS,
    errors.OtherProjection: errno.EXDEV,
    errors.ProjectionRoot: errno.EBUSY,
    errors.RemoteVersionGone: errno.ESTALE,
    Missing: errno.ENOENT,
    Denied: errno.EACCES,
    Changed: errno.ESTALE,
    Unreachable: errno.ETIMEDOUT,
    Busy: errno.ETIMEDOUT,
    RemoteError: errno.EIO,
    StorageFull: errno.ENOSPC,
    StorageFailed: errno.EIO,
    ChunkDamaged: errno.EIO,
    ChunkMissing: errno.EIO,
    ReadTimeout: errno.ETIMEDOUT,
}

_PAGE_ENTRIES = 200  # fills a readdir buffer of 32 KiB
_NOISY = (StorageFull, StorageFailed, ChunkDamaged, ChunkMissing, ReadTimeout, RemoteError)

T = TypeVar("T")
Timeouts = tuple[float, float]  # of attributes and of names, seconds


class RequestCounters:
    """Requests by name: how many, how many refused, seconds in all."""

    def __init__(self) -> None:
        self.counts: dict[str, list[float]] = {}

    def of(self, name: str) -> list[float]:
        """[requests, errors, seconds] of one kind; to be added to."""
        return self.counts.setdefault(name, [0, 0, 0.0])

    def total(self) -> int:
        """All requests so far."""
        return int(sum(counters[0] for counters in self.counts.values()))


def errno_of(error: OrbitError) -> int:
    """The errno that stands for an answer of the filesystem."""
    for kind in type(error).__mro__:
        number = ERRNO.get(kind)
        if number is not None:
            return number
    return errno.EIO


def _door(handler: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    name = handler.__name__
    clock = time.perf_counter

    @functools.wraps(handler)
    async def enter(self: Operations, *args: Any) -> T:
        counters = self.counters.of(name)
        counters[0] += 1
        began = clock()
        try:
            return await handler(self, *args)
        except FUSEError:  # a handler that tells the kernel not to ask again
            raise
        except OrbitError as error:
            counters[1] += 1
            if isinstance(error, _NOISY):
                log.warning("request failed", op=name, error=str(error), inode=args[:1])
            raise FUSEError(errno_of(error)) from None
        except Exception:
            counters[1] += 1
            log.exception("unexpected error", op=name, args=repr(args)[:500])
            raise FUSEError(errno.EIO) from None
        finally:
            counters[2] += clock() - began

    return enter


def _attributes(inode: Inode, timeouts: Timeouts) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = inode.ino
    entry.generation = inode.generation
    entry.attr_timeout, entry.entry_timeout = timeouts
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blocks = (inode.allocated + inode.base_end - inode.base_holes + 511) >> 9
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def _listed_attributes(row: Sequence[Any], timeouts: Timeouts) -> EntryAttributes:
    """From a row (cookie, name, *INODE_COLUMNS): inodes need not be loaded to be listed."""
    entry = EntryAttributes()
    entry.st_ino = row[2]
    entry.generation = row[3]
    entry.attr_timeout, entry.entry_timeout = timeouts
    entry.st_mode = row[4]
    entry.st_uid = row[5]
    entry.st_gid = row[6]
    entry.st_nlink = row[7]
    entry.st_rdev = row[8]
    entry.st_size = row[9]
    entry.st_blocks = (row[10] + row[21] - row[22] + 511) >> 9
    entry.st_atime_ns = row[11]
    entry.st_mtime_ns = row[12]
    entry.st_ctime_ns = row[13]
    return entry


class _OpenDirectory:
    """A directory handle.

    Which one, the cookies it shows (those given out before it was opened or rewound), and whether
    more entries are on their way from a remote.
    """

    __slots__ = ("below", "growing", "ino")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.below = 0
        self.growing = False


def supplementary_groups(pid: int) -> set[int]:
    """The groups of a process; empty where it is gone."""
    try:
        return set(pyfuse3.get_sup_groups(pid))
    except (OSError, RuntimeError, ValueError):
        return set()


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)


class Operations(pyfuse3.Operations):
    """pyfuse3's handlers. File handles are inode numbers: a handle has no state of its own."""

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True

    def __init__(
        self,
        filesystem: Filesystem,
        listings: Listings,
        remote_files: RemoteFiles,
        *,
        attr_timeout_s: float,
        entry_timeout_s: float,
        hides: Callable[[int], Callable[[bytes], bool] | None] = lambda _: None,
    ) -> None:
        """`hides`: which names of a directory are not listed, though they can be looked up."""
        super().__init__()
        self.fs = filesystem
        self._listings = listings
        self._remote_files = remote_files
        self._hides = hides
        self.counters = RequestCounters()
        self._timeouts = (attr_timeout_s, entry_timeout_s)
        self._directories: dict[int, _OpenDirectory] = {}
        self._next_directory = 1
        self.begun = trio.Event()  # set when the mount answers

    def init(self) -> None:
        """The kernel and we have agreed on a protocol."""
        self.begun.set()

    def _entry(self, inode: Inode) -> EntryAttributes:
        """The answer to a request that gives the kernel a reference."""
        self.fs.tree.lookups.add(inode.ino)
        return _attributes(inode, self._timeouts)

    def _timeouts_in(self, directory: Inode) -> Timeouts:
        """How long the kernel may show names of a directory: in projections not longer than we."""
        if not directory.projection:
            return self._timeouts
        attributes_s, names_s = self._timeouts
        return attributes_s, min(names_s, self._listings.shown_s(directory))

    async def _look_into(self, parent: int, name: bytes) -> Inode:
        """The directory, ready for a lookup of `name` in it."""
        directory = self.fs.tree.inode(parent)
        if directory.projection:
            await self._listings.find(directory, name)
        return directory

    async def _whole(self, parent: int, name: bytes) -> None:
        """A directory is to be removed or replaced: whether it is empty must be known."""
        directory = await self._look_into(parent, name)
        if directory.projection:
            found = self.fs.tree.find(parent, name)
            if found is not None and (inode := self.fs.tree.inode(found[1])).is_dir:
                await self._listings.fresh(inode)

    # --- names and attributes --------------------------------------------------------------------

    @_door
    async def lookup(
        self, parent: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        directory = await self._look_into(parent, name)
        timeouts = self._timeouts_in(directory)
        try:
            inode = self.fs.lookup(parent, name)
        except errors.NotFound:
            missing = EntryAttributes()  # inode 0: the kernel remembers that there is nothing
            missing.st_ino = 0
            missing.entry_timeout = min(timeouts[1], self._listings.age_left_s(directory))
            return missing
        if self._remote_files.is_root(inode):
            await self._remote_files.renew_root(inode)
            left_s = self._remote_files.age_left_s(inode)
            timeouts = (left_s, min(timeouts[1], left_s))
        self.fs.tree.lookups.add(inode.ino)
        return _attributes(inode, timeouts)

    @_door
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self.fs.forget(ino, count)

    @_door
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        return _attributes(self.fs.tree.inode(inode), self._timeouts)

    @_door
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        changes = AttributeChanges(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return _attributes(self.fs.setattr(inode, changes), self._timeouts)

    @_door
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self.fs.readlink(inode)

    @_door
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        await self.fs.writeback.room(0)
        await self._look_into(parent, name)
        return self._entry(self.fs.create(parent, name, mode, _caller(ctx), rdev=rdev))

    @_door
    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        await self.fs.writeback.room(0)
        await self._look_into(parent, name)
        mode = stat.S_IMODE(mode) | stat.S_IFDIR
        return self._entry(self.fs.create(parent, name, mode, _caller(ctx)))

    @_door
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        await self.fs.writeback.room(0)
        await self._look_into(parent, name)
        mode = stat.S_IFLNK | 0o777
        return self._entry(self.fs.create(parent, name, mode, _caller(ctx), target=target))

    @_door
    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self.fs.unlink(parent, name)

    @_door
    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._whole(parent, name)
        self.fs.rmdir(parent, name)

    @_door
    async def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._whole(parent_new, name_new)
        self.fs.rename(parent_old, name_old, parent_new, name_new, flags)

    @_door
    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        await self.fs.writeback.room(0)
        return self._entry(self.fs.link(inode, new_parent, new_name))

    # --- files -----------------------------------------------------------------------------------

    @_door
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        await self.fs.writeback.room(0)
        await self._look_into(parent, name)
        mode = stat.S_IMODE(mode) | stat.S_IFREG
        inode = self.fs.create(parent, name, mode, _caller(ctx))
        inode.opens += 1
        return FileInfo(fh=inode.ino), self._entry(inode)

    @_door
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        renewed = await self._remote_files.renew_root(self.fs.tree.inode(inode))
        self.fs.open(inode, writing=writing, truncate=bool(flags & os.O_TRUNC))
        return FileInfo(fh=inode, keep_cache=not renewed)

    @_door
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        return await self.fs.read(fh, off, size)

    @_door
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self.fs.write(fh, off, buf, keep_times=True)

    @_door
    async def flush(self, fh: int) -> None:
        # The kernel writes its dirty pages back before it asks; there is nothing left to do, and
        # ENOSYS tells it not to ask again.
        raise FUSEError(errno.ENOSYS)

    @_door
    async def release(self, fh: int) -> None:
        self.fs.release(fh)

    @_door
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.fs.sync()

    # --- directories -----------------------------------------------------------------------------

    @_door
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        directory = self.fs.tree.inode(inode)
        if directory.projection:
            await self._listings.fresh(directory, whole=False)
        handle = self._next_directory
        self._next_directory += 1
        self._directories[handle] = _OpenDirectory(inode)
        return handle

    @_door
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._directories[fh]
        tree = self.fs.tree
        directory = tree.inode(handle.ino)
        reply = pyfuse3.readdir_reply
        timeouts = self._timeouts_in(directory)
        if start_id == 0:
            handle.below = tree.next_cookie
            handle.growing = self._listings.under_way(handle.ino)
            self.fs.accessed(directory)
        if start_id < 1 and not reply(token, b".", _attributes(directory, timeouts), 1):
            return
        if start_id < 2:
            above = tree.inode(directory.parent) if directory.nlink else directory
            if not reply(token, b"..", _attributes(above, timeouts), 2):
                return
        held = tree.lookups.add
        hidden = self._hides(handle.ino)
        after = start_id
        while True:
            count = 0
            for cookie, name, inode, row in tree.list_page(
                handle.ino, after, handle.below, _PAGE_ENTRIES
            ):
                count += 1
                after = cookie
                if hidden is not None and hidden(name):
                    continue
                if inode is not None:
                    ino, entry = inode.ino, _attributes(inode, timeouts)
                else:
                    assert row is not None
                    ino, entry = cast("int", row[2]), _listed_attributes(row, timeouts)
                if not reply(token, name, entry, cookie):
                    return
                held(ino)
            if count == 0:
                if after != start_id or not handle.growing:
                    return
                # A first listing is shown while it comes in.
                handle.growing = await self._listings.more(directory)
                handle.below = tree.next_cookie

    @_door
    async def releasedir(self, fh: int) -> None:
        del self._directories[fh]

    @_door
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.fs.sync()

    # --- the rest --------------------------------------------------------------------------------

    @_door
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space = self.fs.statfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = space.block_bytes
        answer.f_blocks = space.total_bytes // space.block_bytes
        answer.f_bfree = answer.f_bavail = space.free_bytes // space.block_bytes
        answer.f_files = space.inodes + space.inodes_free
        answer.f_ffree = answer.f_favail = space.inodes_free
        answer.f_namemax = NAME_MAX
        return answer

    @_door
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        await self.fs.writeback.room(0)
        self.fs.setxattr(inode, name, value, _caller(ctx))

    @_door
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        try:
            return self.fs.getxattr(inode, name)
        except errors.NoAttribute:
            if not name.startswith(b"user.") or name.startswith(PREFIX):
                raise
        value = (await self._remote_files.metadata(self.fs.tree.inode(inode))).get(name)
        if value is None:
            raise errors.NoAttribute
        return value

    @_door
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        names = self.fs.listxattr(inode, _caller(ctx))
        of_remote = await self._remote_files.listed_metadata(self.fs.tree.inode(inode))
        return list(dict.fromkeys([*names, *of_remote]))

    @_door
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self.fs.removexattr(inode, name)

    @_door
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        raise FUSEError(errno.ENOSYS)  # the kernel checks (default_permissions)


__all__ = ["ROOT_INO", "Operations", "RequestCounters", "errno_of", "supplementary_groups"]

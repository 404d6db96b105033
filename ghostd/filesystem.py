"""POSIX semantics over the tree: what each operation checks, changes and answers.

Knows neither FUSE nor errno. Permissions are the kernel's business (`default_permissions`); what
depends on rules beyond them (set-group-id inheritance, ACLs following modes, sizes, links, names)
is here. Operations on names and attributes are synchronous: they change memory, and the commit
makes them durable. Reading, writing and syncing may wait.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from ghostd import acl
from ghostd.errors import (
    AlreadyExists,
    AttributeTooLarge,
    DirectoryNotEmpty,
    FileTooLarge,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotFound,
    NotPermitted,
    NotSupported,
    OtherProjection,
    ProjectionRoot,
    ReadOnly,
    TooManyLinks,
)
from ghostd.filemap import SIZE_MAX
from ghostd.inodes import FLAG_LOCAL, FLAG_PINNED, FLAG_XATTRS, ROOT_INO, Inode
from ghostd.orbit_xattrs import PREFIX
from ghostd.push_gone import note_gone
from ghostd.reader import Reader
from ghostd.tree import Tree
from ghostd.writeback import Writeback

NAME_MAX: Final = 255  # bytes
LINK_TARGET_MAX: Final = 4_095  # bytes
LINKS_MAX: Final = 65_000  # as ext4
XATTR_VALUE_MAX: Final = 64 << 10  # bytes; the kernel's limit
XATTR_LIST_MAX: Final = 64 << 10  # bytes of names on one inode; what listxattr can return
XATTR_TOTAL_MAX: Final = 16 << 20  # bytes of values on one inode: they are held in memory together
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")  # system. holds the ACLs only
_DAY_NS = 86_400 * 10**9
_CLOCK_REALTIME_COARSE: Final = 5  # linux/time.h; `time` has no name for it


def _kernel_now_ns() -> int:
    # With write-back caching the kernel keeps the times of files, by its coarse clock. A finer one
    # would run ahead of it, and a ctime that the kernel sets next would go back.
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the credentials of the process behind a request."""

    uid: int
    gid: int
    pid: int
    umask: int


@dataclass(slots=True)
class AttributeChanges:
    """What setattr is to change; None: leave it. Times in nanoseconds since 1970."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """What statfs tells; an inode costs about 1 KiB of the disk."""

    block_bytes: int
    total_bytes: int
    free_bytes: int
    inodes: int
    inodes_free: int


class _Place(NamedTuple):
    """A name in a directory, whether something is there or not."""

    directory: Inode
    name: bytes


class Filesystem:
    """One mounted namespace."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        reader: Reader,
        *,
        groups_of: Callable[[int], set[int]],
        now_ns: Callable[[], int] = _kernel_now_ns,
        takes_changes: Callable[[int], bool] = lambda _: False,
        orbit_xattr: Callable[[Inode, bytes], bytes | None] = lambda *_: None,
        changed: Callable[[Inode], None] = lambda _: None,
        closed: Callable[[Inode], None] = lambda _: None,
    ) -> None:
        """`changed` is told of every change in a projection, before it is made.

        `closed`: nobody has such a changed file open any more.
        """
        self.tree = tree
        self.writeback = writeback
        self.reader = reader
        self._groups_of = groups_of
        self._now_ns = now_ns
        self._takes_changes = takes_changes  # of a projection
        self._orbit_xattr = orbit_xattr
        self._changed = changed
        self._closed = closed

    # --- projections ---------------------------------------------------------------------------

    def _check_writable(self, inode: Inode) -> None:
        if inode.projection and not self._takes_changes(inode.projection):
            raise ReadOnly

    def _change(self, inode: Inode) -> None:
        """The inode is about to be changed; a listing of its remote leaves it alone from now on."""
        if inode.projection:
            self._check_writable(inode)
            inode.flags |= FLAG_LOCAL
            self._changed(inode)

    def _hide(self, directory: Inode, name: bytes, inode: Inode) -> None:
        """What the remote has under this name is not shown any more."""
        if directory.projection and self.tree.remote.dirs.get(directory.ino) is not None:
            self._replaced(directory, name, inode)
            self.tree.remote.hidden.set((directory.ino, name), True)

    def _replaced(self, directory: Inode, name: bytes, inode: Inode) -> None:
        """The name leads elsewhere now; a push must know what it led to."""
        if directory.projection:
            note_gone(self.tree, directory, name, inode)
            self._changed(inode)

    # --- looking -------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that `name` leads to. Raises NotFound, NotADirectory, NameTooLong, StaleHandle.

        "." is asked of files too: that is how an NFS server finds an inode again by its number.
        """
        if name == b".":
            return self.tree.inode(parent)
        directory = self._directory(parent)
        if name == b"..":
            return self.tree.inode(directory.parent)
        if len(name) > NAME_MAX:
            raise NameTooLong
        found = self.tree.find(parent, name)
        if found is None:
            raise NotFound
        return self.tree.inode(found[1])

    def _directory(self, ino: int) -> Inode:
        inode = self.tree.inode(ino)
        if not inode.is_dir:
            raise NotADirectory
        return inode

    def readlink(self, ino: int) -> bytes:
        """The target of a symlink."""
        inode = self.tree.inode(ino)
        if inode.target is None:
            raise InvalidArgument
        self.accessed(inode)
        return inode.target

    def accessed(self, inode: Inode) -> None:
        """relatime: the access time moves when it is older than the last change, or than a day.

        Not in projections: there times are the remote's.
        """
        if inode.projection:
            return
        now = self._now_ns()
        atime = inode.atime_ns
        if atime <= inode.mtime_ns or atime <= inode.ctime_ns or now - atime > _DAY_NS:
            inode.atime_ns = now
            self.tree.touch(inode)

    def statfs(self) -> Space:
        """What the disk of the state folder can still take, after the reserve and what is dirty."""
        total = self.writeback.store.total_bytes()
        free = max(0, self.writeback.space_left())
        return Space(
            block_bytes=4_096,
            total_bytes=total,
            free_bytes=free,
            inodes=self.tree.inode_count,
            inodes_free=free // 1_024,
        )

    # --- names ---------------------------------------------------------------------------------

    def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
        nameless: Inode | None = None,
    ) -> Inode:
        """A new entry of the type in `mode` (umask not applied yet).

        `nameless`: the file that gets this as its first name, in place of a new one.
        Raises AlreadyExists, NameTooLong, NotFound.
        """
        directory = self._directory(parent)
        if len(name) > NAME_MAX or (target is not None and len(target) > LINK_TARGET_MAX):
            raise NameTooLong
        if directory.nlink == 0:
            raise NotFound
        if name in (b".", b"..") or self.tree.find(parent, name) is not None:
            raise AlreadyExists
        self._check_writable(directory)
        self.writeback.check_space(0)
        is_dir = stat.S_ISDIR(mode)
        now = self._now_ns()
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if is_dir:
                mode |= stat.S_ISGID
        access: list[acl.AclEntry] = []
        default: bytes | None = None
        if target is None:
            default = self.tree.xattrs(directory).get(acl.DEFAULT) if directory.flags else None
            if default is None:
                mode &= ~caller.umask
            else:
                access, mode = acl.inherited(acl.decode(default), mode)
        make = self.tree.new_inode if nameless is None else partial(self.tree.named, nameless)
        inode = make(
            mode=mode,
            uid=caller.uid,
            gid=gid,
            nlink=2 if is_dir else 1,
            rdev=rdev,
            parent=parent if is_dir else 0,
            target=target,
            now_ns=now,
            projection=directory.projection,
        )
        self._change(inode)
        if is_dir:
            inode.flags |= directory.flags & FLAG_PINNED
        if default is not None:
            if not acl.minimal(access):
                self.tree.set_xattr(inode, acl.ACCESS, acl.encode(access))
            if is_dir:
                self.tree.set_xattr(inode, acl.DEFAULT, default)
        self.tree.set_name(parent, name, inode.ino)
        self._entries_changed(directory, now, entries=1, subdirectories=1 if is_dir else 0)
        return inode

    def nameless(self) -> Inode:
        """A new open file without a name: `create` gives it one, else `release` ends it."""
        self.writeback.check_space(0)
        now = self._now_ns()
        inode = self.tree.new_inode(
            mode=stat.S_IFREG, uid=0, gid=0, nlink=0, rdev=0, parent=0, target=None, now_ns=now
        )
        inode.opens = 1
        return inode

    def _entries_changed(
        self, directory: Inode, now: int, *, entries: int, subdirectories: int
    ) -> None:
        directory.children += entries
        directory.nlink += subdirectories
        directory.mtime_ns = directory.ctime_ns = now
        self.tree.touch(directory)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """One more name for an inode.

        Raises TooManyLinks, NotPermitted (directories), AlreadyExists.
        """
        inode = self.tree.inode(ino)
        directory = self._directory(parent)
        if inode.is_dir:
            raise NotPermitted
        if len(name) > NAME_MAX:
            raise NameTooLong
        if inode.nlink == 0 or directory.nlink == 0:
            raise NotFound
        if inode.nlink >= LINKS_MAX:
            raise TooManyLinks
        if self.tree.find(parent, name) is not None:
            raise AlreadyExists
        if inode.projection != directory.projection:
            raise OtherProjection
        self._change(inode)
        self.writeback.check_space(0)
        now = self._now_ns()
        inode.nlink += 1
        inode.ctime_ns = now
        self.tree.touch(inode)
        self.tree.set_name(parent, name, ino)
        self._entries_changed(directory, now, entries=1, subdirectories=0)
        return inode

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away from anything but a directory."""
        directory, inode = self._entry(parent, name)
        if inode.is_dir:
            raise IsADirectory
        self._check_removable(directory, inode)
        now = self._now_ns()
        self._hide(directory, name, inode)
        self.tree.drop_name(parent, name)
        self._entries_changed(directory, now, entries=-1, subdirectories=0)
        self._name_lost(inode, now)

    def _entry(self, parent: int, name: bytes) -> tuple[Inode, Inode]:
        directory = self._directory(parent)
        if len(name) > NAME_MAX:
            raise NameTooLong
        found = self.tree.find(parent, name)
        if found is None:
            raise NotFound
        return directory, self.tree.inode(found[1])

    def _check_removable(self, directory: Inode, inode: Inode) -> None:
        if inode.projection != directory.projection:
            raise ProjectionRoot
        self._check_writable(directory)

    def _name_lost(self, inode: Inode, now: int) -> None:
        inode.nlink = 0 if inode.is_dir else inode.nlink - 1
        inode.ctime_ns = now
        self.tree.touch(inode)
        self._reap(inode)

    def _reap(self, inode: Inode) -> None:
        if self.tree.reap(inode):
            self.writeback.freed()

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        if name == b".":
            raise InvalidArgument
        if name == b"..":
            raise DirectoryNotEmpty
        directory, inode = self._entry(parent, name)
        if not inode.is_dir:
            raise NotADirectory
        self._check_removable(directory, inode)
        if inode.children:
            raise DirectoryNotEmpty
        now = self._now_ns()
        self._hide(directory, name, inode)
        self.tree.drop_name(parent, name)
        self._entries_changed(directory, now, entries=-1, subdirectories=-1)
        self._name_lost(inode, now)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """Move a name, replacing what is there unless NOREPLACE is asked for.

        EXCHANGE swaps two names.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE) or {name, new_name} & {b".", b".."}:
            raise InvalidArgument
        source_dir, inode = self._entry(parent, name)
        target_dir = self._directory(new_parent)
        self._check_movable(source_dir, inode, target_dir, new_name)
        source, target = _Place(source_dir, name), _Place(target_dir, new_name)
        found = self.tree.find(new_parent, new_name)
        if found is None:
            if flags & RENAME_EXCHANGE:
                raise NotFound
            self._move(inode, source, target, cookie=0)
            return
        if flags & RENAME_NOREPLACE:
            raise AlreadyExists
        other = self.tree.inode(found[1])
        self._check_removable(target_dir, other)
        if flags & RENAME_EXCHANGE:
            if other.is_dir and new_parent != parent and self._below(source_dir, other):
                raise InvalidArgument
            if other is not inode:
                self._exchange(inode, source, other, target)
            return
        if other is not inode:
            self._check_replaceable(inode, other)
            self._replaced(target_dir, new_name, other)
            self._move(inode, source, target, cookie=found[0])
            now = inode.ctime_ns
            self._entries_changed(
                target_dir, now, entries=-1, subdirectories=-1 if other.is_dir else 0
            )
            self._name_lost(other, now)

    def _check_movable(
        self, source_dir: Inode, inode: Inode, target_dir: Inode, new_name: bytes
    ) -> None:
        if len(new_name) > NAME_MAX:
            raise NameTooLong
        if target_dir.nlink == 0:
            raise NotFound
        if inode.is_dir and target_dir is not source_dir and self._below(target_dir, inode):
            raise InvalidArgument
        if source_dir.projection != target_dir.projection:
            raise OtherProjection
        self._check_removable(source_dir, inode)

    @staticmethod
    def _check_replaceable(inode: Inode, other: Inode) -> None:
        if inode.is_dir and not other.is_dir:
            raise NotADirectory
        if other.is_dir:
            if not inode.is_dir:
                raise IsADirectory
            if other.children:
                raise DirectoryNotEmpty

    def _below(self, directory: Inode, ancestor: Inode) -> bool:
        """Whether `directory` is `ancestor` or lies below it."""
        ino = directory.ino
        while ino not in (ROOT_INO, ancestor.ino):
            ino = self.tree.parent_of(ino)
        return ino == ancestor.ino

    def _move(self, inode: Inode, source: _Place, target: _Place, *, cookie: int) -> None:
        now = self._now_ns()
        subdirectories = 1 if inode.is_dir else 0
        self._hide(source.directory, source.name, inode)
        self._change(inode)
        self.tree.drop_name(source.directory.ino, source.name)
        # A replaced name keeps its place in listings, so that one under way shows it once.
        self.tree.set_name(target.directory.ino, target.name, inode.ino, cookie)
        self._entries_changed(source.directory, now, entries=-1, subdirectories=-subdirectories)
        self._entries_changed(target.directory, now, entries=1, subdirectories=subdirectories)
        if inode.is_dir:
            inode.parent = target.directory.ino
        inode.ctime_ns = now
        self.tree.touch(inode)

    def _exchange(self, inode: Inode, source: _Place, other: Inode, target: _Place) -> None:
        now = self._now_ns()
        self._replaced(source.directory, source.name, inode)
        self._replaced(target.directory, target.name, other)
        for (directory, name), newcomer in ((source, other), (target, inode)):
            found = self.tree.find(directory.ino, name)
            assert found is not None
            self._change(newcomer)
            self.tree.set_name(directory.ino, name, newcomer.ino, found[0])
            if newcomer.is_dir:
                newcomer.parent = directory.ino
            newcomer.ctime_ns = now
            self.tree.touch(newcomer)
        moved = int(inode.is_dir) - int(other.is_dir)
        self._entries_changed(source.directory, now, entries=0, subdirectories=-moved)
        self._entries_changed(target.directory, now, entries=0, subdirectories=moved)

    # --- attributes ----------------------------------------------------------------------------

    def setattr(self, ino: int, changes: AttributeChanges) -> Inode:
        """Change attributes; a size truncates or extends. The kernel has checked permissions."""
        inode = self.tree.inode(ino)
        self._change(inode)
        now = self._now_ns()
        if changes.size is not None:
            self._truncate(inode, changes.size, now)
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
            self._mode_to_acl(inode)
        if changes.uid is not None:
            inode.uid = changes.uid
        if changes.gid is not None:
            inode.gid = changes.gid
        if changes.atime_ns is not None:
            inode.atime_ns = changes.atime_ns
        if changes.mtime_ns is not None:
            inode.mtime_ns = changes.mtime_ns
        inode.ctime_ns = now if changes.ctime_ns is None else changes.ctime_ns
        self.tree.touch(inode)
        return inode

    def _mode_to_acl(self, inode: Inode) -> None:
        if not inode.flags & FLAG_XATTRS:
            return
        access = self.tree.xattrs(inode).get(acl.ACCESS)
        if access is not None:
            entries = acl.changed_mode(acl.decode(access), inode.mode)
            self.tree.set_xattr(inode, acl.ACCESS, acl.encode(entries))

    def _truncate(self, inode: Inode, size: int, now: int) -> None:
        if inode.is_dir:
            raise IsADirectory
        if not inode.is_file:
            raise InvalidArgument
        if not 0 <= size <= SIZE_MAX:
            raise FileTooLarge
        if size < inode.size:
            content = self.tree.content(inode)
            unstored = content.unstored
            inode.allocated = content.truncate(size, inode.allocated)
            inode.base_end = min(inode.base_end, size)
            inode.base_holes = min(inode.base_holes, inode.base_end)
            self.tree.touch_content(inode, unstored)
            self.writeback.freed()
        if size != inode.size:
            inode.mtime_ns = now
        inode.size = size

    # --- open files ----------------------------------------------------------------------------

    def open(self, ino: int, *, writing: bool = False, truncate: bool = False) -> Inode:
        """Keep the inode while it is open. Raises ReadOnly."""
        inode = self.tree.inode(ino)
        if inode.is_dir:
            raise IsADirectory
        if writing:
            self._check_writable(inode)
        if truncate:
            self._change(inode)
            now = self._now_ns()
            self._truncate(inode, 0, now)
            inode.mtime_ns = inode.ctime_ns = now
            self.tree.touch(inode)
        inode.opens += 1
        return inode

    def release(self, ino: int) -> None:
        """The counterpart of `open`."""
        inode = self.tree.cache.get(ino)
        assert inode is not None, "an open inode left the cache"
        inode.opens -= 1
        if inode.opens == 0:
            self.reader.closed(ino)
            if inode.flags & FLAG_LOCAL:
                self._closed(inode)
        self._reap(inode)

    async def read(self, ino: int, offset: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes at `offset`; fewer only at the end of the file."""
        inode = self.tree.inode(ino)
        self.accessed(inode)
        return await self.reader.read(inode, offset, size)

    async def write(self, ino: int, offset: int, data: bytes, *, keep_times: bool = False) -> int:
        """Write `data` at `offset`. Raises NoSpaceLeft, FileTooLarge.

        `keep_times` is for a caller that keeps the times of files itself and sends them by
        `setattr`, as the kernel does with write-back caching: it has shown them to others before
        the data arrives here.
        """
        if not data:
            return 0
        end = offset + len(data)
        if end > SIZE_MAX:
            raise FileTooLarge
        await self.writeback.room(len(data))
        inode = self.tree.inode(ino)
        self._change(inode)
        content = self.tree.content(inode)
        unstored = content.unstored
        inode.allocated += content.write(offset, data)
        inode.size = max(inode.size, end)
        if not keep_times:
            inode.mtime_ns = inode.ctime_ns = self._now_ns()
        self.tree.touch(inode)
        self.tree.touch_content(inode, unstored)
        self.writeback.written(inode, content)
        return len(data)

    async def sync(self) -> None:
        """Everything done so far is durable when this returns."""
        await self.writeback.commit()

    def forget(self, ino: int, count: int) -> None:
        """The kernel drops `count` references."""
        if self.tree.lookups.drop(ino, count) == 0:
            inode = self.tree.cache.get(ino)
            if inode is not None and inode.nlink == 0:
                self._reap(inode)

    # --- extended attributes ---------------------------------------------------------------------

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value of an attribute. Raises NoAttribute."""
        inode = self.tree.inode(ino)
        if name.startswith(PREFIX):
            value = self._orbit_xattr(inode, name) if inode.projection else None
            if value is None:
                raise NoAttribute
            return value
        if not inode.flags & FLAG_XATTRS:
            raise NoAttribute
        value = self.tree.xattrs(inode).get(name)
        if value is None:
            raise NoAttribute
        return value

    def listxattr(self, ino: int, caller: Caller) -> list[bytes]:
        """The names of the attributes; those of `trusted.` for root only."""
        inode = self.tree.inode(ino)
        if not inode.flags & FLAG_XATTRS:
            return []
        names = self.tree.xattrs(inode)
        return [n for n in names if caller.uid == 0 or not n.startswith(b"trusted.")]

    def setxattr(self, ino: int, name: bytes, value: bytes, caller: Caller) -> None:
        """Set an attribute; an access ACL also changes the mode."""
        inode = self.tree.inode(ino)
        if len(name) > NAME_MAX or len(value) > XATTR_VALUE_MAX:
            raise AttributeTooLarge
        if name in (acl.ACCESS, acl.DEFAULT):
            self._set_acl(inode, name, value, caller)
            return
        if not name.startswith(_NAMESPACES):
            raise NotSupported
        if name.startswith(PREFIX):
            raise NotPermitted
        attributes = self.tree.xattrs(inode)
        names_size = sum(len(n) + 1 for n in attributes if n != name) + len(name) + 1
        values_size = sum(len(v) for n, v in attributes.items() if n != name) + len(value)
        if names_size > XATTR_LIST_MAX or values_size > XATTR_TOTAL_MAX:
            raise AttributeTooLarge
        self._change(inode)
        self.writeback.check_space(len(value))
        self.tree.set_xattr(inode, name, value)
        inode.ctime_ns = self._now_ns()

    def _set_acl(self, inode: Inode, name: bytes, value: bytes, caller: Caller) -> None:
        if inode.target is not None:
            raise NotSupported
        if name == acl.DEFAULT and not inode.is_dir:
            raise NotPermitted
        try:
            entries = acl.decode(value)
        except ValueError as error:
            raise InvalidArgument from error
        self._change(inode)
        keep = bool(entries)
        if name == acl.ACCESS and entries:
            inode.mode = acl.mode_of(entries, inode.mode)
            keep = not acl.minimal(entries)
            if caller.uid != 0 and inode.gid not in self._groups_of(caller.pid) | {caller.gid}:
                inode.mode &= ~stat.S_ISGID
        if keep or name in self.tree.xattrs(inode):
            self.tree.set_xattr(inode, name, value if keep else None)
        inode.ctime_ns = self._now_ns()
        self.tree.touch(inode)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an attribute. Raises NoAttribute."""
        inode = self.tree.inode(ino)
        if name not in self.tree.xattrs(inode):
            if name in (acl.ACCESS, acl.DEFAULT):
                return  # no list is what was asked for; other filesystems agree
            raise NoAttribute
        self._change(inode)
        self.tree.set_xattr(inode, name, None)
        inode.ctime_ns = self._now_ns()

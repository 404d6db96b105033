"""The live tree in memory.

Cached inodes, the overlay of changed names, and what each epoch has changed.

Owned by the trio thread; nothing here awaits. Between two barriers everything that changes is
collected; `freeze` copies it out at one instant, so that a commit holds exactly the operations
before it (docs/adr/0001-commits-by-epoch.md).

An inode stays in memory while it is open, while it differs from the database, or while there is
room (the longest unused of `inodes_max` goes first).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from ghostd.errors import StaleHandle
from ghostd.filemap import FileMap
from ghostd.inodes import FLAG_XATTRS, Inode, InodeRow, LookupCounts
from ghostd.namespace import EpochChanges, Namespace
from ghostd.overlay import GONE, DirectoryDelta, NameChange, Overlay
from ghostd.remote_rows import RemoteChanges, RemoteRows


@dataclass(slots=True)
class FrozenEpoch:
    """Everything one epoch changed, copied out at its barrier."""

    epoch: int
    inodes: list[Inode]
    rows: list[InodeRow]
    dead: list[int]
    names: list[NameChange]
    contents: list[Inode]  # files whose maps are frozen
    xattrs: list[tuple[int, bytes, bytes | None]]
    next_ino: int
    next_cookie: int
    inode_count: int
    remote: RemoteChanges
    segments: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    cuts: list[tuple[int, int]] = field(default_factory=list)

    def changes(self) -> EpochChanges:
        """For the database."""
        return EpochChanges(
            epoch=self.epoch,
            next_ino=self.next_ino,
            next_cookie=self.next_cookie,
            inode_count=self.inode_count,
            inodes=self.rows,
            dead=self.dead,
            names=self.names,
            cuts=self.cuts,
            segments=self.segments,
            xattrs=self.xattrs,
            remote=self.remote,
        )


class Tree:
    """Inodes and names as they are now."""

    def __init__(
        self, namespace: Namespace, *, generation: int, inodes_max: int, segments_max: int
    ) -> None:
        meta = namespace.meta()
        self.namespace = namespace
        self.generation = generation
        self.epoch = meta.epoch + 1
        self.committed_epoch = meta.epoch
        self.next_ino = meta.next_ino
        self.next_cookie = meta.next_cookie
        self.inode_count = meta.inodes
        self.lookups = LookupCounts()
        self.overlay = Overlay()
        self.remote = RemoteRows(namespace.query)
        self.cache: OrderedDict[int, Inode] = OrderedDict()
        self._inodes_max = inodes_max
        self._segments_max = segments_max
        self._dirty: dict[int, Inode] = {}
        self._dirty_contents: dict[int, Inode] = {}
        self._dead: list[int] = []
        self._gone: set[int] = set()  # dead inodes that the database still shows
        self._xattrs: dict[int, dict[bytes, bytes | None]] = {}
        self.unstored = 0  # bytes of pieces that files show

    # --- inodes --------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode:
        """The inode of a number. Raises StaleHandle."""
        inode = self.cache.get(ino)
        if inode is None:
            inode = self._loaded(ino)
            self._keep(inode)
        else:
            # An operation has several inodes in hand: loading one must not let another one leave,
            # or its changes would be made to an object that nobody finds again.
            self.cache.move_to_end(ino)
        return inode

    def parent_of(self, ino: int) -> int:
        """The directory above a directory; does not bring it into memory."""
        inode = self.cache.get(ino)
        if inode is not None:
            return inode.parent
        return self._loaded(ino).parent

    def _loaded(self, ino: int) -> Inode:
        row = None if ino in self._gone else self.namespace.load_inode(ino)
        if row is None:
            raise StaleHandle(f"inode {ino} does not exist")
        return Inode(row, stored=True)

    def _keep(self, inode: Inode) -> None:
        cache = self.cache
        cache[inode.ino] = inode
        if len(cache) <= self._inodes_max:
            return
        for _ in range(8):  # the clock's hand: what must stay goes round once more
            ino, oldest = cache.popitem(last=False)
            if oldest is inode or not self._can_leave(oldest):
                cache[ino] = oldest
            elif len(cache) <= self._inodes_max:
                return

    def _can_leave(self, inode: Inode) -> bool:
        if inode.opens or inode.dirty_epoch > self.committed_epoch or inode.nlink == 0:
            return False
        content = inode.content
        return content is None or content.clean

    def new_inode(
        self,
        *,
        mode: int,
        uid: int,
        gid: int,
        nlink: int,
        rdev: int,
        parent: int,
        target: bytes | None,
        now_ns: int,
        projection: int = 0,
    ) -> Inode:
        """A new inode, without a name yet."""
        ino = self.next_ino
        self.next_ino += 1
        self.inode_count += 1
        size = len(target) if target is not None else 0
        inode = Inode(
            (
                ino,
                self.generation,
                mode,
                uid,
                gid,
                nlink,
                rdev,
                size,
                0,
                now_ns,
                now_ns,
                now_ns,
                now_ns,
                parent,
                0,
                0,
                target,
                projection,
                0,
                0,
                0,
            ),
            stored=False,
        )
        inode.xattrs = {}
        self._keep(inode)
        self.touch(inode)
        return inode

    def named(
        self,
        inode: Inode,
        *,
        mode: int,
        uid: int,
        gid: int,
        nlink: int,
        rdev: int,
        parent: int,
        target: bytes | None,
        now_ns: int,
        projection: int,
    ) -> Inode:
        """A file that has had no name so far, made into what `new_inode` would make."""
        assert inode.is_file
        assert not inode.nlink
        assert target is None
        inode.mode, inode.uid, inode.gid, inode.nlink = mode, uid, gid, nlink
        inode.rdev, inode.parent, inode.projection = rdev, parent, projection
        inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.btime_ns = now_ns
        self.touch(inode)
        return inode

    def touch(self, inode: Inode) -> None:
        """The inode's row has changed in this epoch."""
        if not inode.dead:
            assert self.cache.get(inode.ino) is inode, "a change to an inode that has left"
            inode.dirty_epoch = self.epoch
            self._dirty[inode.ino] = inode

    def content(self, inode: Inode) -> FileMap:
        """The content map of a file."""
        content = inode.content
        if content is None:
            content = inode.content = FileMap(
                inode.ino, self.namespace, stored=inode.stored, segments_max=self._segments_max
            )
        return content

    def touch_content(self, inode: Inode, unstored_before: int) -> None:
        """The file's map has changed in this epoch.

        It showed `unstored_before` bytes of pieces before.
        """
        content = inode.content
        assert content is not None
        self.unstored += content.unstored - unstored_before
        if not inode.dead:
            self._dirty_contents[inode.ino] = inode

    def open_files(self) -> list[tuple[int, int]]:
        """(inode number, generation) of the regular files that are open."""
        return [(i.ino, i.generation) for i in self.cache.values() if i.opens and i.is_file]

    def reap(self, inode: Inode) -> bool:
        """Delete the inode if nothing can reach it any more; whether it is gone."""
        if inode.nlink or inode.opens or inode.dead or self.lookups.get(inode.ino):
            return False
        inode.dead = True
        self.cache.pop(inode.ino, None)
        self._dirty.pop(inode.ino, None)
        self._dirty_contents.pop(inode.ino, None)
        self.inode_count -= 1
        if inode.stored:
            self._dead.append(inode.ino)
            self._gone.add(inode.ino)
        if inode.content is not None:
            self.unstored -= inode.content.unstored
            inode.content.unstored = 0
        self._xattrs.pop(inode.ino, None)
        if inode.projection:
            self.remote.forget(inode.ino)
        return True

    def unlinked(self, inode: Inode) -> None:
        """A name of anything but a directory leads elsewhere now."""
        inode.nlink -= 1
        self.touch(inode)
        self.reap(inode)

    # --- names ---------------------------------------------------------------------------------

    def find(self, parent: int, name: bytes) -> tuple[int, int] | None:
        """(cookie, inode number) of a name in a directory."""
        entry = self.overlay.get(parent, name)
        if entry is None:
            return self.namespace.find(parent, name)
        cookie, ino, _ = entry
        return None if ino == GONE else (cookie, ino)

    def set_name(self, parent: int, name: bytes, ino: int, cookie: int = 0) -> None:
        """Let `name` lead to `ino`.

        A new cookie unless the one of the name it replaces is given.
        """
        if not cookie:
            cookie = self.next_cookie
            self.next_cookie += 1
        self.overlay.set(parent, name, cookie, ino, self.epoch)

    def drop_name(self, parent: int, name: bytes) -> None:
        """Let `name` lead nowhere."""
        self.overlay.set(parent, name, 0, GONE, self.epoch)

    def list_page(
        self, parent: int, after: int, below: int, limit: int
    ) -> Iterator[tuple[int, bytes, Inode | None, tuple[object, ...] | None]]:
        """Entries with cookies between `after` and `below`, ascending.

        Cookie, name, and the inode or its listed row.

        A listed row is (cookie, name, *INODE_COLUMNS). Some entries, about `limit`, or none at the
        end of the directory; each entry that is there throughout is returned exactly once over
        successive calls.
        """
        delta = self.overlay.directories.get(parent)
        rows = self.namespace.entries(parent, after, limit)
        more = len(rows) == limit
        cache = self.cache
        if delta is None:
            for row in rows:
                cookie = cast("int", row[0])
                if cookie >= below:
                    return
                inode = cache.get(cast("int", row[2]))
                yield cookie, cast("bytes", row[1]), inode, row if inode is None else None
            return
        shown = False
        while not shown:
            for entry in self._merged(delta, rows, after, below, more=more):
                shown = True
                yield entry
            if not more or cast("int", rows[-1][0]) >= below:
                return
            # Every name of the page may be gone, only not in the database yet: that is no end.
            after = cast("int", rows[-1][0])
            rows = self.namespace.entries(parent, after, limit)
            more = len(rows) == limit

    def _merged(
        self,
        delta: DirectoryDelta,
        rows: list[tuple[object, ...]],
        after: int,
        below: int,
        *,
        more: bool,
    ) -> Iterator[tuple[int, bytes, Inode | None, tuple[object, ...] | None]]:
        """One page of the database with what the overlay says up to its end."""
        names = delta.names
        cache = self.cache
        border = cast("int", rows[-1][0]) if more else below
        added = self._until(delta.after(after), border)
        ahead = next(added, None)
        for row in rows:
            cookie, name = cast("int", row[0]), cast("bytes", row[1])
            if cookie >= below:
                break
            if name in names:
                continue
            while ahead is not None and ahead[0] < cookie:
                yield ahead[0], ahead[1], self.inode(ahead[2]), None
                ahead = next(added, None)
            inode = cache.get(cast("int", row[2]))
            yield cookie, name, inode, row if inode is None else None
        while ahead is not None and ahead[0] < below:
            yield ahead[0], ahead[1], self.inode(ahead[2]), None
            ahead = next(added, None)

    @staticmethod
    def _until(
        entries: Iterator[tuple[int, bytes, int]], border: int
    ) -> Iterator[tuple[int, bytes, int]]:
        for entry in entries:
            if entry[0] > border:
                return
            yield entry

    # --- extended attributes ---------------------------------------------------------------------

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """All extended attributes of an inode; to be changed through `set_xattr` only."""
        if inode.xattrs is None:
            loaded = self.namespace.load_xattrs(inode.ino) if inode.flags & FLAG_XATTRS else {}
            inode.xattrs = loaded
        return inode.xattrs

    def set_xattr(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """Set an extended attribute, or remove it (None)."""
        attributes = self.xattrs(inode)
        if value is None:
            attributes.pop(name, None)
        else:
            attributes[name] = value
        inode.flags = inode.flags | FLAG_XATTRS if attributes else inode.flags & ~FLAG_XATTRS
        self._xattrs.setdefault(inode.ino, {})[name] = value
        self.touch(inode)

    # --- epochs --------------------------------------------------------------------------------

    @property
    def dirty_ops(self) -> int:
        """How many rows the current epoch would write."""
        return (
            len(self._dirty)
            + len(self.overlay)
            + len(self._dead)
            + len(self._xattrs)
            + len(self.remote)
        )

    @property
    def changed(self) -> bool:
        """The current epoch has changed something."""
        return bool(
            self._dirty
            or len(self.overlay)
            or self._dead
            or self._dirty_contents
            or len(self.remote)
        )

    def freeze(self) -> FrozenEpoch:
        """The barrier: copy out what the current epoch has changed, and begin the next one."""
        inodes = list(self._dirty.values())
        rows = [inode.row() for inode in inodes]
        contents = [i for i in self._dirty_contents.values() if i.content and i.content.changed]
        for inode in inodes:
            inode.stored = True
        for inode in contents:
            assert inode.content is not None
            inode.content.freeze()
        frozen = FrozenEpoch(
            epoch=self.epoch,
            inodes=inodes,
            rows=rows,
            dead=self._dead,
            names=self.overlay.freeze(),
            contents=contents,
            xattrs=[
                (ino, name, value)
                for ino, values in self._xattrs.items()
                for name, value in values.items()
            ],
            next_ino=self.next_ino,
            next_cookie=self.next_cookie,
            inode_count=self.inode_count,
            remote=self.remote.freeze(),
        )
        self.epoch += 1
        self._dirty = {}
        self._dirty_contents = {}
        self._dead = []
        self._xattrs = {}
        return frozen

    def committed(self, frozen: FrozenEpoch) -> None:
        """The epoch is in the database."""
        self.committed_epoch = frozen.epoch
        self.overlay.committed(frozen.names, frozen.epoch)
        self.remote.committed()
        self._gone.difference_update(frozen.dead)
        for inode in frozen.contents:
            assert inode.content is not None
            inode.content.committed()

    def thaw(self, frozen: FrozenEpoch) -> None:
        """The commit failed: its changes belong to the current epoch again."""
        for inode in frozen.inodes:
            self.touch(inode)
        self._dead = frozen.dead + self._dead
        self.overlay.thaw(frozen.names)
        self.remote.thaw(frozen.remote)
        dead = set(self._dead)
        for ino, name, value in frozen.xattrs:
            if ino not in dead:
                self._xattrs.setdefault(ino, {}).setdefault(name, value)
        for inode in frozen.contents:
            assert inode.content is not None
            inode.content.thaw()
            if not inode.dead:
                self._dirty_contents[inode.ino] = inode

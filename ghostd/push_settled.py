"""What a push has brought to the remote is settled: the file is a file of the remote from then on.

What is settled is compared first; from comparing to changing nothing awaits. Owned by the
filesystem's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, FLAG_PINNED, Inode
from ghostd.invalidator import Invalidator
from ghostd.projection import Projection
from ghostd.push_directories import PushDirectories, goal_of, settle
from ghostd.push_watch import PushWatch
from ghostd.remote_rows import UNKNOWN, GoneRow, VersionRow
from ghostd.tree import Tree
from ghostd.writeback import Writeback
from syncer.door_protocol import data
from syncer.push_changes import version_from_wire
from syncer.remotes.remote import Version


class Settling:
    """Takes over what the remote has now."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        directories: PushDirectories,
        watch: PushWatch,
        invalidator: Invalidator,
        projection: Callable[[int], Projection],
        pushed: Callable[[int], None],
    ) -> None:
        """`projection` raises Missing; `pushed` as of PushSide."""
        self._tree = tree
        self._writeback = writeback
        self._directories = directories
        self._watch = watch
        self._invalidator = invalidator
        self._projection = projection
        self._pushed = pushed
        # Files with several names: what has been pushed of each, until all have been.
        self._linked: dict[int, dict[tuple[int, bytes], int]] = {}

    async def done(self, head: Mapping[str, Any]) -> bool:
        """The remote has a change, as `push_done` says; whether nothing was changed meanwhile."""
        tree = self._tree
        ino, parent, name, key = head["ino"], head["parent"], data(head["name"]), data(head["key"])
        await self._writeback.room(0)
        if parent:
            await self._directories.no_listing(parent)
        # From here on nothing awaits.
        number = head["projection"]
        projection = self._projection(number)
        version = version_from_wire(head["version"])
        row = None if version is None else VersionRow(key, *_columns(version))
        if parent and (tree.find(parent, name) or (0, 0))[1] != ino:
            self._left(number, parent, name, key, version)
        try:
            inode = tree.inode(ino)
        except StaleHandle:
            return False
        if not inode.is_file:
            row = None
        if parent and (tree.find(parent, name) or (0, 0))[1] != ino:
            if row is not None and inode.nlink == 1:
                self._rebase(inode, row, parent)
                tree.touch(inode)
            return False
        settle(tree, number, key, parent, name)
        unchanged = self._watch.unchanged(ino, head["token"])
        clean = unchanged and self._all_names(inode, parent, name, key, row, head["token"])
        old = tree.remote.versions.get(inode.base) if inode.base else None
        if row is not None and (inode.nlink == 1 or old is None or old.key == key):
            self._rebase(inode, row, parent)
        if clean:
            inode.flags &= ~FLAG_LOCAL
            projection.conflicts.discard(ino)
            self._watch.end(ino)
            if inode.allocated:
                self._pushed(number)
            mtime_ns = head["mtime_ns"]
            if mtime_ns is not None and mtime_ns != inode.mtime_ns and not inode.is_dir:
                inode.mtime_ns = mtime_ns  # what a listing would show
                if tree.lookups.get(ino):
                    self._invalidator.inode(ino)
        tree.touch(inode)
        return clean

    def _left(
        self, projection: int, parent: int, name: bytes, key: bytes, version: Version | None
    ) -> None:
        """It has lost the name under which it was pushed: the remote has one too many now."""
        tree = self._tree
        columns = (UNKNOWN, "", 0) if version is None else _columns(version)
        tree.remote.gone.set((projection, key), GoneRow(parent, name, 0, *columns, None))
        if tree.find(parent, name) is None and tree.remote.dirs.get(parent) is not None:
            tree.remote.hidden.set((parent, name), True)
        self._watch.touch(projection)

    def _all_names(
        self,
        inode: Inode,
        parent: int,
        name: bytes,
        key: bytes,
        row: VersionRow | None,
        token: int,
    ) -> bool:
        """Whether a file is at the remote under each of its names: an inode shows one key only."""
        if inode.is_dir or inode.nlink == 1:
            return True
        names = self._linked.setdefault(inode.ino, {})
        names[parent, name] = token
        if sum(each == token for each in names.values()) < inode.nlink:
            if row is not None:
                self._tree.remote.gone.set(
                    (inode.projection, key),
                    GoneRow(parent, name, 0, row.size, row.etag, row.mtime_ns, None),
                )
            return False
        del self._linked[inode.ino]
        for above, each in names:
            directory = self._tree.remote.dirs.get(above)
            goal = goal_of(None if directory is None else directory.key, each, is_dir=False)
            if goal is not None:
                settle(self._tree, inode.projection, goal, above, each)
        return True

    def _rebase(self, inode: Inode, row: VersionRow, parent: int) -> None:
        """Let the file show what the remote has now, below what was written here.

        As far as the old base shows, the new version has the same bytes at the same place: nothing
        else has to be known, and no block to be forgotten. What was written here stays here.
        """
        remote = self._tree.remote
        old = remote.versions.get(inode.base) if inode.base else None
        if old is not None:
            row = row._replace(pinned=old.pinned)
        elif parent and self._tree.inode(parent).flags & FLAG_PINNED:
            row = row._replace(pinned=1)
        if inode.base != inode.ino:
            inode.base, inode.base_end, inode.base_holes = inode.ino, 0, 0
        remote.versions.set(inode.ino, row)


def _columns(version: Version) -> tuple[int, str, int]:
    return version.size, version.etag, version.mtime_ns

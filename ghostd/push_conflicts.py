"""What becomes of a local file that a push cannot bring to where it belongs.

It gets another name, or makes way for what the remote has; or it takes its bytes from the remote,
so that it is based on nothing. Owned by the filesystem's loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from ghostd import errors as fs_errors
from ghostd.attached_paths import AttachedPaths
from ghostd.cow_revert import Reverter
from ghostd.entangler import gaps
from ghostd.errors import AlreadyExists, NotFound
from ghostd.filesystem import RENAME_NOREPLACE, Filesystem
from ghostd.inodes import Inode
from ghostd.invalidator import Invalidator
from ghostd.listings import Listings
from ghostd.push_directories import goal_of
from ghostd.push_gone import forget_gone
from ghostd.push_watch import PushWatch
from ghostd.tree_walk import joined
from syncer.door_protocol import data
from syncer.remotes import errors

_READ_BYTES: Final = 1 << 20


class PushConflicts:
    """Moves local files out of the way."""

    def __init__(
        self,
        filesystem: Filesystem,
        listings: Listings,
        reverter: Reverter,
        watch: PushWatch,
        paths: AttachedPaths,
        invalidator: Invalidator,
    ) -> None:
        self._fs = filesystem
        self._tree = filesystem.tree
        self._writeback = filesystem.writeback
        self._listings = listings
        self._reverter = reverter
        self._watch = watch
        self._paths = paths
        self._invalidator = invalidator

    async def own(self, ino: int) -> None:
        """Read what shows of the base, and write it where it still does."""
        tree = self._tree
        inode = tree.inode(ino)
        inode.opens += 1
        try:
            for start in range(0, inode.base_end, _READ_BYTES):
                end = min(start + _READ_BYTES, inode.base_end)
                if end <= start or not any(True for _ in self._bare(inode, start, end)):
                    continue
                block = bytes(await self._fs.reader.read(inode, start, end - start))
                await self._writeback.room(len(block))
                self._show(inode, start, block)
            if not inode.dead:
                self._watch.changed(inode)
                inode.base = inode.base_end = inode.base_holes = 0
                tree.touch(inode)
        except fs_errors.RemoteVersionGone:
            raise errors.Changed("the version that it is based on is gone") from None
        finally:
            inode.opens -= 1
            tree.reap(inode)

    def _bare(self, inode: Inode, start: int, end: int) -> list[tuple[int, int]]:
        end = min(end, inode.base_end)
        if end <= start:
            return []
        return list(gaps(self._tree.content(inode).extents(start, end), start, end))

    def _show(self, inode: Inode, start: int, block: bytes) -> None:
        content = self._tree.content(inode)
        for low, high in self._bare(inode, start, start + len(block)):
            unstored = content.unstored
            inode.allocated += content.write(low, block[low - start : high - start])
            self._tree.touch(inode)
            self._tree.touch_content(inode, unstored)
            self._writeback.written(inode, content)

    async def aside(self, head: Mapping[str, Any]) -> None:
        """The local file gets another name, and shows nothing of the remote's any more."""
        tree = self._tree
        parent, name, new_name = head["parent"], data(head["name"]), data(head["new_name"])
        inode = tree.inode(head["ino"])
        if inode.is_file and inode.base:
            await self.own(head["ino"])
        key = None
        row = tree.remote.dirs.get(parent)
        if row is not None:
            key = goal_of(row.key, name, is_dir=inode.is_dir)
        try:
            if (tree.find(parent, name) or (0, 0))[1] != head["ino"]:
                return
            self._fs.rename(parent, name, parent, new_name, RENAME_NOREPLACE)
        except AlreadyExists:
            raise errors.Exists(
                f"{new_name.decode(errors='backslashreplace')} is there already"
            ) from None
        except NotFound:
            return
        if inode.is_dir:
            tree.remote.dirs.set(inode.ino, None)
        tree.remote.unhide(parent, name)
        if key is not None:
            forget_gone(tree, inode.projection, key)
        directory = tree.inode(parent)
        if tree.lookups.get(parent):
            for each in (name, new_name):
                self._invalidator.name(parent, each)
        self._listings.expire(directory)
        await self._writeback.commit()

    async def theirs(self, head: Mapping[str, Any]) -> None:
        """Drop a local change, as `push_theirs` asks: the remote's is shown again."""
        root = await self._paths.path_of(head["projection"])
        with suppress(NotFound):
            await self._reverter.revert(joined(root, data(head["path"])))
        if head["key"] is not None:
            forget_gone(self._tree, head["projection"], data(head["key"]))
        await self._writeback.commit()

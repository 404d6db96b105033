"""Takes names of projections away for good, directories from the bottom up, in the background.

A directory's name stays until everything below it has gone, so that a crash in between leaves a
smaller tree and nothing that no name leads to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.remote_rows import ProjectionRow
from ghostd.tree import Tree
from ghostd.writeback import Writeback

_PAGE = 50  # names between two looks at the loop
_DIRTY_ROWS_MAX = 20_000


class Remover:
    """Removes what a remote does not have any more, and whole projections."""

    def __init__(
        self, tree: Tree, writeback: Writeback, invalidate: Callable[[int, bytes], None]
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._invalidate = invalidate
        # To be emptied: in which directory, by which name, inode number.
        self._directories: deque[tuple[Inode, bytes, int]] = deque()
        self._projections: deque[ProjectionRow] = deque()
        self._wanted = trio.Event()

    def remove(self, directory: Inode, inode: Inode, name: bytes) -> None:
        """Take `name`, which leads to `inode`, out of `directory`.

        An empty directory and anything else goes at once, a tree as soon as possible.
        """
        if inode.is_dir and inode.children:
            directory.opens += 1  # it stays in memory until then
            self._directories.append((directory, name, inode.ino))
            self._wanted.set()
            return
        self._take_away(directory, inode, name)

    def remove_projection(self, row: ProjectionRow) -> None:
        """Remove all inodes of a projection whose root has lost its name."""
        self._projections.append(row)
        self._wanted.set()

    def _take_away(self, directory: Inode, inode: Inode, name: bytes) -> None:
        tree = self._tree
        tree.drop_name(directory.ino, name)
        directory.children -= 1
        if inode.is_dir:
            directory.nlink -= 1
            inode.nlink = 0
            tree.touch(inode)
            tree.reap(inode)
        else:
            tree.unlinked(inode)
        tree.touch(directory)
        self._invalidate(directory.ino, name)

    async def run(self) -> None:
        """Do what is to be done, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while self._directories:
                directory, name, ino = self._directories.popleft()
                await self._remove_tree(directory, name, ino)
                directory.opens -= 1
                self._tree.reap(directory)
            while self._projections:
                await self._remove_projection(self._projections.popleft())

    async def _remove_tree(self, directory: Inode, name: bytes, ino: int) -> None:
        found = self._tree.find(directory.ino, name)
        if found is None or found[1] != ino or directory.dead:
            return  # it has gone already, or moved away
        inode = self._tree.inode(found[1])
        if inode.is_dir and not inode.flags & FLAG_LOCAL:
            await self._empty(inode, local_too=False)
            await self._remove_nameless(inode.projection)
        found = self._tree.find(directory.ino, name)
        if found is None or found[1] != inode.ino:
            return
        inode = self._tree.inode(found[1])  # it may have left memory meanwhile
        if inode.flags & FLAG_LOCAL:
            return
        if inode.is_dir and inode.children:
            # Something in it was made here: the directory becomes one of ours.
            self._tree.remote.dirs.set(inode.ino, None)
            inode.flags |= FLAG_LOCAL
            self._tree.touch(inode)
            return
        self._take_away(directory, inode, name)

    async def _empty(self, top: Inode, *, local_too: bool) -> None:
        """Remove what is below `top`; what was made or changed here only with `local_too`."""
        tree = self._tree
        stack: list[tuple[Inode, bytes, int]] = [(top, b"", 0)]  # directory, its name, cookie
        top.opens += 1
        try:
            while stack:
                directory, own_name, after = stack.pop()
                page = [
                    (cookie, name)
                    for cookie, name, _, _ in tree.list_page(
                        directory.ino, after, tree.next_cookie, _PAGE
                    )
                ]
                below: tuple[Inode, bytes, int] | None = None
                for cookie, name in page:
                    after = cookie
                    found = tree.find(directory.ino, name)
                    if found is None:
                        continue
                    inode = tree.inode(found[1])
                    kept = bool(inode.flags & FLAG_LOCAL) and not local_too
                    if inode.is_dir and inode.children and not kept:
                        below = (inode, name, 0)
                        break
                    if not kept:
                        self._take_away(directory, inode, name)
                if page:
                    stack.append((directory, own_name, after))
                    if below is not None:
                        below[0].opens += 1
                        stack.append(below)
                else:
                    self._leave(stack, directory, own_name)
                await trio.lowlevel.checkpoint()
                if tree.dirty_ops > _DIRTY_ROWS_MAX:
                    await self._writeback.commit()
        finally:
            for directory, _, _ in stack:
                directory.opens -= 1

    def _leave(self, stack: list[tuple[Inode, bytes, int]], directory: Inode, name: bytes) -> None:
        directory.opens -= 1
        if not stack:
            return
        above = stack[-1][0]
        found = self._tree.find(above.ino, name)
        if found is None or found[1] != directory.ino:
            return
        if directory.children == 0:
            self._take_away(above, directory, name)
        else:
            self._tree.remote.dirs.set(directory.ino, None)
            directory.flags |= FLAG_LOCAL
            self._tree.touch(directory)

    async def _remove_nameless(self, projection: int) -> None:
        """Remove files whose names have gone, but which count others that were never listed."""
        tree = self._tree
        linked = "SELECT 1 FROM snapshot_links WHERE projection = ? LIMIT 1"
        if not tree.remote.links.changed() and not tree.namespace.query(linked, (projection,)):
            return
        await self._writeback.commit()
        for (ino,) in tree.namespace.query(
            "SELECT l.ino FROM snapshot_links l WHERE l.projection = ?"
            " AND NOT EXISTS(SELECT 1 FROM dirents d WHERE d.ino = l.ino)",
            (projection,),
        ):
            try:
                inode = tree.inode(ino)
            except StaleHandle:
                continue
            if inode.dirty_epoch > tree.committed_epoch:
                continue  # it has just got a name
            inode.nlink = 0
            tree.touch(inode)
            tree.reap(inode)

    async def _remove_projection(self, row: ProjectionRow) -> None:
        root = self._tree.inode(row.id)
        if root.is_dir:
            await self._empty(root, local_too=True)
            await self._remove_nameless(row.id)
            root = self._tree.inode(row.id)
        root.nlink = 0
        self._tree.touch(root)
        self._tree.remote.projections.set(row.id, None)
        self._tree.reap(root)

"""Drops what was changed here in a cow projection: `orbit-ctl revert`.

A changed entry loses its name here, a hidden name is hidden no more, and the directories are listed
again: what the remote has comes back as new inodes. Who has a dropped file open keeps what he has.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from typing import Final

import trio

from blockstore.errors import OrbitError
from ghostd.cow_changes import LocalChange, in_place
from ghostd.cow_diff import Differ
from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.listings import Listings
from ghostd.projection import Projection
from ghostd.projection_facade import Reverted
from ghostd.push_gone import forget_gone
from ghostd.remote_names import local_name, remote_name
from ghostd.tree import Tree
from ghostd.tree_walk import SLICE
from ghostd.writeback import Writeback

_PAGE: Final = 1_000  # changes between two looks at the snapshot
_RELIST_MAX: Final = (
    64  # directories that are listed before the call returns; others when looked at
)
_DIRTY_ROWS_MAX: Final = 20_000
_DIRECTORY_MODE: Final = 0o755  # until the remote says another


class _Run:
    """One call of revert."""

    def __init__(self) -> None:
        self.touched: dict[int, None] = {}  # directories that are to be listed again
        self.gone: set[int] = set()  # directories that were dropped


class Reverter:
    """Owned by the filesystem's loop. One call at a time."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        listings: Listings,
        differ: Differ,
        invalidate: Callable[[int, bytes], None],
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._listings = listings
        self._differ = differ
        self._invalidate = invalidate
        self._lock = trio.Lock()

    async def revert(self, path: bytes) -> Reverted:
        """Drop the changes at and below `path`. Raises what `Differ.page` raises."""
        began = time.monotonic()
        async with self._lock:
            count = 0
            run = _Run()
            cursor: str | None = None
            while True:
                projection, changes, cursor = await self._differ.page(path, cursor, _PAGE)
                for change in changes:
                    count += await self._take_back(projection, change, run)
                    if self._tree.dirty_ops > _DIRTY_ROWS_MAX:
                        await self._writeback.commit()
                if cursor is None:
                    break
            waiting = await self._list_again(run.touched)
            await self._writeback.commit()
        return Reverted(
            changes=count,
            directories=len(run.touched),
            waiting=waiting,
            seconds=time.monotonic() - began,
        )

    # --- one change ----------------------------------------------------------------------------

    async def _take_back(self, projection: Projection, change: LocalChange, run: _Run) -> bool:
        """Whether the change was still there."""
        tree = self._tree
        await trio.lowlevel.checkpoint()
        if change.parent in run.gone:
            return False
        try:
            directory = tree.inode(change.parent)
        except StaleHandle:
            return False
        found = tree.find(directory.ino, change.name)
        if change.kind == "deleted":
            if found is not None:
                return False
            self._show(directory, change.name, run)
            return True
        if found is None or found[1] != change.ino:
            return False
        inode = tree.inode(change.ino)
        if change.kind == "attributes" and inode.is_dir:
            self._reset_directory(inode)
            self._expire(directory, run)
            return True
        if inode.is_dir:
            await self._empty(projection, inode, run)
            directory, inode = tree.inode(change.parent), tree.inode(change.ino)
            if tree.find(directory.ino, change.name) != found or inode.children:
                return False  # somebody works in it
        self._drop(projection, directory, change.name, inode, run)
        return True

    def _show(self, directory: Inode, name: bytes, run: _Run) -> None:
        """What the remote has under this name is shown again, once the directory is listed."""
        self._tree.remote.unhide(directory.ino, name)
        row, named = self._tree.remote.dirs.get(directory.ino), remote_name(name)
        if row is not None and named is not None:
            forget_gone(self._tree, directory.projection, row.key + named.name)
        self._expire(directory, run)

    def _expire(self, directory: Inode, run: _Run) -> None:
        if self._tree.remote.dirs.get(directory.ino) is not None:
            self._listings.expire(directory)
            run.touched[directory.ino] = None

    def _reset_directory(self, inode: Inode) -> None:
        """A directory where it belongs, of which attributes were changed: the remote's count."""
        for name in list(self._tree.xattrs(inode)):
            self._tree.set_xattr(inode, name, None)
        inode.mode = stat.S_IFDIR | _DIRECTORY_MODE
        inode.flags &= ~FLAG_LOCAL
        self._tree.touch(inode)

    def _drop(
        self,
        projection: Projection,
        directory: Inode,
        name: bytes,
        inode: Inode,
        run: _Run,
    ) -> None:
        """Take a name away, and show again what the remote has under it and where it came from."""
        tree = self._tree
        key = self._key(inode)
        tree.drop_name(directory.ino, name)
        directory.children -= 1
        tree.touch(directory)
        if inode.is_dir:
            directory.nlink -= 1
            inode.nlink = 0
            tree.touch(inode)
            tree.reap(inode)
            run.gone.add(inode.ino)
            run.touched.pop(inode.ino, None)
        else:
            tree.unlinked(inode)
            self._writeback.freed()
        projection.conflicts.discard(inode.ino)
        self._invalidate(directory.ino, name)
        self._show(directory, name, run)
        if key is not None:
            self._show_source(projection, directory, name, key, run)

    def _key(self, inode: Inode) -> bytes | None:
        if inode.is_dir:
            row = self._tree.remote.dirs.get(inode.ino)
            return None if row is None else row.key
        version = self._tree.remote.versions.get(inode.base) if inode.base else None
        return None if version is None else version.key

    def _show_source(
        self,
        projection: Projection,
        directory: Inode,
        name: bytes,
        key: bytes,
        run: _Run,
    ) -> None:
        """Show the entry again that had been moved away from where the remote has it."""
        row = self._tree.remote.dirs.get(directory.ino)
        if in_place(None if row is None else row.key, name, key):
            return
        *above, last = key.removesuffix(b"/").split(b"/")
        ino, prefix = projection.row.id, b""
        for part in above:
            prefix += part + b"/"
            found = self._tree.find(ino, local_name(part, True, ()) or b"")
            if found is None:
                return  # its directory was moved, too: reverting that brings it back
            ino = found[1]
        source = self._tree.remote.dirs.get(ino)
        if source is None or source.key != prefix:
            return
        is_dir = key.endswith(b"/")
        for shown in {local_name(last, is_dir, ()), local_name(last, is_dir, (last,))}:
            if shown is not None and self._tree.remote.hidden.get((ino, shown)):
                self._show(self._tree.inode(ino), shown, run)

    async def _empty(self, projection: Projection, top: Inode, run: _Run) -> None:
        """Drop everything below a directory that is to go."""
        tree = self._tree
        stack: list[tuple[int, bytes]] = [(top.ino, b"")]  # directory, its name in the one above
        while stack:
            ino, own_name = stack[-1]
            page = [(name, each) for _, name, each in self._page(ino)]
            below: tuple[int, bytes] | None = None
            directory = tree.inode(ino)
            for name, number in page:
                inode = tree.inode(number)
                if inode.is_dir and inode.children:
                    below = (number, name)
                    break
                self._drop(projection, directory, name, inode, run)
            await trio.lowlevel.checkpoint()
            if tree.dirty_ops > _DIRTY_ROWS_MAX:
                await self._writeback.commit()
            if below is not None:
                stack.append(below)
            elif not page:
                stack.pop()
                if stack:
                    self._drop_if_empty(projection, stack[-1][0], own_name, ino, run)

    def _page(self, ino: int) -> list[tuple[int, bytes, int]]:
        tree = self._tree
        return [
            (cookie, name, inode.ino if inode is not None else row[2])  # type: ignore[index,misc]
            for cookie, name, inode, row in tree.list_page(ino, 0, tree.next_cookie, SLICE)
        ]

    def _drop_if_empty(
        self, projection: Projection, above: int, name: bytes, ino: int, run: _Run
    ) -> None:
        found = self._tree.find(above, name)
        inode = self._tree.inode(ino)
        if found is not None and found[1] == ino and not inode.children:
            self._drop(projection, self._tree.inode(above), name, inode, run)

    # --- the remote's entries --------------------------------------------------------------------

    async def _list_again(self, touched: dict[int, None]) -> str:
        """List some directories at once, so that their entries are back; why some are not yet."""
        waiting = ""
        limiter = trio.Semaphore(8)

        async def fresh(ino: int) -> None:
            nonlocal waiting
            async with limiter:
                try:
                    directory = self._tree.inode(ino)
                    await self._listings.fresh(directory)
                    row = self._tree.remote.dirs.get(ino)
                    if row is not None and row.listed_ns <= 1:  # still expired
                        waiting = "the remote does not answer; its entries come back when it does"
                except StaleHandle:
                    pass  # it was dropped as well
                except OrbitError as error:
                    waiting = str(error)

        async with trio.open_nursery() as nursery:
            for ino in list(touched)[:_RELIST_MAX]:
                nursery.start_soon(fresh, ino)
        return waiting

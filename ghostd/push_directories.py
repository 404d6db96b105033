"""Directories of a push: they are made at the remote, or renamed there with all that is in them.

A directory that was moved is made anew, and what is in it becomes moves of its own, unless its goal
is free: then one rename does, and the keys of everything in it change here. What others have put
into it goes with it. Before the rename everything in it that is known here is noted as moved, and
where it goes, so that what is cut off behind it is found by the next push.

Owned by the filesystem's loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from ghostd.cow_changes import in_place
from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.listings import Listings
from ghostd.push_gone import directory_at, is_needed, key_of, keys_below, note_gone
from ghostd.push_watch import PushWatch
from ghostd.remote_names import local_name, remote_name
from ghostd.remote_rows import UNKNOWN, DirRow, GoneRow
from ghostd.tree import Tree
from ghostd.tree_walk import SLICE
from ghostd.writeback import Writeback
from syncer.push_changes import Change
from syncer.remotes import errors

_DIRTY_ROWS_MAX: Final = 20_000
_PAGE: Final = 500  # keys asked for at once
_EXPIRED_NS: Final = 1  # listed, and to be listed again

_BELOW: Final = (
    "SELECT key FROM gone WHERE projection = ? AND key > ? AND key < ? ORDER BY key LIMIT ?"
)


class PushDirectories:
    """Settles what a push has done with directories."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        listings: Listings,
        watch: PushWatch,
        *,
        now_ns: Callable[[], int],
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._listings = listings
        self._watch = watch
        self._now_ns = now_ns

    async def no_listing(self, ino: int) -> None:
        """Wait until no listing is under way that may not know yet what has been pushed."""
        while self._listings.awaited(ino):
            try:
                if not await self._listings.more(self._tree.inode(ino)):
                    return
            except StaleHandle:
                return
            except errors.RemoteError:
                await trio.lowlevel.checkpoint()

    # --- made anew -----------------------------------------------------------------------------

    async def made(self, ino: int, parent: int, name: bytes, key: bytes, *, new: bool) -> None:
        """The remote has the directory under `key`; `new`: with nothing in it."""
        tree = self._tree
        row = tree.remote.dirs.get(ino)
        if row is not None and row.key == key:
            return
        inode = tree.inode(ino)
        inode.opens += 1
        try:
            if row is not None:
                await self._spread(inode)
            before = tree.remote.gone.get((inode.projection, key))
            if before is not None and is_needed(tree, inode.projection, key):
                # The directory that was here is elsewhere now, and has not been made there yet.
                await self._spread(tree.inode(before.ino))
            await self.no_listing(parent)
            if inode.nlink:
                if row is not None and (other := directory_at(tree, inode.projection, row.key)):
                    self._still_there(other, row.key)
                for each in tree.remote.hidden_names(ino):  # what was below its former key
                    tree.remote.unhide(ino, each)
                tree.remote.dirs.set(ino, DirRow(key, self._now_ns() if new else _EXPIRED_NS))
                self._still_there(inode, key)
                settle(tree, inode.projection, key, parent, name)
                tree.touch(inode)
        finally:
            inode.opens -= 1
            tree.reap(inode)

    def _still_there(self, directory: Inode, key: bytes) -> None:
        """What was taken away from the directory that was here before stays out of sight."""
        tree = self._tree
        for each in list(keys_below(tree, directory.projection, key)):
            row = tree.remote.gone.get((directory.projection, each))
            bare = each.removeprefix(key).removesuffix(b"/")
            name = local_name(bare, each.endswith(b"/"), ())
            if row is None or b"/" in bare or name is None:
                continue
            if tree.find(directory.ino, name) is None:
                tree.remote.hidden.set((directory.ino, name), True)
                gone = row._replace(parent=directory.ino, name=name)
                tree.remote.gone.set((directory.projection, each), gone)

    async def _spread(self, directory: Inode) -> None:
        """A directory was moved: what is in it has to be moved by itself."""
        await self._listings.fresh(directory, patient=True)
        await self._mark(directory)

    async def _mark(self, directory: Inode) -> list[int]:
        """Note what is known of a moved directory as moved; the directories that moved with it."""
        tree, after = self._tree, 0
        above = tree.remote.dirs.get(directory.ino)
        below: list[int] = []
        while directory.nlink:
            page = list(tree.list_page(directory.ino, after, tree.next_cookie, SLICE))
            if not page:
                break
            for cookie, name, inode, row in page:
                after = cookie
                each = inode or tree.inode(row[2])  # type: ignore[index,arg-type]
                note_gone(tree, directory, name, each)
                if each.is_dir and above is not None:
                    key = key_of(tree, directory, name, each)
                    if key is not None and in_place(above.key, name, key):
                        below.append(each.ino)
                if not each.flags & FLAG_LOCAL:
                    self._watch.mark(each.ino)
                each.flags |= FLAG_LOCAL
                tree.touch(each)
            await trio.lowlevel.checkpoint()
            if tree.dirty_ops > _DIRTY_ROWS_MAX:
                await self._writeback.commit()
        return below

    # --- renamed whole -------------------------------------------------------------------------

    async def renaming(self, change: Change, *, gone: bool) -> bool:
        """Whether a directory can be renamed at the remote, all of it; what is in it is noted.

        `gone`: whether it has been, by a push that was cut off. Else nothing of it may be needed
        elsewhere as a directory: what is in that has no other key.
        """
        tree, key, goal = self._tree, change.key, change.goal
        free = change.replaces is None and not change.blocked and change.settled
        if key is None or goal is None or not free or goal.startswith(key):
            return False
        row = tree.remote.gone.get((change.projection, key))
        if row is None or row.ino != change.ino or not is_needed(tree, change.projection, key):
            return False
        begun = row.etag == goal.hex()
        if gone and not begun:
            return False
        left = [change.ino]
        while left:
            try:
                left += await self._mark(tree.inode(left.pop()))
            except StaleHandle:
                continue
        if not begun and not await self._together(change.projection, key):
            return False
        row = tree.remote.gone.get((change.projection, key))
        if row is None or row.ino != change.ino:
            return False
        tree.remote.gone.set((change.projection, key), row._replace(etag=goal.hex()))
        await self._writeback.commit()
        return True

    async def _together(self, projection: int, key: bytes) -> bool:
        """Whether each directory of a remote one is shown in it, or not at all any more."""
        await self._writeback.commit()
        after = key
        while page := self._noted(projection, key, after):
            for after in page:
                row = self._tree.remote.gone.get((projection, after))
                if (
                    row is not None
                    and after.endswith(b"/")
                    and is_needed(self._tree, projection, after)
                    and not self._is_shown(row, after)
                ):
                    return False
            await trio.lowlevel.checkpoint()
        return True

    def _noted(self, projection: int, key: bytes, after: bytes) -> list[bytes]:
        """A page of the keys below one that were noted as of the last commit, in order."""
        end = key[:-1] + b"0"  # the byte behind `/`
        rows = self._tree.namespace.query(_BELOW, (projection, after, end, _PAGE))
        return [each for (each,) in rows]

    def _is_shown(self, row: GoneRow, key: bytes) -> bool:
        """Whether it is where it was noted, and that is where the key belongs."""
        found, above = self._tree.find(row.parent, row.name), self._tree.remote.dirs.get(row.parent)
        there = found is not None and found[1] == row.ino and above is not None
        return there and above is not None and in_place(above.key, row.name, key)

    async def renamed(self, ino: int, parent: int, name: bytes, key: bytes, goal: bytes) -> None:
        """The remote has the directory under `goal`, with all that was in it under `key`."""
        tree = self._tree
        inode = tree.inode(ino)
        projection = inode.projection
        inode.opens += 1
        try:
            await self.no_listing(parent)
            await self.no_listing(ino)
            self._renamed_itself(inode, parent, name, key, goal)
            await self._writeback.commit()
            after = key
            while page := self._noted(projection, key, after):
                for after in page:
                    await self._rekey(projection, after, key, goal)
                if tree.dirty_ops > _DIRTY_ROWS_MAX:
                    await self._writeback.commit()
                await trio.lowlevel.checkpoint()
            for each in list(keys_below(tree, projection, key)):  # noted meanwhile
                await self._rekey(projection, each, key, goal)
        finally:
            inode.opens -= 1
            tree.reap(inode)

    def _renamed_itself(
        self, inode: Inode, parent: int, name: bytes, key: bytes, goal: bytes
    ) -> None:
        tree, projection = self._tree, inode.projection
        row = tree.remote.gone.get((projection, key))
        if row is not None:
            tree.remote.gone.set((projection, key), None)
            tree.remote.unhide(row.parent, row.name)
        directory = tree.remote.dirs.get(inode.ino)
        if directory is not None and directory.key == key:
            tree.remote.dirs.set(inode.ino, _under(directory, goal))
        if (tree.find(parent, name) or (0, 0))[1] == inode.ino:
            settle(tree, projection, goal, parent, name)
        else:  # it was moved again, or deleted
            left = GoneRow(parent, name, inode.ino, UNKNOWN, "", 0, None)
            tree.remote.gone.set((projection, goal), left)
            if tree.find(parent, name) is None and tree.remote.dirs.get(parent) is not None:
                tree.remote.hidden.set((parent, name), True)
            self._watch.touch(projection)
        if not inode.dead:
            tree.touch(inode)

    async def _rekey(self, projection: int, old: bytes, key: bytes, goal: bytes) -> None:
        """What is noted of an entry of a renamed directory, and what shows it, get its new key."""
        tree, remote = self._tree, self._tree.remote
        row = remote.gone.get((projection, old))
        if row is None:
            return
        await self.no_listing(row.parent)
        await self.no_listing(row.ino)
        row = remote.gone.get((projection, old))
        if row is None:
            return
        new = goal + old.removeprefix(key)
        remote.gone.set((projection, old), None)
        inode = self._rekeyed(row, old, new)
        if inode is None or not self._is_shown(row, new):
            remote.gone.set((projection, new), row)
            return
        remote.unhide(row.parent, row.name)
        if self._watch.unmark(row.ino):  # it was moved with its directory, and nothing else
            inode.flags &= ~FLAG_LOCAL
        tree.touch(inode)

    def _rekeyed(self, row: GoneRow, old: bytes, new: bytes) -> Inode | None:
        """What still shows the remote's entry, under its new key; None: nothing does."""
        tree, remote = self._tree, self._tree.remote
        try:
            inode = tree.inode(row.ino) if row.ino else None
        except StaleHandle:
            inode = None
        if inode is None or not inode.nlink:
            return None
        if inode.is_dir:
            directory = remote.dirs.get(inode.ino)
            if directory is None or directory.key != old:
                return None
            remote.dirs.set(inode.ino, _under(directory, new))
            return inode
        if row.target is not None:
            return inode if inode.target == row.target else None
        version = remote.versions.get(inode.base) if inode.base else None
        if version is None or version.key != old:
            return None
        remote.versions.set(inode.base, version._replace(key=new))
        return inode


def _under(row: DirRow, key: bytes) -> DirRow:
    """A directory under its new key, to be listed again: it may have been looked for meanwhile."""
    return DirRow(key, min(row.listed_ns, _EXPIRED_NS))


def settle(tree: Tree, projection: int, key: bytes, parent: int, name: bytes) -> None:
    """What is under this key at the remote is what the name shows."""
    remote = tree.remote
    if remote.gone.get((projection, key)) is not None:
        remote.gone.set((projection, key), None)
    remote.unhide(parent, name)


def goal_of(above: bytes | None, name: bytes, *, is_dir: bool) -> bytes | None:
    """Where a new name belongs at the remote; None: it cannot be there."""
    named = remote_name(name)
    if above is None or named is None or named.is_dir not in {None, is_dir}:
        return None
    return above + named.name + (b"/" if is_dir else b"")

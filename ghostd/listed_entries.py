"""What listings of remote directories say, brought into the tree.

An inode is one version of a remote file: what differs from the last listing is replaced by a new
one. Names that were changed here (FLAG_LOCAL) are left alone.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

import trio

from ghostd.errors import StaleHandle
from ghostd.inodes import FLAG_LOCAL, FLAG_PINNED, FLAG_XATTRS, Inode, LookupCounts
from ghostd.projection import Projection, show_as_was
from ghostd.remote_names import local_name
from ghostd.remote_rows import DirRow, VersionRow
from ghostd.tree import Tree
from syncer.remotes.remote import Entry, Kind, Page

_DIRECTORY_MODE = 0o755  # where the remote knows none
_FILE_MODE = 0o644
_REMOVE_PAGE = 500
_MODES = {
    Kind.DIRECTORY: stat.S_IFDIR | _DIRECTORY_MODE,
    Kind.SYMLINK: stat.S_IFLNK | 0o777,
    Kind.FILE: stat.S_IFREG | _FILE_MODE,
}


class ListedEntries:
    """Makes entries into inodes. Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        invalidate: Callable[[int, bytes], None],
        remove: Callable[[Inode, Inode, bytes], None],
    ) -> None:
        """`remove(directory, inode, name)`: take a name away for good."""
        self._tree = tree
        self._invalidate = invalidate
        self._remove = remove

    def is_listed(self, ino: int) -> bool:
        """Whether a directory was ever listed whole."""
        row = self._tree.remote.dirs.get(ino)
        return row is not None and row.listed_ns > 0

    def apply(
        self, directory: Inode, projection: Projection, page: Page, seen: LookupCounts
    ) -> bool:
        """Bring some entries of a listing into the tree, and note in `seen` what shows them.

        False: something could not be shown yet, the listing is old at once.
        """
        tree = self._tree
        whole = True
        ino = directory.ino
        for entry in page:
            is_dir = entry.kind is Kind.DIRECTORY
            name = local_name(entry.name, is_dir, ())
            assert name is not None, "nothing was taken"
            found = tree.find(ino, name)
            linked = entry.as_was is not None and entry.as_was.link
            if found is not None and seen.get(found[1]) and not linked:
                # `a` and `a/` of an object store: the second one is shown by another name.
                name = local_name(entry.name, is_dir, (name,))
                found = None if name is None else tree.find(ino, name)
                if found is not None and seen.get(found[1]):
                    name = None
            shown = (entry.kind is not Kind.OTHER or entry.as_was is not None) and not (
                entry.kind is Kind.SYMLINK and entry.target is None
            )
            if name is None or not shown:
                projection.left_out += 1
                continue
            if projection.row.writable and tree.remote.hidden.get((ino, name)):
                continue
            if found is None:
                self._add(projection, directory, name, entry, seen)
                continue
            seen.add(found[1])
            inode = tree.inode(found[1])
            if inode.flags & FLAG_LOCAL:
                seen.add(self._changed_here(projection, directory, name, found, inode, entry))
            elif self._same(inode, entry):
                self._renew(projection, inode, entry)
            elif inode.is_dir:
                self._remove(directory, inode, name)
                if tree.find(ino, name) is None:
                    self._add(projection, directory, name, entry, seen)
                else:
                    # What is below it goes first, in the background; until then it is shown.
                    whole = False
            else:
                seen.add(self._replace(projection, directory, name, found, inode, entry))
        return whole

    def _add(
        self,
        projection: Projection,
        directory: Inode,
        name: bytes,
        entry: Entry,
        seen: LookupCounts,
    ) -> None:
        inode = self._linked(projection, entry) or self._make(projection, directory, entry)
        self._tree.set_name(directory.ino, name, inode.ino)
        directory.children += 1
        directory.nlink += inode.is_dir
        self._tree.touch(directory)
        seen.add(inode.ino)
        if self.is_listed(directory.ino):  # else the kernel was never told that there is nothing
            self._invalidate(directory.ino, name)

    def _same(self, inode: Inode, entry: Entry) -> bool:
        if entry.kind is Kind.DIRECTORY:
            return inode.is_dir
        if entry.kind is Kind.SYMLINK:
            return inode.target == entry.target
        exact = entry.as_was
        if exact is not None:
            if (stat.S_IFMT(inode.mode), inode.rdev) != (exact.format, exact.rdev):
                return False
            if entry.kind is Kind.OTHER:
                return True
        row = self._tree.remote.versions.get(inode.base)
        linked = exact is not None and exact.link  # the key is that of another of its names
        if row is None or not inode.is_file or (row.key != entry.key and not linked):
            return False
        if not entry.exact:
            # The row may know more by now: compare with what was shown from the last listing.
            shown = inode.mtime_ns if entry.mtime_ns is None else entry.mtime_ns
            return (row.size, inode.mtime_ns) == (entry.size, shown)
        return row.version == entry.version

    def _make(self, projection: Projection, directory: Inode, entry: Entry) -> Inode:
        attributes = projection.attributes(entry)
        tree = self._tree
        exact = entry.as_was
        if entry.kind is Kind.OTHER:
            assert exact is not None, "other remotes' are not shown"
            kind = exact.format | _FILE_MODE
        else:
            kind = _MODES[entry.kind]
        mode = stat.S_IFMT(kind) | (stat.S_IMODE(kind) if entry.mode is None else entry.mode)
        is_dir = entry.kind is Kind.DIRECTORY
        inode = tree.new_inode(
            mode=mode,
            uid=attributes.uid,
            gid=attributes.gid,
            nlink=2 if is_dir else 1,
            rdev=0 if exact is None else exact.rdev,
            parent=directory.ino if is_dir else 0,
            target=entry.target if entry.kind is Kind.SYMLINK else None,
            now_ns=attributes.mtime_ns,
            projection=projection.row.id,
        )
        if exact is not None:
            show_as_was(tree, inode, exact)
        if entry.atime_ns is not None:
            inode.atime_ns = entry.atime_ns
        pinned = directory.flags & FLAG_PINNED
        if is_dir:
            inode.flags |= pinned
            tree.remote.dirs.set(inode.ino, DirRow(entry.key, 0))
        elif entry.kind is Kind.FILE:
            inode.base = inode.ino
            inode.size = inode.base_end = entry.size
            tree.remote.versions.set(
                inode.ino, _version_row(entry)._replace(pinned=int(bool(pinned)))
            )
        return inode

    def _linked(self, projection: Projection, entry: Entry) -> Inode | None:
        """The inode that another name of the same file has already."""
        exact = entry.as_was
        if exact is None or not exact.link or entry.kind is Kind.DIRECTORY:
            return None
        tree = self._tree
        ino = tree.remote.links.get((projection.row.id, exact.link))
        if ino is None:
            return None
        try:
            inode = tree.inode(ino)
        except StaleHandle:
            return None
        if not inode.nlink:
            return None
        inode.nlink += not exact.nlink
        tree.touch(inode)
        return inode

    def _renew(self, projection: Projection, inode: Inode, entry: Entry) -> None:
        attributes = projection.attributes(entry)
        mode = inode.mode
        if entry.mode is not None:
            mode = stat.S_IFMT(mode) | entry.mode
        new = (mode, attributes.uid, attributes.gid, attributes.mtime_ns)
        if new == (inode.mode, inode.uid, inode.gid, inode.mtime_ns):
            return
        inode.mode, inode.uid, inode.gid, inode.mtime_ns = new
        inode.ctime_ns = attributes.mtime_ns
        self._tree.touch(inode)

    def _replace(
        self,
        projection: Projection,
        directory: Inode,
        name: bytes,
        found: tuple[int, int],
        old: Inode,
        entry: Entry,
    ) -> int:
        """The remote has another version, or another kind of thing, under the name of a file."""
        inode = self._make(projection, directory, entry)
        if old.base:
            row = self._tree.remote.versions.get(old.base)
            new = self._tree.remote.versions.get(inode.base) if inode.base else None
            if row is not None and row.pinned and new is not None:
                self._tree.remote.versions.set(inode.base, new._replace(pinned=1))
        self._tree.set_name(directory.ino, name, inode.ino, found[0])
        directory.nlink += inode.is_dir
        self._tree.touch(directory)
        self._tree.unlinked(old)
        self._invalidate(directory.ino, name)
        return inode.ino

    def _changed_here(
        self,
        projection: Projection,
        directory: Inode,
        name: bytes,
        found: tuple[int, int],
        inode: Inode,
        entry: Entry,
    ) -> int:
        """Leave it alone, but for bytes that nobody has changed here. Returns what is shown."""
        if not self._is_outdated(inode, entry):
            self._note_conflict(projection, inode, entry)
            return inode.ino
        number = self._replace(projection, directory, name, found, inode, entry)
        new = self._tree.inode(number)
        if (new.mode, new.uid, new.gid) != (inode.mode, inode.uid, inode.gid):
            new.mode, new.uid, new.gid = inode.mode, inode.uid, inode.gid
            new.flags |= FLAG_LOCAL
        projection.conflicts.discard(inode.ino)
        return number

    def _is_outdated(self, inode: Inode, entry: Entry) -> bool:
        """Whether the remote has new bytes for a file of which only attributes were changed here.

        While somebody has it open, bytes may be on their way.
        """
        row = self._tree.remote.versions.get(inode.base) if inode.base else None
        if row is None or entry.kind is not Kind.FILE or inode.opens or inode.nlink != 1:
            return False
        if inode.allocated or inode.base_holes or inode.flags & FLAG_XATTRS:
            return False
        as_it_was = inode.size == inode.base_end == row.size
        return as_it_was and row.key == entry.key and row.version != entry.version

    def _note_conflict(self, projection: Projection, inode: Inode, entry: Entry) -> None:
        if not inode.base or entry.kind is not Kind.FILE:
            return
        row = self._tree.remote.versions.get(inode.base)
        if row is not None and row.key == entry.key and row.version != entry.version:
            projection.note_conflict(inode.ino)

    async def remove_unseen(self, directory: Inode, seen: LookupCounts) -> None:
        """What a complete listing lacks is gone, unless it was made or changed here."""
        tree = self._tree
        after = 0
        while directory.nlink:
            page = list(tree.list_page(directory.ino, after, tree.next_cookie, _REMOVE_PAGE))
            if not page:
                return
            after = page[-1][0]
            for _, name, inode, row in page:
                number = inode.ino if inode is not None else row[2]  # type: ignore[index]
                if seen.get(number):  # type: ignore[arg-type]
                    continue
                found = tree.find(directory.ino, name)
                if found is None or found[1] != number:
                    continue
                gone = tree.inode(found[1])
                if not gone.flags & FLAG_LOCAL:
                    self._remove(directory, gone, name)
            await trio.lowlevel.checkpoint()


def _version_row(entry: Entry) -> VersionRow:
    version = entry.version
    return VersionRow(entry.key, version.size, version.etag, version.mtime_ns)

"""Finding and walking paths of the live tree, in slices, with memory that does not grow.

Names are looked at as they are known here: nothing in this module asks a remote.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final, NamedTuple, cast

import trio

from ghostd.errors import InvalidArgument, NotADirectory, NotFound
from ghostd.facade import printable_path
from ghostd.inodes import FLAG_LOCAL, ROOT_INO, Inode
from ghostd.tree import Tree

SLICE: Final = 50  # entries between two looks at the loop: under a millisecond


class Seen(NamedTuple):
    """An entry as it was a moment ago; inodes need not be in memory to be seen."""

    path: bytes  # from the root of the mount, begins with /
    parent: int  # inode of the directory; of the root: itself
    name: bytes
    ino: int
    mode: int
    nlink: int
    size: int  # bytes
    allocated: int  # bytes of our own
    children: int
    flags: int
    projection: int
    base: int
    base_end: int  # bytes of the base that show

    @property
    def is_dir(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_local(self) -> bool:
        """In a projection, and made or changed here."""
        return bool(self.flags & FLAG_LOCAL)


def seen(inode: Inode, parent: int, name: bytes, path: bytes) -> Seen:
    """An inode in memory, as an entry of a directory."""
    return Seen(
        path,
        parent,
        name,
        inode.ino,
        inode.mode,
        inode.nlink,
        inode.size,
        inode.allocated,
        inode.children,
        inode.flags,
        inode.projection,
        inode.base,
        inode.base_end,
    )


def joined(directory: bytes, name: bytes) -> bytes:
    """The path of a name in a directory."""
    return directory.rstrip(b"/") + b"/" + name


def parts_of(path: bytes) -> list[bytes]:
    """The names of a path from the root of the mount. Raises InvalidArgument for `.` and `..`."""
    parts = [part for part in path.split(b"/") if part]
    if b"." in parts or b".." in parts or b"\0" in path:
        raise InvalidArgument(f"{printable_path(path)}: name a plain path from the mount's root")
    return parts


def step(tree: Tree, at: Seen, name: bytes) -> Seen:
    """From a directory to one of its entries. Raises NotFound, NotADirectory."""
    if not at.is_dir:
        kind = "a symbolic link" if stat.S_ISLNK(at.mode) else "no directory"
        raise NotADirectory(f"{printable_path(at.path)} is {kind}: name what it leads to")
    found = tree.find(at.ino, name)
    path = joined(at.path, name)
    if found is None:
        raise NotFound(f"{printable_path(path)} does not exist, or is not known here yet")
    return seen(tree.inode(found[1]), at.ino, name, path)


def root_of(tree: Tree) -> Seen:
    """The root of the mount."""
    return seen(tree.inode(ROOT_INO), ROOT_INO, b"", b"/")


def find_path(tree: Tree, path: bytes) -> Seen:
    """What a path from the root of the mount leads to. Raises NotFound, NotADirectory."""
    at = root_of(tree)
    for name in parts_of(path):
        at = step(tree, at, name)
    return at


def still_there(tree: Tree, entry: Seen) -> bool:
    """Whether the entry's name still leads to it; ask after every await.

    Of an inode that has gone, rows can be loaded until the next commit: nothing may be written for
    them.
    """
    if entry.ino == ROOT_INO:
        return True
    found = tree.find(entry.parent, entry.name)
    return found is not None and found[1] == entry.ino


def entries_page(tree: Tree, directory: Seen, after: int, below: int) -> list[tuple[int, Seen]]:
    """(cookie, entry): about SLICE entries of a directory behind a cookie; none at its end."""
    page: list[tuple[int, Seen]] = []
    base = directory.path.rstrip(b"/")
    for cookie, name, inode, row in tree.list_page(directory.ino, after, below, SLICE):
        path = base + b"/" + name
        if inode is not None:
            page.append((cookie, seen(inode, directory.ino, name, path)))
            continue
        assert row is not None
        column = cast("tuple[int, ...]", row[2:])
        page.append(
            (
                cookie,
                Seen(
                    path,
                    directory.ino,
                    name,
                    column[0],
                    column[2],
                    column[5],
                    column[7],
                    column[8],
                    column[14],
                    column[15],
                    column[17],
                    column[18],
                    column[19],
                ),
            )
        )
    return page


class Walk:
    """Everything below some entries that is known here, a slice at a time.

    Directories come before what is in them. Memory: a slice for each level. What appears meanwhile
    may be missed, what stays is seen exactly once.
    """

    def __init__(self, tree: Tree, tops: Iterable[Seen]) -> None:
        self._tree = tree
        self._below = tree.next_cookie
        self._stack = [(top, 0) for top in tops if top.is_dir]

    async def slice(self) -> list[Seen]:
        """Some entries; empty when all have been seen."""
        await trio.lowlevel.checkpoint()
        while self._stack:
            directory, after = self._stack.pop()
            page = entries_page(self._tree, directory, after, self._below)
            if page:
                self._stack.append((directory, page[-1][0]))
                found = [entry for _, entry in page]
                self._stack += [(each, 0) for each in reversed(found) if each.children]
                return found
        return []

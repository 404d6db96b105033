"""The inode record in memory, its database row, and the kernel's lookup counts."""

from __future__ import annotations

import stat
from array import array
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from ghostd.filemap import FileMap

Ino = NewType("Ino", int)

ROOT_INO = Ino(1)

InodeRow = tuple[
    int, int, int, int, int, int, int, int, int, int,
    int, int, int, int, int, int, bytes | None, int, int, int, int,
]  # fmt: skip

# The order of the columns of table `inodes`, of InodeRow, and of Inode.row().
INODE_COLUMNS = (
    "ino, generation, mode, uid, gid, nlink, rdev, size, allocated, "
    "atime_ns, mtime_ns, ctime_ns, btime_ns, parent, children, flags, target, "
    "projection, base, base_end, base_holes"
)

FLAG_XATTRS = 1  # the inode has extended attributes
FLAG_LOCAL = 2  # in a projection: made or changed here, so that a listing leaves it alone
FLAG_PINNED = 4  # of a directory of a projection: what comes into it is pinned


class Inode:
    """One inode, loaded from its row or new. Mutable; owned by `Filesystem`.

    Times are nanoseconds since 1970, sizes bytes. `parent` and `children` are kept for directories
    only (`parent` is 0 for everything else). `allocated` counts the bytes that are not holes.
    `base` is the version of a remote file whose first `base_end` bytes show through the holes;
    `base_holes` counts those that are holes there, too.
    """

    __slots__ = (
        "allocated",
        "atime_ns",
        "base",
        "base_end",
        "base_holes",
        "btime_ns",
        "children",
        "content",
        "ctime_ns",
        "dead",
        "dirty_epoch",
        "flags",
        "generation",
        "gid",
        "ino",
        "mode",
        "mtime_ns",
        "nlink",
        "opens",
        "parent",
        "projection",
        "rdev",
        "size",
        "stored",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, row: InodeRow, *, stored: bool) -> None:
        (
            self.ino,
            self.generation,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.rdev,
            self.size,
            self.allocated,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.parent,
            self.children,
            self.flags,
            self.target,
            self.projection,
            self.base,
            self.base_end,
            self.base_holes,
        ) = row
        self.opens = 0  # open file handles
        self.dirty_epoch = 0  # the newest epoch that changed it
        self.stored = stored  # its row is in the database, or in a commit under way
        self.dead = False  # deleted; nothing may be written for it any more
        self.content: FileMap | None = None
        self.xattrs: dict[bytes, bytes] | None = None  # None: not loaded

    def row(self) -> InodeRow:
        """The values of INODE_COLUMNS."""
        return (
            self.ino,
            self.generation,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.rdev,
            self.size,
            self.allocated,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.parent,
            self.children,
            self.flags,
            self.target,
            self.projection,
            self.base,
            self.base_end,
            self.base_holes,
        )

    @property
    def is_dir(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)


class LookupCounts:
    """How often the kernel holds each inode number: a sparse array of counters.

    The kernel may hold millions of inodes; a dict would take 100 bytes for each. Inode numbers are
    dense, so pages of 256 four-byte counters take 4 to 8.
    """

    PAGE = 256

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._used: dict[int, int] = {}  # page → counters that are not zero

    def add(self, ino: int) -> None:
        """Count one more reference."""
        page_number = ino >> 8
        page = self._pages.get(page_number)
        if page is None:
            page = self._pages[page_number] = array("I", bytes(4 * self.PAGE))
            self._used[page_number] = 0
        slot = ino & 255
        if not page[slot]:
            self._used[page_number] += 1
        page[slot] += 1

    def drop(self, ino: int, count: int) -> int:
        """Forget `count` references; how many are left."""
        page_number = ino >> 8
        page = self._pages.get(page_number)
        if page is None:
            return 0
        slot = ino & 255
        left = page[slot] - count
        if left > 0:
            page[slot] = left
            return left
        if page[slot]:
            page[slot] = 0
            self._used[page_number] -= 1
            if not self._used[page_number]:
                del self._pages[page_number], self._used[page_number]
        return 0

    def get(self, ino: int) -> int:
        """How many references the kernel holds."""
        page = self._pages.get(ino >> 8)
        return 0 if page is None else page[ino & 255]

    def __len__(self) -> int:
        return sum(self._used.values())

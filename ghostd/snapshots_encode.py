"""The namespace as tree objects: writes those of a snapshot's directories that are not stored yet.

Reads one snapshot of the database in the maintenance thread, a slice at a time. Nothing is read
from chunks: a file's extents become its recipe as they are. A directory that `tree_objects` knows
is named by its object and not looked into.
"""

from __future__ import annotations

import stat
import struct
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import apsw

from blockstore.ids import ChunkId
from ghostd.errors import NotFound
from ghostd.filemap import EXTENT, SEGMENT_BYTES
from ghostd.inodes import FLAG_XATTRS, ROOT_INO
from ghostd.snapshots_rows import StoredTree, stored_tree
from syncer.chunks import ChunkStore
from syncer.recipes import Extent, Recipe
from syncer.tree import KIND_OF_FORMAT, NodeKind
from syncer.tree_objects import Entry, Sums
from syncer.tree_writer import DirectoryWriter, TreeWriter

HIDDEN_NAME: Final = b".snapshots"  # in the root: no part of any snapshot
LINK_NLINK_SHIFT: Final = 48  # see `link_identity`
_PAGE: Final = 500  # entries asked for at once
# Between so many entries others get the interpreter's lock without asking for it. Measured at the
# first snapshot of 10^5 files, on a busy machine: p99 of statfs 9 ms against 12 without (idle: 5).
_BREATH: Final = 64
_BREATH_S: Final = 0.0005
_SLICE: Final = 2_000  # entries in one call
_LEFT_OUT_MAX: Final = 1_000  # paths that are named

_SUMS = struct.Struct("<QQQ")

_COLUMNS: Final = (
    "i.ino, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.size, i.mtime_ns, i.ctime_ns, i.btime_ns, "
    "i.flags, i.target, i.projection"
)
_ENTRIES: Final = f"""
    SELECT d.name, {_COLUMNS}, t.object, t.sums
    FROM dirents d INDEXED BY names JOIN inodes i ON i.ino = d.ino
    LEFT JOIN tree_objects t ON t.ino = i.ino
    WHERE d.parent = ?1 AND d.name > ?2 ORDER BY d.name LIMIT {_PAGE}"""  # noqa: S608  constants
_SMALL_FILES: Final = """
    SELECT s.ino, s.extents FROM dirents d INDEXED BY names JOIN segments s ON s.ino = d.ino
    WHERE d.parent = ?1 AND d.name > ?2 AND d.name <= ?3 AND s.segment = 0"""


class _Row(NamedTuple):
    """One entry of a directory, as the database has it."""

    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    flags: int
    target: bytes | None
    projection: int
    object: bytes | None = None
    sums: bytes | None = None


def link_identity(ino: int, nlink: int) -> int:
    """What is equal for all names of a file in a snapshot: its number, and how many names it has.

    With the count in it, who meets the first name knows that there are more.
    """
    return nlink << LINK_NLINK_SHIFT | ino


def link_count(link: int) -> int:
    """The number of names in an identity of `link_identity`."""
    return link >> LINK_NLINK_SHIFT


class _Frame:
    """A directory that is being written."""

    __slots__ = ("at", "below", "ino", "page", "path", "small", "writer")

    def __init__(self, ino: int, path: bytes, writer: DirectoryWriter) -> None:
        self.ino = ino
        self.path = path
        self.writer = writer
        self.page: list[_Row] = []
        self.at = 0  # the next one of the page
        self.small: dict[int, bytes] = {}  # first segments of the page's files
        self.below: _Row | None = None  # the directory that is being written first


def _extents(number: int, blob: bytes) -> Iterator[Extent]:
    """The extents of a segment, counted from the beginning of the file."""
    base = number * SEGMENT_BYTES
    for start, length, offset, name in EXTENT.iter_unpack(blob):
        yield Extent(base + start, length, offset, ChunkId(name))


class Encoder:
    """Writes what is missing below one directory. Not durable before the store's sync()."""

    def __init__(self, connection: apsw.Connection, store: ChunkStore, top: int) -> None:
        """`connection` sees one state of the database; `top` is a directory's inode."""
        self._connection = connection
        self._writer = TreeWriter(store)
        self._top = top
        self._stack: list[_Frame] = []
        self._trees: list[StoredTree] = []
        self.root: ChunkId | None = None  # the root object, when all is written
        self.sums = Sums()
        self.written = 0  # directories
        self.entries = 0
        self.left_out: list[bytes] = []  # projections, by path from `top`

    @property
    def unremembered(self) -> int:
        """How many directories `take_trees` would return."""
        return len(self._trees)

    def step(self) -> bool:
        """Write for some milliseconds; whether there is more. Raises NotFound."""
        if self.root is None and not self._stack:
            self._begin()
        budget = _SLICE
        while self._stack and budget > 0:
            budget -= self._advance(self._stack[-1])
        return bool(self._stack)

    def take_trees(self) -> list[StoredTree]:
        """What has been written since the last call, to be remembered once it is durable."""
        self._writer.flush()
        trees, self._trees = self._trees, []
        return trees

    def _begin(self) -> None:
        known = stored_tree(self._connection, self._top)
        if known is None:
            self._stack.append(_Frame(self._top, b"", self._writer.directory()))
        else:
            self._finish_top(ChunkId(known.object), Sums(*_SUMS.unpack(known.sums)))

    # --- directories ---------------------------------------------------------------------------

    def _advance(self, frame: _Frame) -> int:
        """Go on in a directory up to the end of a page, or to a directory that comes first."""
        if frame.at == len(frame.page):
            self._load(frame)
            if not frame.page:
                self._end(frame)
                return 1
        count = 0
        while frame.at < len(frame.page):
            row = frame.page[frame.at]
            frame.at += 1
            count += 1
            if not count % _BREATH:
                time.sleep(_BREATH_S)
            if frame.ino == ROOT_INO and row.name == HIDDEN_NAME and row.projection:
                continue
            if row.projection:
                self._leave_out(frame, row)
            elif not stat.S_ISDIR(row.mode):
                frame.writer.add(self._entry(frame, row))
            elif row.object is not None:
                assert row.sums is not None
                sums = Sums(*_SUMS.unpack(row.sums))
                frame.writer.add(self._directory(row, ChunkId(row.object), sums))
            else:
                frame.below = row
                path = frame.path + b"/" + row.name
                self._stack.append(_Frame(row.ino, path, self._writer.directory()))
                break
        self.entries += count
        return count

    def _load(self, frame: _Frame) -> None:
        last = frame.page[-1].name if frame.page else b""
        execute = self._connection.execute
        rows = execute(_ENTRIES, (frame.ino, last)).fetchall()
        frame.page = list(map(_Row._make, rows))
        frame.at = 0
        frame.small = {}
        if frame.page:
            found = execute(_SMALL_FILES, (frame.ino, last, frame.page[-1].name)).fetchall()
            frame.small = dict(cast("list[tuple[int, bytes]]", found))

    def _end(self, frame: _Frame) -> None:
        self._stack.pop()
        name, sums, _ = frame.writer.finish()
        self.written += 1
        self._trees.append(StoredTree(frame.ino, name, _SUMS.pack(*sums)))
        if not self._stack:
            self._finish_top(name, sums)
            return
        above = self._stack[-1]
        row, above.below = above.below, None
        assert row is not None
        above.writer.add(self._directory(row, name, sums))

    def _finish_top(self, name: ChunkId, sums: Sums) -> None:
        rows = self._connection.execute(
            f"SELECT x'', {_COLUMNS} FROM inodes i WHERE i.ino = ?",  # noqa: S608  a constant
            (self._top,),
        ).fetchall()
        if not rows:
            raise NotFound("the directory was removed before the snapshot could be taken")
        row = _Row(*cast("tuple[Any, ...]", rows[0]))
        self.sums = sums
        self.root = self._writer.root(self._directory(row, name, sums))
        self._writer.flush()

    def _leave_out(self, frame: _Frame, row: _Row) -> None:
        """A projection: its remote has it. A directory stands for it; for a file nothing does."""
        if len(self.left_out) < _LEFT_OUT_MAX:
            self.left_out.append(frame.path + b"/" + row.name)
        if stat.S_ISDIR(row.mode):
            name, sums, _ = self._writer.directory().finish()
            frame.writer.add(self._directory(row, name, sums))

    def _directory(self, row: _Row, child: ChunkId, sums: Sums) -> Entry:
        entry = Entry(
            row.name,
            NodeKind.DIRECTORY,
            sums.bytes,
            row.mtime_ns,
            stat.S_IMODE(row.mode),
            row.uid,
            row.gid,
            child=child,
            nodes=sums.nodes,
            files=sums.files,
            ctime_ns=row.ctime_ns,
            btime_ns=row.btime_ns,
        )
        return self._with_xattrs(entry, row)

    # --- everything else -------------------------------------------------------------------------

    def _entry(self, frame: _Frame, row: _Row) -> Entry:
        kind = KIND_OF_FORMAT[stat.S_IFMT(row.mode)]
        entry = Entry(
            row.name,
            kind,
            row.size if kind is NodeKind.FILE else 0,
            row.mtime_ns,
            stat.S_IMODE(row.mode),
            row.uid,
            row.gid,
            recipe=self._recipe(frame, row) if kind is NodeKind.FILE else None,
            target=row.target,
            rdev=row.rdev if kind in {NodeKind.CHARACTER, NodeKind.BLOCK} else 0,
            link=link_identity(row.ino, row.nlink) if row.nlink > 1 else 0,
            ctime_ns=row.ctime_ns,
            btime_ns=row.btime_ns,
        )
        return self._with_xattrs(entry, row)

    def _recipe(self, frame: _Frame, row: _Row) -> Recipe:
        if row.size <= SEGMENT_BYTES:
            blob = frame.small.get(row.ino)
            if blob is None:
                return Recipe()
            if len(blob) == 44:
                return Recipe((next(_extents(0, blob)),))
            return self._writer.recipe(_extents(0, blob), row.size)
        segments = self._connection.execute(
            "SELECT segment, extents FROM segments WHERE ino = ? ORDER BY segment", (row.ino,)
        )
        extents = (e for number, blob in segments for e in _extents(number, blob))
        return self._writer.recipe(extents, row.size)

    def _with_xattrs(self, entry: Entry, row: _Row) -> Entry:
        if not row.flags & FLAG_XATTRS:
            return entry
        found = self._connection.execute("SELECT name, value FROM xattrs WHERE ino = ?", (row.ino,))
        xattrs = dict(cast("list[tuple[bytes, bytes]]", found.fetchall()))
        return self._writer.with_xattrs(entry, xattrs)

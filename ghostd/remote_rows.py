"""What `namespace.db` knows of remote trees: projections, directories, versions, blocks.

Rows change in memory, as inodes do, and are written with the epoch (`ghostd/tree.py`). Reading
belongs to the filesystem's loop, `write_remote` to the commit thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import apsw

from ghostd.staged import Staged
from syncer.remotes.remote import Version

PART_BLOCKS: Final = 64  # block ids in one row
ID_BYTES: Final = 32
NEVER: Final = bytes(ID_BYTES)  # no block of that number has been fetched
UNKNOWN: Final = -1  # the size of a version that was not noted

Query = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]


class ProjectionRow(NamedTuple):
    """A remote tree attached under a path; the columns of `projections`."""

    id: int  # the inode of its root
    url: str
    mode: str
    options: str  # a JSON object
    ttl_ms: int
    block_bytes: int
    removing: int
    configured: int
    created_ns: int

    @property
    def writable(self) -> bool:
        """Changes are taken: they stay here (cow), or are sent back by themselves (rw)."""
        return self.mode in {"cow", "rw"}

    def option(self, name: str, default: str = "") -> str:
        """One of the options."""
        return str(json.loads(self.options).get(name, default))


class DirRow(NamedTuple):
    """A remote directory."""

    key: bytes
    listed_ns: int  # 0: never


class VersionRow(NamedTuple):
    """One state of one remote file."""

    key: bytes
    size: int
    etag: str
    mtime_ns: int
    pinned: int = 0

    @property
    def version(self) -> Version:
        """As a remote wants it."""
        return Version(self.size, self.etag, self.mtime_ns)


class GoneRow(NamedTuple):
    """What the remote has and is not shown any more."""

    parent: int  # inode of the directory that showed it; may be gone, too
    name: bytes
    ino: int  # what showed it: it lives on where it was moved
    size: int  # UNKNOWN: no version was noted
    etag: str
    mtime_ns: int
    target: bytes | None  # symlinks

    @property
    def version(self) -> Version | None:
        """The version that was seen."""
        return None if self.size == UNKNOWN else Version(self.size, self.etag, self.mtime_ns)


@dataclass(slots=True)
class RemoteChanges:
    """What one epoch changed, ready for the database."""

    dead: list[int] = field(default_factory=list)
    projections: list[tuple[int, ProjectionRow | None]] = field(default_factory=list)
    dirs: list[tuple[int, DirRow | None]] = field(default_factory=list)
    versions: list[tuple[int, VersionRow | None]] = field(default_factory=list)
    blocks: list[tuple[tuple[int, int], bytes | None]] = field(default_factory=list)
    hidden: list[tuple[tuple[int, bytes], bool | None]] = field(default_factory=list)
    links: list[tuple[tuple[int, bytes], int | None]] = field(default_factory=list)
    gone: list[tuple[tuple[int, bytes], GoneRow | None]] = field(default_factory=list)


class RemoteRows:
    """The rows as they are now."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._dead: list[int] = []
        self.projections: Staged[int, ProjectionRow] = Staged(
            lambda key: self._one(ProjectionRow, "SELECT * FROM projections WHERE id = ?", (key,))
        )
        self.dirs: Staged[int, DirRow] = Staged(
            lambda key: self._one(
                DirRow, "SELECT key, listed_ns FROM remote_dirs WHERE ino = ?", (key,)
            )
        )
        self.versions: Staged[int, VersionRow] = Staged(
            lambda key: self._one(
                VersionRow,
                "SELECT key, size, etag, mtime_ns, pinned FROM versions WHERE id = ?",
                (key,),
            )
        )
        self.blocks: Staged[tuple[int, int], bytes] = Staged(self._load_blocks)
        self.hidden: Staged[tuple[int, bytes], bool] = Staged(self._load_hidden)
        self.links: Staged[tuple[int, bytes], int] = Staged(self._load_link)
        self.gone: Staged[tuple[int, bytes], GoneRow] = Staged(
            lambda key: self._one(
                GoneRow,
                "SELECT parent, name, ino, size, etag, mtime_ns, target FROM gone"
                " WHERE projection = ? AND key = ?",
                key,
            )
        )
        self._staged: tuple[Staged[Any, Any], ...] = (
            self.projections,
            self.dirs,
            self.versions,
            self.blocks,
            self.hidden,
            self.links,
            self.gone,
        )

    def _one(self, kind: Any, sql: str, values: tuple[Any, ...]) -> Any:
        rows = self._query(sql, values)
        return kind(*rows[0]) if rows else None

    def _load_blocks(self, key: tuple[int, int]) -> bytes | None:
        rows = self._query("SELECT ids FROM blocks WHERE version = ? AND part = ?", key)
        return rows[0][0] if rows else None

    def _load_hidden(self, key: tuple[int, bytes]) -> bool | None:
        return bool(self._query("SELECT 1 FROM hidden WHERE parent = ? AND name = ?", key)) or None

    def _load_link(self, key: tuple[int, bytes]) -> int | None:
        rows = self._query("SELECT ino FROM snapshot_links WHERE projection = ? AND link = ?", key)
        return rows[0][0] if rows else None

    # --- blocks --------------------------------------------------------------------------------

    def block(self, version: int, number: int) -> bytes | None:
        """The chunk id that a block had when it was last fetched."""
        part, at = divmod(number, PART_BLOCKS)
        ids = self.blocks.get((version, part))
        if ids is None:
            return None
        found = ids[at * ID_BYTES : (at + 1) * ID_BYTES]
        return None if found == NEVER else found

    def set_block(self, version: int, number: int, chunk_id: bytes | None) -> None:
        """Remember, or forget (None), which chunk holds a block."""
        part, at = divmod(number, PART_BLOCKS)
        ids = bytearray(self.blocks.get((version, part)) or bytes(PART_BLOCKS * ID_BYTES))
        ids[at * ID_BYTES : (at + 1) * ID_BYTES] = chunk_id or NEVER
        self.blocks.set((version, part), bytes(ids))

    def block_ids(self, version: int, size: int, block_bytes: int) -> Iterator[bytes | None]:
        """The chunk ids of all blocks of a version, None where never fetched."""
        blocks = -(-size // block_bytes)
        for part in range(-(-blocks // PART_BLOCKS)):
            ids = self.blocks.get((version, part)) or b""
            for at in range(min(PART_BLOCKS, blocks - part * PART_BLOCKS)):
                found = ids[at * ID_BYTES : (at + 1) * ID_BYTES]
                yield None if not found or found == NEVER else found

    # --- the others ----------------------------------------------------------------------------

    def all_projections(self) -> list[ProjectionRow]:
        """Every projection, those on their way out included."""
        found = {
            row[0]: ProjectionRow(*row) for row in self._query("SELECT * FROM projections", ())
        }
        for key, row in self.projections.changed().items():
            if row is None:
                found.pop(key, None)
            else:
                found[key] = row
        return sorted(found.values())

    def hidden_names(self, parent: int) -> list[bytes]:
        """The names that a cow projection has taken out of a directory."""
        found = {
            row[0] for row in self._query("SELECT name FROM hidden WHERE parent = ?", (parent,))
        }
        for (ino, name), there in self.hidden.changed().items():
            if ino == parent:
                (found.add if there else found.discard)(name)
        return sorted(found)

    def unhide(self, parent: int, name: bytes) -> None:
        """What the remote has under this name may be shown again."""
        if self.hidden.get((parent, name)):
            self.hidden.set((parent, name), None)

    def forget(self, ino: int) -> None:
        """The inode is gone, and with it all that is said of it here."""
        self._dead.append(ino)
        self.versions.set(ino, None)  # at once: what is under way for it looks here

    # --- epochs --------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many rows the current epoch has changed."""
        return len(self._dead) + sum(len(table) for table in self._staged)

    def freeze(self) -> RemoteChanges:
        """The barrier: what the current epoch changed."""
        dead, self._dead = self._dead, []
        return RemoteChanges(dead, *(table.freeze() for table in self._staged))

    def committed(self) -> None:
        """What was frozen is in the database."""
        for table in self._staged:
            table.committed()

    def thaw(self, changes: RemoteChanges) -> None:
        """The commit failed."""
        self._dead = changes.dead + self._dead
        for table in self._staged:
            table.thaw()


_STATEMENTS: Final = (
    (
        "projections",
        "DELETE FROM projections WHERE id = ?",
        f"REPLACE INTO projections VALUES({','.join('?' * len(ProjectionRow._fields))})",
        lambda _, row: row,
    ),
    (
        "dirs",
        "DELETE FROM remote_dirs WHERE ino = ?",
        "REPLACE INTO remote_dirs VALUES(?, ?, ?)",
        lambda key, row: (key, *row),
    ),
    (
        "versions",
        "DELETE FROM versions WHERE id = ?",
        "REPLACE INTO versions VALUES(?, ?, ?, ?, ?, ?)",
        lambda key, row: (key, *row),
    ),
    (
        "blocks",
        "DELETE FROM blocks WHERE version = ? AND part = ?",
        "REPLACE INTO blocks VALUES(?, ?, ?)",
        lambda key, row: (*key, row),
    ),
    (
        "hidden",
        "DELETE FROM hidden WHERE parent = ? AND name = ?",
        "REPLACE INTO hidden VALUES(?, ?)",
        lambda key, _: key,
    ),
    (
        "links",
        "DELETE FROM snapshot_links WHERE projection = ? AND link = ?",
        "REPLACE INTO snapshot_links VALUES(?, ?, ?)",
        lambda key, ino: (*key, ino),
    ),
    (
        "gone",
        "DELETE FROM gone WHERE projection = ? AND key = ?",
        "REPLACE INTO gone VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
        lambda key, row: (*key, *row),
    ),
)

_OF_INODE: Final = (
    "DELETE FROM remote_dirs WHERE ino = ?",
    "DELETE FROM versions WHERE id = ?",
    "DELETE FROM blocks WHERE version = ?",
    "DELETE FROM hidden WHERE parent = ?",
    "DELETE FROM snapshot_links WHERE ino = ?",
)


def write_remote(connection: apsw.Connection, changes: RemoteChanges) -> None:
    """Within a transaction: bring the tables to the state of the epoch."""
    for table, delete, put, columns in _STATEMENTS:
        rows = getattr(changes, table)
        gone = [key if isinstance(key, tuple) else (key,) for key, row in rows if row is None]
        kept = [columns(key, row) for key, row in rows if row is not None]
        if gone:
            connection.executemany(delete, gone).fetchall()
        if kept:
            connection.executemany(put, kept).fetchall()
    removed = [(number,) for number, row in changes.projections if row is None]
    if removed:
        connection.executemany("DELETE FROM gone WHERE projection = ?", removed).fetchall()
    # Last: an inode may have got rows and died in one epoch.
    if changes.dead:
        dead = [(ino,) for ino in changes.dead]
        for statement in _OF_INODE:
            connection.executemany(statement, dead).fetchall()

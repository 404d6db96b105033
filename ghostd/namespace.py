"""`namespace.db`: loads what the filesystem asks for, and applies one epoch in one transaction.

Two connections: `Namespace` reads on the trio thread through a read-only one; `apply` runs in the
commit thread on the only one that writes. On a disk whose SQLite VFS has no shared memory (the
simulated one) both are the same.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import apsw

from blockstore.database import transaction
from blockstore.disk import SQLITE_VFS, Disk, write_log_again
from blockstore.errors import FormatTooNew, OrbitError, StorageFailed, StorageFull
from ghostd.filemap import chunk_ids
from ghostd.inodes import INODE_COLUMNS, ROOT_INO, InodeRow
from ghostd.remote_rows import RemoteChanges, write_remote
from ghostd.snapshots_rows import note_changes, tracks

FORMAT = 5
FILE_NAME = "namespace.db"
COOKIE_FIRST = 16  # lower ones are "." and ".."

T = TypeVar("T")


class NamespaceDamaged(OrbitError):
    """SQLite cannot read namespace.db."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The counters of the namespace, as of the last commit."""

    uuid: str
    generation: int  # mounts so far
    epoch: int
    next_ino: int
    next_cookie: int
    inodes: int


@dataclass(slots=True)
class EpochChanges:
    """What one epoch changed, ready for the database."""

    epoch: int
    next_ino: int
    next_cookie: int
    inode_count: int
    inodes: list[InodeRow] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    names: list[tuple[int, bytes, int, int]] = field(default_factory=list)
    cuts: list[tuple[int, int]] = field(default_factory=list)  # inode, first segment that goes
    segments: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    xattrs: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)
    remote: RemoteChanges = field(default_factory=RemoteChanges)


def translated(error: apsw.Error, path: Path) -> OrbitError:
    """A SQLite error as one of ours."""
    if isinstance(error, apsw.FullError):
        return StorageFull(f"{path}: no space left on the disk; free some, nothing stored is lost")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return NamespaceDamaged(
            f"{path} is damaged ({error}); stop the daemon and run ghostd --recover to bring the "
            "tree back from its last copy in the packs"
        )
    return StorageFailed(f"{path}: SQLite says {error!r}; look at the disk and the kernel log")


def connect(path: Path, disk: Disk, *, cache_kib: int, read_only: bool = False) -> apsw.Connection:
    """A connection with the pragmas that all of ours need."""
    flags = (
        apsw.SQLITE_OPEN_READONLY
        if read_only
        else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    )
    connection = apsw.Connection(str(path), flags=flags, vfs=disk.sqlite_vfs or SQLITE_VFS)
    connection.set_busy_timeout(10_000)
    if disk.sqlite_vfs is not None:
        connection.pragma("locking_mode", "EXCLUSIVE")  # WAL without shared memory
    if not read_only:
        connection.pragma("journal_mode", "WAL")
        connection.pragma("synchronous", "FULL")
        connection.pragma("wal_autocheckpoint", 0)
        connection.pragma("journal_size_limit", 64 << 20)
    connection.pragma("cache_size", -cache_kib)
    return connection


class Namespace:
    """The durable tree.

    Reading methods belong to one thread, `apply` and `checkpoint` to another.
    """

    def __init__(
        self, path: Path, disk: Disk, writer: apsw.Connection, reader: apsw.Connection
    ) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._shared = writer is reader
        self._disk = disk
        self._log_suspect = False
        self._tracking = tracks(writer)
        self._snapshots = 0
        self._counting = threading.Lock()
        self._find = "SELECT cookie, ino FROM dirents WHERE parent = ? AND name = ?"
        self._load = f"SELECT {INODE_COLUMNS} FROM inodes WHERE ino = ?"  # noqa: S608  a constant
        columns = ", ".join(f"i.{c.strip()}" for c in INODE_COLUMNS.split(","))
        self._list = (
            f"SELECT d.cookie, d.name, {columns} FROM dirents d "  # noqa: S608  constants
            "JOIN inodes i ON i.ino = d.ino "
            "WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?"
        )

    @property
    def shared(self) -> bool:
        """`snapshot` returns the connection that writes: on a disk that takes but one."""
        return self._shared

    # --- opening -------------------------------------------------------------------------------

    @classmethod
    def exists(cls, folder: Path, disk: Disk) -> bool:
        """Whether the state folder has a namespace."""
        return disk.exists(folder / FILE_NAME)

    @classmethod
    def open(cls, folder: Path, disk: Disk, *, cache_kib: int = 16_384) -> Namespace:
        """Open the namespace, or make an empty one with a root directory.

        Raises FormatTooNew, NamespaceDamaged, StorageFull, StorageFailed.
        """
        path = folder / FILE_NAME
        # A process that was killed after a failed fsync has left a log that may be in memory only.
        write_log_again(disk, path)
        try:
            writer = connect(path, disk, cache_kib=cache_kib)
            if not writer.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
                _create(writer)
                disk.fsync_dir(folder)
            found = writer.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
            if found is None:
                raise NamespaceDamaged(f"{path} is not a namespace; run ghostd --recover")
            if int(found[0]) > FORMAT:
                raise FormatTooNew(str(path), int(found[0]), FORMAT)
            if int(found[0]) < FORMAT:
                _upgrade(writer, int(found[0]))
            if disk.sqlite_vfs is not None:
                reader = writer
            else:
                reader = connect(path, disk, cache_kib=cache_kib, read_only=True)
        except apsw.Error as error:
            raise translated(error, path) from error
        return cls(path, disk, writer, reader)

    def close(self) -> None:
        """Checkpoint and close."""
        try:
            try:
                self._writer.pragma("wal_checkpoint", "TRUNCATE")
            finally:
                if not self._shared:
                    self._reader.close()
                self._writer.close()
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def meta(self) -> Meta:
        """The counters as of the last commit."""
        values = dict(self._reader.execute("SELECT key, value FROM meta"))
        return Meta(
            uuid=values["uuid"],
            generation=values["generation"],
            epoch=values["epoch"],
            next_ino=values["next_ino"],
            next_cookie=values["next_cookie"],
            inodes=values["inodes"],
        )

    def begin_generation(self) -> int:
        """Count one more mount, durably.

        Inode numbers lost in a crash come back under a new generation.
        """
        try:
            self._writer.execute(
                "UPDATE meta SET value = value + 1 WHERE key = 'generation'"
            ).fetchall()
            return self.meta().generation
        except apsw.Error as error:
            raise translated(error, self.path) from error

    # --- reading (trio thread) -------------------------------------------------------------------

    def find(self, parent: int, name: bytes) -> tuple[int, int] | None:
        """(cookie, inode number) of a name."""
        try:
            return cast(
                "tuple[int, int] | None",
                self._reader.execute(self._find, (parent, name)).fetchone(),
            )
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def load_inode(self, ino: int) -> InodeRow | None:
        """The row of an inode."""
        try:
            return cast("InodeRow | None", self._reader.execute(self._load, (ino,)).fetchone())
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def entries(self, parent: int, after: int, limit: int) -> list[tuple[object, ...]]:
        """Rows (cookie, name, *INODE_COLUMNS) of the entries behind cookie `after`, in order."""
        try:
            return self._reader.execute(self._list, (parent, after, limit)).fetchall()
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def load_segment(self, ino: int, number: int) -> bytes | None:
        """One encoded segment."""
        try:
            row = self._reader.execute(
                "SELECT extents FROM segments WHERE ino = ? AND segment = ?", (ino, number)
            ).fetchone()
        except apsw.Error as error:
            raise translated(error, self.path) from error
        return None if row is None else row[0]

    def segment_sizes(self, ino: int, first: int) -> Sequence[tuple[int, int]]:
        """(segment, bytes that are not holes) from segment `first` on."""
        try:
            rows = self._reader.execute(
                "SELECT segment, bytes FROM segments WHERE ino = ? AND segment >= ?", (ino, first)
            ).fetchall()
            return cast("list[tuple[int, int]]", rows)
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def segment_numbers(self, ino: int, first: int, limit: int) -> Sequence[int]:
        """The first `limit` numbers of segments from `first` on, ascending."""
        rows = self.query(
            "SELECT segment FROM segments WHERE ino = ? AND segment >= ? ORDER BY segment LIMIT ?",
            (ino, first, limit),
        )
        return [number for (number,) in rows]

    def load_xattrs(self, ino: int) -> dict[bytes, bytes]:
        """All extended attributes of an inode."""
        try:
            return dict(
                self._reader.execute("SELECT name, value FROM xattrs WHERE ino = ?", (ino,))
            )
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of any other question."""
        try:
            return self._reader.execute(sql, values).fetchall()
        except apsw.Error as error:
            raise translated(error, self.path) from error

    def orphans(self) -> list[int]:
        """Inodes that were open and without a name when the daemon ended."""
        return [ino for (ino,) in self.query("SELECT ino FROM inodes WHERE nlink = 0")]

    # --- writing (commit thread) -----------------------------------------------------------------

    def apply(self, changes: EpochChanges) -> None:
        """One epoch, in one durable transaction. On an error nothing of it is kept."""
        with self._changing():
            self._apply(changes)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self._renew_log()
            with transaction(self._writer):
                yield
        except apsw.Error as error:
            self._log_suspect = True
            raise translated(error, self.path) from error

    def _renew_log(self) -> None:
        """After an error: move the log into the database file and begin a new one.

        A failed fsync drops what it should have written, also the last bytes of the transaction
        before, which SQLite writes behind its sync point. Later transactions would be durable and
        yet lost: recovery stops at the gap. What the log shows in memory is whole, so that copying
        it repairs everything.
        """
        if not self._log_suspect:
            return
        if self._snapshots:
            raise StorageFailed(
                f"{self.path}: writing failed before; it goes on when the copy or check of the "
                "namespace that is under way has ended"
            )
        busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0]
        if busy:
            raise StorageFailed(f"{self.path}: writing failed before; its log is still being read")
        self._log_suspect = False

    def _apply(self, changes: EpochChanges) -> None:
        many = self._writer.executemany
        if changes.dead:
            dead = [(ino,) for ino in changes.dead]
            _drain(many("DELETE FROM inodes WHERE ino = ?", dead))
            _drain(many("DELETE FROM segments WHERE ino = ?", dead))
            _drain(many("DELETE FROM xattrs WHERE ino = ?", dead))
        if changes.cuts:
            _drain(many("DELETE FROM segments WHERE ino = ? AND segment >= ?", changes.cuts))
        if changes.segments:
            _drain(many("REPLACE INTO segments VALUES(?, ?, ?, ?)", changes.segments))
            _drain(
                many(
                    "DELETE FROM segments WHERE ino = ? AND segment = ?",
                    [(ino, n) for ino, n, length, _ in changes.segments if not length],
                )
            )
        if changes.inodes:
            places = ",".join("?" * len(changes.inodes[0]))
            _drain(many(f"REPLACE INTO inodes VALUES({places})", changes.inodes))
        if changes.names:
            _drain(
                many(
                    "DELETE FROM dirents WHERE parent = ? AND name = ?",
                    [(parent, name) for parent, name, _, ino in changes.names if not ino],
                )
            )
            _drain(
                many(
                    "REPLACE INTO dirents(parent, name, cookie, ino) VALUES(?, ?, ?, ?)",
                    [change for change in changes.names if change[3]],
                )
            )
        if changes.xattrs:
            _drain(
                many(
                    "DELETE FROM xattrs WHERE ino = ? AND name = ?",
                    [(ino, name) for ino, name, value in changes.xattrs if value is None],
                )
            )
            _drain(
                many(
                    "REPLACE INTO xattrs VALUES(?, ?, ?)",
                    [change for change in changes.xattrs if change[2] is not None],
                )
            )
        write_remote(self._writer, changes.remote)
        if self._tracking:
            note_changes(self._writer, changes.inodes, changes.dead)
        _drain(
            many(
                "UPDATE meta SET value = ? WHERE key = ?",
                [
                    (changes.epoch, "epoch"),
                    (changes.next_ino, "next_ino"),
                    (changes.next_cookie, "next_cookie"),
                    (changes.inode_count, "inodes"),
                ],
            )
        )

    def write(self, change: Callable[[apsw.Connection], T]) -> T:
        """Make another change in one durable transaction; what `change` returned."""
        with self._changing():
            found = change(self._writer)
        self._tracking = tracks(self._writer)
        return found

    def checkpoint(self) -> bool:
        """Move the log into the database file; whether all of it went."""
        try:
            _, in_log, moved = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()[0]
        except apsw.Error as error:
            self._log_suspect = True
            raise translated(error, self.path) from error
        return bool(in_log == moved)

    def record_copy(self, taken_ns: int, recipe: bytes, keep: int) -> None:
        """Remember a copy of the namespace that lies in the packs, with the `keep` newest ones."""
        with self._changing():
            self._writer.execute("REPLACE INTO copies VALUES(?, ?)", (taken_ns, recipe)).fetchall()
            self._writer.execute(
                "DELETE FROM copies WHERE taken_ns NOT IN "
                "(SELECT taken_ns FROM copies ORDER BY taken_ns DESC LIMIT ?)",
                (keep,),
            ).fetchall()

    # --- whole scans (maintenance thread, a connection of their own) -----------------------------

    def snapshot(self) -> apsw.Connection:
        """A connection that goes on seeing the tree as it is now; give it back to `end_snapshot`.

        For any thread.

        On the simulated disk it is the only connection: nothing may be committed meanwhile.
        """
        if self._shared:
            self._count(1)
            return self._writer
        try:
            connection = connect(self.path, self._disk, cache_kib=4_096, read_only=True)
            connection.execute("BEGIN").fetchall()
            connection.execute("SELECT value FROM meta").fetchall()  # the snapshot is taken here
        except apsw.Error as error:
            raise translated(error, self.path) from error
        self._count(1)
        return connection

    def _count(self, change: int) -> None:
        with self._counting:
            self._snapshots += change

    def end_snapshot(self, connection: apsw.Connection) -> None:
        """The counterpart of `snapshot`."""
        self._count(-1)
        if not self._shared:
            connection.close()


def chunk_roots(connection: apsw.Connection, batch: int = 1_000) -> Iterator[list[bytes]]:
    """Batches of the chunk ids that recipes and the kept copies name; ids come up repeatedly."""
    found: list[bytes] = []
    for (blob,) in connection.execute("SELECT extents FROM segments"):
        found += chunk_ids(blob)
        if len(found) >= batch:
            yield found
            found = []
    for (recipe,) in connection.execute("SELECT recipe FROM copies"):
        found += [recipe[at : at + 32] for at in range(0, len(recipe), 32)]
    yield found


def _drain(cursor: apsw.Cursor) -> None:
    for _ in cursor:
        pass


def _script(name: str) -> str:
    return resources.files("ghostd").joinpath(name).read_text()


def _upgrade(connection: apsw.Connection, found: int) -> None:
    """From format 1 (no projections), 2 (no snapshots), 3 (no push) or 4 (its index)."""
    with transaction(connection):
        if found < 2:
            _add_columns(connection, "projection", "base", "base_end")
            connection.execute(_script("schema_remote.sql")).fetchall()
        if found < 3:
            _add_columns(connection, "base_holes")
            connection.execute(_script("schema_snapshots.sql")).fetchall()
            connection.execute("INSERT INTO meta VALUES('tracking', 0)").fetchall()
        if found < 4:
            connection.execute(_script("schema_push.sql")).fetchall()
        connection.execute(_script("schema_pushed.sql")).fetchall()
        connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT,)).fetchall()


def _add_columns(connection: apsw.Connection, *names: str) -> None:
    for name in names:
        connection.execute(
            f"ALTER TABLE inodes ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0"
        ).fetchall()


def _create(connection: apsw.Connection) -> None:
    parts = ("", "_remote", "_snapshots", "_push", "_pushed")
    schema = "".join(_script(f"schema{part}.sql") for part in parts)
    now = time.time_ns()
    root = (
        int(ROOT_INO),
        0,
        0o40755,
        os.geteuid(),
        os.getegid(),
        2,
        0,
        0,
        0,
        now,
        now,
        now,
        now,
        int(ROOT_INO),
        0,
        0,
        None,
        0,
        0,
        0,
        0,
    )
    connection.execute("BEGIN IMMEDIATE").fetchall()
    connection.execute(schema).fetchall()
    connection.executemany(
        "INSERT INTO meta VALUES(?, ?)",
        [
            ("format", FORMAT),
            ("uuid", str(uuid.uuid4())),
            ("generation", 0),
            ("epoch", 0),
            ("next_ino", int(ROOT_INO) + 1),
            ("next_cookie", COOKIE_FIRST),
            ("inodes", 1),
            ("tracking", 0),
        ],
    ).fetchall()
    places = ",".join("?" * len(root))
    connection.execute(f"INSERT INTO inodes VALUES({places})", root).fetchall()
    connection.execute("COMMIT").fetchall()

# ruff: noqa: S608
"""The chunk index: from a chunk's id to the place of its record, in `chunks.db`.

The index is a cache of the packs. It is told of records only after their bytes are durable.
Keys are the first 20 bytes of the id: whoever reads a record compares the whole id, so that a
collision (2^80 work) could hide a chunk, never return a wrong one.

Tables are named by numbers of our own, so composing SQL with them injects nothing (S608).

Locks: `_view` (runs, packs) is an immutable value replaced under the database's lock and read
without it; a reader that meets a run merged away in between looks again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import IntEnum
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import apsw

from blockstore.database import Database, transaction, translated
from blockstore.disk import Disk
from blockstore.errors import OrbitError, StoreInvalid
from blockstore.ids import ChunkId, Location, PackId
from blockstore.runs import Filter, Run, plan_merge, probe

SCHEMA_VERSION = 2
KEY_BYTES = 20
_PLACE = "pack, offset, length, share"  # a Location
_MERGE_STEP_ROWS = 65_536  # rows per transaction of a merge: about 50 ms


class PackState(IntEnum):
    """States of a pack in the index."""

    OPEN = 0
    SEALED = 1
    CONDEMNED = 2


class PackRow(NamedTuple):
    """What the index knows of a pack."""

    number: PackId
    bytes: int
    records: int
    state: PackState


class RootRow(NamedTuple):
    """Where a root record lies."""

    seq: int
    location: Location


@dataclass(frozen=True, slots=True)
class _View:
    runs: tuple[Run, ...]  # newest first
    packs: dict[PackId, PackRow]  # treated as immutable


class IndexedRow(NamedTuple):
    """One row of a run, its pack left out."""

    key: bytes  # first KEY_BYTES of the id
    offset: int
    length: int
    share: int


def _rows(found: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Give SQLite's rows back their types: the schema, not apsw, knows them."""
    return iter(found)


class IndexDamaged(Exception):
    """The database cannot be used; it has to be rebuilt from the packs."""


class Index:
    """The open index."""

    SCHEMAS: ClassVar[tuple[str, ...]] = ("schema.sql",)

    def __init__(self, path: Path, disk: Disk | None) -> None:
        self._db = Database(path, disk)
        self._writer = self._db.writer
        self._merging = threading.Lock()
        self._view = _View((), {})
        self._closed = False

    @property
    def single(self) -> bool:
        """Whether there is one connection for everything."""
        return self._db.single

    # ---- opening ----

    @classmethod
    def create(cls, path: Path, disk: Disk | None, store_uuid: bytes) -> Self:
        """Make an empty index where no file is; `disk` None: the machine's own."""
        index = cls(path, disk)
        folder = resources.files("blockstore")
        schema = "".join(folder.joinpath(name).read_text("utf-8") for name in cls.SCHEMAS)
        try:
            with translated(path), transaction(index._writer):
                index._writer.execute(schema)
                index._writer.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [
                        ("schema", SCHEMA_VERSION),
                        ("store_uuid", store_uuid),
                        ("next_run", 1),
                        ("next_pack", 1),
                    ],
                )
        except BaseException:
            with contextlib.suppress(OrbitError):
                index.close()
            raise
        return index

    @classmethod
    def load(cls, path: Path, disk: Disk | None, store_uuid: bytes) -> Self:
        """Open the index of a store. Raises IndexDamaged with the reason to rebuild it."""
        index = None
        try:
            index = cls(path, disk)
            with translated(path):
                index._load(store_uuid)
        except (StoreInvalid, apsw.Error, IndexDamaged, ValueError, TypeError) as error:
            if index is not None:
                with contextlib.suppress(OrbitError):
                    index.close()
            raise IndexDamaged(str(error)) from error
        return index

    def _load(self, store_uuid: bytes) -> None:
        meta: dict[Any, Any] = dict(
            _rows(self._writer.execute("SELECT key, value FROM meta").fetchall())
        )
        if meta.get("schema") != SCHEMA_VERSION:
            raise IndexDamaged(f"schema {meta.get('schema')} instead of {SCHEMA_VERSION}")
        if meta.get("store_uuid") != store_uuid:
            raise IndexDamaged("it belongs to another store")
        runs = tuple(
            Run(number, newest, rows, Filter.load(blob))
            for number, newest, rows, blob in _rows(
                self._writer.execute(
                    "SELECT number, newest, rows, filter FROM runs ORDER BY newest DESC"
                )
            )
        )
        known = {run.table for run in runs}
        with transaction(self._writer):
            for (name,) in self._writer.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'run\\_%'"
                " ESCAPE '\\'"
            ).fetchall():
                if name in known:
                    known.discard(name)
                else:  # a merge that a crash interrupted
                    self._writer.execute(f"DROP TABLE {name}")
        if known:
            raise IndexDamaged(f"tables are missing: {', '.join(sorted(known))}")
        packs = {
            PackId(number): PackRow(PackId(number), size, records, PackState(state))
            for number, size, records, state in _rows(
                self._writer.execute("SELECT number, bytes, records, state FROM packs")
            )
        }
        self._view = _View(runs, packs)

    def close(self) -> None:
        """Wait for a running merge to stop, checkpoint and close all connections."""
        self._closed = True
        with self._merging:
            self._db.close()

    # ---- reading ----

    def next_pack(self) -> PackId:
        """Return the lowest number that no removed pack had; known packs may have higher ones."""
        with self._db.reading() as connection:
            ((number,),) = _rows(
                connection.execute("SELECT value FROM meta WHERE key = 'next_pack'").fetchall()
            )
        return PackId(number)

    @property
    def packs(self) -> dict[PackId, PackRow]:
        """All packs the index knows; not to be changed."""
        return self._view.packs

    @property
    def rows(self) -> int:
        """Rows in all runs; rows hidden by newer ones and rows of dropped packs included."""
        return sum(run.rows for run in self._view.runs)

    @property
    def run_count(self) -> int:
        """How many runs a lookup may have to ask."""
        return len(self._view.runs)

    def lookup(self, ids: Iterable[ChunkId]) -> dict[ChunkId, Location]:
        """Return where chunks lie; those the index does not know are left out."""
        while True:
            view = self._view
            try:
                # Locking for each statement would cost a fifth of a lookup.
                with self._db.reading() as connection, transaction(connection, reading=True):
                    return self._lookup(connection, view, ids)
            except apsw.SQLError:
                if view is self._view:
                    raise  # not a run that was merged away: a bug

    def _lookup(
        self, connection: apsw.Connection, view: _View, ids: Iterable[ChunkId]
    ) -> dict[ChunkId, Location]:
        found = {}
        runs = [
            (
                run.filter.words,
                run.filter.count,
                f"SELECT {_PLACE} FROM {run.table} WHERE id = ? ORDER BY pack DESC",
            )
            for run in view.runs
        ]
        packs = view.packs
        for name in ids:
            hashed, mask = probe(name)
            for words, count, sql in runs:
                if words[hashed % count] & mask != mask:
                    continue
                # One row, save where a chunk was stored again because a record was damaged.
                rows: list[Any] = connection.execute(sql, (name[:KEY_BYTES],)).fetchall()
                place = next((row for row in rows if row[0] in packs), None)
                if place is not None:
                    found[name] = Location(*place)
                    break
        return found

    def roots(self) -> list[RootRow]:
        """Return the root records of packs that exist, oldest first."""
        with self._db.reading() as connection:
            return [
                RootRow(seq, Location(pack, offset, length))
                for seq, pack, offset, length in _rows(
                    connection.execute("SELECT seq, pack, offset, length FROM roots ORDER BY seq")
                )
                if pack in self._view.packs
            ]

    def integrity(self) -> list[str]:
        """Return what SQLite's own check finds wrong."""
        with self._db.reading() as connection:
            found = [str(row[0]) for row in _rows(connection.execute("PRAGMA integrity_check"))]
        return [] if found == ["ok"] else found

    def rows_by_pack(self) -> Iterator[tuple[PackId, list[IndexedRow]]]:
        """Yield all rows, run by run and in each run pack by pack; nothing may merge meanwhile."""
        for table in self.run_tables():
            with self._db.reading() as connection:
                ordered = _rows(
                    connection.execute(
                        f"SELECT pack, id, offset, length, share FROM {table} ORDER BY pack"
                    )
                )
                for pack, group in groupby(ordered, key=lambda row: row[0]):
                    yield PackId(pack), [IndexedRow(*row[1:]) for row in group]

    def run_tables(self) -> list[str]:
        """Return the tables of all runs, newest first."""
        return [run.table for run in self._view.runs]

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Let no merge run meanwhile."""
        with self._merging:
            yield

    def scratch(self) -> AbstractContextManager[None]:
        """Provide an empty database `scratch` beside the index (`main`) until the end."""
        return self._db.scratch()

    def scratch_connection(self) -> AbstractContextManager[apsw.Connection]:
        """Lend the connection that sees `main` and `scratch`; one thread at a time."""
        return self._db.scratch_connection()

    # ---- writing ----

    def add(
        self,
        rows: dict[ChunkId, Location],
        packs: Iterable[PackRow] = (),
        roots: Iterable[RootRow] = (),
    ) -> None:
        """Take in records that are durable, and what is known of their packs, at once.

        The rows become one run; they come before older rows of the same ids.
        """
        filter_ = Filter.sized(len(rows))
        filter_.add(rows)
        with self._db.lock:
            run = None
            with self._db.changing():
                if rows:
                    number = self._new_run()
                    run = Run(number, number, len(rows), filter_)
                    self._writer.executemany(
                        f"INSERT INTO {run.table} VALUES (?, ?, ?, ?, ?)",
                        ((name[:KEY_BYTES], *rows[name]) for name in sorted(rows)),
                    )
                    self._register(run)
                changed = dict(self._view.packs)
                for pack in packs:
                    changed[pack.number] = pack
                    self._writer.execute("INSERT OR REPLACE INTO packs VALUES (?, ?, ?, ?)", pack)
                self._writer.executemany(
                    "INSERT OR REPLACE INTO roots VALUES (?, ?, ?, ?)",
                    [(root.seq, *root.location[:3]) for root in roots],
                )
            runs = self._view.runs if run is None else (run, *self._view.runs)
            self._view = _View(runs, changed)

    def condemn(self, packs: Sequence[PackId]) -> None:
        """Record, durably, that packs are about to be removed; their rows no longer count."""
        with self._db.lock, translated(self._db.path):
            self._writer.pragma("synchronous", 2)  # FULL: the files are unlinked next
            try:
                with self._db.changing():
                    # Rows of removed packs stay in their runs until those are merged: the number
                    # of a removed pack must never come back.
                    self._writer.execute(
                        "UPDATE meta SET value = max(value, ?) WHERE key = 'next_pack'",
                        (max(packs) + 1,),
                    )
                    self._writer.executemany(
                        "UPDATE packs SET state = 2 WHERE number = ?", [(p,) for p in packs]
                    )
                    self._writer.executemany(
                        "DELETE FROM roots WHERE pack = ?", [(p,) for p in packs]
                    )
            finally:
                self._writer.pragma("synchronous", 1)
            kept = {n: row for n, row in self._view.packs.items() if n not in set(packs)}
            self._view = replace(self._view, packs=kept)

    def forget(self, packs: Sequence[PackId]) -> None:
        """Drop the rows of packs whose files are gone."""
        with self._db.lock:
            with self._db.changing():
                self._writer.executemany(
                    "DELETE FROM packs WHERE number = ?", [(p,) for p in packs]
                )
            kept = {n: row for n, row in self._view.packs.items() if n not in set(packs)}
            self._view = replace(self._view, packs=kept)

    def _new_run(self) -> int:
        ((number,),) = _rows(self._writer.execute("SELECT value FROM meta WHERE key = 'next_run'"))
        self._writer.execute("UPDATE meta SET value = ? WHERE key = 'next_run'", (number + 1,))
        self._writer.execute(
            f"CREATE TABLE run_{number} (id BLOB NOT NULL, pack INTEGER NOT NULL,"
            " offset INTEGER NOT NULL, length INTEGER NOT NULL, share INTEGER NOT NULL,"
            " PRIMARY KEY (id, pack)) WITHOUT ROWID"
        )
        return int(number)

    def _register(self, run: Run) -> None:
        self._writer.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?)",
            (run.number, run.newest, run.rows, run.filter.dump()),
        )

    # ---- merging ----

    @property
    def wants_merge(self) -> bool:
        """Whether merge() has something to do."""
        return plan_merge([run.rows for run in self._view.runs]) is not None

    def merge(self) -> None:
        """Merge runs until no more need it, in steps between which others may write."""
        with self._merging:
            while not self._closed:
                chosen = plan_merge([run.rows for run in self._view.runs])
                if chosen is None or not self._merge(self._view.runs[chosen]):
                    return

    def _merge(self, parts: tuple[Run, ...]) -> bool:
        """Write `parts` (neighbours, newest first) as one run; False when closing."""
        total = sum(run.rows for run in parts)
        steps = -(-total // _MERGE_STEP_ROWS)
        borders = [(65536 * step // steps).to_bytes(3, "big")[1:] for step in range(steps)]
        borders[0] = b""
        limits = [*borders[1:], b"\xff" * (KEY_BYTES + 1)]
        filter_ = Filter.sized(total)
        with self._db.changing():
            number = self._new_run()
        union = " UNION ALL ".join(
            f"SELECT id, {_PLACE}, {age} AS age FROM {run.table} WHERE id >= :low AND id < :high"
            for age, run in enumerate(parts)
        )
        # min() makes SQLite take the other columns from the row that holds it: the newest one.
        # Rows of one id in two packs are kept: the newer pack may be removed first.
        # Rows of dropped packs are left behind here, and only here.
        copy = (
            f"INSERT INTO run_{number} SELECT id, {_PLACE} FROM ("
            f" SELECT id, {_PLACE}, min(age) FROM ({union})"
            " WHERE pack IN (SELECT number FROM packs WHERE state < 2) GROUP BY id, pack)"
        )
        rows = 0
        for low, high in zip(borders, limits, strict=True):
            if self._closed:
                return False
            with self._db.lock, translated(self._db.path):
                with self._db.changing():
                    self._writer.execute(copy, {"low": low, "high": high})
                copied = list(
                    _rows(
                        self._writer.execute(
                            f"SELECT id FROM run_{number} WHERE id >= ? AND id < ?", (low, high)
                        )
                    )
                )
            filter_.add(key for (key,) in copied)
            rows += len(copied)
        merged = Run(number, parts[0].newest, rows, filter_)
        with self._db.lock:
            with self._db.changing():
                self._register(merged)
                self._writer.executemany(
                    "DELETE FROM runs WHERE number = ?", [(run.number,) for run in parts]
                )
            runs = self._view.runs
            first = runs.index(parts[0])
            self._view = replace(
                self._view, runs=(*runs[:first], merged, *runs[first + len(parts) :])
            )
            # Only now: a reader that misses a table finds another view and looks again.
            # A crash before this leaves tables that the next start drops.
            with self._db.changing():
                for run in parts:
                    self._writer.execute(f"DROP TABLE {run.table}")
        return True

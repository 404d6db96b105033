"""The set of live chunks during a collection: on disk, in flat memory.

Ids are appended to a scratch table as they come, sorted once by SQLite's external sorter, and then
joined with the index's runs, which are sorted the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import apsw

from blockstore.database import transaction
from blockstore.ids import ChunkId, PackId
from blockstore.index import KEY_BYTES, Index
from blockstore.packfile import RECORD_BYTES

_BATCH = 10_000


class Marks:
    """Marked ids, and what they mean for the packs."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.count = 0

    @classmethod
    @contextlib.contextmanager
    def scratch(cls, index: Index) -> Iterator[Marks]:
        """Lend an empty set; its table is gone afterwards."""
        with index.scratch():
            marks = cls(index)
            with index.scratch_connection() as connection:
                connection.execute("CREATE TABLE scratch.raw (id BLOB)")
                connection.execute("CREATE TABLE scratch.marks (id BLOB PRIMARY KEY) WITHOUT ROWID")
            yield marks

    def add(self, groups: Iterable[Sequence[ChunkId]]) -> None:
        """Mark ids; duplicates are welcome."""
        keys = ((name[:KEY_BYTES],) for group in groups for name in group)
        while batch := list(islice(keys, _BATCH)):
            # The caller's iterator runs between the transactions, never inside one.
            with self._index.scratch_connection() as connection, transaction(connection):
                connection.executemany("INSERT INTO scratch.raw VALUES (?)", batch)

    def settle(self) -> None:
        """Sort what was added; to be called before any question."""
        with self._index.scratch_connection() as connection, transaction(connection):
            connection.execute(
                "INSERT OR IGNORE INTO scratch.marks"
                " SELECT DISTINCT id FROM scratch.raw ORDER BY id"
            )
            connection.execute("DELETE FROM scratch.raw")
            counted = connection.execute("SELECT count(*) FROM scratch.marks").fetchall()
            self.count = int(str(counted[0][0]))

    def live_bytes(self) -> dict[PackId, int]:
        """Return the bytes of marked records in each pack.

        A chunk with records in two packs counts in both: that errs on the side of keeping.
        """
        while True:
            tables = self._index.run_tables()
            live: dict[PackId, int] = {}
            try:
                for table in tables:
                    with self._index.scratch_connection() as connection:
                        size = f"iif(r.share > 0, r.share, r.length + {RECORD_BYTES})"
                        found: list[Any] = connection.execute(
                            f"SELECT r.pack, sum({size})"  # noqa: S608
                            f" FROM scratch.marks AS m CROSS JOIN main.{table} AS r ON r.id = m.id"
                            " GROUP BY r.pack"
                        ).fetchall()
                    for pack, total in found:
                        live[pack] = live.get(pack, 0) + total
            except apsw.SQLError:
                if tables == self._index.run_tables():
                    raise  # not a run that was merged away: a bug
            else:
                return live

    def holds(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Return those of `ids` that are marked."""
        with self._index.scratch_connection() as connection:
            sql = "SELECT 1 FROM scratch.marks WHERE id = ?"
            return {
                name
                for name in ids
                if connection.execute(sql, (name[:KEY_BYTES],)).fetchone() is not None
            }

"""SQLite's write-ahead log: what of it is in doubt, and when it is moved into the database file."""

from __future__ import annotations

from pathlib import Path

import apsw

from blockstore.disk import Disk, write_log_again


class WriteAheadLog:
    """The log of one database. Methods are for whoever may write to the database."""

    def __init__(self, disk: Disk, database: Path, pages_max: int) -> None:
        """`pages_max`: a longer log is moved into the database file."""
        self._disk = disk
        self._database = database
        self._pages_max = pages_max
        self._pages = 0
        # A log left by a process that was killed after a failed fsync may be in memory only.
        self._suspect = True

    @property
    def suspect(self) -> bool:
        """Whether what it shows may not be on the disk."""
        return self._suspect

    def follow(self, writer: apsw.Connection) -> None:
        """Know how long `writer` makes it."""
        writer.set_wal_hook(self._logged)

    def doubt(self) -> None:
        """Something failed."""
        self._suspect = True

    def renew(self) -> None:
        """After a failure make what the log shows durable, before anything is built on it.

        A failed fsync may leave a gap in it. Recovery after a power cut stops there, while later
        transactions were reported durable, or are in the database file already: mixed with the
        older pages before the gap, that is a damaged database. Raises StorageFull, StorageFailed.
        """
        if self._suspect:
            write_log_again(self._disk, self._database)
            self._suspect = False

    def checkpoint(self, writer: apsw.Connection) -> None:
        """Move a long log into the database file. The last transaction holds in any case."""
        if self._pages < self._pages_max:
            return
        self._pages = 0
        try:
            writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except apsw.Error:
            self._suspect = True

    def _logged(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._pages = pages
        return apsw.SQLITE_OK

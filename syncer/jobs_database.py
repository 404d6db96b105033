"""`jobs.db` as a database that several processes share: connections, transactions, failures.

One connection writes and one reads, each for one thread at a time; what the rows mean is others'
business.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import apsw

from blockstore import database
from blockstore.database import transaction
from blockstore.disk import Disk, OsDisk
from blockstore.errors import FormatTooNew, OrbitError, StorageFailed, StorageFull
from blockstore.write_ahead_log import WriteAheadLog
from syncer.jobs_errors import JobsDamaged

FORMAT: Final = 1
_BUSY_MS: Final = 30_000
_LOG_PAGES_MAX: Final = 16_000  # 64 MB; beyond, the log is moved into the database file
_FULL, _NORMAL = 2, 1  # PRAGMA synchronous


def _damaged(path: Path, error: apsw.Error) -> OrbitError:
    return JobsDamaged(
        f"{path} is damaged ({error}): move it away and start again; what jobs have copied "
        "stays where it is, and queued ones have to be submitted again"
    )


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors about the disk, and about other processes, as ours."""
    try:
        with database.translated(path, _damaged):
            yield
    except apsw.BusyError as error:
        raise StorageFailed(
            f"{path} is locked by another process for more than {_BUSY_MS // 1000} s: look for one "
            "that hangs"
        ) from error


class JobsDatabase:
    """The open database. Methods are for any thread."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """Open it, or make it; raises FormatTooNew, JobsDamaged, StorageFull, StorageFailed."""
        self.path = path
        self._disk = disk if disk is not None else OsDisk()
        self._single = self._disk.sqlite_vfs is not None
        self._write_lock = threading.RLock()
        self._read_lock = self._write_lock if self._single else threading.RLock()
        self._connections: list[apsw.Connection] = []
        self._log = WriteAheadLog(self._disk, path, _LOG_PAGES_MAX)
        if not self._single:
            _make_private(path)
        try:
            with translated(path):
                self._writer = self._connect()
                self._prepare()
                self._reader = self._writer if self._single else self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> apsw.Connection:
        # SQLite's own VFS, with shared memory beside the file: other processes have it open too.
        connection = apsw.Connection(str(self.path), vfs=self._disk.sqlite_vfs)
        self._connections.append(connection)
        connection.set_busy_timeout(_BUSY_MS)
        if self._single:
            connection.pragma("locking_mode", "exclusive")
        connection.pragma("journal_mode", "wal")
        connection.pragma("wal_autocheckpoint", 0)  # it would hide its failures
        connection.pragma("journal_size_limit", 64 << 20)
        connection.pragma("synchronous", _FULL)
        connection.pragma("cache_size", -16_384)  # KiB
        return connection

    def _prepare(self) -> None:
        connection = self._writer
        self._log.follow(connection)
        with transaction(connection):
            if not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
                schema = resources.files("syncer").joinpath("jobs.sql").read_text()
                connection.execute(schema).fetchall()
                connection.execute("INSERT INTO meta VALUES('format', ?)", (FORMAT,)).fetchall()
        self._disk.fsync_dir(self.path.parent)
        found = None
        with contextlib.suppress(apsw.SQLError):
            found = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        if found is None:
            raise JobsDamaged(f"{self.path} is another program's database")
        if int(found[0]) > FORMAT:
            raise FormatTooNew(str(self.path), int(found[0]), FORMAT)

    def close(self) -> None:
        """Close the connections; the last process to do so moves the log into the file."""
        with self._write_lock, self._read_lock:
            connections, self._connections = self._connections, []
            with translated(self.path):
                for connection in reversed(connections):
                    connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Lend the connection that reads, for one snapshot of what is committed."""
        with self._read_lock, translated(self.path):
            if self._reader.in_transaction:  # on the simulated disk, inside `writing`
                yield self._reader
            else:
                with transaction(self._reader, reading=True):
                    yield self._reader

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[apsw.Connection]:
        """Lend the connection that writes; what is done is one transaction.

        Not `durable`: a power cut may undo it, though never without all that was done after it.
        """
        with self._write_lock, translated(self.path):
            self._writer.pragma("synchronous", _FULL if durable else _NORMAL)
            try:
                with transaction(self._writer):
                    self._log.renew()  # nobody else writes to the log while we may
                    yield self._writer
            except (apsw.Error, StorageFailed, StorageFull):
                self._log.doubt()
                raise
            self._log.checkpoint(self._writer)

    def version(self) -> int:
        """Another number than before when anything was committed meanwhile, by anyone."""
        with self._read_lock, translated(self.path):
            if self._single:
                return self._writer.total_changes()
            # The one that reads sees the commits of the other as those of other processes.
            return int(self._reader.pragma("data_version"))


def run(connection: apsw.Connection, query: str, values: Sequence[Any] = ()) -> list[Any]:
    """Run a statement to its end, and return its rows."""
    return connection.execute(query, values).fetchall()


def run_many(connection: apsw.Connection, query: str, values: Iterable[Sequence[Any]]) -> None:
    """Run a statement for each of `values`."""
    for _ in connection.executemany(query, values):
        pass


def _make_private(path: Path) -> None:
    """Make an empty file that only its owner may read, unless there is one.

    It is never opened under its own name: closing it would end the locks that SQLite has on it in
    this process.
    """
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()
    except OSError as error:
        raise StorageFailed(f"making {path} failed: {error.strerror}") from error

"""`chunks.db` as a database: its connections, its log, and transactions that survive failures.

What its rows mean is the index's business. Locks: `lock` guards the writing connection.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from blockstore.disk import SQLITE_VFS, Disk, OsDisk
from blockstore.errors import OrbitError, StorageFailed, StorageFull, StoreInvalid
from blockstore.write_ahead_log import WriteAheadLog

PAGE_BYTES = 4096
LOG_PAGES_MAX = 4_000  # beyond, the log is moved into the database file
SCRATCH_FILE = "collect.tmp"


def _index_damaged(path: Path, _: apsw.Error) -> OrbitError:
    return StoreInvalid(
        f"{path} is damaged: stop the program, remove that file and start again; "
        "it is rebuilt from the packs"
    )


@contextlib.contextmanager
def translated(
    path: Path, damaged: Callable[[Path, apsw.Error], OrbitError] = _index_damaged
) -> Iterator[None]:
    """Raise SQLite's errors about the disk as ours; `damaged` makes the one for a broken file."""
    try:
        yield
    except apsw.FullError as error:
        raise StorageFull(f"no space left while writing {path}: free some space") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise damaged(path, error) from error
    except (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError) as error:
        raise StorageFailed(f"reading or writing {path} failed: {error}") from error


@contextlib.contextmanager
def transaction(connection: apsw.Connection, *, reading: bool = False) -> Iterator[None]:
    """Commit at the end, or roll back and let the first error through.

    `reading`: for one snapshot of what is read.

    After an I/O error SQLite may have rolled back by itself; a second error about that (which
    apsw's own context manager raises) would hide the one that matters.
    """
    connection.execute("BEGIN" if reading else "BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(apsw.Error):
                connection.execute("ROLLBACK")
        raise


class Database:
    """The open database: one writing connection, and one for each thread that reads."""

    def __init__(self, path: Path, disk: Disk | None) -> None:
        self.path = path
        self._disk = disk if disk is not None else OsDisk()
        self.single = self._disk.sqlite_vfs is not None
        self.lock = threading.RLock()
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []
        self._connections_lock = threading.Lock()
        self._log = WriteAheadLog(self._disk, path, LOG_PAGES_MAX)
        try:
            with translated(path):
                self._log.renew()
                self.writer = self._connect()
                self._scratch = self.writer
                if not self.single:
                    self.writer.pragma("journal_mode", "wal")
                self.writer.pragma("synchronous", 1)
                self.writer.pragma("wal_autocheckpoint", 0)  # it would hide its failures
                self._log.follow(self.writer)
        except BaseException:
            with contextlib.suppress(OrbitError):
                self.close()
            raise

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), vfs=self._disk.sqlite_vfs or SQLITE_VFS)
        with self._connections_lock:
            self._connections.append(connection)
        connection.set_busy_timeout(30_000)
        connection.pragma("page_size", PAGE_BYTES)
        if self.single:
            connection.pragma("locking_mode", "exclusive")
            connection.pragma("journal_mode", "wal")
        # KiB; the inner pages of 10^7 rows. The kernel's page cache does the rest.
        connection.pragma("cache_size", -4096)
        connection.pragma("mmap_size", 0)
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Lend the calling thread's connection for reading."""
        with translated(self.path):
            if self.single:
                with self.lock:
                    yield self.writer
                return
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect()
            yield connection

    def close(self) -> None:
        """Checkpoint and close all connections. Idempotent."""
        with self.lock, self._connections_lock:
            connections, self._connections = self._connections, []
            for connection in connections[1:]:
                connection.close()
            with translated(self.path):
                for connection in connections[:1]:  # the writer last: it checkpoints
                    try:
                        with contextlib.suppress(OrbitError):
                            self._log.renew()
                    finally:
                        if self._log.suspect:
                            # Half of a doubtful log in the database file is worse than the log.
                            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                        connection.close()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[None]:
        """Provide an empty database `scratch` beside the index (`main`) until the end."""
        path = self.path.with_name(SCRATCH_FILE)
        connection = self.writer
        with translated(path):
            if not self.single:
                path.unlink(missing_ok=True)
                connection = self._connect()
            connection.execute("ATTACH ? AS scratch", (":memory:" if self.single else str(path),))
            # It is worthless after a crash.
            connection.execute("PRAGMA scratch.journal_mode = off")
            connection.execute("PRAGMA scratch.synchronous = off")
            self._scratch = connection
        try:
            yield
        finally:
            with translated(path):
                if self.single:
                    with self.lock:
                        connection.execute("DETACH scratch")
                else:
                    with self._connections_lock:
                        self._connections.remove(connection)
                    connection.close()
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def scratch_connection(self) -> Iterator[apsw.Connection]:
        """Lend the connection that sees `main` and `scratch`; one thread at a time."""
        with translated(self.path):
            if self.single:
                with self.lock:
                    yield self._scratch
            else:
                yield self._scratch

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the write lock; what is done inside is one transaction."""
        with self.lock, translated(self.path):
            self._log.renew()
            try:
                with transaction(self.writer):
                    yield
            except BaseException:
                self._log.doubt()
                raise
            self._log.checkpoint(self.writer)

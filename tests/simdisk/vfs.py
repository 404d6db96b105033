"""SQLite's files on a simulated disk.

A VFS written in Python has no shared memory: WAL works in exclusive locking mode only, so each
database has one connection (`Disk.sqlite_vfs` says so to the code under test).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import apsw

from blockstore.errors import StorageFailed, StorageFull
from tests.simdisk.crash import SimulatedCrash

if TYPE_CHECKING:
    from tests.simdisk.disk import SimDisk, SimFile

_T = TypeVar("_T")
_DIRECTORY_TOO = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL


def _translated(do: Callable[[], _T]) -> _T:
    try:
        return do()
    except StorageFull as error:
        raise apsw.FullError(str(error)) from error
    except StorageFailed as error:
        raise apsw.IOError(str(error)) from error
    except SimulatedCrash:
        # SQLite's C code would go on rolling back and closing with a Python exception pending.
        # The program gets an I/O error instead, and the crash at its next step on the disk.
        raise apsw.IOError("the power is gone") from None


class SimVFS(apsw.VFS):
    """SQLite's view of a SimDisk."""

    def __init__(self, name: str, disk: SimDisk) -> None:
        super().__init__(name, "", iVersion=1)
        self._disk = disk

    def xFullPathname(self, name: str) -> str:
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:
        return _translated(lambda: self._disk.exists(Path(pathname)))

    def xDelete(self, filename: str, syncdir: bool) -> None:
        path = Path(filename)
        if self._disk.crashed:
            return  # SQLite ignores this error, so apsw would print it
        try:
            _translated(lambda: self._disk.unlink(path))
        except FileNotFoundError:
            raise apsw.IOError(filename) from None
        if syncdir:
            _translated(lambda: self._disk.fsync_dir(path.parent))

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> SimVFSFile:
        assert name is not None, "temporary files belong in memory: PRAGMA temp_store"
        path = Path(name if isinstance(name, str) else name.filename())
        create = not _translated(lambda: self._disk.exists(path))
        if create and not flags[0] & apsw.SQLITE_OPEN_CREATE:
            raise apsw.CantOpenError(str(path))
        try:
            file = _translated(lambda: self._disk.open(path, create=create, writable=True))
        except FileNotFoundError:
            raise apsw.CantOpenError(str(path)) from None
        flags[1] = flags[0]
        sync_entry = path.parent if create and flags[0] & _DIRECTORY_TOO else None
        return SimVFSFile(self._disk, file, sync_entry)

    def excepthook(self, etype: object, evalue: object, etraceback: object) -> None:
        """SQLite goes on closing things after a crash; those errors say nothing new."""


class SimVFSFile:
    """One of SQLite's files."""

    def __init__(self, disk: SimDisk, file: SimFile, sync_entry: Path | None) -> None:
        self._disk = disk
        self._file = file
        # Like SQLite's own VFS: a new journal's directory entry is synced with its first sync.
        self._sync_entry = sync_entry

    def excepthook(self, etype: object, evalue: object, etraceback: object) -> None:
        """See SimVFS.excepthook."""

    def xRead(self, amount: int, offset: int) -> bytes:
        return _translated(lambda: self._file.pread(amount, offset))

    def xWrite(self, data: bytes, offset: int) -> None:
        _translated(lambda: self._file.pwritev([data], offset))

    def xTruncate(self, newsize: int) -> None:
        _translated(lambda: self._file.truncate(newsize))

    def xSync(self, flags: int) -> None:
        if self._disk.crashed:
            # Connections that the crash left open sync when they are freed, where an error could
            # only be printed. Nothing is promised by it: no write succeeds any more.
            return
        _translated(self._file.fdatasync)
        if self._sync_entry is not None:
            folder = self._sync_entry
            _translated(lambda: self._disk.fsync_dir(folder))
            self._sync_entry = None

    def xFileSize(self) -> int:
        return _translated(self._file.size)

    def xClose(self) -> None:
        self._file.close()

    def xLock(self, level: int) -> None:
        """One connection a database: nothing to guard."""

    def xUnlock(self, level: int) -> None:
        """See xLock."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 512

    def xDeviceCharacteristics(self) -> int:
        return 0

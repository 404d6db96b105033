"""The disk as the block store sees it: a Protocol, and the real one.

Tests put a simulated disk in its place that loses power or fails at a chosen operation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from blockstore.errors import StorageFailed, StorageFull, StoreLocked
from blockstore.ids import Buffer

_FULL = {errno.ENOSPC, errno.EDQUOT}
# The operating system's VFS without a `-shm` file: what the connections of this process share lies
# in its memory. A mapped file would be written to whenever a read begins, and a frozen disk would
# stop readers for whom everything is in memory. Another process cannot open the database meanwhile.
SQLITE_VFS = "unix-excl"

_IOV_MAX = os.sysconf("SC_IOV_MAX")


DIRECT_FROM = 256 << 10  # bytes; shorter reads are not streams, and may come again
DIRECT_WRITE_FROM = 1 << 20
DIRECT_ALIGN = 4096
_STAGING_BYTES = 2 << 20
_opening_direct = threading.Lock()
_local = threading.local()


def _staging() -> memoryview:
    """Return this thread's aligned buffer."""
    view: memoryview | None = getattr(_local, "staging", None)
    if view is None:
        view = _local.staging = memoryview(mmap.mmap(-1, _STAGING_BYTES))
    return view


class DiskFile(Protocol):
    """An open file. All methods are safe to call from several threads."""

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end of the file."""

    def pread_run(self, buffer: memoryview, length: int, offset: int) -> memoryview:
        """Read `length` bytes into `buffer`; return the part that holds them, short at the end.

        `buffer` begins at a page and is 2 * DIRECT_ALIGN longer than `length`. Long reads go past
        the page cache, which would otherwise hold large files twice: as packs, and as the files
        that the kernel caches above us. And a page that nobody has used yet can cost as much as
        hashing what is read into it.
        """

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        """Read like pread, but return None where the disk would have to be waited for."""

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers one after the other, or raise with an unknown part written."""

    def fdatasync(self) -> None:
        """Make content and size durable."""

    def truncate(self, size: int) -> None:
        """Set the size in bytes."""

    def size(self) -> int:
        """Return the size in bytes."""

    def close(self) -> None:
        """Release the descriptor; a lock taken by Disk.lock ends with it."""


class Disk(Protocol):
    """Files by path. Raises StorageFull, StorageFailed and FileNotFoundError."""

    @property
    def sqlite_vfs(self) -> str | None:
        """VFS to open databases with; None for SQLite's own.

        With another VFS databases are opened once, with one connection in exclusive locking mode
        (a VFS written in Python has no shared memory), and background work runs inline.
        """

    def open(self, path: Path, *, create: bool = False, writable: bool = False) -> DiskFile:
        """Open a file; `create` makes a new one and fails when it exists."""

    def lock(self, path: Path) -> DiskFile:
        """Open a file, creating it when missing, and lock it; raises StoreLocked."""

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory."""

    def mkdir(self, path: Path) -> None:
        """Make a directory (mode 0700) and its parents unless they exist."""

    def exists(self, path: Path) -> bool:
        """Tell whether the path exists."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file, replacing the target."""

    def unlink(self, path: Path) -> None:
        """Remove a file."""

    def fsync_dir(self, path: Path) -> None:
        """Make the directory's entries durable."""

    def free_bytes(self, path: Path) -> int:
        """Return the bytes this user may still write."""

    def total_bytes(self, path: Path) -> int:
        """Return the size of the filesystem in bytes."""


@contextlib.contextmanager
def translated(doing: str, path: str) -> Iterator[None]:
    """Turn OSError into StorageFull or StorageFailed; a missing file stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"no space left while {doing} {path}: free some space on that disk"
            ) from error
        raise StorageFailed(
            f"{doing} {path} failed: {error.strerror or error}; look at the disk and the kernel log"
        ) from error


class OsFile:
    """A file of the operating system."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._direct_fd: int | None = None  # -1: the filesystem has no such thing

    def pread(self, length: int, offset: int) -> bytes:
        """See DiskFile."""
        with translated("reading", self._path):
            data = os.pread(self._fd, length, offset)
            if len(data) == length or not data:
                return data
            parts = [data]
            done = len(data)
            while done < length and (data := os.pread(self._fd, length - done, offset + done)):
                parts.append(data)
                done += len(data)
            return b"".join(parts)

    def _pread_into(self, buffer: memoryview, offset: int) -> int:
        with translated("reading", self._path):
            done = os.preadv(self._fd, [buffer], offset)
            while 0 < done < len(buffer) and (
                more := os.preadv(self._fd, [buffer[done:]], offset + done)
            ):
                done += more
            return done

    def pread_run(self, buffer: memoryview, length: int, offset: int) -> memoryview:
        """See DiskFile."""
        if length >= DIRECT_FROM:
            found = self._pread_direct(buffer, length, offset)
            if found is not None:
                return found
        return buffer[: self._pread_into(buffer[:length], offset)]

    def _pread_direct(self, buffer: memoryview, length: int, offset: int) -> memoryview | None:
        """Read past the page cache; None when that did not work, whatever the reason."""
        fd = self._direct()
        if fd is None:
            return None
        skip = offset % DIRECT_ALIGN
        size = -(-(skip + length) // DIRECT_ALIGN) * DIRECT_ALIGN
        try:
            done = os.preadv(fd, [buffer[:size]], offset - skip)
        except OSError:
            return None
        return buffer[skip : skip + length] if done >= skip + length else None

    def _direct(self) -> int | None:
        """Return a descriptor that goes past the page cache, None where there is no such thing."""
        if self._direct_fd is None:
            with _opening_direct:
                if self._direct_fd is None:
                    mode = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE
                    flags = mode | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW
                    try:
                        self._direct_fd = os.open(self._path, flags)
                    except OSError:
                        self._direct_fd = -1
        fd = self._direct_fd
        return fd if fd is not None and fd >= 0 else None

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        """See DiskFile."""
        buffer = bytearray(length)
        try:
            done = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            # EAGAIN: not in the page cache; EOPNOTSUPP: the filesystem cannot tell.
            # Any real error will come back from the pread that follows.
            return None
        # A short count means that the rest is not in the cache, or the end of the file:
        # pread tells the two apart.
        return bytes(buffer) if done == length else None

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """See DiskFile. Long ones go past the page cache, like the reads of `pread_run`."""
        with translated("writing", self._path):
            total = sum(len(buffer) for buffer in buffers)
            if total >= DIRECT_WRITE_FROM:
                fd = self._direct()
                if fd is not None:
                    self._write_direct(fd, buffers, offset)
                    return
            for start in range(0, len(buffers), _IOV_MAX):
                offset += self._write_all(buffers[start : start + _IOV_MAX], offset)

    def _write_direct(self, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
        """Write whole blocks past the page cache, and what is left at both ends through it."""
        staging = _staging()
        # What lies in `staging` belongs at `start`; all of a block but its beginning is there.
        start = offset
        fill = 0
        border = -offset % DIRECT_ALIGN  # bytes before the first whole block
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            done = 0
            while done < len(view):
                room = (border or len(staging)) - fill
                part = view[done : done + room]
                staging[fill : fill + len(part)] = part
                fill += len(part)
                done += len(part)
                if fill == (border or len(staging)):
                    self._write_staged(self._fd if border else fd, staging[:fill], start)
                    start, fill, border = start + fill, 0, 0
        whole = 0 if border else fill - fill % DIRECT_ALIGN
        self._write_staged(fd, staging[:whole], start)
        self._write_staged(self._fd, staging[whole:fill], start + whole)

    def _write_staged(self, fd: int, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(fd, data[done:], offset + done)
            except OSError as error:
                if fd == self._fd or error.errno != errno.EINVAL:
                    raise
                self._direct_fd = -1  # the disk wants other alignments
                fd = self._fd
            if done % DIRECT_ALIGN:
                fd = self._fd  # stopped short: the rest is not aligned any more

    def _write_all(self, buffers: Sequence[Buffer], offset: int) -> int:
        total = sum(len(buffer) for buffer in buffers)
        done = os.pwritev(self._fd, buffers, offset)
        if done < total:  # a nearly full disk, or a signal: the rest tells which
            rest = memoryview(b"".join(buffers))
            while done < total:
                done += os.pwrite(self._fd, rest[done:], offset + done)
        return total

    def fdatasync(self) -> None:
        """See DiskFile."""
        with translated("syncing", self._path):
            os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        """See DiskFile."""
        with translated("truncating", self._path):
            os.ftruncate(self._fd, size)

    def size(self) -> int:
        """See DiskFile."""
        with translated("reading the size of", self._path):
            return os.fstat(self._fd).st_size

    def close(self) -> None:
        """See DiskFile."""
        fd, self._fd = self._fd, -1
        direct, self._direct_fd = self._direct_fd, -1
        with translated("closing", self._path):
            if direct is not None and direct >= 0:
                os.close(direct)
            if fd >= 0:
                os.close(fd)


_AGAIN_BYTES = 1 << 20


def write_again(file: DiskFile, start: int, end: int) -> None:
    """Make the bytes from `start` to `end` durable, whatever an earlier fsync has failed to write.

    After a failed fsync the kernel goes on showing what it could not write and takes it for
    written: another fsync proves nothing, in this process or the next one. Written again, the same
    bytes are dirty, and the fsync here is about them. Raises StorageFull, StorageFailed.
    """
    for offset in range(start, end, _AGAIN_BYTES):
        data = file.pread(min(_AGAIN_BYTES, end - offset), offset)
        if data:
            file.pwritev([data], offset)
    file.fdatasync()


def write_log_again(disk: Disk, database: Path) -> None:
    """`write_again` for the write-ahead log of a database that nobody writes to meanwhile."""
    try:
        log = disk.open(database.with_name(f"{database.name}-wal"), writable=True)
    except FileNotFoundError:
        return
    try:
        write_again(log, 0, log.size())
    finally:
        log.close()


class OsDisk:
    """The operating system's files."""

    sqlite_vfs: str | None = None

    def open(self, path: Path, *, create: bool = False, writable: bool = False) -> OsFile:
        """See Disk."""
        flags = os.O_RDWR if writable or create else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        with translated("opening", str(path)):
            return OsFile(os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), str(path))

    def lock(self, path: Path) -> OsFile:
        """See Disk."""
        with translated("opening", str(path)):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreLocked(
                    f"{path.parent} is in use by another process: stop that one first"
                ) from error
            raise StorageFailed(f"locking {path} failed: {error.strerror}") from error
        return OsFile(fd, str(path))

    def listdir(self, path: Path) -> list[str]:
        """See Disk."""
        with translated("listing", str(path)):
            return os.listdir(path)  # noqa: PTH208 (names, not paths)

    def mkdir(self, path: Path) -> None:
        """See Disk."""
        with translated("making", str(path)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def exists(self, path: Path) -> bool:
        """See Disk."""
        return os.path.lexists(path)

    def rename(self, source: Path, target: Path) -> None:
        """See Disk."""
        with translated("renaming", str(source)):
            source.rename(target)

    def unlink(self, path: Path) -> None:
        """See Disk."""
        with translated("removing", str(path)):
            path.unlink()

    def fsync_dir(self, path: Path) -> None:
        """See Disk."""
        with translated("syncing", str(path)):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """See Disk."""
        with translated("reading the free space of", str(path)):
            found = os.statvfs(path)
            return found.f_bavail * found.f_frsize

    def total_bytes(self, path: Path) -> int:
        """See Disk."""
        with translated("reading the size of", str(path)):
            found = os.statvfs(path)
            return found.f_blocks * found.f_frsize

"""Calls of Linux that Python has no name for. Thin: all raise OSError and block, for threads."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from typing import Final

from syncer.ranges import Ranges

_RENAME_NOREPLACE: Final = 1
_GET_FLAGS: Final = 0x80086601
IMMUTABLE: Final = 0x10  # of inode_flags
CASEFOLD: Final = 0x40000000
_FICLONE: Final = 0x40049409
_SYNC_FILE_RANGE_WRITE: Final = 2
_M_ARENA_MAX: Final = -8  # of mallopt(3)
_HEAPS_MAX: Final = 2
_STATFS_BYTES: Final = 256  # more than any machine's struct statfs

# What there is when a file system, or a pair of them, cannot do a call at all.
NOT_HERE: Final = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOTTY,
        errno.EBADF,
        errno.ETXTBSY,
        errno.EPERM,
    }
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_uint,
]


def system_error(number: int) -> OSError:
    """The system's error of this number."""
    return OSError(number, os.strerror(number))


def _check(result: int) -> None:
    if result != 0:
        raise system_error(ctypes.get_errno())


def clone(target: int, source: int) -> None:
    """Let `target` share all of `source`'s blocks (FICLONE)."""
    fcntl.ioctl(target, _FICLONE, source)


def few_heaps() -> None:
    """Have all threads of this process allocate from two heaps; before they start.

    By default each gets one of its own, and what is free in one is of no use to the others:
    10^6 small files restored by a dozen threads took 339 MiB, now 276, and as much time.
    """
    if hasattr(_libc, "mallopt"):  # glibc
        _libc.mallopt(_M_ARENA_MAX, _HEAPS_MAX)


def sync_file_system(handle: int) -> None:
    """Bring the file system of `handle` to the disk.

    Raises what writing back has failed with since `handle` was opened.
    """
    _check(_libc.syncfs(handle))


def start_writing(handle: int, offset: int, length: int) -> None:
    """Have these bytes written back soon, so that a later fsync finds little to do."""
    if _libc.sync_file_range(handle, offset, length, _SYNC_FILE_RANGE_WRITE) != 0:
        number = ctypes.get_errno()
        if number not in {errno.ESPIPE, errno.ENOSYS, errno.EINVAL, errno.EPERM}:
            raise system_error(number)


def rename_new(old_folder: int, old: bytes, new_folder: int, new: bytes) -> None:
    """Rename to a name that is free. Raises EEXIST; EINVAL or ENOSYS where it cannot be done."""
    _check(_libc.renameat2(old_folder, old, new_folder, new, _RENAME_NOREPLACE))


def file_system_magic(handle: int) -> int:
    """What kind of file system it is: `f_type` of statfs(2)."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    _check(_libc.fstatfs(handle, found))
    return ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF


def inode_flags(handle: int) -> int:
    """The flags of chattr(1), see ioctl_iflags(2); 0 where there are none."""
    try:
        answer = fcntl.ioctl(handle, _GET_FLAGS, bytes(8))
    except OSError:
        return 0
    return int.from_bytes(answer[:4], sys.byteorder)


def data_ranges(handle: int, size: int) -> list[tuple[int, int]]:
    """See data_runs: for files that are known to have few, or callers that use them up."""
    return list(data_runs(handle, size))


def data_runs(handle: int, size: int) -> Ranges:
    """(offset, length) of what is not a hole below `size`, ascending. Moves the file's position.

    Everything where the file system knows no holes. Allocated blocks would not tell: those of
    attributes count among them.
    """
    ranges = Ranges()
    end = 0
    while end < size:
        start, length = next_data(handle, end, size, size)
        if length:
            ranges.add(start, length)
        end = start + length
    return ranges


def next_data(handle: int, offset: int, size: int, length_max: int) -> tuple[int, int]:
    """Start and length of the next run that is no hole; `size` and 0: there is none.

    Moves the file's position.
    """
    try:
        hole = os.lseek(handle, offset, os.SEEK_HOLE)  # first: most files have none
        start = offset
        if hole <= offset:
            start = os.lseek(handle, offset, os.SEEK_DATA)
            hole = os.lseek(handle, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole is left
            return size, 0
        if error.errno != errno.EINVAL:
            raise
        start, hole = offset, size  # no holes are known here
    start = min(start, size)
    return start, min(hole - start, size - start, length_max)

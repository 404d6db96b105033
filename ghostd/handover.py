"""A program of its own: has the kernel hand over what it holds for a mount, and waits for it.

`python handover.py MOUNT` with a line "inode generation" for each open file on its standard input;
it ends with 0, or with a message on stderr and 1.

syncfs(2) alone is not enough: since Linux 6.18 it begins to write the dirty pages of a FUSE mount
and does not wait for them. sync_file_range(2) does, for one file, and asks the daemon for nothing
(fsync(2) would have it commit for each). Dirty pages belong to open files only: closing and
unmapping write them. Files are opened by their handles, which renaming does not change and files
without a name have as well; that is root's privilege (CAP_DAC_READ_SEARCH).

Uses nothing but the standard library, which it must be able to do without site-packages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_FILEID_INO64_GEN = 0x81  # linux/exportfs.h: the handles of FUSE
_WRITE_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
_GONE = (errno.ESTALE, errno.ENOENT)


def handle(ino: int, generation: int) -> bytes:
    """Return the struct file_handle of an inode: open_by_handle_at(2)."""
    words = (ino >> 32, ino & 0xFFFF_FFFF, generation & 0xFFFF_FFFF)
    return struct.pack("=Ii3I", 12, _FILEID_INO64_GEN, *words)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def hand_over(mount: str, files: list[tuple[int, int]]) -> None:
    """Return when the daemon has taken in what was dirty. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    _checked(libc.syncfs(root))
    for ino, generation in files:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC
            fd = _checked(libc.open_by_handle_at(root, handle(ino, generation), flags))
        except PermissionError:
            return  # root of a container, without the capability: syncfs has to do
        except OSError as error:
            if error.errno in _GONE:
                continue  # closed meanwhile, which has written it
            raise
        try:
            _checked(
                libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_AND_WAIT)
            )
        finally:
            os.close(fd)


if __name__ == "__main__":
    pairs = [line.split() for line in sys.stdin]
    try:
        hand_over(sys.argv[1], [(int(ino), int(generation)) for ino, generation in pairs])
    except OSError as failure:
        sys.exit(failure.strerror)

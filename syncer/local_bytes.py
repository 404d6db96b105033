"""Bytes from one open local file to another, by the kernel where it can. Blocks: for threads."""

from __future__ import annotations

import enum
import os
from typing import Final

from syncer import linux

_BUFFER_BYTES: Final = 1 << 20


class Method(enum.Enum):
    """How the bytes of a file were copied."""

    NOTHING = "no data"  # empty, or one hole
    REFLINK = "reflink"  # both share the blocks
    COPY_FILE_RANGE = "copy_file_range"
    SENDFILE = "sendfile"  # within the kernel too, between file systems
    BUFFERED = "buffered"  # through this process


class Ways:
    """What works between which file systems, found out by trying. For any thread."""

    def __init__(self) -> None:
        self._lacking: set[tuple[int, int, Method]] = set()  # devices from and to

    def clone(self, source: int, target: int, devices: tuple[int, int]) -> bool:
        """Share the whole content; False where it cannot be done. Raises OSError."""
        way = (*devices, Method.REFLINK)
        if way in self._lacking or devices[0] != devices[1]:
            return False
        try:
            linux.clone(target, source)
        except OSError as error:
            if error.errno not in linux.NOT_HERE:
                raise
            self._lacking.add(way)
            return False
        return True

    def copy(
        self,
        source: int,
        target: int,
        offset: int,
        length: int,
        devices: tuple[int, int],
        shift: int = 0,
    ) -> Method:
        """Copy a range to the place `shift` bytes further on; less only when the source ends.

        Moves the files' positions. Raises OSError.
        """
        end = offset + length
        for method in (Method.COPY_FILE_RANGE, Method.SENDFILE):
            if (*devices, method) in self._lacking:
                continue
            try:
                while offset < end:
                    if method is Method.COPY_FILE_RANGE:
                        to = offset + shift
                        done = os.copy_file_range(source, target, end - offset, offset, to)
                    else:
                        os.lseek(target, offset + shift, os.SEEK_SET)
                        done = os.sendfile(target, source, offset, end - offset)
                    if not done:  # the end, or a file system that does not mean it: read and see
                        break
                    offset += done
            except OSError as error:
                if error.errno not in linux.NOT_HERE:
                    raise
                self._lacking.add((*devices, method))
                continue
            if offset == end:
                return method
        while offset < end:
            data = os.pread(source, min(_BUFFER_BYTES, end - offset), offset)
            if not data:
                break
            write_all(target, data, offset + shift)
            offset += len(data)
        return Method.BUFFERED


def write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written

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

    __hash__ = object.__hash__  # Enum's is a function of Python's, and every file is counted by it


_METHODS: Final = (Method.REFLINK, Method.COPY_FILE_RANGE, Method.SENDFILE, Method.BUFFERED)


class Ways:
    """What works between which file systems, found out by trying. For any thread."""

    def __init__(self) -> None:
        # By devices from and to: what has not failed yet, the best first; BUFFERED never does.
        self._left: dict[tuple[int, int], tuple[Method, ...]] = {}

    def _lacks(self, devices: tuple[int, int], method: Method) -> None:
        left = self._left.get(devices, _METHODS)
        self._left[devices] = tuple(each for each in left if each is not method)

    def clone(self, source: int, target: int, devices: tuple[int, int]) -> bool:
        """Share the whole content; False where it cannot be done. Raises OSError."""
        if devices[0] != devices[1] or self._left.get(devices, _METHODS)[0] is not Method.REFLINK:
            return False
        try:
            linux.clone(target, source)
        except OSError as error:
            if error.errno not in linux.NOT_HERE:
                raise
            self._lacks(devices, Method.REFLINK)
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
        for method in self._left.get(devices, _METHODS):
            if method is Method.REFLINK:  # of whole files: see `clone`
                continue
            if method is Method.BUFFERED:
                break
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
                self._lacks(devices, method)
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

"""The bytes of restored files: written where extents say, and read back. Blocks: for threads.

Long runs go past the page cache, as the store's own writes do: 1 GiB took 3.6 CPU seconds through
it, half of them for pages that nobody is about to read, and takes 2.2 past it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from blake3 import blake3

from blockstore.disk import DIRECT_ALIGN, DIRECT_WRITE_FROM
from blockstore.ids import ChunkId, chunk_id
from syncer.local_bytes import write_all
from syncer.recipes import Extent, TreeDamaged

_BUFFERS_MAX: Final = 512  # of one pwritev; the system takes 1,024
_STAGING_BYTES: Final = 4 << 20
_READ_BYTES: Final = 4 << 20

_local = threading.local()

_Bytes = bytes | memoryview


def _staging() -> memoryview:
    """This thread's aligned buffer."""
    view: memoryview | None = getattr(_local, "staging", None)
    if view is None:
        view = _local.staging = memoryview(mmap.mmap(-1, _STAGING_BYTES))
    return view


@contextlib.contextmanager
def past_the_cache(handle: int) -> Iterator[int]:
    """The same open file, written to past the page cache; -1 where there is no such thing."""
    try:
        direct = os.open(b"/proc/self/fd/%d" % handle, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        direct = -1
    try:
        yield direct
    finally:
        if direct >= 0:
            os.close(direct)


# ---- writing ----


def write_extents(
    handle: int, extents: Sequence[Extent], chunks: Mapping[ChunkId, bytes], direct: int = -1
) -> int:
    """Write what extents name where they say; return the bytes. Raises TreeDamaged, OSError.

    `direct`: see `past_the_cache`.
    """
    written = 0
    at = end = 0
    run: list[_Bytes] = []
    for extent in extents:
        chunk: _Bytes = chunks[extent.id]
        if extent.offset + extent.length > len(chunk):
            raise TreeDamaged("a recipe names more of a chunk than there is")
        if extent.length != len(chunk):
            chunk = memoryview(chunk)[extent.offset : extent.offset + extent.length]
        if extent.start != end or len(run) >= _BUFFERS_MAX:
            _write_run(handle, run, at, end - at, direct)
            run, at = [], extent.start
        run.append(chunk)
        end = extent.start + extent.length
        written += extent.length
    _write_run(handle, run, at, end - at, direct)
    return written


def _write_run(handle: int, run: Sequence[_Bytes], at: int, length: int, direct: int) -> None:
    if not run:
        return
    if direct >= 0 and length >= DIRECT_WRITE_FROM:
        _write_past(handle, run, at, direct)
        return
    done = os.pwritev(handle, run, at)
    if done < length:  # a nearly full disk, or a signal
        write_all(handle, memoryview(b"".join(run))[done:], at + done)


def _write_past(handle: int, run: Sequence[_Bytes], at: int, direct: int) -> None:
    """Whole blocks past the page cache, and what is left of one at both ends through it."""
    staging = _staging()
    fill = 0
    border = -at % DIRECT_ALIGN  # bytes before the first whole block
    for chunk in run:
        view = memoryview(chunk)
        while view:
            part = view[: (border or len(staging)) - fill]
            staging[fill : fill + len(part)] = part
            fill += len(part)
            view = view[len(part) :]
            if fill == (border or len(staging)):
                _write_blocks(handle, staging[:fill], at, -1 if border else direct)
                at, fill, border = at + fill, 0, 0
    whole = 0 if border else fill - fill % DIRECT_ALIGN
    _write_blocks(handle, staging[:whole], at, direct)
    write_all(handle, staging[whole:fill], at + whole)


def _write_blocks(handle: int, data: memoryview, at: int, direct: int) -> None:
    done = 0
    if direct >= 0 and data:
        # What it leaves, and why, the other way tells: another alignment, a full disk.
        with contextlib.suppress(OSError):
            done = os.pwrite(direct, data, at)
    write_all(handle, data[done:], at + done)


# ---- reading back ----


def read_back(
    handle: int, size: int, extents: Iterable[Extent], fetch: Callable[[ChunkId], bytes]
) -> bytes | None:
    """BLAKE3 of an open file that is what its recipe says; None where it is not. Raises OSError.

    Every chunk that was written whole is hashed and compared with its name, of others the slice
    with the chunk, which `fetch` returns; what no extent covers has to be zeros.
    """
    if os.fstat(handle).st_size != size:
        return None
    hashed = blake3(max_threads=1)
    at = 0
    for start, length, offset, name in extents:
        if not _zeros(handle, at, start, hashed):
            return None
        data = os.pread(handle, length, start)
        found = chunk_id(data)
        if found != name and fetch(name)[offset : offset + length] != data:
            return None
        if length == size:
            return found
        hashed.update(data)
        at = start + length
    return hashed.digest() if _zeros(handle, at, size, hashed) else None


def _zeros(handle: int, at: int, end: int, hashed: blake3) -> bool:
    while at < end:
        data = os.pread(handle, min(_READ_BYTES, end - at), at)
        if not data or data.count(0) < len(data):
            return False
        hashed.update(data)
        at += len(data)
    return True

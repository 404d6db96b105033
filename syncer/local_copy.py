"""Batches of small files into a local folder: from another one, or from memory.

For the trio loop; the work is done in two threads, and cancelled within a file's time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import trio

from syncer import linux
from syncer.local_batch import Batch, CopyOutcome, Place
from syncer.local_bytes import Method, Ways, write_all
from syncer.local_draft import umask
from syncer.local_nodes import apply, read_xattrs, same
from syncer.local_root import Directories
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import Changed
from syncer.remotes.local import remote_error, shown
from syncer.tree import Metadata, Node

__all__ = ["CopyItem", "CopyOutcome", "Method", "NewFile", "copy_files", "write_files"]

_THREADS: Final = 2
_SHARE_MIN: Final = 32  # files that are worth a thread of their own


class CopyItem(NamedTuple):
    """One file to be copied."""

    source_path: bytes
    path: bytes  # at the target
    node: Node  # as the source has it; Changed if it has another one by now
    old: Node | None = None  # what may be replaced; Changed if something else is there
    replace: bool = False  # where `old` is None: replace what is there; else Exists


class NewFile(NamedTuple):
    """One small file to be written."""

    path: bytes
    data: bytes  # without its holes
    size: int  # bytes, with its holes
    metadata: Metadata
    ranges: Sequence[tuple[int, int]] | None = None  # (offset, length) where the data goes
    old: Node | None = None
    replace: bool = False


async def copy_files(
    source: LocalTree, target: LocalTree, items: Sequence[CopyItem], options: Options
) -> list[CopyOutcome]:
    """Copy files, some hundred in a batch; what became of each, in the same order.

    Of `options`: modes, times, owners (by number: it is one machine), xattrs and durable. When this
    returns, all that succeeded is on the disk under its names. Files with several names are copied
    as files of their own. Parents are made.
    """
    copying = _Copying(source, options)
    places = [
        Place(item.path, item.old, item.replace, _new_mode(item.node, options)) for item in items
    ]
    batch = Batch(target, places, durable=options.durable and target.durable)

    def work(start: int, stop: int) -> None:
        with (
            batch.writing() as directories,
            contextlib.closing(Directories(source.root)) as sources,
        ):
            for index in range(start, stop):
                if batch.stopped:
                    return
                batch.write(directories, index, partial(copying.copy, sources, items[index]))

    return await _run(target, batch, len(items), work)


def _new_mode(node: Node, options: Options) -> int:
    """What a copy is made with: its own mode, unless it is to be somebody else's."""
    if options.owners or node.mode is None:
        return 0o600
    return node.mode & 0o777 if options.modes else 0o666


async def write_files(
    target: LocalTree, files: Sequence[NewFile], *, durable: bool = True
) -> list[CopyOutcome]:
    """Write files from memory, likewise."""
    mask = umask()
    places = [Place(file.path, file.old, file.replace) for file in files]
    batch = Batch(target, places, durable=durable and target.durable)

    def work(start: int, stop: int) -> None:
        with batch.writing() as directories:
            for index in range(start, stop):
                if batch.stopped:
                    return
                batch.write(directories, index, partial(_write, files[index], mask))

    return await _run(target, batch, len(files), work)


async def _run(
    target: LocalTree, batch: Batch, count: int, work: Callable[[int, int], None]
) -> list[CopyOutcome]:
    threads = min(_THREADS, max(1, count // _SHARE_MIN))
    try:
        async with trio.open_nursery() as nursery:
            for number in range(threads):
                start, stop = number * count // threads, (number + 1) * count // threads
                nursery.start_soon(target.wait, work, start, stop)
        return await target.wait(batch.publish)
    finally:
        batch.stop()
        await target.finish(batch.close)


class _Copying:
    """Copies files of one tree into open files. For any thread."""

    def __init__(self, source: LocalTree, options: Options) -> None:
        self._source = source
        self._options = options
        self._ways = Ways()
        self._mask = umask()
        self._user = os.geteuid()

    def copy(self, sources: Directories, item: CopyItem, target: int) -> CopyOutcome:
        """Copy one file's bytes and metadata. Raises Changed, OSError of the target."""
        where = self._source.root.path(item.source_path)
        try:
            handle = sources.open_file(item.source_path)
        except FileNotFoundError:
            raise Changed(f"{shown(where)} is gone") from None
        except OSError as error:
            raise remote_error(where, error) from error
        try:
            found = os.fstat(handle)
            if not same(found, item.node):
                raise Changed(f"{shown(where)} is not the file that was listed")
            new = os.fstat(target)
            outcome = self._bytes(handle, target, found, new.st_dev)
            apply(target, self.metadata(handle, found), old=new)
            if not _unchanged(os.fstat(handle), found):
                raise Changed(f"{shown(where)} changed while it was copied")
            return outcome
        finally:
            os.close(handle)

    def _bytes(self, handle: int, target: int, found: os.stat_result, device: int) -> CopyOutcome:
        size = found.st_size
        if not size:
            return CopyOutcome()
        devices = (found.st_dev, device)
        if self._ways.clone(handle, target, devices):
            return CopyOutcome(None, Method.REFLINK, size)
        method, copied = Method.NOTHING, 0
        ranges = linux.data_ranges(handle, size)
        for offset, length in ranges:
            method = self._ways.copy(handle, target, offset, length, devices)
            copied += length
        if not ranges or sum(ranges[-1]) < size:
            os.ftruncate(target, size)  # a hole at the end
        return CopyOutcome(None, method, copied)

    def metadata(self, handle: int, found: os.stat_result) -> Metadata:
        """What a file's copy is to have."""
        return metadata_of(handle, found, self._options, mask=self._mask, user=self._user)


def metadata_of(
    handle: int, found: os.stat_result, options: Options, *, mask: int, user: int
) -> Metadata:
    """What the copy of an open file is to have; `user` makes it, under `mask`. Raises OSError."""
    mode = stat.S_IMODE(found.st_mode) if options.modes else 0o666 & ~mask
    if not options.owners and found.st_uid != user:
        mode &= ~(stat.S_ISUID | stat.S_ISGID)  # else it would run as somebody else
    return Metadata(
        mode,
        found.st_uid if options.owners else None,
        found.st_gid if options.owners else None,
        found.st_mtime_ns if options.times else None,
        found.st_atime_ns if options.times else None,
        read_xattrs(handle) if options.xattrs else None,
    )


def _unchanged(now: os.stat_result, before: os.stat_result) -> bool:
    return (
        now.st_size == before.st_size
        and now.st_mtime_ns == before.st_mtime_ns
        and now.st_ctime_ns == before.st_ctime_ns
    )


def _write(file: NewFile, mask: int, handle: int) -> CopyOutcome:
    taken = 0
    view = memoryview(file.data)
    for offset, length in [(0, file.size)] if file.ranges is None else file.ranges:
        write_all(handle, view[taken : taken + length], offset)
        taken += length
    assert taken == len(view), "the ranges are the data's"
    os.ftruncate(handle, file.size)  # a hole at the end
    metadata = file.metadata
    apply(handle, metadata if metadata.mode is not None else metadata._replace(mode=0o666 & ~mask))
    return CopyOutcome(None, Method.BUFFERED if taken else Method.NOTHING, taken)

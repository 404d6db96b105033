"""Batches of small files into a local folder: from another one, or from memory.

For the trio loop; the work is done in threads, and cancelled within a file's time.

Where the system answers from memory one thread at a time is fastest: two would hand the
interpreter's lock to each other at every call, which costs more than most of the calls. So the
batches of a tree take turns with all but the syncs. Where a batch waits, for a disk or a server, it
gets more threads.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import trio

from syncer import linux
from syncer.local_batch import Batch, CopyOutcome, NewFiles, Place
from syncer.local_bytes import Method, Ways, write_all
from syncer.local_draft import umask
from syncer.local_features import is_served
from syncer.local_nodes import apply, read_xattrs, same
from syncer.local_root import Directories, LocalRoot
from syncer.local_tree import LocalTree
from syncer.options import Options
from syncer.remotes.errors import Changed
from syncer.remotes.local import remote_error, shown
from syncer.tree import Metadata, Node

__all__ = ["CopyItem", "CopyOutcome", "Method", "NewFile", "copy_files", "write_files"]

_THREADS: Final = 4  # of a batch that waits
_TRIAL: Final = 64  # files of a batch that show whether it does


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
    returns, the bytes of all that succeeded are on the disk; their names are after `target.sync()`,
    as with Tree.write. Files with several names are copied as files of their own. Parents are made.
    """
    copying = _Copying(source, options)
    places = [Place(item.path, item.old, item.replace) for item in items]
    batch = Batch(target, places, durable=options.durable and target.durable)

    def work(start: int, stop: int) -> None:
        with (
            batch.writing() as directories,
            contextlib.closing(Directories(source.root)) as sources,
        ):
            for index in range(start, stop):
                if batch.stopped:
                    return
                item = items[index]
                mode = copying.new.mode(item.path, item.node)
                batch.write(directories, index, partial(copying.copy, sources, item, mode), mode)

    return await _run((source.root, target.root), target, batch, len(items), work)


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

    return await _run((target.root,), target, batch, len(files), work)


async def _run(
    roots: Sequence[LocalRoot],
    target: LocalTree,
    batch: Batch,
    count: int,
    work: Callable[[int, int], None],
) -> list[CopyOutcome]:
    tried = min(count, _TRIAL)
    try:
        async with target.turns:
            waits = await target.wait(_waits, roots, work, tried)
            threads, left = _THREADS if waits else 1, count - tried
            async with trio.open_nursery() as nursery:
                for number in range(threads):
                    start, stop = number * left // threads, (number + 1) * left // threads
                    if start < stop:
                        nursery.start_soon(target.wait, work, tried + start, tried + stop)
        await target.wait(batch.store)
        async with target.turns:
            await target.wait(batch.name)
        return batch.outcomes
    finally:
        batch.stop()
        await target.finish(batch.close)


def _waits(roots: Sequence[LocalRoot], work: Callable[[int, int], None], count: int) -> bool:
    """Do the first of the work; whether most of it waits for a disk to read, or for a server."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
    work(0, count)
    read = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock - before
    return read >= count or any(is_served(root.root) for root in roots)


class _Copying:
    """Copies files of one tree into open files. For any thread."""

    def __init__(self, source: LocalTree, options: Options) -> None:
        self._source = source
        self._options = options
        self._ways = Ways()
        self._mask = umask()
        self._user = os.geteuid()
        self.new = NewFiles(options)

    def copy(self, sources: Directories, item: CopyItem, mode: int, target: int) -> CopyOutcome:
        """Copy one file's bytes and metadata. Raises Changed, OSError of the target.

        `mode`: what the target was made with.
        """
        try:
            handle = sources.open_file(item.source_path)
        except FileNotFoundError:
            raise Changed(f"{self._shown(item)} is gone") from None
        except OSError as error:
            raise remote_error(self._source.root.path(item.source_path), error) from error
        try:
            found = os.fstat(handle)
            if not same(found, item.node):
                raise Changed(f"{self._shown(item)} is not the file that was listed")
            new = self.new.made(item.path, mode, target)
            outcome = self._bytes(handle, target, found, new.found.st_dev)
            apply(target, self.metadata(handle, found), old=new.found, bare=new.bare)
            if not _unchanged(os.fstat(handle), found):
                raise Changed(f"{self._shown(item)} changed while it was copied")
            return outcome
        finally:
            os.close(handle)

    def _shown(self, item: CopyItem) -> str:
        return shown(self._source.root.path(item.source_path))

    def _bytes(self, handle: int, target: int, found: os.stat_result, device: int) -> CopyOutcome:
        size = found.st_size
        if not size:
            return CopyOutcome()
        devices = (found.st_dev, device)
        if self._ways.clone(handle, target, devices):
            return CopyOutcome(None, Method.REFLINK, size)
        start, length = linux.next_data(handle, 0, size, size)
        if length == size:  # as good as all: no list for one run
            method = self._ways.copy(handle, target, start, length, devices)
            return CopyOutcome(None, method, length)
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

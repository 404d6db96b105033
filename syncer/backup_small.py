"""Small files of a backup: many in one go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from syncer import linux
from syncer.backup_previous import unchanged
from syncer.backup_read import AT_ONCE, LARGE_BYTES, Reader, Slot, extents_of, spot_of
from syncer.chunks import ChunkStore
from syncer.local_nodes import node_of, read_xattrs, same
from syncer.local_root import OPEN_FILE, OPEN_PATH, Directories, opened
from syncer.local_tree import LocalTree
from syncer.recipes import Extent
from syncer.remotes.errors import Changed, Missing, RemoteError
from syncer.remotes.local import shown, system_errors
from syncer.small_reads import read_small
from syncer.tree import ManyReader, Node, NodeKind, Whole

_TRIES: Final = 3


async def read_batch(reader: Reader, slots: Sequence[Slot], buffer: bytearray) -> None:
    """Read small files, and attributes. `buffer`: for local ones."""
    if reader.local is not None:
        await trio.to_thread.run_sync(LocalBatch(reader, reader.local, slots, buffer).run)
    else:
        await RemoteBatch(reader, slots).run()


def _chunks_of(store: ChunkStore, view: memoryview) -> list[memoryview]:
    chunks = []
    start = 0
    for length in store.cut(view):
        chunks.append(view[start : start + length])
        start += length
    return chunks


@dataclass(slots=True)
class _Read:
    """A small file that is in the buffer."""

    slot: Slot
    node: Node
    xattrs: Mapping[bytes, bytes]
    runs: list[tuple[int, list[memoryview]]]  # of what is not a hole: start in the file, chunks


class LocalBatch:
    """Small local files in one hop to a thread."""

    def __init__(
        self, reader: Reader, tree: LocalTree, slots: Sequence[Slot], buffer: bytearray
    ) -> None:
        self._reader = reader
        self._tree = tree
        self._slots = slots
        self._view = memoryview(buffer)
        self._used = 0
        self._reads: list[_Read] = []

    def run(self) -> None:
        """Read, cut and put. Raises what the store's put() raises."""
        with contextlib.closing(Directories(self._tree.root)) as directories:
            for slot in self._slots:
                try:
                    with system_errors(self._tree.root.path(slot.path)):
                        self._one(directories, slot)
                except Missing:
                    slot.error = Changed(f"{self._where(slot)} is gone")
                except RemoteError as error:
                    slot.error = error
        self._put()

    def _where(self, slot: Slot) -> str:
        return shown(self._tree.root.path(slot.path))

    def _put(self) -> None:
        """Store what is in the buffer; after this it is free."""
        chunks = [chunk for read in self._reads for _, run in read.runs for chunk in run]
        ids = self._reader.store.put(chunks) if chunks else []
        at = 0
        for read in self._reads:
            extents: list[Extent] = []
            for start, run in read.runs:
                extents += extents_of(ids[at : at + len(run)], run, start)
                at += len(run)
            recipe = self._reader.writer.recipe(extents, read.node.size)
            self._reader.finish(read.slot, read.node, recipe, read.xattrs)
            read.slot.read_bytes = sum([extent.length for extent in extents])
        self._reads.clear()
        self._used = 0

    def _one(self, directories: Directories, slot: Slot) -> None:
        node = slot.node
        if node.kind is NodeKind.DIRECTORY:
            self._reader.finish(slot, node, None, read_xattrs(directories.at(slot.path)))
            return
        with spot_of(self._tree, directories, slot.path) as (folder, name):
            if node.kind is not NodeKind.FILE:
                with opened(name, OPEN_PATH, folder) as handle:
                    xattrs = read_xattrs(b"/proc/self/fd/%d" % handle)
                self._reader.finish(slot, node, None, xattrs)
                return
            with opened(name, OPEN_FILE, folder) as handle:
                read = self._rested(handle, slot)
        if slot.content:
            self._reads.append(read)
        else:
            self._reader.finish(slot, node, self._reader.kept_recipe(slot), read.xattrs)

    def _rested(self, handle: int, slot: Slot) -> _Read:
        """Read an open file as it was at one moment."""
        node = slot.node
        for _ in range(_TRIES):
            if self._used + node.size > len(self._view):
                self._put()
            read, used = self._file(handle, slot, node)
            found = os.fstat(handle)
            if read is not None and same(found, node):
                self._used = used
                return read
            node = node_of(node.name, found, self._tree.scanner.owners)
            if node.kind is not NodeKind.FILE or node.size > LARGE_BYTES:
                break
        raise Changed(f"{self._where(slot)} changes while it is read: back it up when it rests")

    def _file(self, handle: int, slot: Slot, node: Node) -> tuple[_Read | None, int]:
        """Read an open file behind what is in the buffer; None when it is shorter than it was."""
        xattrs = read_xattrs(handle) if self._reader.xattrs else {}
        read = _Read(slot, node, xattrs, [])
        used = self._used
        if not slot.content or not node.size:
            return read, used
        for start, length in linux.data_ranges(handle, node.size):
            end = used + min(length, node.size - start)
            at = start
            begin = used
            while used < end:
                got = os.preadv(handle, [self._view[used:end]], at)
                if not got:
                    return None, used
                used += got
                at += got
            if used > begin:
                read.runs.append((start, _chunks_of(self._reader.store, self._view[begin:end])))
        return read, used


class RemoteBatch:
    """Small files of any tree: several reads under way, one hop to a thread for all of them."""

    def __init__(self, reader: Reader, slots: Sequence[Slot]) -> None:
        self._reader = reader
        self._slots = slots
        self._limit = trio.CapacityLimiter(AT_ONCE)
        self._got: dict[Slot, tuple[Node, list[tuple[int, bytes]], Mapping[bytes, bytes]]] = {}

    async def run(self) -> None:
        """Read, then cut and put. Raises what the store's put() raises."""
        if isinstance(self._reader.tree, ManyReader):
            await self._together()
        async with trio.open_nursery() as nursery:
            for slot in self._slots:
                if slot not in self._got:
                    nursery.start_soon(self._one, slot)
        await trio.to_thread.run_sync(self._put)

    async def _together(self) -> None:
        """Those that are as they were listed; the others are left."""
        slots = [slot for slot in self._slots if self._plain(slot)]
        wanted = [(slot.path, slot.node) for slot in slots]
        read = await read_small(self._reader.tree, wanted, xattrs=self._reader.xattrs)
        for slot, whole in zip(slots, read, strict=True):
            if isinstance(whole, Whole):
                pieces = [(0, whole.data)] if whole.data else []
                self._got[slot] = (slot.node, pieces, whole.xattrs or {})

    @staticmethod
    def _plain(slot: Slot) -> bool:
        node = slot.node
        holes = node.allocated is not None and node.allocated < node.size
        return node.kind is NodeKind.FILE and slot.content and node.exact and not holes

    async def _one(self, slot: Slot) -> None:
        async with self._limit:
            try:
                await self._read(slot)
            except RemoteError as error:
                slot.error = error

    async def _read(self, slot: Slot) -> None:
        tree = self._reader.tree
        for attempt in range(_TRIES):
            node = slot.node
            if node.kind is NodeKind.FILE and (attempt or not node.exact):
                node = (await tree.stat(slot.path))._replace(name=node.name)
                if node.kind is not NodeKind.FILE or node.size > LARGE_BYTES:
                    break
                slot.node = node
                if not self._reader.checksum and unchanged(node, slot.known):
                    slot.content = False
            try:
                pieces = []
                if slot.size:
                    ranges = None
                    if node.allocated is not None and node.allocated < node.size:
                        ranges = await tree.data_ranges(slot.path, node)
                    for start, length in [(0, node.size)] if ranges is None else ranges:
                        pieces.append((start, await tree.read(slot.path, node, start, length)))
                xattrs = await tree.xattrs(slot.path) if self._reader.xattrs else {}
            except Changed:
                continue
            self._got[slot] = (node, pieces, xattrs)
            return
        raise Changed(f"{slot.path!r} changes while it is read: back it up when it rests")

    def _put(self) -> None:
        store = self._reader.store
        chunks: list[memoryview] = []
        counts: list[int] = []
        for _, pieces, _ in self._got.values():
            for _, data in pieces:
                some = _chunks_of(store, memoryview(data))
                chunks += some
                counts.append(len(some))
        ids = store.put(chunks) if chunks else []
        at = 0
        remaining = iter(counts)
        for slot, (node, pieces, xattrs) in self._got.items():
            extents: list[Extent] = []
            for start, data in pieces:
                count = next(remaining)
                extents += extents_of(ids[at : at + count], chunks[at : at + count], start)
                slot.read_bytes += len(data)
                at += count
            recipe = None
            if node.kind is NodeKind.FILE:
                recipe = (
                    self._reader.writer.recipe(extents, node.size)
                    if slot.content
                    else self._reader.kept_recipe(slot)
                )
            self._reader.finish(slot, node, recipe, xattrs)

"""Reading the files of a backup into the store: many small ones in one go, large ones in a stream.

Each reader has a buffer of its own. Small files are read one after the other into it, cut, and put
together; a large file is offered to all readers: whoever has its lock fills a buffer and cuts it,
then hashes and compresses without the lock. A file is stored as it was at one moment, or not at
all: what changes while it is read is read again, three times at most.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from blockstore.ids import Buffer, ChunkId
from syncer import linux
from syncer.backup_previous import Known, token_now, unchanged
from syncer.chunks import ChunkStore
from syncer.local_nodes import node_of, read_xattrs, same
from syncer.local_root import OPEN_FILE, OPEN_PATH, Directories, Spot, opened
from syncer.local_tree import LocalTree
from syncer.recipes import Extent, Recipe, RecipeWriter
from syncer.remotes.errors import Changed, Garbled, Missing, RemoteError, Unsupported
from syncer.remotes.local import shown, system_errors
from syncer.tree import Node, NodeKind, Tree
from syncer.tree_objects import NO_TOKEN, Entry, entry_of
from syncer.tree_writer import TreeWriter

BUFFER_BYTES: Final = 4 << 20  # 8 MiB is no faster, and 1 MiB a tenth slower
LARGE_BYTES: Final = BUFFER_BYTES  # files from here on are streamed
BATCH_FILES: Final = 256
_TRIES: Final = 3
_AT_ONCE: Final = 8  # files, or parts of one, of trees that are not local


@dataclass(slots=True, eq=False)
class Slot:
    """A node whose entry is being made. Written by one reader, read when `done`."""

    path: bytes
    node: Node
    known: Known | None
    link: int = 0  # see Entry
    names: Hashable = None  # what the tree says of its names, see Node.link
    content: bool = True  # the file has to be read; else only what stands beside it
    entry: Entry | None = None
    token: int = NO_TOKEN
    error: RemoteError | None = None
    read_bytes: int = 0
    done: bool = False

    @property
    def size(self) -> int:
        """Bytes that have to be read."""
        return self.node.size if self.content and self.node.kind is NodeKind.FILE else 0


class Reader:
    """What the readers of one backup have in common."""

    def __init__(
        self, tree: Tree, store: ChunkStore, writer: TreeWriter, *, xattrs: bool, checksum: bool
    ) -> None:
        self.tree = tree
        self.store = store
        self.writer = writer
        self.xattrs = xattrs and tree.features.xattrs
        self.checksum = checksum
        self.local = tree if isinstance(tree, LocalTree) else None

    def finish(
        self, slot: Slot, node: Node, recipe: Recipe | None, xattrs: Mapping[bytes, bytes]
    ) -> None:
        """Make the entry. Blocks: large attributes are stored."""
        slot.node = node
        slot.token = token_now(node)
        entry = entry_of(node, recipe, link=slot.link)
        slot.entry = self.writer.with_xattrs(entry, xattrs)

    def kept_recipe(self, slot: Slot) -> Recipe | None:
        """The recipe of a file that need not be read."""
        return slot.known.entry.recipe if slot.known is not None else None

    async def batch(self, slots: Sequence[Slot], buffer: bytearray) -> None:
        """Read small files, and attributes."""
        if self.local is not None:
            await trio.to_thread.run_sync(LocalBatch(self, self.local, slots, buffer).run)
        else:
            await RemoteBatch(self, slots).run()

    def stream(self, slot: Slot) -> Stream:
        """Begin a large file."""
        return Stream(self, slot)


def _chunks_of(store: ChunkStore, view: memoryview) -> list[memoryview]:
    chunks = []
    start = 0
    for length in store.cut(view):
        chunks.append(view[start : start + length])
        start += length
    return chunks


def _extents(ids: Sequence[ChunkId], chunks: Sequence[Buffer], start: int) -> list[Extent]:
    extents = []
    for name, chunk in zip(ids, chunks, strict=True):
        extents.append(Extent(start, len(chunk), 0, name))
        start += len(chunk)
    return extents


@contextlib.contextmanager
def _spot(tree: LocalTree, directories: Directories, path: bytes) -> Iterator[Spot]:
    """Where a file is; the tree itself may be one."""
    if path:
        yield directories.spot(path)
    else:
        with tree.root.spot([]) as spot:
            yield spot


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
                extents += _extents(ids[at : at + len(run)], run, start)
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
        with _spot(self._tree, directories, slot.path) as (folder, name):
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
        self._limit = trio.CapacityLimiter(_AT_ONCE)
        self._got: dict[Slot, tuple[Node, list[tuple[int, bytes]], Mapping[bytes, bytes]]] = {}

    async def run(self) -> None:
        """Read, then cut and put. Raises what the store's put() raises."""
        async with trio.open_nursery() as nursery:
            for slot in self._slots:
                nursery.start_soon(self._one, slot)
        await trio.to_thread.run_sync(self._put)

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
                extents += _extents(ids[at : at + count], chunks[at : at + count], start)
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


class Stream:
    """One large file, read by as many readers as come. Each calls `work` once."""

    def __init__(self, reader: Reader, slot: Slot) -> None:
        self._reader = reader
        self.slot = slot
        self._filling = trio.Lock()
        self._begun = False
        self._ended = False
        self._finishing = False
        self._working = 0
        self._node = slot.node
        self._ranges: list[tuple[int, int]] = []  # what is left to be read
        self._rest = b""  # read, but not cut yet
        self._turn = 0
        self._lock = threading.Lock()  # of what follows: extents in the order of the file
        self._writer = RecipeWriter(reader.writer.save)
        self._next = 0
        self._parts: dict[int, list[Extent]] = {}
        self._handle = -1

    async def work(self, buffer: bytearray) -> bool:
        """Help until the file is read; True for the last one to leave, when the slot is finished.

        Raises what the store's put() raises.
        """
        self._working += 1
        try:
            while True:
                async with self._filling:
                    if self._ended or self.slot.error is not None:
                        break
                    try:
                        filled = await self._fill(buffer)
                    except RemoteError as error:
                        self.slot.error = error
                        break
                if filled is not None:
                    await trio.to_thread.run_sync(self._put, buffer, *filled)
        finally:
            self._working -= 1
            if not self._working and self._handle >= 0:
                os.close(self._handle)
                self._handle = -1
        if self._working or self._finishing or not (self._ended or self.slot.error):
            return False
        self._finishing = True
        await self._finish()
        return True

    async def _fill(self, buffer: bytearray) -> tuple[int, int, list[int]] | None:
        """Read the next part; return its turn, where it begins, and its chunks' lengths."""
        if not self._begun:
            await self._begin()
        if self._reader.local is not None:
            found = await trio.to_thread.run_sync(self._fill_local, buffer)
        else:
            found = await self._fill_remote(buffer)
        return found

    async def _begin(self) -> None:
        tree = self._reader.tree
        node = self.slot.node
        if not node.exact:
            node = (await tree.stat(self.slot.path))._replace(name=node.name)
        if node.kind is not NodeKind.FILE:
            raise Changed(f"{self.slot.path!r} is no file any more")
        self._node = node
        if not self._reader.checksum and unchanged(node, self.slot.known):
            self.slot.content = False
        elif self._reader.local is not None:
            await trio.to_thread.run_sync(self._open, self._reader.local)
        else:
            ranges = await tree.data_ranges(self.slot.path, node)
            self._ranges = [(0, node.size)] if ranges is None else list(ranges)
        self._ranges = [each for each in self._ranges if each[1]]
        self._begun = True

    def _open(self, tree: LocalTree) -> None:
        with (
            system_errors(tree.root.path(self.slot.path)),
            contextlib.closing(Directories(tree.root)) as directories,
        ):
            with _spot(tree, directories, self.slot.path) as (folder, name):
                self._handle = os.open(name, OPEN_FILE, dir_fd=folder)
            found = os.fstat(self._handle)
            self._node = node_of(self._node.name, found, tree.scanner.owners)
            if self._node.kind is not NodeKind.FILE:
                raise Changed(f"{shown(tree.root.path(self.slot.path))} is no file any more")
            self._ranges = linux.data_ranges(self._handle, found.st_size)

    def _cut(self, view: memoryview, start: int, size: int) -> tuple[int, int, list[int]]:
        """Cut the first `size` bytes of a buffer, which begin at `start` of the file."""
        first, length = self._ranges[0]
        lengths = self._reader.store.cut(view[:size])
        if start + size < first + length and len(lengths) > 1:
            lengths.pop()  # it may only end here because the buffer does
        cut = sum(lengths)
        self._rest = bytes(view[cut:size])
        done = start + cut - first
        if done < length:
            self._ranges[0] = (first + done, length - done)
        else:
            self._ranges.pop(0)
        turn, self._turn = self._turn, self._turn + 1
        return turn, start, lengths

    def _fill_local(self, buffer: bytearray) -> tuple[int, int, list[int]] | None:
        if not self._ranges:
            self._ended = True
            return None
        start, length = self._ranges[0]
        where = self._reader.tree.label
        with memoryview(buffer) as view, system_errors(os.fsencode(where)):
            size = len(self._rest)
            view[:size] = self._rest
            wanted = min(len(view), length)
            while size < wanted:
                got = os.preadv(self._handle, [view[size:wanted]], start + size)
                if not got:
                    raise Changed(f"{self.slot.path!r} became shorter while it was read")
                size += got
            return self._cut(view, start, size)

    async def _fill_remote(self, buffer: bytearray) -> tuple[int, int, list[int]] | None:
        if not self._ranges:
            self._ended = True
            return None
        start, length = self._ranges[0]
        held = len(self._rest)
        wanted = min(len(buffer), length)
        parts: dict[int, bytes] = {}
        failed: list[RemoteError] = []
        step = max(64 << 10, -(-(wanted - held) // _AT_ONCE))

        async def read(at: int) -> None:
            try:
                parts[at] = await self._reader.tree.read(
                    self.slot.path, self._node, start + at, min(step, wanted - at)
                )
            except RemoteError as error:
                failed.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for at in range(held, wanted, step):
                nursery.start_soon(read, at)
        if failed:
            raise failed[0]

        def fill() -> tuple[int, int, list[int]]:
            with memoryview(buffer) as view:
                view[:held] = self._rest
                for at, data in parts.items():
                    if len(data) != min(step, wanted - at):
                        raise Garbled(f"{self.slot.path!r} gave {len(data)} bytes at {start + at}")
                    view[at : at + len(data)] = data
                return self._cut(view, start, wanted)

        return await trio.to_thread.run_sync(fill)

    def _put(self, buffer: bytearray, turn: int, start: int, lengths: Sequence[int]) -> None:
        chunks: list[Buffer] = []
        at = 0
        with memoryview(buffer) as view:
            for length in lengths:
                chunks.append(view[at : at + length])
                at += length
            extents = _extents(self._reader.store.put(chunks), chunks, start)
            chunks.clear()
        with self._lock:
            self._parts[turn] = extents
            self.slot.read_bytes += at
            while self._next in self._parts:
                self._writer.add(self._parts.pop(self._next))
                self._next += 1

    async def _finish(self) -> None:
        """Look whether it is still the file that it was, and make its entry."""
        slot = self.slot
        if slot.error is not None:
            return
        tree = self._reader.tree
        try:
            now = await tree.stat(slot.path)
            xattrs = await tree.xattrs(slot.path) if self._reader.xattrs else {}
        except Missing:
            slot.error = Changed(f"{slot.path!r} is gone")
            return
        except RemoteError as error:
            slot.error = error
            return
        node = self._node
        if now[1:4] != node[1:4] or (now.token != node.token and node.exact):
            slot.error = Changed(f"{slot.path!r} changed while it was read")
            return
        if slot.content:
            recipe = await trio.to_thread.run_sync(self._writer.finish, node.size)
        else:
            kept = self._reader.kept_recipe(slot)
            if kept is None:
                raise Unsupported(f"{slot.path!r} has no recipe to keep")
            recipe = kept
        await trio.to_thread.run_sync(self._reader.finish, slot, node, recipe, xattrs)

"""A large file of a backup: all readers help."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence

import trio

from blockstore.ids import Buffer
from syncer import linux
from syncer.backup_previous import unchanged
from syncer.backup_read import AT_ONCE, Reader, Slot, extents_of, spot_of
from syncer.local_nodes import node_of
from syncer.local_root import OPEN_FILE, Directories
from syncer.local_tree import LocalTree
from syncer.recipes import Extent, RecipeWriter
from syncer.remotes.errors import Changed, Garbled, Missing, RemoteError, Unsupported
from syncer.remotes.local import shown, system_errors
from syncer.tree import NodeKind


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
        self._ranges: deque[tuple[int, int]] = deque()  # what is left to be read
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
            self._set_ranges([(0, node.size)] if ranges is None else ranges)
        self._begun = True

    def _open(self, tree: LocalTree) -> None:
        with (
            system_errors(tree.root.path(self.slot.path)),
            contextlib.closing(Directories(tree.root)) as directories,
        ):
            with spot_of(tree, directories, self.slot.path) as (folder, name):
                self._handle = os.open(name, OPEN_FILE, dir_fd=folder)
            found = os.fstat(self._handle)
            self._node = node_of(self._node.name, found, tree.scanner.owners)
            if self._node.kind is not NodeKind.FILE:
                raise Changed(f"{shown(tree.root.path(self.slot.path))} is no file any more")
            self._set_ranges(linux.data_ranges(self._handle, found.st_size))

    def _set_ranges(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = deque(each for each in ranges if each[1])

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
            self._ranges.popleft()
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
        step = max(64 << 10, -(-(wanted - held) // AT_ONCE))

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
            extents = extents_of(self._reader.store.put(chunks), chunks, start)
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

"""Reads.

Extents → chunks → bytes, one flight for each chunk, and read-ahead for sequential readers.

What is in memory (pieces, decoded chunks) is answered without leaving the trio thread; so is one
chunk whose bytes the kernel has in its page cache. Everything else is one call into a worker
thread, which reads neighbouring records of a pack together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.filemap import Extent, FileMap, Piece
from ghostd.inodes import Inode
from ghostd.threads import Threads

_STREAMS_MAX = 1_024  # files whose reading pattern is remembered
_SEQUENTIAL_SLACK = 4 << 20  # the kernel's own read-ahead sends requests out of order
_PORTION_CHUNKS = 16  # about 1 MiB
_STREAM_CHUNKS = 8  # asked for at once, they make a stream
_DAMAGED_MAX = 10_000
_PIECE_BYTES = 1 << 20
_TRIES = (False, False, False, False, False, False, False, True)  # the last one is True


class ReadTimeout(OrbitError):
    """The disk did not answer within the deadline."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How far ahead sequential readers are served, and how long a read may take."""

    read_ahead_bytes: int = 8 << 20
    deadline_s: float = 30.0


@dataclass(slots=True)
class ReadStats:
    """Counters of this run."""

    from_memory: int = 0
    from_page_cache: int = 0
    from_disk: int = 0
    ahead_chunks: int = 0


class Projected(Protocol):
    """Where the bytes of projected files come from that the file itself does not have."""

    async def cover(
        self, inode: Inode, extents: list[Extent], start: int, end: int
    ) -> tuple[list[Extent], dict[bytes, bytes]]:
        """The extents with the gaps filled by blocks, and the blocks that had to be fetched."""

    def known(self, inode: Inode, extents: list[Extent], start: int, end: int) -> list[Extent]:
        """The extents with those gaps filled whose blocks have been fetched before."""

    async def at_hand(
        self, inode: Inode, extents: list[Extent], start: int, end: int
    ) -> list[Extent] | None:
        """The extents with the gaps filled; None where a remote would have to be asked."""

    def observe(self, inode: Inode, start: int, end: int) -> None:
        """[start, end) is being read."""

    def lost(self, inode: Inode, chunk_id: bytes, start: int, end: int) -> bool:
        """A chunk is not in the store; whether it was a block, to be fetched again."""

    def closed(self, ino: int) -> None:
        """Nobody has the file open any more."""


class _Flight:
    """One chunk on its way."""

    __slots__ = ("data", "landed")

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.data: bytes | None = None


class _Stream:
    """How a file is being read.

    Where the next sequential read would begin, and what is fetched ahead.
    """

    __slots__ = ("ahead_to", "busy", "next", "run")

    def __init__(self) -> None:
        self.next = 0
        self.run = 0  # bytes read in sequence
        self.ahead_to = 0
        self.busy = False


class Reader:
    """Reads file content."""

    def __init__(
        self,
        store: BlockStore,
        content_of: Callable[[Inode], FileMap],
        threads: Threads,
        options: ReadOptions,
        projected: Projected | None = None,
    ) -> None:
        self._store = store
        self._content_of = content_of
        self._threads = threads
        self._options = options
        self._projected = projected
        self._flights: dict[ChunkId, _Flight] = {}
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self.stats = ReadStats()
        self._cold_streak = 0  # chunks in a row that the page cache did not have
        self._skipped = 0
        self.damaged_inodes: dict[int, str] = {}  # inode → what is wrong with it

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the read-ahead tasks until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def closed(self, ino: int) -> None:
        """Nobody has the file open any more."""
        self._streams.pop(ino, None)
        if self._projected is not None:
            self._projected.closed(ino)

    async def read(self, inode: Inode, offset: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes at `offset`, fewer only at the end of the file.

        Raises ChunkDamaged or ChunkMissing where bytes are lost, ReadTimeout where the disk does
        not answer.
        """
        end = min(offset + size, inode.size)
        if end <= offset:
            return b""
        content = self._content_of(inode)
        tried: set[bytes] = set()
        if inode.base_end > offset and self._projected is not None:
            self._projected.observe(inode, offset, end)
        for last in _TRIES:
            extents, fetched = await self._extents(inode, content, offset, end)
            try:
                chunks = await self._chunks(extents, fetched)
                break
            except ChunkMissing as error:
                # A block may have been evicted; and collection may have taken a chunk that the
                # file stopped using while we waited.
                block = self._projected is not None and self._projected.lost(
                    inode, error.chunk_id, offset, end
                )
                if last or not (block or error.chunk_id not in tried):
                    self._damaged(inode, error)
                    raise
                tried.add(error.chunk_id)
            except ChunkDamaged as error:
                self._damaged(inode, error)
                raise
        self._read_ahead(inode, content, offset, end)
        return assemble(extents, chunks, offset, end)

    async def at_hand(self, inode: Inode, start: int, end: int) -> list[Extent] | None:
        """What [start, end) of a file shows now, holes left out; None: some of it is far away.

        Of a file that has no base this is one state of it: nothing is awaited. Raises OrbitError.
        """
        extents = self._content_of(inode).extents(start, end)
        if inode.base_end <= start or self._projected is None:
            return extents
        return await self._projected.at_hand(inode, extents, start, end)

    async def read_long(self, inode: Inode, offset: int, size: int) -> bytes:
        """Like `read`, a piece at a time, for many bytes at once."""
        parts: list[bytes | memoryview] = []
        at, end = offset, offset + size
        while at < end and (part := await self.read(inode, at, min(_PIECE_BYTES, end - at))):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    async def _extents(
        self, inode: Inode, content: FileMap, start: int, end: int
    ) -> tuple[list[Extent], dict[bytes, bytes]]:
        extents = content.extents(start, end)
        if inode.base_end > start and self._projected is not None:
            return await self._projected.cover(inode, extents, start, end)
        return extents, {}

    def _damaged(self, inode: Inode, error: OrbitError) -> None:
        if len(self.damaged_inodes) < _DAMAGED_MAX:
            self.damaged_inodes[inode.ino] = str(error)

    async def _chunks(
        self, extents: Sequence[Extent], fetched: dict[bytes, bytes]
    ) -> dict[bytes, bytes]:
        """The decoded chunks that the extents show; `fetched` are in hand already."""
        found = dict(fetched)
        missing: list[ChunkId] = []
        cached = self._store.cached
        for _, _, source, _ in extents:
            if type(source) is Piece or source in found:
                continue
            chunk_id = ChunkId(source)  # type: ignore[arg-type]
            data = cached(chunk_id)
            if data is None:
                missing.append(chunk_id)
            else:
                found[chunk_id] = data
        if not missing:
            self.stats.from_memory += 1
            return found
        if len(missing) == 1 and missing[0] not in self._flights and self._try_page_cache():
            data = self._store.fetch_nowait(missing[0])
            if data is not None:
                self._cold_streak = 0
                self.stats.from_page_cache += 1
                found[missing[0]] = data
                return found
            self._cold_streak += 1
        self.stats.from_disk += 1
        with trio.move_on_after(self._options.deadline_s):
            return found | await self._fetch(list(dict.fromkeys(missing)))
        raise ReadTimeout(
            f"the disk did not answer within {self._options.deadline_s:g} s; look at the kernel log"
        )

    def _try_page_cache(self) -> bool:
        """Whether asking the page cache is worth its 40 µs: it rarely is after eight misses."""
        if self._cold_streak < 8:
            return True
        self._skipped = (self._skipped + 1) % 8
        return self._skipped == 0

    async def _fetch(self, wanted: list[ChunkId]) -> dict[bytes, bytes]:
        """One flight for each chunk, however many wait for it."""
        found: dict[bytes, bytes] = {}
        others = [(i, self._flights[i]) for i in wanted if i in self._flights]
        mine = [i for i in wanted if i not in self._flights]
        if mine:
            found |= await self._fly(mine)
        failed = []
        for chunk_id, flight in others:
            await flight.landed.wait()
            if flight.data is None:
                failed.append(chunk_id)  # it is our turn to find out why
            else:
                found[chunk_id] = flight.data
        if failed:
            found |= await self._fetch(failed)
        return found

    async def _fly(self, ids: list[ChunkId]) -> dict[bytes, bytes]:
        flights = {chunk_id: _Flight() for chunk_id in ids}
        self._flights.update(flights)
        found: dict[bytes, bytes] = {}
        try:
            kind = "stream" if len(ids) >= _STREAM_CHUNKS else "read"
            found.update((await self._threads.run(kind, self._store.fetch, ids)).items())
            return found
        finally:
            for chunk_id, flight in flights.items():
                flight.data = found.get(chunk_id)
                del self._flights[chunk_id]
                flight.landed.set()

    # --- read-ahead ----------------------------------------------------------------------------

    def _read_ahead(self, inode: Inode, content: FileMap, offset: int, end: int) -> None:
        window = self._options.read_ahead_bytes
        if not window or self._nursery is None:
            return
        stream = self._streams.get(inode.ino)
        if stream is None:
            stream = self._streams[inode.ino] = _Stream()
            if len(self._streams) > _STREAMS_MAX:
                self._streams.popitem(last=False)
        if stream.next - _SEQUENTIAL_SLACK <= offset <= stream.next + _SEQUENTIAL_SLACK and (
            offset or not stream.run
        ):
            stream.run += end - offset
            stream.next = max(stream.next, end)
        else:
            stream.run = end - offset
            stream.next = end
            stream.ahead_to = 0
        # A reader is sequential once it has read a good part of what it would be served ahead.
        if stream.run < 512 << 10 or stream.busy or end >= inode.size:
            return
        start = max(stream.ahead_to, stream.next)
        goal = min(stream.next + window, inode.size)
        if goal - start < min(window // 4, inode.size - start) or goal <= start:
            return
        ids = [
            ChunkId(source)
            for _, _, source, _ in self._known(inode, content, start, goal)
            if isinstance(source, bytes) and source not in self._flights
        ]
        ids = [i for i in dict.fromkeys(ids) if self._store.cached(i) is None]
        stream.ahead_to = goal
        if ids:
            stream.busy = True
            self.stats.ahead_chunks += len(ids)
            self._nursery.start_soon(self._fetch_ahead, stream, ids)

    def _known(self, inode: Inode, content: FileMap, start: int, end: int) -> list[Extent]:
        extents = content.extents(start, end)
        if inode.base_end > start and self._projected is not None:
            return self._projected.known(inode, extents, start, end)
        return extents

    async def _fetch_ahead(self, stream: _Stream, ids: list[ChunkId]) -> None:
        try:
            with trio.move_on_after(self._options.deadline_s):
                # In portions, so that who comes for the first chunks does not wait for the last.
                for at in range(0, len(ids), _PORTION_CHUNKS):
                    portion = ids[at : at + _PORTION_CHUNKS]
                    await self._fly([i for i in portion if i not in self._flights])
        except OrbitError:
            pass  # who needs the chunk meets the error
        finally:
            stream.busy = False


def assemble(
    extents: Sequence[Extent], chunks: Mapping[bytes, bytes], offset: int, end: int
) -> bytes | memoryview:
    """What the extents show of [offset, end), zeros where there are none."""
    if len(extents) == 1:
        start, stop, source, at = extents[0]
        if start == offset and stop == end:
            data = source.data if isinstance(source, Piece) else chunks[source]
            if at == 0 and len(data) == end - offset:
                return data
            return memoryview(data)[at : at + end - offset]
    parts: list[bytes | memoryview] = []
    position = offset
    for start, stop, source, at in extents:
        if start > position:
            parts.append(bytes(start - position))
        data = source.data if isinstance(source, Piece) else chunks[source]
        if at == 0 and len(data) == stop - start:
            parts.append(data)
        else:
            parts.append(memoryview(data)[at : at + stop - start])
        position = stop
    if position < end:
        parts.append(bytes(end - position))
    return b"".join(parts)

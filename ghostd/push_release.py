"""Makes what was pushed part of the cache: own bytes of files that are as their remote has them.

What was written here lies in the store as the file's own, and stays when it has been pushed. Once
the remote has it, it can be had again, like everything else that a projection shows: it is copied
into blocks of the version that was pushed, and the own extents are dropped. From then on the limits
of the cache hold for it. The copy may be lost, it is a cache; dropping the extents, showing the
base and naming the blocks are one epoch.

What is to be done is known from the namespace alone, so a daemon that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

import structlog
import trio

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError, StorageFull
from blockstore.ids import ChunkId, chunk_id
from blockstore.store import BlockStore
from ghostd.entangler import Entangler, gaps
from ghostd.errors import RemoteVersionGone, StaleHandle
from ghostd.filemap import SEGMENT_BYTES, Extent, Piece
from ghostd.inodes import FLAG_LOCAL, Inode
from ghostd.projections import Projections
from ghostd.push_watch import PushWatch
from ghostd.remote_rows import ID_BYTES, NEVER, PART_BLOCKS, VersionRow
from ghostd.residency import known_parts
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.writeback import Writeback

log = structlog.get_logger(__name__)

_PAUSE_S: Final = 2.0  # what is pushed together is looked for together
_PAGE: Final = 200  # inodes asked for at once
_SEGMENTS: Final = 64  # likewise
_DIRTY_ROWS_MAX: Final = 20_000
_SHARE_MAX: Final = 4  # a file larger than this part of the cache would only push out the rest
_COLLECT_BYTES: Final = 1 << 30  # less own bytes than this are not worth a collection

_PENDING: Final = (
    "SELECT i.ino FROM inodes i JOIN versions v ON v.id = i.base"
    " WHERE i.projection > 0 AND i.allocated > 0 AND i.flags & 2 = 0"
    " AND i.projection = ? AND i.ino > ? AND i.nlink = 1 AND v.pinned = 0 ORDER BY i.ino LIMIT ?"
)


class Releaser:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        store: BlockStore,
        threads: Threads,
        entangler: Entangler,
        projections: Projections,
        watch: PushWatch,
        collect: Callable[[], Awaitable[object]],
        *,
        waste_max: float,
    ) -> None:
        """`collect` frees own bytes that nothing shows: called when `waste_max` of them are."""
        self._tree = tree
        self._writeback = writeback
        self._store = store
        self._threads = threads
        self._entangler = entangler
        self._projections = projections
        self._watch = watch
        self._collect = collect
        self._waste_max = waste_max
        self._pushed: set[int] = set()  # projections with files that have been pushed
        self._news = trio.Event()
        self._released_bytes = 0  # since the last collection

    def pushed(self, projection: int) -> None:
        """A file of it is as the remote has it."""
        self._pushed.add(projection)
        self._news.set()

    async def run(self) -> None:
        """Release what has been pushed, until cancelled."""
        self._pushed.update(each.row.id for each in self._projections.all() if each.row.writable)
        while True:
            while self._pushed:
                try:
                    await self.release(self._pushed.pop())
                    await self._make_room()
                except OrbitError as error:
                    log.warning("what was pushed still takes its space", error=str(error))
            await self._news.wait()
            self._news = trio.Event()
            await trio.sleep(_PAUSE_S)

    async def release(self, projection: int) -> None:
        """All files of a projection that are as its remote has them. Raises StorageFailed."""
        await self._writeback.commit()  # what has been pushed is told by the database
        after = 0
        while page := self._tree.namespace.query(_PENDING, (projection, after, _PAGE)):
            for (after,) in page:
                try:
                    await self._release(after)
                except (StaleHandle, RemoteVersionGone):
                    continue  # it was deleted meanwhile, or its projection
                if self._tree.dirty_ops > _DIRTY_ROWS_MAX:
                    await self._writeback.commit()
        await self._writeback.commit()

    async def _make_room(self) -> None:
        """Collect once a good part of the own data is not needed any more."""
        own = self._store.stats().pack_bytes
        if self._released_bytes > max(_COLLECT_BYTES, self._waste_max * own):
            await self._collect()
            self._released_bytes = 0

    # --- one file ------------------------------------------------------------------------------

    async def _release(self, ino: int) -> None:
        inode = self._tree.inode(ino)
        row = self._pushed_version(inode)
        if row is None:
            return
        token = self._watch.begin(ino)
        inode.opens += 1  # it stays in memory; nobody is told that it was closed
        try:
            parts = await self._parts(inode, row)
            # From here on nothing awaits.
            if self._watch.unchanged(ino, token) and self._pushed_version(inode) == row:
                self._watch.end(ino)
                self._drop(inode, row, parts)
        finally:
            inode.opens -= 1
            self._tree.reap(inode)

    def _pushed_version(self, inode: Inode) -> VersionRow | None:
        """The version at the remote that the file is, byte by byte; None: it is not, or may stay.

        Of several names only one has the version. What is pinned is here anyway, durably. A version
        that nothing tells from others could not be fetched again.
        """
        if not inode.is_file or inode.flags & FLAG_LOCAL or inode.nlink != 1:
            return None
        projection = self._projections.get(inode.projection)
        if projection is None or projection.stored is not None or inode.base != inode.ino:
            return None
        row = self._tree.remote.versions.get(inode.base)
        if row is None or row.pinned or row.size != inode.size or not inode.allocated:
            return None
        return row if row.etag or row.mtime_ns else None

    async def _parts(self, inode: Inode, row: VersionRow) -> dict[int, bytes | None]:
        """Rows of `blocks` for the parts of the file that were written here."""
        projection = self._projections.get(inode.projection)
        assert projection is not None
        size = projection.row.block_bytes
        part_bytes = size * PART_BLOCKS
        # Behind the base's end lie holes, and what a longer version had there.
        first = inode.base_end // part_bytes
        wanted = dict.fromkeys(
            part for part in known_parts(self._tree, inode.ino, row.size, size) if part >= first
        )
        for number in self._segments(inode):
            start, end = number * SEGMENT_BYTES, min((number + 1) * SEGMENT_BYTES, row.size)
            wanted.update(dict.fromkeys(range(start // part_bytes, (end - 1) // part_bytes + 1)))
        keep = row.size <= self._store.options.fetched.bytes_max // _SHARE_MAX
        found: dict[int, bytes | None] = {}
        for part in wanted:
            await trio.lowlevel.checkpoint()
            found[part] = await self._part(inode, row, part, size) if keep else None
        return found

    def _segments(self, inode: Inode) -> Iterator[int]:
        content, after = self._tree.content(inode), 0
        while numbers := content.numbers(after, _SEGMENTS):
            yield from numbers
            after = numbers[-1] + 1

    async def _part(self, inode: Inode, row: VersionRow, part: int, size: int) -> bytes | None:
        content = self._tree.content(inode)
        old = self._tree.remote.blocks.get((inode.ino, part)) or b""
        ids = bytearray(old.ljust(PART_BLOCKS * ID_BYTES, b"\0"))
        for at in range(PART_BLOCKS):
            start = (part * PART_BLOCKS + at) * size
            end = min(start + size, row.size)
            if start >= end:
                ids[at * ID_BYTES :] = NEVER * (PART_BLOCKS - at)
                break
            own = content.extents(start, end)
            if own or end > inode.base_end:
                name = await self._block(inode, own, start, end)
                ids[at * ID_BYTES : (at + 1) * ID_BYTES] = name or NEVER
        return bytes(ids) if any(ids) else None

    async def _block(self, inode: Inode, own: list[Extent], start: int, end: int) -> bytes | None:
        """Copy what a file shows into the cache; None: not all of it is here, or has room there."""
        shown = self._entangler.known(inode, own, start, end)
        if any(True for _ in gaps(shown, start, min(end, inode.base_end))):
            return None
        try:
            return await self._threads.run("keep", _copied, self._store, shown, start, end)
        except (ChunkMissing, ChunkDamaged, StorageFull):
            return None

    def _drop(self, inode: Inode, row: VersionRow, parts: dict[int, bytes | None]) -> None:
        tree = self._tree
        content = tree.content(inode)
        unstored = content.unstored
        self._released_bytes += inode.allocated
        inode.allocated = content.truncate(0, inode.allocated)
        inode.base_end, inode.base_holes = row.size, 0
        for part, ids in parts.items():
            tree.remote.blocks.set((inode.ino, part), ids)
        tree.touch(inode)
        tree.touch_content(inode, unstored)
        self._writeback.freed()


def _copied(store: BlockStore, shown: Sequence[Extent], start: int, end: int) -> ChunkId:
    """In a thread: put one block together and keep it, also where own data has the same bytes."""
    chunks = store.fetch(list(_names(shown)))
    block = bytearray(end - start)
    for low, high, source, offset in shown:
        data = source.data if isinstance(source, Piece) else chunks[ChunkId(source)]
        block[low - start : high - start] = memoryview(data)[offset : offset + high - low]
    name = chunk_id(block)
    store.keep_fetched({name: block}, owned=True)
    return name


def _names(extents: Iterable[Extent]) -> Iterator[ChunkId]:
    for _, _, source, _ in extents:
        if isinstance(source, bytes):
            yield ChunkId(source)

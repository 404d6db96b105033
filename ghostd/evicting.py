"""Takes blocks of projected files out of the cache, on request. Pinned files are left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.cache_keeper import PinnedBlocks
from ghostd.inodes import FLAG_PINNED
from ghostd.projection import Projection
from ghostd.projection_facade import Evicted, Unpinned
from ghostd.remote_rows import PART_BLOCKS
from ghostd.residency import known_parts, part_blocks
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.tree_walk import Seen, Walk, find_path, still_there
from ghostd.writeback import Writeback

_BATCH = 8_192  # blocks that the store forgets at once
_DIRTY_ROWS_MAX = 20_000


class _Batch:
    """Blocks to go, and what has gone."""

    def __init__(self) -> None:
        self.blocks: dict[ChunkId, int] = {}  # bytes
        self.files = self.gone = self.gone_bytes = self.pinned = 0


class Evictor:
    """Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        writeback: Writeback,
        store: BlockStore,
        threads: Threads,
        projection_of: Callable[[int], Projection | None],
    ) -> None:
        self._tree = tree
        self._writeback = writeback
        self._store = store
        self._threads = threads
        self._projection_of = projection_of
        self._pinned = PinnedBlocks(tree.namespace)

    async def evict(self, paths: Iterable[bytes]) -> Evicted:
        """Drop the blocks of everything below the paths. Asks no remote.

        A block that another file shows, too, goes as well and is fetched again for it, unless that
        one is pinned. Raises NotFound, NotADirectory, StorageFull, StorageFailed.
        """
        began = time.monotonic()
        await self._writeback.commit()  # what is pinned is told by the database
        tops = [find_path(self._tree, path) for path in paths]
        batch = _Batch()
        found, walk = tops, Walk(self._tree, tops)
        while found:
            for entry in found:
                if entry.base and entry.is_file and still_there(self._tree, entry):
                    await self._evict_file(batch, entry)
            found = await walk.slice()
        await self._settle(batch)
        await self._writeback.commit()
        return Evicted(
            files=batch.files,
            blocks=batch.gone,
            bytes=batch.gone_bytes,
            pinned_files=batch.pinned,
            seconds=time.monotonic() - began,
        )

    async def _evict_file(self, batch: _Batch, entry: Seen) -> None:
        rows = self._tree.remote
        projection = self._projection_of(entry.projection)
        version = rows.versions.get(entry.base)
        if projection is None or version is None:
            return
        if version.pinned:
            batch.pinned += 1
            return
        size = projection.row.block_bytes
        had = False
        for part in known_parts(self._tree, entry.base, version.size, size):
            if rows.blocks.get((entry.base, part)) is None:
                continue
            for number, name in part_blocks(self._tree, entry.base, part):
                had = True
                batch.blocks[name] = min(size, version.size - number * size)
            # First the rows: who reads meanwhile fetches again.
            rows.blocks.set((entry.base, part), None)
            if len(batch.blocks) > _BATCH - PART_BLOCKS:
                await self._settle(batch)
                if not still_there(self._tree, entry):
                    return
        batch.files += had

    async def _settle(self, batch: _Batch) -> None:
        blocks, batch.blocks = batch.blocks, {}
        if blocks:
            here = await self._threads.run("encode", self._forget, list(blocks))
            batch.gone += len(here)
            batch.gone_bytes += sum(blocks[name] for name in here)
        if self._tree.dirty_ops > _DIRTY_ROWS_MAX:
            await self._writeback.commit()

    def _forget(self, names: list[ChunkId]) -> list[ChunkId]:
        """In a thread: take blocks out of the cache; which ones were there."""
        pinned = self._pinned(names)
        names = [name for name in names if name not in pinned]
        resident = self._store.resident(names)
        self._store.evict(names)
        return [name for name, here in zip(names, resident, strict=True) if here]

    async def unpin(self, paths: Iterable[bytes]) -> Unpinned:
        """Let everything below the paths be evicted again. Raises NotFound, NotADirectory."""
        tops = [find_path(self._tree, path) for path in paths]
        files = 0
        found, walk = tops, Walk(self._tree, tops)
        while found:
            for entry in found:
                if entry.is_dir and entry.flags & FLAG_PINNED:
                    inode = self._tree.inode(entry.ino)
                    inode.flags &= ~FLAG_PINNED
                    self._tree.touch(inode)
                row = self._tree.remote.versions.get(entry.base) if entry.base else None
                if row is not None and row.pinned:
                    self._tree.remote.versions.set(entry.base, row._replace(pinned=0))
                    files += 1
            if self._tree.dirty_ops > _DIRTY_ROWS_MAX:
                await self._writeback.commit()
            found = await walk.slice()
        await self._writeback.commit()
        return Unpinned(files)

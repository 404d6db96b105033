"""Maps a read of a projected file to blocks, and waits for those that are not here.

A file shows its own extents over its base: where it has none, the blocks of the remote version do,
up to `base_end`. A block is a chunk like any other once it is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import trio

from blockstore.ids import ChunkId
from ghostd.errors import RemoteVersionGone
from ghostd.fetch_plan import blocks_wanted
from ghostd.fetcher import Fetcher
from ghostd.filemap import Extent
from ghostd.inodes import Inode
from ghostd.projection import Projection
from ghostd.remote_rows import RemoteRows
from ghostd.snapshot_remote import SnapshotRemote
from syncer.remotes.errors import Changed, Missing, Unreachable


def gaps(extents: Sequence[Extent], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that no extent shows."""
    at = start
    for low, high, _, _ in extents:
        if low >= end:
            break
        if low > at:
            yield at, low
        at = max(at, high)
    if at < end:
        yield at, end


def _in_order(extents: list[Extent]) -> list[Extent]:
    extents.sort(key=lambda extent: extent[0])
    return extents


class Entangler:
    """Fills the holes of projected files with blocks. Owned by the filesystem's loop."""

    def __init__(
        self,
        rows: RemoteRows,
        fetcher: Fetcher,
        projection_of: Callable[[int], Projection | None],
        deadline_s: float,
    ) -> None:
        self._rows = rows
        self._fetcher = fetcher
        self._projection_of = projection_of
        self._deadline_s = deadline_s

    async def cover(
        self, inode: Inode, extents: list[Extent], start: int, end: int
    ) -> tuple[list[Extent], dict[bytes, bytes]]:
        """The extents with the gaps filled, and the blocks that were fetched for it.

        Raises RemoteError, RemoteVersionGone.
        """
        stored = self._stored(inode)
        if stored is not None:
            return await self._cover_stored(stored, inode, extents, start, end), {}
        numbers = self._numbers(inode, extents, start, end)
        # What is here is named before the wait: evicted meanwhile, it is missed by its name. A gap
        # that stays open would be read as zeros.
        ids = {number: self._rows.block(inode.base, number) for number in numbers}
        unstored = self._fetcher.unstored
        data = {name: unstored[name] for name in ids.values() if name in unstored}
        missing = [number for number, chunk_id in ids.items() if chunk_id is None]
        if missing:
            for number, (chunk_id, block) in (await self._fetch(inode, missing)).items():
                ids[number] = chunk_id
                data[chunk_id] = block
        return self._filled(inode, extents, start, end, ids), data

    def _stored(self, inode: Inode) -> SnapshotRemote | None:
        projection = self._projection_of(inode.projection)
        return None if projection is None else projection.stored

    async def _cover_stored(
        self, stored: SnapshotRemote, inode: Inode, extents: list[Extent], start: int, end: int
    ) -> list[Extent]:
        """The gaps filled with what the base has there; what stays open is a hole."""
        row = self._rows.versions.get(inode.base)
        if row is None:
            raise RemoteVersionGone("the projection that the file came from has been taken away")
        filled = list(extents)
        try:
            for low, high in gaps(extents, start, min(end, inode.base_end)):
                filled += await stored.extents(row.key, row.version, low, high)
        except (Missing, Changed) as error:
            raise RemoteVersionGone(str(error)) from None
        return _in_order(filled)

    def known(self, inode: Inode, extents: list[Extent], start: int, end: int) -> list[Extent]:
        """The extents with those gaps filled whose blocks have been fetched before."""
        if inode.base_end <= start:
            return extents
        stored, row = self._stored(inode), self._rows.versions.get(inode.base)
        if stored is not None:
            if row is None:
                return extents
            filled = list(extents)
            for low, high in gaps(extents, start, min(end, inode.base_end)):
                filled += stored.known_extents(row.version, low, high)
            return _in_order(filled)
        numbers = self._numbers(inode, extents, start, end)
        ids = {number: self._rows.block(inode.base, number) for number in numbers}
        return self._filled(inode, extents, start, end, ids)

    async def at_hand(
        self, inode: Inode, extents: list[Extent], start: int, end: int
    ) -> list[Extent] | None:
        """The extents with the gaps filled, if no remote has to be asked for it; else None.

        Raises RemoteVersionGone.
        """
        stored = self._stored(inode)
        if stored is not None:
            return await self._cover_stored(stored, inode, extents, start, end)
        filled = self.known(inode, extents, start, end)
        lacking = next(gaps(filled, start, min(end, inode.base_end)), None)
        return filled if lacking is None else None

    def observe(self, inode: Inode, start: int, end: int) -> None:
        """A read of [start, end) is being answered: fetch ahead what its pattern suggests."""
        projection = self._projection_of(inode.projection)
        row = self._rows.versions.get(inode.base)
        if projection is not None and row is not None and projection.stored is None:
            self._fetcher.observe(projection, inode, row, start, end)

    def closed(self, ino: int) -> None:
        """Nobody has the file open any more."""
        self._fetcher.closed(ino)

    def lost(self, inode: Inode, chunk_id: bytes, start: int, end: int) -> bool:
        """A chunk is not in the store; whether it was a block, to be fetched again."""
        if inode.base_end <= start:
            return False
        stored, row = self._stored(inode), self._rows.versions.get(inode.base)
        if stored is not None:
            if row is not None:
                stored.forget(row.version)  # the snapshot may be gone: that is told next
            return False
        found = False
        for number in self._numbers(inode, [], start, end):
            if self._rows.block(inode.base, number) == chunk_id:
                self._rows.set_block(inode.base, number, None)
                found = True
        return found

    def _numbers(self, inode: Inode, extents: Sequence[Extent], start: int, end: int) -> list[int]:
        projection = self._projection_of(inode.projection)
        if projection is None:
            raise RemoteVersionGone("the projection that the file came from has been taken away")
        size = projection.row.block_bytes
        found: dict[int, None] = {}
        for low, high in gaps(extents, start, min(end, inode.base_end)):
            found.update(dict.fromkeys(range(low // size, (high - 1) // size + 1)))
        return list(found)

    def _filled(
        self,
        inode: Inode,
        extents: Sequence[Extent],
        start: int,
        end: int,
        ids: dict[int, bytes | None],
    ) -> list[Extent]:
        projection = self._projection_of(inode.projection)
        assert projection is not None
        size = projection.row.block_bytes
        filled = list(extents)
        for low, high in gaps(extents, start, min(end, inode.base_end)):
            for number in range(low // size, (high - 1) // size + 1):
                chunk_id = ids.get(number)
                if chunk_id is not None:
                    first = max(low, number * size)
                    last = min(high, (number + 1) * size)
                    filled.append((first, last, chunk_id, first - number * size))
        return _in_order(filled)

    async def _fetch(self, inode: Inode, numbers: list[int]) -> dict[int, tuple[ChunkId, bytes]]:
        projection = self._projection_of(inode.projection)
        row = self._rows.versions.get(inode.base)
        if projection is None or row is None:
            raise RemoteVersionGone("the projection that the file came from has been taken away")
        # A small file comes whole, in one request.
        size = projection.row.block_bytes
        wanted = blocks_wanted(numbers[0] * size, (numbers[-1] + 1) * size, row.size, size)
        if len(wanted) > len(numbers):
            more = (n for n in wanted if self._rows.block(inode.base, n) is None)
            numbers = sorted({*numbers, *more})
        with trio.move_on_after(self._deadline_s):
            return await self._fetcher.demand(projection, inode.base, row, numbers)
        error = Unreachable(
            f"{projection.url}: no answer within {self._deadline_s:g} s; what is not here yet"
            " cannot be read until the remote is back"
        )
        projection.failed(error)
        raise error

"""Which share of a file, or of everything below a path, is here: local, pinned, dirty.

A projected file shows its own extents over the blocks of its base. What is *missing* are the bytes
of blocks that are not resident and that no own extent hides; everything else is local, holes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.entangler import gaps
from ghostd.projection import Projection
from ghostd.projection_facade import Residency
from ghostd.remote_rows import ID_BYTES, NEVER, PART_BLOCKS
from ghostd.threads import Threads
from ghostd.tree import Tree
from ghostd.tree_walk import Seen, Walk, find_path
from orbit_paths import path_to_text

_BATCH = 1_024  # blocks that the store is asked for at once
_FEW_PARTS = 64  # of a file: looked up one by one

Resident = Callable[[Sequence[ChunkId]], list[bool]]


def known_parts(tree: Tree, version: int, size: int, block_bytes: int) -> Iterator[int]:
    """The parts (of 64 blocks each) of a version of which any block may have been fetched."""
    blocks = -(-size // block_bytes)
    parts = -(-blocks // PART_BLOCKS)
    if parts <= _FEW_PARTS:
        yield from range(parts)
        return
    staged = {part for (number, part), ids in tree.remote.blocks.changed().items()
              if number == version and ids}  # fmt: skip
    after = -1
    while True:
        page = [
            part
            for (part,) in tree.namespace.query(
                "SELECT part FROM blocks WHERE version = ? AND part > ? ORDER BY part LIMIT ?",
                (version, after, _FEW_PARTS),
            )
        ]
        last = len(page) < _FEW_PARTS
        until = parts if last else page[-1]
        yield from sorted({*page, *(part for part in staged if after < part <= until)})
        if last:
            return
        after = until


def part_blocks(tree: Tree, version: int, part: int) -> list[tuple[int, ChunkId]]:
    """(number, chunk id) of the blocks of a part that have been fetched some time."""
    ids = tree.remote.blocks.get((version, part))
    if ids is None:
        return []
    found = []
    for at in range(len(ids) // ID_BYTES):
        name = ids[at * ID_BYTES : (at + 1) * ID_BYTES]
        if name != NEVER:
            found.append((part * PART_BLOCKS + at, ChunkId(name)))
    return found


def shown_of_blocks(
    tree: Tree, file: Seen, numbers: Sequence[int], block_bytes: int
) -> list[tuple[int, int]]:
    """(number, bytes of it that the file shows) for blocks of its base, of one part."""
    spans = [
        (number, number * block_bytes, min((number + 1) * block_bytes, file.base_end))
        for number in numbers
    ]
    spans = [span for span in spans if span[1] < span[2]]
    if not file.allocated or not spans:
        return [(number, end - start) for number, start, end in spans]
    extents = tree.content(tree.inode(file.ino)).extents(spans[0][1], spans[-1][2])
    shown = []
    for number, start, end in spans:
        inside = [each for each in extents if each[1] > start and each[0] < end]
        shown.append((number, sum(high - low for low, high in gaps(inside, start, end))))
    return shown


def base_shown(file: Seen) -> int:
    """How many bytes of its base a file shows.

    Own bytes are taken to lie behind the base first, where appending puts them.
    """
    behind = min(file.allocated, max(0, file.size - file.base_end))
    return max(0, file.base_end - (file.allocated - behind))


class ResidencyCount:
    """Counts for `orbit-ctl residency`. Owned by the filesystem's loop."""

    def __init__(
        self,
        tree: Tree,
        store: BlockStore,
        threads: Threads,
        projection_of: Callable[[int], Projection | None],
    ) -> None:
        self._tree = tree
        self._store = store
        self._threads = threads
        self._projection_of = projection_of

    async def of(self, paths: Iterable[bytes]) -> list[Residency]:
        """One answer for each path. Raises NotFound, NotADirectory; asks no remote."""
        return [await self._of(path) for path in paths]

    async def _of(self, path: bytes) -> Residency:
        top = find_path(self._tree, path)
        count = _Count()
        walk = Walk(self._tree, [top])
        found = [top]
        while found:
            for entry in found:
                await self._add(count, entry)
            found = await walk.slice()
        await self._settle(count)
        return Residency(
            path=path_to_text(top.path),
            files=count.files,
            directories=count.directories,
            unlisted_directories=count.unlisted,
            bytes=count.bytes,
            local_bytes=count.bytes - count.missing,
            pinned_files=count.pinned_files,
            pinned_bytes=count.pinned_bytes,
            dirty_files=count.dirty_files,
            dirty_bytes=count.dirty_bytes,
        )

    async def _add(self, count: _Count, entry: Seen) -> None:
        rows = self._tree.remote
        if entry.is_dir:
            count.directories += 1
            row = rows.dirs.get(entry.ino) if entry.projection else None
            count.unlisted += row is not None and not row.listed_ns
            return
        count.files += 1
        count.bytes += entry.size
        if entry.is_local:
            count.dirty_files += 1
            count.dirty_bytes += entry.allocated
        if not entry.base:
            return
        projection = self._projection_of(entry.projection)
        version = rows.versions.get(entry.base)
        if version is not None and version.pinned:
            count.pinned_files += 1
            count.pinned_bytes += entry.size
        if projection is not None and projection.stored is not None:
            return  # all of it is here
        count.missing += base_shown(entry)
        if projection is None or version is None:
            return
        size = projection.row.block_bytes
        for part in known_parts(self._tree, entry.base, entry.base_end, size):
            blocks = dict(part_blocks(self._tree, entry.base, part))
            for number, shown in shown_of_blocks(self._tree, entry, list(blocks), size):
                count.pending.append((blocks[number], shown))
            if len(count.pending) >= _BATCH:
                await self._settle(count)

    async def _settle(self, count: _Count) -> None:
        pending, count.pending = count.pending, []
        if not pending:
            return
        resident = await self._threads.run(
            "read", self._store.resident, [name for name, _ in pending]
        )
        count.missing -= sum(
            shown for (_, shown), here in zip(pending, resident, strict=True) if here
        )


class _Count:
    """What has been counted so far."""

    def __init__(self) -> None:
        self.files = self.directories = self.unlisted = 0
        self.bytes = self.missing = 0
        self.pinned_files = self.pinned_bytes = 0
        self.dirty_files = self.dirty_bytes = 0
        self.pending: list[tuple[ChunkId, int]] = []  # blocks that may be here, bytes shown

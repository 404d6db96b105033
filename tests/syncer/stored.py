"""What the tests of trees in stores share: a store in memory, nodes and trees drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from blockstore import chunk_id
from blockstore.chunker import Chunker, ChunkerParams
from blockstore.errors import ChunkMissing
from blockstore.ids import MAX_CHUNK, Buffer, ChunkId
from syncer.recipes import EXTENTS_INLINE_MAX, Extent, Recipe
from syncer.tree import NodeKind
from syncer.tree_objects import Entry


class MemoryStore:
    """A ChunkStore in memory that counts what it is given."""

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, bytes] = {}
        self.put_count = 0
        self.new: list[ChunkId] = []
        self.synced: set[ChunkId] = set()
        self._chunker = Chunker(ChunkerParams())

    def cut(self, data: Buffer) -> list[int]:
        return self._chunker.cut(data)

    def put(self, chunks: Sequence[Buffer]) -> list[ChunkId]:
        ids = []
        for chunk in chunks:
            assert 0 < len(chunk) <= MAX_CHUNK
            name = chunk_id(chunk)
            if name not in self.chunks:
                self.chunks[name] = bytes(chunk)
                self.new.append(name)
            ids.append(name)
            self.put_count += 1
        return ids

    def contains(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        return {name for name in ids if name in self.chunks}

    def fetch(self, ids: Sequence[ChunkId]) -> dict[ChunkId, bytes]:
        for name in ids:
            if name not in self.chunks:
                raise ChunkMissing(name)
        return {name: self.chunks[name] for name in ids}

    def sync(self) -> None:
        self.synced.update(self.chunks)


ids = st.binary(min_size=32, max_size=32).filter(any).map(ChunkId)
names = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."}
)
numbers = st.integers(0, (1 << 32) - 2)
times = st.integers(-(1 << 62), 1 << 62)


@st.composite
def extent_lists(draw: st.DrawFn, max_size: int = 40) -> list[Extent]:
    """Extents as a file can have them: ascending, with holes and slices."""
    extents = []
    at = 0
    few = draw(st.lists(ids, min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, max_size))):
        at += draw(st.sampled_from((0, 0, 0, 1, 4096)))
        length = draw(st.integers(1, 100_000))
        offset = draw(st.sampled_from((0, 0, 0, 7)))
        extents.append(Extent(at, length, offset, draw(st.sampled_from(few) | ids)))
        at += length
    return extents


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Any entry that can be written."""
    kind = draw(st.sampled_from(NodeKind))
    maybe = {
        "mtime_ns": draw(st.none() | times),
        "mode": draw(st.none() | st.integers(0, 0o7777)),
        "uid": draw(st.none() | numbers),
        "gid": draw(st.none() | numbers),
        "owner": draw(st.none() | st.text(max_size=20)),
        "group": draw(st.none() | st.text(max_size=20)),
        "rdev": draw(st.sampled_from((0, 0, 259, 1 << 40))),
        "link": draw(st.sampled_from((0, 0, 1, (1 << 64) - 1))),
        "ctime_ns": draw(st.none() | times),
        "btime_ns": draw(st.none() | times),
    }
    xattrs = draw(
        st.none() | st.dictionaries(names, st.binary(max_size=30), min_size=1, max_size=3)
    )
    if kind is NodeKind.FILE:
        extents = draw(extent_lists(EXTENTS_INLINE_MAX))
        end = extents[-1].start + extents[-1].length if extents else 0
        recipe = Recipe(tuple(extents))
        if draw(st.booleans()):
            recipe = Recipe(root=draw(ids))
        more = {"size": end + draw(st.sampled_from((0, 5))), "recipe": recipe}
    elif kind is NodeKind.DIRECTORY:
        count = st.integers(0, 1 << 40)
        more = {"child": draw(ids), "size": draw(count), "nodes": draw(count), "files": draw(count)}
    elif kind is NodeKind.SYMLINK:
        more = {"target": draw(st.binary(max_size=40))}
    else:
        more = {}
    return Entry(draw(names), kind, **maybe, **more, xattrs=xattrs)  # type: ignore[arg-type]


def sorted_entries(drawn: Iterable[Entry]) -> list[Entry]:
    """Each name once, in order."""
    return [entry for _, entry in sorted({entry.name: entry for entry in drawn}.items())]

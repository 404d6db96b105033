"""Reads trees out of a store: entries by path, listings, bytes of files. Blocks: for threads.

Decoded directory objects and the chunks at the edges of reads are kept, bounded; a `SnapshotReader`
may serve several threads at once. Raises RemoteErrors, see `reading`.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from blockstore.errors import ChunkDamaged, ChunkMissing, FormatTooNew, StorageFailed
from blockstore.ids import ChunkId
from syncer.chunks import ChunkStore
from syncer.recipes import Extent, Recipe, TreeDamaged, leaves
from syncer.remotes.errors import Missing, Unreachable, Unsupported
from syncer.tree import NodeKind
from syncer.tree_objects import (
    Child,
    Entry,
    Index,
    Leaf,
    decode_directory,
    decode_root,
    decode_xattrs,
)

_ENTRIES_KEPT: Final = 32_768  # decoded, some 30 MB
_CHUNK_BYTES_KEPT: Final = 16 << 20
_FETCH_CHUNKS: Final = 128  # at once: 8 MiB of content
_XATTRS_MAX: Final = 64 << 20  # bytes of one node's; more is damage

_V = TypeVar("_V")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn the store's errors into those of trees."""
    try:
        yield
    except (ChunkMissing, ChunkDamaged) as error:
        raise TreeDamaged(f"{what}: {error}") from error
    except StorageFailed as error:
        raise Unreachable(f"{what}: {error}") from error
    except FormatTooNew as error:
        raise Unsupported(f"{what}: {error}") from error


class _Kept(Generic[_V]):
    """Least recently used values, bounded by their weights. Thread-safe."""

    def __init__(self, weight_max: int) -> None:
        self._max = weight_max
        self._weight = 0
        self._values: OrderedDict[ChunkId, tuple[_V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: ChunkId) -> _V | None:
        with self._lock:
            found = self._values.get(name)
            if found is None:
                return None
            self._values.move_to_end(name)
            return found[0]

    def add(self, name: ChunkId, value: _V, weight: int) -> None:
        with self._lock:
            if name in self._values:
                return
            self._values[name] = (value, weight)
            self._weight += weight
            while self._weight > self._max and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]


class SnapshotReader:
    """The tree below one root."""

    def __init__(self, store: ChunkStore, root: ChunkId) -> None:
        """Reads nothing yet. `root` is what `TreeWriter.root` returned."""
        self._store = store
        self._root = root
        self._top: Entry | None = None
        self._objects: _Kept[Leaf | Index] = _Kept(_ENTRIES_KEPT)
        self._chunks: _Kept[bytes] = _Kept(_CHUNK_BYTES_KEPT)

    @property
    def top(self) -> Entry:
        """The root's own entry: a directory, or the one node that the tree is."""
        if self._top is None:
            with reading("the root of a tree"):
                self._top = decode_root(self._store.fetch([self._root])[self._root])
        return self._top

    # ---- directories ----

    def _object(self, name: ChunkId, level: int | None) -> Leaf | Index:
        """Read a directory's object; `level`: what its parent says, None for the top."""
        found = self._objects.get(name)
        if found is None:
            with reading("a directory"):
                found = decode_directory(self._store.fetch([name])[name])
            size = len(found.entries) if isinstance(found, Leaf) else len(found.children)
            self._objects.add(name, found, size + 8)
        at = found.level if isinstance(found, Index) else 0
        if level is not None and at != level:
            raise TreeDamaged("an object of a directory is not what its index says")
        return found

    def leaves(
        self, directory: Entry, after: bytes = b""
    ) -> Iterator[tuple[ChunkId, Sequence[Entry]]]:
        """Yield the leaves of a directory with their ids, from the one on that may hold `after`."""
        if directory.child is None:
            raise Unsupported(f"{directory.name!r} is no directory")
        todo: list[tuple[ChunkId, int | None]] = [(directory.child, None)]
        while todo:
            name, level = todo.pop()
            found = self._object(name, level)
            if isinstance(found, Index):
                first = max(0, bisect_right(found.children, after, key=_first) - 1)
                todo += [(c.id, found.level - 1) for c in reversed(found.children[first:])]
            else:
                yield name, found.entries

    def pages(self, directory: Entry, after: bytes = b"") -> Iterator[Sequence[Entry]]:
        """Yield the entries of a directory whose names come after `after`, in order."""
        for _, entries in self.leaves(directory, after):
            page = entries[bisect_right(entries, after, key=_name) :] if after else entries
            if page:
                yield page

    def child(self, directory: Entry, name: bytes) -> Entry | None:
        """Return one entry of a directory, None where there is none of that name."""
        if directory.child is None:
            return None
        found = self._object(directory.child, None)
        while isinstance(found, Index):
            at = bisect_right(found.children, name, key=_first) - 1
            if at < 0:
                return None
            found = self._object(found.children[at].id, found.level - 1)
        at = bisect_left(found.entries, name, key=_name)
        if at < len(found.entries) and found.entries[at].name == name:
            return found.entries[at]
        return None

    def resolve(self, path: bytes) -> Entry:
        """Return the entry at a path; symlinks are not followed. Raises Missing."""
        entry = self.top
        for name in path.split(b"/") if path else []:
            below = self.child(entry, name)
            if below is None:
                raise Missing(f"{path.decode(errors='backslashreplace')} is not in the snapshot")
            entry = below
        return entry

    # ---- files ----

    def chunks(self, names: Sequence[ChunkId]) -> dict[ChunkId, bytes]:
        """Return chunks, verified; who names them keeps them."""
        with reading("a file"):
            return self._store.fetch(names)

    def _load(self, names: Sequence[ChunkId]) -> dict[ChunkId, bytes]:
        return self._store.fetch(names)

    def extents(
        self, entry: Entry, start: int = 0, end: int | None = None
    ) -> Iterator[list[Extent]]:
        """Yield the extents of a file that touch the bytes from `start` to `end`, in batches."""
        if entry.kind is not NodeKind.FILE:
            raise Unsupported(f"{entry.name!r} is no file")
        recipe = entry.recipe if entry.recipe is not None else Recipe()
        with reading("a file"):
            yield from leaves(self._load, recipe, entry.size, start, end)

    def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a file, fewer at its end; holes are zeros."""
        end = min(offset + length, entry.size)
        if end <= offset:
            return b""
        parts: list[bytes | memoryview] = []
        at = offset
        for batch in self.extents(entry, offset, end):
            for first in range(0, len(batch), _FETCH_CHUNKS):
                some = batch[first : first + _FETCH_CHUNKS]
                chunks = self._fetch(some, offset, end)
                for extent in some:
                    chunk = chunks[extent.id]
                    if extent.offset + extent.length > len(chunk):
                        raise TreeDamaged("a recipe names more of a chunk than there is")
                    begin = max(extent.start, offset)
                    until = min(extent.start + extent.length, end)
                    if begin > at:
                        parts.append(bytes(begin - at))
                    skip = extent.offset + begin - extent.start
                    whole = skip == 0 and until - begin == len(chunk)
                    view = chunk if whole else memoryview(chunk)[skip : skip + until - begin]
                    parts.append(view)
                    at = until
        if at < end:
            parts.append(bytes(end - at))
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _fetch(self, extents: Sequence[Extent], start: int, end: int) -> dict[ChunkId, bytes]:
        """Fetch chunks; those that reach over an edge of the read are kept for the next one."""
        chunks: dict[ChunkId, bytes] = {}
        edges = {
            e.id for e in (extents[0], extents[-1]) if e.start < start or e.start + e.length > end
        }
        for name in edges:
            kept = self._chunks.get(name)
            if kept is not None:
                chunks[name] = kept
        with reading("a file"):
            missing = [e.id for e in extents if e.id not in chunks]
            if missing:
                chunks.update(self._store.fetch(missing))
        for name in edges:
            self._chunks.add(name, chunks[name], len(chunks[name]))
        return chunks

    def data_ranges(self, entry: Entry) -> list[tuple[int, int]]:
        """Return (offset, length) of what is not a hole, ascending."""
        ranges: list[tuple[int, int]] = []
        start = end = 0
        for batch in self.extents(entry):
            for extent in batch:
                if extent.start != end:
                    if end > start:
                        ranges.append((start, end - start))
                    start = extent.start
                end = extent.start + extent.length
        if end > start:
            ranges.append((start, end - start))
        return ranges

    def xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        """Return the extended attributes of a node."""
        if entry.xattr_recipe is None:
            return dict(entry.xattrs or {})
        recipe, size = entry.xattr_recipe
        if size > _XATTRS_MAX:
            raise TreeDamaged("a node has more extended attributes than can be")
        blob = Entry(b"", NodeKind.FILE, size, recipe=recipe)
        return decode_xattrs(self.read(blob, 0, size))


def _first(child: Child) -> bytes:
    return child.first


def _name(entry: Entry) -> bytes:
    return entry.name

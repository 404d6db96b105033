"""Writes trees into a store: directories from their entries, files from their bytes or extents.

Objects are gathered and put together: one by one they would cost a write each, and compress badly.
What names an object is put after it or with it, so that a store that was cut off never has a
directory without its parts; nothing is durable before `store.sync()`. For worker threads; one
`TreeWriter` may serve several of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from blockstore.ids import ChunkId, chunk_id
from syncer.chunks import ChunkStore
from syncer.recipes import Extent, Recipe, RecipeWriter
from syncer.tree import NodeKind
from syncer.tree_objects import (
    CHILDREN_MAX,
    ENTRIES_MAX,
    NO_TOKEN,
    TOKENS_MAX,
    XATTRS_INLINE_MAX,
    Child,
    Entry,
    Sums,
    TokenIndex,
    Tokens,
    encode_directory,
    encode_index,
    encode_root,
    encode_token_index,
    encode_tokens,
    encode_xattrs,
    ends_object,
    entry_bytes,
    total,
)

# Part of the format: a directory beyond one of them is split.
SPLIT_ENTRIES: Final = 1_024
SPLIT_BYTES: Final = 256 << 10
LEAF_BYTES_MAX: Final = 512 << 10

_PENDING_BYTES_MAX: Final = 1 << 20  # of objects that wait to be put
_BLOB_CHUNK: Final = 256 << 10


class Directory(NamedTuple):
    """A directory that was written."""

    id: ChunkId
    sums: Sums
    tokens: ChunkId | None = None  # its token object, where the tree has tokens


class TreeWriter:
    """Puts tree objects into a store."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # held while putting: objects reach the store in order
        self._pending: dict[ChunkId, bytes] = {}
        self._pending_bytes = 0

    def save(self, data: bytes) -> ChunkId:
        """Store an object, by and by; return its id. Raises what the store's put() raises."""
        name = chunk_id(data)
        with self._lock:
            if name not in self._pending:
                self._pending[name] = data
                self._pending_bytes += len(data)
                if self._pending_bytes >= _PENDING_BYTES_MAX:
                    self._flush()
        return name

    def flush(self) -> None:
        """Put what is waiting. Call it before store.sync()."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._store.put(list(self._pending.values()))
            self._pending.clear()
            self._pending_bytes = 0

    def directory(self, *, tokens: bool = False) -> DirectoryWriter:
        """Begin a directory; `tokens`: with token objects beside it."""
        return DirectoryWriter(self, tokens=tokens)

    def recipe(self, extents: Iterable[Extent], size: int) -> Recipe:
        """Return the recipe of a file whose chunks are stored; large ones become objects."""
        writer = RecipeWriter(self.save)
        writer.add(extents)
        return writer.finish(size)

    def with_xattrs(self, entry: Entry, xattrs: Mapping[bytes, bytes]) -> Entry:
        """Return the entry with its extended attributes, many of them stored beside it."""
        if not xattrs:
            return entry
        data = encode_xattrs(xattrs)
        if len(data) <= XATTRS_INLINE_MAX:
            return entry._replace(xattrs=dict(xattrs))
        extents = []
        for start in range(0, len(data), _BLOB_CHUNK):
            part = data[start : start + _BLOB_CHUNK]
            extents.append(Extent(start, len(part), 0, self.save(part)))
        return entry._replace(xattr_recipe=(self.recipe(extents, len(data)), len(data)))

    def root(self, top: Entry) -> ChunkId:
        """Store the root of a tree: its directory's entry, or the one node that it is."""
        return self.save(encode_root(top))

    def root_tokens(self, root: ChunkId, token: int, child_tokens: ChunkId | None) -> ChunkId:
        """Store how the top looked at its source; `child_tokens` where it is a directory."""
        children = [] if child_tokens is None else [child_tokens]
        return self.save(encode_tokens(Tokens(root, [token], children)))


class DirectoryWriter:
    """Writes one directory from its entries in the order of their names.

    Memory holds one leaf, one index a level, and 32 bytes for each leaf where there are tokens.
    """

    def __init__(self, writer: TreeWriter, *, tokens: bool) -> None:
        self._writer = writer
        self._with_tokens = tokens
        self._entries: list[Entry] = []
        self._tokens: list[int] = []
        self._below: list[ChunkId | None] = []  # token objects of directories in this leaf
        self._bytes = 0
        self._split = False
        self._levels: list[list[Child]] = []
        self._token_leaves: list[ChunkId] = []
        self._last = b""

    def add(self, entry: Entry, token: int = NO_TOKEN, child_tokens: ChunkId | None = None) -> None:
        """Go on with an entry whose name is behind all earlier ones."""
        if entry.name <= self._last:
            raise ValueError(f"{entry.name!r} does not come after {self._last!r}")
        self._last = entry.name
        self._append(entry, token, child_tokens)
        if not self._split and (len(self._entries) > SPLIT_ENTRIES or self._bytes > SPLIT_BYTES):
            self._split_now()

    def _append(self, entry: Entry, token: int, child_tokens: ChunkId | None) -> None:
        size = entry_bytes(entry)
        if self._split and (
            self._bytes + size > LEAF_BYTES_MAX or len(self._entries) >= ENTRIES_MAX
        ):
            self._end_leaf()
        self._entries.append(entry)
        self._bytes += size
        if self._with_tokens:
            self._tokens.append(token)
            if entry.kind is NodeKind.DIRECTORY:
                self._below.append(child_tokens)
        if self._split and ends_object(entry.name, 0):
            self._end_leaf()

    def _split_now(self) -> None:
        """It is a large directory: cut what has come so far as if that had been known."""
        entries, tokens, below = self._entries, self._tokens, iter(self._below)
        self._entries, self._tokens, self._below = [], [], []
        self._bytes = 0
        self._split = True
        for number, entry in enumerate(entries):
            is_directory = entry.kind is NodeKind.DIRECTORY
            self._append(
                entry,
                tokens[number] if self._with_tokens else NO_TOKEN,
                next(below) if self._with_tokens and is_directory else None,
            )

    def _save_leaf(self) -> Child:
        entries = self._entries
        name = self._writer.save(encode_directory(entries))
        if self._with_tokens:
            data = encode_tokens(Tokens(name, self._tokens, self._below))
            self._token_leaves.append(self._writer.save(data))
        first = entries[0].name if entries else b""
        child = Child(first, name, total([entry.sums for entry in entries]))
        self._entries, self._tokens, self._below = [], [], []
        self._bytes = 0
        return child

    def _end_leaf(self) -> None:
        if self._entries:
            last = self._entries[-1].name
            self._end_child(0, self._save_leaf(), last)

    def _end_child(self, depth: int, child: Child, last: bytes) -> None:
        if depth == len(self._levels):
            self._levels.append([])
        self._levels[depth].append(child)
        if ends_object(last, depth + 1) or len(self._levels[depth]) >= CHILDREN_MAX:
            self._end_child(depth + 1, self._save_index(depth), last)

    def _save_index(self, depth: int) -> Child:
        children, self._levels[depth] = self._levels[depth], []
        name = self._writer.save(encode_index(depth + 1, children))
        return Child(children[0].first, name, total([child.sums for child in children]))

    def finish(self) -> Directory:
        """Write what is left; return the directory."""
        if not self._split:
            top = self._save_leaf()
            return Directory(top.id, top.sums, self._finish_tokens())
        self._end_leaf()
        for depth in range(len(self._levels) - 1):
            if self._levels[depth]:
                self._levels[depth + 1].append(self._save_index(depth))
        top = self._save_index(len(self._levels) - 1)
        return Directory(top.id, top.sums, self._finish_tokens())

    def _finish_tokens(self) -> ChunkId | None:
        if not self._with_tokens:
            return None
        names: Sequence[ChunkId] = self._token_leaves
        level = 0
        while len(names) > 1:
            level += 1
            names = [
                self._writer.save(
                    encode_token_index(TokenIndex(level, names[start : start + TOKENS_MAX]))
                )
                for start in range(0, len(names), TOKENS_MAX)
            ]
        return names[0]

"""What the previous backup knew of a directory, beside what is there now. Blocks: for threads.

Both are in the order of names and walked side by side, a leaf at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from blockstore.errors import OrbitError
from blockstore.ids import ChunkId
from syncer.chunks import ChunkStore
from syncer.recipes import TreeDamaged
from syncer.snapshot_reader import SnapshotReader
from syncer.tree import Node, NodeKind
from syncer.tree_objects import NO_TOKEN, Entry, Tokens, decode_tokens, token_of

# A file that changed this recently may change again without showing it: clocks of file systems
# tick every few milliseconds, of some remotes every second or two.
_SETTLED_NS: Final = 2_000_000_000


class Previous(NamedTuple):
    """A tree that an earlier backup wrote into the same store."""

    root: ChunkId
    tokens: ChunkId | None = None


class Known(NamedTuple):
    """An entry of the previous tree."""

    entry: Entry
    token: int = NO_TOKEN
    tokens: ChunkId | None = None  # directories: their token object


def token_now(node: Node) -> int:
    """Return the token to be remembered for a node that is read now."""
    mtime_ns = node.mtime_ns
    if mtime_ns is None and node.token is None:
        return NO_TOKEN
    if mtime_ns is not None and abs(time.time_ns() - mtime_ns) < _SETTLED_NS:
        return NO_TOKEN
    return token_of((node.token,))


def unchanged(node: Node, known: Known | None) -> bool:
    """Whether the content of a file, or target of a symlink, need not be read again."""
    if known is None or known.token == NO_TOKEN:
        return False
    entry = known.entry
    return (
        entry.kind is node.kind
        and entry.size == node.size
        and entry.mtime_ns == node.mtime_ns
        and known.token == token_of((node.token,))
    )


def same_attributes(node: Node, entry: Entry) -> bool:
    """Whether the entry says of the node itself what the tree says now; content left aside."""
    first = 3 if node.kind is NodeKind.DIRECTORY else 1  # sizes of directories are not theirs
    return (
        entry[first:7] == node[first:7]
        and entry.kind is node.kind
        and entry.owner == node.owner
        and entry.group == node.group
        and entry.rdev == node.rdev
        and (node.kind is not NodeKind.SYMLINK or entry.target == node.target)
    )


def as_it_was(node: Node, known: Known) -> bool:
    """Whether nothing at all has changed, of a tree whose tokens change with any attribute."""
    return (
        known.token == token_of((node.token,))
        and known.token != NO_TOKEN
        and same_attributes(node, known.entry)
    )


class PreviousTree:
    """Reads the previous tree, as far as it can be read: what is damaged is read anew."""

    def __init__(self, store: ChunkStore, previous: Previous) -> None:
        self._store = store
        self._reader = SnapshotReader(store, previous.root)
        self._previous = previous

    def top(self) -> Known | None:
        """The root's entry."""
        try:
            entry = self._reader.top
        except OrbitError:
            return None
        tokens = self._load_tokens(self._previous.tokens)
        for each in tokens:
            if each.leaf == self._previous.root and len(each.tokens) == 1:
                below = each.children[0] if each.children else None
                return Known(entry, each.tokens[0], below)
        return Known(entry)

    def directory(self, known: Known | None) -> PreviousDirectory:
        """The entries of a directory; none where there was none."""
        if known is None or known.entry.child is None:
            return PreviousDirectory(iter(()))
        return PreviousDirectory(self._leaves(known))

    def _leaves(self, known: Known) -> Iterator[Sequence[Known]]:
        tokens = self._load_tokens(known.tokens)
        try:
            for name, entries in self._reader.leaves(known.entry):
                yield _with_tokens(name, entries, next(tokens, None))
        except OrbitError:  # what cannot be read is as good as new
            return

    def _load_tokens(self, name: ChunkId | None) -> Iterator[Tokens]:
        """Yield the token objects of a directory's leaves, in order, as far as they are there."""
        todo: list[tuple[ChunkId, int | None]] = [] if name is None else [(name, None)]
        while todo:
            name, level = todo.pop()
            try:
                found = decode_tokens(self._store.fetch([name])[name])
            except (OrbitError, TreeDamaged):
                return
            if isinstance(found, Tokens):
                if level not in {None, 0}:
                    return
                yield found
            elif level not in {None, found.level}:
                return
            else:
                todo += [(child, found.level - 1) for child in reversed(found.children)]


def _with_tokens(leaf: ChunkId, entries: Sequence[Entry], tokens: Tokens | None) -> Sequence[Known]:
    if tokens is None or tokens.leaf != leaf or len(tokens.tokens) != len(entries):
        return [Known(entry) for entry in entries]
    below = iter(tokens.children)
    return [
        Known(entry, token, next(below, None) if entry.kind is NodeKind.DIRECTORY else None)
        for entry, token in zip(entries, tokens.tokens, strict=True)
    ]


class PreviousDirectory:
    """The entries of one directory of the previous tree, asked for in the order of names."""

    def __init__(self, leaves: Iterator[Sequence[Known]]) -> None:
        self._leaves = leaves
        self._leaf: Sequence[Known] = ()
        self._at = 0
        self._passed = 0  # entries
        self._found = 0

    def find(self, name: bytes) -> Known | None:
        """Return the entry of this name; each name asked for is behind the last one."""
        while True:
            while self._at < len(self._leaf):
                known = self._leaf[self._at]
                if known.entry.name > name:
                    return None
                self._at += 1
                self._passed += 1
                if known.entry.name == name:
                    self._found += 1
                    return known
            leaf = next(self._leaves, None)
            if leaf is None:
                return None
            self._leaf, self._at = leaf, 0

    def all_found(self) -> bool:
        """After the last name: whether each entry was asked for, so that none is gone."""
        while self._at == len(self._leaf):
            leaf = next(self._leaves, None)
            if leaf is None:
                return self._found == self._passed
            self._leaf, self._at = leaf, 0
        return False

"""What recorded snapshots hold on to: every chunk that they reach, and which directories those are.

Each object is looked at once over all snapshots; which ones have been lies in a scratch database on
disk, so that memory stays flat. Blocks: for the maintenance thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, Self

import apsw

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.fsck import PROBLEMS_MAX, Finding
from syncer import recipes
from syncer.catalogue import Listing, Snapshot
from syncer.recipes import TreeDamaged
from syncer.tree_objects import (
    Entry,
    Index,
    TokenIndex,
    Tokens,
    decode_directory,
    decode_root,
    decode_tokens,
)

_BATCH: Final = 1_000  # ids
_DIRECTORY, _TOKENS, _RECIPE = 1, 2, 3  # what an object was looked at as


class SnapshotDamaged(OrbitError):
    """A tree object of a recorded snapshot is lost."""


class SnapshotRoots:
    """One walk over all recorded snapshots."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._seen = apsw.Connection("")  # a file of its own that is gone when it is closed
        self._seen.execute(
            "CREATE TABLE seen(id BLOB, kind INTEGER, PRIMARY KEY(id, kind)) WITHOUT ROWID"
        ).fetchall()
        self._seen.execute("BEGIN").fetchall()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._seen.close(True)

    def chunks(self, snapshots: Iterable[Snapshot]) -> Iterator[Sequence[ChunkId]]:
        """Yield the ids of everything that the snapshots reach, in batches; some come repeatedly.

        Raises SnapshotDamaged, StorageFailed, FormatTooNew.
        """
        batch: list[ChunkId] = []
        for snapshot in snapshots:
            try:
                for ids in self._of(snapshot):
                    batch += ids
                    if len(batch) >= _BATCH:
                        yield batch
                        batch = []
            except (ChunkMissing, ChunkDamaged, TreeDamaged) as error:
                raise SnapshotDamaged(
                    f"snapshot {snapshot.name!r} has lost directories: {error}; what is left of it"
                    " cannot be told. Repair the store, or remove the snapshot"
                ) from error
        yield batch

    def reached(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of the ids that `chunks` has met as directories: all that is below is live, too."""
        return {
            name
            for name in ids
            if self._seen.execute(
                "SELECT 1 FROM seen WHERE id = ? AND kind = ?", (name, _DIRECTORY)
            ).fetchone()
        }

    def _first(self, name: ChunkId, kind: int) -> bool:
        # The kind counts: bytes that lay in a file of somebody's are no directory.
        before = self._seen.total_changes()
        self._seen.execute("INSERT OR IGNORE INTO seen VALUES(?, ?)", (name, kind)).fetchall()
        return self._seen.total_changes() != before

    def _fetch(self, name: ChunkId) -> bytes:
        return self._store.fetch([name])[name]

    def _of(self, snapshot: Snapshot) -> Iterator[Sequence[ChunkId]]:
        yield [snapshot.root]
        directories: list[ChunkId] = []
        yield from self._entries([decode_root(self._fetch(snapshot.root))], directories)
        while directories:
            name = directories.pop()
            if not self._first(name, _DIRECTORY):
                continue
            yield [name]
            found = decode_directory(self._fetch(name))
            if isinstance(found, Index):
                directories += [child.id for child in found.children]
            else:
                yield from self._entries(found.entries, directories)
        if snapshot.tokens is not None:
            yield from self._token_objects(snapshot.tokens)

    def _entries(
        self, entries: Iterable[Entry], directories: list[ChunkId]
    ) -> Iterator[Sequence[ChunkId]]:
        for entry in entries:
            if entry.child is not None:
                directories.append(entry.child)
            if entry.recipe is not None:
                yield from self._recipe(entry.recipe)
            if entry.xattr_recipe is not None:
                yield from self._recipe(entry.xattr_recipe[0])

    def _recipe(self, recipe: recipes.Recipe) -> Iterator[Sequence[ChunkId]]:
        if recipe.root is None:
            yield [extent.id for extent in recipe.extents]
        elif self._first(recipe.root, _RECIPE):
            for name, found in recipes.objects(self._store.fetch, recipe.root):
                yield [name]
                if isinstance(found, recipes.Leaf):
                    yield [extent.id for extent in found.extents]

    def _token_objects(self, top: ChunkId) -> Iterator[Sequence[ChunkId]]:
        todo = [top]
        while todo:
            name = todo.pop()
            if not self._first(name, _TOKENS):
                continue
            yield [name]
            found: Tokens | TokenIndex = decode_tokens(self._fetch(name))
            todo += [child for child in found.children if child is not None]


def check_snapshots(store: BlockStore, records: Listing, lost: set[ChunkId]) -> Finding:
    """Whether the store has everything that recorded snapshots reach; `lost` is known damaged."""
    problems = [f"{name}: the record is damaged" for name in records.damaged]
    with SnapshotRoots(store) as roots:
        for snapshot in records.snapshots:
            try:
                for ids in roots.chunks([snapshot]):
                    missing = set(ids) - store.contains(ids)
                    problems += [
                        f"snapshot {snapshot.name!r}: chunk {name.hex()} is not stored"
                        for name in missing
                    ]
                    problems += [
                        f"snapshot {snapshot.name!r}: chunk {name.hex()} is damaged"
                        for name in lost.intersection(ids)
                    ]
            except SnapshotDamaged as error:
                problems.append(str(error))
    return Finding(
        "snapshots-are-whole",
        "everything that a recorded snapshot names is in the store",
        tuple(problems[:PROBLEMS_MAX]),
    )

"""What recorded snapshots hold on to, for collections and checks. For the maintenance thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.fsck import PROBLEMS_MAX, Finding
from syncer.catalogue import Listing, Snapshot
from syncer.recipes import TreeDamaged
from syncer.snapshot_check import ObjectWalk


class SnapshotDamaged(OrbitError):
    """A tree object of a recorded snapshot is lost."""


def chunks_of(walk: ObjectWalk, snapshots: Iterable[Snapshot]) -> Iterator[Sequence[ChunkId]]:
    """Yield the ids of everything that the snapshots reach, in batches; some come repeatedly.

    Raises SnapshotDamaged, StorageFailed, FormatTooNew.
    """
    for snapshot in snapshots:
        try:
            yield from walk.chunks([(snapshot.root, snapshot.tokens)])
        except (ChunkMissing, ChunkDamaged, TreeDamaged) as error:
            raise SnapshotDamaged(
                f"snapshot {snapshot.name!r} has lost directories: {error}; what is left of it"
                " cannot be told. Repair the store, or remove the snapshot"
            ) from error


def check_snapshots(
    store: BlockStore, walk: ObjectWalk, records: Listing, lost: set[ChunkId]
) -> Finding:
    """Whether the store has everything that recorded snapshots reach; `lost` is known damaged."""
    problems = [f"{name}: the record is damaged" for name in records.damaged]
    for snapshot in records.snapshots:
        try:
            for ids in chunks_of(walk, [snapshot]):
                missing = set(ids) - store.contains(ids)
                for what, names in (("not stored", missing), ("damaged", lost.intersection(ids))):
                    problems += [
                        f"snapshot {snapshot.name!r}: chunk {name.hex()} is {what}"
                        for name in names
                    ]
        except SnapshotDamaged as error:
            problems.append(str(error))
    return Finding(
        "snapshots-are-whole",
        "everything that a recorded snapshot names is in the store",
        tuple(problems[:PROBLEMS_MAX]),
    )

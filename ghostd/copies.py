"""Copies of namespace.db in the packs, and the way back from the packs alone.

A copy is the database file, cut into chunks like any file, so that it costs what has changed since
the last one. A root record names its recipe. It is read from the file itself while no checkpoint
may change it: after a complete checkpoint the file holds one consistent state, and later commits go
to the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blockstore.disk import Disk, DiskFile
from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.namespace import FILE_NAME, Namespace
from ghostd.snapshots_rows import forget
from syncer.catalogue import Snapshot, SnapshotFolder, decode_snapshot
from syncer.recipes import TreeDamaged
from syncer.remotes.errors import Exists

_KIND = "namespace"
_READ_BYTES = 8 << 20
_RECIPE_CHUNK_BYTES = 1 << 20  # 32,768 ids


class NothingToRecover(OrbitError):
    """The packs hold no whole copy of a namespace."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of the namespace, as its root record names it."""

    taken_ns: int
    size_bytes: int
    recipe: tuple[ChunkId, ...]  # the chunks that hold the list of the file's chunks
    snapshots: tuple[ChunkId, ...] = ()  # the chunks that hold the records of all snapshots

    def payload(self) -> bytes:
        """The root record."""
        return json.dumps(
            {
                "kind": _KIND,
                "taken_ns": self.taken_ns,
                "bytes": self.size_bytes,
                "recipe": [chunk_id.hex() for chunk_id in self.recipe],
                "snapshots": [chunk_id.hex() for chunk_id in self.snapshots],
            }
        ).encode()

    @classmethod
    def parse(cls, payload: bytes) -> Copy | None:
        """From a root record; None where it is another kind's."""
        found = json.loads(payload)
        if found.get("kind") != _KIND:
            return None
        recipe, snapshots = (
            tuple(ChunkId(bytes.fromhex(text)) for text in found.get(key, ()))
            for key in ("recipe", "snapshots")
        )
        return cls(found["taken_ns"], found["bytes"], recipe, snapshots)


def take_copy(
    store: BlockStore, file: DiskFile, snapshots: Sequence[Snapshot], taken_ns: int
) -> tuple[Copy, bytes]:
    """Store the database file, the records of snapshots and a root record for both, durably.

    The copy, and every chunk id it needs.

    Blocks; the caller sees to it that nothing changes the file meanwhile.
    """
    ids: list[ChunkId] = []
    rest = b""
    offset = 0
    while data := file.pread(_READ_BYTES, offset):
        offset += len(data)
        rest = _put_cut(store, rest + data, ids, final=False)
    _put_cut(store, rest, ids, final=True)
    listing = b"".join(ids)
    pieces = [
        listing[at : at + _RECIPE_CHUNK_BYTES] for at in range(0, len(listing), _RECIPE_CHUNK_BYTES)
    ]
    recipe = tuple(store.put(pieces))
    records: list[ChunkId] = []
    _put_cut(store, b"".join(each.encode() for each in snapshots), records, final=True)
    copy = Copy(taken_ns, offset, recipe, tuple(records))
    store.sync()
    store.append_root(copy.payload())
    store.sync()
    return copy, listing + b"".join(recipe) + b"".join(records)


def _put_cut(store: BlockStore, data: bytes, ids: list[ChunkId], *, final: bool) -> bytes:
    if not data:
        return b""
    lengths = store.cut(data)
    if not final:
        lengths.pop()
    view = memoryview(data)
    chunks = []
    position = 0
    for length in lengths:
        chunks.append(view[position : position + length])
        position += length
    ids += store.put(chunks)
    return data[position:]


def read_copy(store: BlockStore, copy: Copy) -> Iterator[bytes]:
    """The bytes of a copied database. Raises ChunkMissing, ChunkDamaged."""
    for piece in copy.recipe:
        listing = store.fetch([piece])[piece]
        ids = [ChunkId(listing[at : at + 32]) for at in range(0, len(listing), 32)]
        for at in range(0, len(ids), 64):
            batch = ids[at : at + 64]
            found = store.fetch(batch)
            for chunk_id in batch:
                yield found[chunk_id]


def read_snapshots(store: BlockStore, copy: Copy) -> list[Snapshot]:
    """The records of snapshots of a copy. Raises ChunkMissing, ChunkDamaged, TreeDamaged."""
    found = store.fetch(copy.snapshots)
    lines = b"".join(found[name] for name in copy.snapshots).splitlines(keepends=True)
    # A record has two lines: what it says, and the hash of that.
    return [decode_snapshot(b"".join(lines[at : at + 2])) for at in range(0, len(lines), 2)]


def recover(folder: Path, store: BlockStore, disk: Disk, records: SnapshotFolder) -> Copy:
    """Bring namespace.db back from the newest whole copy in the packs, and lost snapshots with it.

    What is there now is kept beside it; records of snapshots that are there stay as they are.

    Raises NothingToRecover.
    """
    reasons = []
    for root in reversed(store.roots()):
        copy = Copy.parse(root.payload)
        if copy is None:
            continue
        target = folder / (FILE_NAME + ".recovering")
        if disk.exists(target):
            disk.unlink(target)
        try:
            _write(disk, target, read_copy(store, copy))
            snapshots = read_snapshots(store, copy)
        except (ChunkMissing, ChunkDamaged, TreeDamaged) as error:
            reasons.append(str(error))
            continue
        _set_aside(folder, disk)
        disk.rename(target, folder / FILE_NAME)
        disk.fsync_dir(folder)
        namespace = Namespace.open(folder, disk)
        namespace.write(forget)  # collections since the copy may have taken what it remembers
        namespace.close()
        for snapshot in snapshots:
            with suppress(Exists):
                records.add(snapshot)
        return copy
    raise NothingToRecover(
        f"{folder}: the packs hold no whole copy of the namespace"
        + (f" ({'; '.join(reasons)})" if reasons else "")
        + "; restore the state folder from a backup"
    )


def _write(disk: Disk, path: Path, parts: Iterator[bytes]) -> None:
    file = disk.open(path, create=True)
    try:
        offset = 0
        for part in parts:
            file.pwritev([part], offset)
            offset += len(part)
        file.fdatasync()
    finally:
        file.close()


def _set_aside(folder: Path, disk: Disk) -> None:
    """Rename the damaged database and its log: the log must not be applied to the copy."""
    for name in (FILE_NAME, FILE_NAME + "-wal", FILE_NAME + "-shm"):
        number = 0
        if not disk.exists(folder / name):
            continue
        while disk.exists(aside := folder / f"{name}.damaged-{number}"):
            number += 1
        disk.rename(folder / name, aside)

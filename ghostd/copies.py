"""Copies of namespace.db in the packs, and the way back from the packs alone.

A copy is the database file, cut into chunks like any file, so that it costs what has changed since
the last one. A root record names its recipe. It is read from the file itself while no checkpoint
may change it: after a complete checkpoint the file holds one consistent state, and later commits go
to the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockstore.disk import Disk, DiskFile
from blockstore.errors import ChunkDamaged, ChunkMissing, OrbitError
from blockstore.ids import ChunkId
from blockstore.store import BlockStore
from ghostd.namespace import FILE_NAME, Namespace

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

    def payload(self) -> bytes:
        """The root record."""
        return json.dumps(
            {
                "kind": _KIND,
                "taken_ns": self.taken_ns,
                "bytes": self.size_bytes,
                "recipe": [chunk_id.hex() for chunk_id in self.recipe],
            }
        ).encode()

    @classmethod
    def parse(cls, payload: bytes) -> Copy | None:
        """From a root record; None where it is another kind's."""
        found = json.loads(payload)
        if found.get("kind") != _KIND:
            return None
        recipe = tuple(ChunkId(bytes.fromhex(text)) for text in found["recipe"])
        return cls(found["taken_ns"], found["bytes"], recipe)


def take_copy(store: BlockStore, file: DiskFile, taken_ns: int) -> tuple[Copy, bytes]:
    """Store the database file and a root record for it, durably.

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
    copy = Copy(taken_ns, offset, recipe)
    store.sync()
    store.append_root(copy.payload())
    store.sync()
    return copy, listing + b"".join(recipe)


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


def recover(folder: Path, store: BlockStore, disk: Disk) -> Copy:
    """Bring namespace.db back from the newest whole copy in the packs.

    What is there now is kept beside it.

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
        except (ChunkMissing, ChunkDamaged) as error:
            reasons.append(str(error))
            continue
        _set_aside(folder, disk)
        disk.rename(target, folder / FILE_NAME)
        disk.fsync_dir(folder)
        Namespace.open(folder, disk).close()
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

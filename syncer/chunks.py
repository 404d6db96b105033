"""What the syncer needs of a store of chunks. `blockstore.store.BlockStore` fulfils it.

Methods block and are for worker threads; all may be called from several at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from blockstore.ids import Buffer, ChunkId


class ChunkStore(Protocol):
    """Bytes by name."""

    def cut(self, data: Buffer) -> list[int]:
        """Return the lengths of the chunks of `data`; the last one ends where the data does."""

    def put(self, chunks: Sequence[Buffer]) -> list[ChunkId]:
        """Store chunks; those that are there are not stored again. Not durable before sync()."""

    def contains(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Return those of the ids that are stored."""

    def fetch(self, ids: Sequence[ChunkId]) -> dict[ChunkId, bytes]:
        """Return chunks, verified. Raises ChunkMissing, ChunkDamaged."""

    def sync(self) -> None:
        """Return when everything put so far survives a power cut."""

"""Bytes to names and back: a content-addressed store of chunks in append-only packs.

The package is a synchronous, thread-safe library without an event loop; `BlockStore` is its door.
"""

from blockstore.errors import (
    ChunkDamaged,
    ChunkMissing,
    CollectionAbandoned,
    FormatTooNew,
    OrbitError,
    StorageFailed,
    StorageFull,
    StoreInvalid,
    StoreLocked,
)
from blockstore.ids import MAX_CHUNK, ChunkId, chunk_id
from blockstore.store import BlockStore, StoreOptions

__all__ = [
    "MAX_CHUNK",
    "BlockStore",
    "ChunkDamaged",
    "ChunkId",
    "ChunkMissing",
    "CollectionAbandoned",
    "FormatTooNew",
    "OrbitError",
    "StorageFailed",
    "StorageFull",
    "StoreInvalid",
    "StoreLocked",
    "StoreOptions",
    "chunk_id",
]

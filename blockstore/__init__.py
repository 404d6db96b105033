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
from blockstore.ids import MAX_BLOCK, MAX_CHUNK, ChunkId, chunk_id
from blockstore.options import FetchedOptions, StoreOptions
from blockstore.store import BlockStore

__all__ = [
    "MAX_BLOCK",
    "MAX_CHUNK",
    "BlockStore",
    "ChunkDamaged",
    "ChunkId",
    "ChunkMissing",
    "CollectionAbandoned",
    "FetchedOptions",
    "FormatTooNew",
    "OrbitError",
    "StorageFailed",
    "StorageFull",
    "StoreInvalid",
    "StoreLocked",
    "StoreOptions",
    "chunk_id",
]

"""Bytes to names and back: a content-addressed store of chunks in append-only packs.

The package is a synchronous, thread-safe library without an event loop; `BlockStore` is its door.
Names are loaded when they are asked for: whoever needs the errors alone loads no database.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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

# Where those are that are not errors.
_MODULES: Final = {
    "MAX_BLOCK": "ids",
    "MAX_CHUNK": "ids",
    "ChunkId": "ids",
    "chunk_id": "ids",
    "FetchedOptions": "options",
    "StoreOptions": "options",
    "BlockStore": "store",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = found
    return found

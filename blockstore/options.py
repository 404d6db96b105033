"""How a store is run, and what it tells about itself: values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockstore.chunker import ChunkerParams
from blockstore.codec import CompressionName

_FETCHED_PACKS = 16  # a small cache is cut into this many packs


@dataclass(frozen=True, slots=True)
class FetchedOptions:
    """How blocks that can be had again are kept: the cache (docs/blockstore.md)."""

    bytes_max: int = 10 << 30  # of files in the cache; eviction begins above it
    free_bytes_floor: int = 1 << 30  # of the disk that the cache leaves free
    codec: CompressionName = "none"  # lz4 costs 2.1 CPU seconds a GiB, zstd 2.5, hashing 0.2
    pack_bytes_max: int = 64 << 20
    open_packs_max: int = 64  # descriptors
    pending_blocks_max: int = 4_096  # blocks in memory before the index is told, some 2 MB

    def __post_init__(self) -> None:
        """Raise ValueError for what the format or the bounds cannot hold."""
        if not 4096 <= self.pack_bytes_max <= 1 << 31:
            raise ValueError(f"pack_bytes_max is 4 KiB to 2 GiB, not {self.pack_bytes_max}")
        if min(self.open_packs_max, self.pending_blocks_max, self.bytes_max) < 1:
            raise ValueError("bytes_max, open_packs_max, pending_blocks_max: at least 1")
        if self.free_bytes_floor < 0:
            raise ValueError("free_bytes_floor: at least 0")

    @property
    def pack_bytes(self) -> int:
        """Bytes at which a pack is full: eviction goes pack by pack, so a cache has several."""
        return max(4096, min(self.pack_bytes_max, self.bytes_max // _FETCHED_PACKS))

    @property
    def slack_bytes(self) -> int:
        """How far the cache may exceed `bytes_max` before storing has to evict by itself."""
        return 2 * self.pack_bytes


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to run a store. Only `chunker` is a property of the store itself."""

    compression: CompressionName = "zstd"
    level: int = 1  # of zstd
    pack_bytes_max: int = 64 << 20
    cache_bytes_max: int = 64 << 20  # decoded chunks
    open_packs_max: int = 128  # descriptors
    pending_chunks_max: int = 32_768  # records in memory before the index is told, some 12 MB
    touch_chunks_max: int = 262_144  # known chunks stored again during one collection
    chunker: ChunkerParams = field(default_factory=ChunkerParams)
    fetched: FetchedOptions = field(default_factory=FetchedOptions)

    def __post_init__(self) -> None:
        """Raise ValueError for what the format or the bounds cannot hold."""
        if not 4096 <= self.pack_bytes_max <= 1 << 31:
            raise ValueError(f"pack_bytes_max is 4 KiB to 2 GiB, not {self.pack_bytes_max}")
        if min(self.open_packs_max, self.pending_chunks_max, self.touch_chunks_max) < 1:
            raise ValueError("open_packs_max, pending_chunks_max, touch_chunks_max: at least 1")


@dataclass(frozen=True, slots=True)
class FetchedStats:
    """Counters of the cache; those marked * count since opening. Sizes in bytes."""

    packs: int = 0
    bytes: int = 0
    blocks: int = 0  # resident; a block stored twice counts twice until its pack is evicted
    pending_blocks: int = 0
    put_blocks: int = 0  # *
    new_blocks: int = 0  # *
    new_bytes: int = 0  # * as stored
    hits: int = 0  # * blocks read
    dropped: int = 0  # * damaged or unreadable, to be fetched again
    evicted: int = 0  # * by the hand or by evict()
    carried: int = 0  # * copied forward by the hand
    refused: int = 0  # * calls that found no room


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counters; those marked * count since opening. Sizes in bytes."""

    chunks: int  # rows in the index and pending records; duplicates until runs are merged
    packs: int
    pack_bytes: int
    pending_chunks: int
    index_runs: int
    put_chunks: int  # *
    put_bytes: int  # *
    new_chunks: int  # *
    new_raw_bytes: int  # *
    new_stored_bytes: int  # *
    dedup_hits: int  # *
    cache_hits: int  # *
    cache_misses: int  # *
    cache_bytes: int
    damaged_chunks: int  # *
    fetched: FetchedStats

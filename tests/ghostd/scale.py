"""The product's sizes, scaled down, so that small files have many chunks, segments and batches.

And what differs from run to run, held still, so that a seed repeats a run to the byte.
"""

from __future__ import annotations

import itertools
import types
import uuid

import pytest

from blockstore import StoreOptions, opening
from blockstore.chunker import ChunkerParams
from ghostd import filemap, fsck, keeper, namespace, storing, writeback

SEGMENT = 32 << 10
CHUNKER = ChunkerParams(min_bytes=256, average_bytes=1024, max_bytes=4096)
STORE = StoreOptions(
    pack_bytes_max=1 << 16, pending_chunks_max=200, cache_bytes_max=1 << 15, chunker=CHUNKER
)


def scale_down(patch: pytest.MonkeyPatch) -> None:
    """Divide segments, batches and fragments by about 128, as `STORE` does with chunks."""
    for module in (filemap, fsck):
        patch.setattr(module, "SEGMENT_BYTES", SEGMENT)
    for module in (storing, writeback):
        patch.setattr(module, "BATCH_BYTES", 16 << 10)
    patch.setattr(filemap, "FRAGMENT_BYTES", 256)
    patch.setattr(storing, "TAIL_BYTES_MAX", CHUNKER.max_bytes)
    patch.setattr(writeback, "_INGEST_BYTES", 16 << 10)
    patch.setattr(writeback, "_INGEST_RUN_MIN", 8 << 10)


def hold_still(patch: pytest.MonkeyPatch) -> None:
    """Give stores and namespaces fixed names, and the database a clock that only counts."""
    ticks = itertools.count(1_700_000_000 * 10**9)
    clock = types.SimpleNamespace(
        time_ns=lambda: next(ticks), time=lambda: 1.7e9, monotonic=lambda: 0.0
    )
    for module in (namespace, keeper):
        patch.setattr(module, "time", clock)
    patch.setattr(namespace, "uuid", types.SimpleNamespace(uuid4=lambda: uuid.UUID(int=7)))
    patch.setattr(opening, "os", types.SimpleNamespace(urandom=lambda length: b"7" * length))

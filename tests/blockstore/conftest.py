"""What the block store's tests share: small packs, seeded data, the check as an oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockstore import BlockStore, StoreOptions

SMALL = StoreOptions(pack_bytes_max=1 << 16, pending_chunks_max=40, cache_bytes_max=1 << 16)

Opener = Callable[..., BlockStore]


def assert_sound(store: BlockStore) -> None:
    """The oracle: every check, every record read back."""
    for result in store.check(data=True):
        assert result.ok, (result.name, result.problems)


def blob(seed: int, length: int) -> bytes:
    """Incompressible bytes."""
    return random.Random(seed).randbytes(length)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Opener]:
    opened: list[BlockStore] = []

    def opener(options: StoreOptions = SMALL, folder: Path = tmp_path / "store") -> BlockStore:
        store = BlockStore.open(folder, options)
        opened.append(store)
        return store

    yield opener
    for store in opened:
        store.close()

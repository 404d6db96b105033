"""The store against a dict: random histories with reopening, collecting and flipped bytes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blockstore import (
    BlockStore,
    ChunkDamaged,
    ChunkId,
    FetchedOptions,
    StoreOptions,
    chunk_id,
)
from blockstore.ids import pack_name
from tests.blockstore.conftest import assert_sound, blob

OPTIONS = StoreOptions(
    pack_bytes_max=1 << 13,
    pending_chunks_max=15,
    cache_bytes_max=2000,
    fetched=FetchedOptions(
        bytes_max=30_000, free_bytes_floor=0, pack_bytes_max=1 << 12, pending_blocks_max=8
    ),
)


class StoreMachine(RuleBasedStateMachine):
    """`held`: what must be readable; `roots`: the payloads of the newest three."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.held: dict[ChunkId, bytes] = {}
        self.roots: list[bytes] = []

    @initialize()
    def start(self) -> None:
        self.store = BlockStore.open(self.folder, OPTIONS)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(seeds=st.lists(st.integers(0, 150), max_size=12), text=st.booleans())
    def put(self, seeds: list[int], text: bool) -> None:
        chunks = [b"text %d " % s * 100 if text else blob(s, 10 + 7 * s) for s in seeds]
        ids = self.store.put(chunks)
        assert ids == [chunk_id(chunk) for chunk in chunks]
        self.held.update(zip(ids, chunks, strict=True))

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = BlockStore.open(self.folder, OPTIONS)
        assert not self.store.opened.rebuilt

    @rule()
    def lose_index(self) -> None:
        self.store.close()
        (self.folder / "chunks.db").unlink()
        self.store = BlockStore.open(self.folder, OPTIONS)
        assert self.store.opened.rebuilt

    @rule(first=st.integers(0, 9), count=st.integers(2, 64))
    def put_group(self, first: int, count: int) -> None:
        """Small files that compress: more than one group of them, of which some are known."""
        chunks = [b"file %d\n" % n * 9 for n in range(first * 20, first * 20 + count)]
        self.held.update(zip(self.store.put(chunks), chunks, strict=True))

    @rule(keep=st.sets(st.integers(0, 9)), dry_run=st.booleans())
    def collect(self, keep: set[int], dry_run: bool) -> None:
        live = [name for name in self.held if name[0] % 10 in keep]
        report = self.store.collect([live], dry_run=dry_run)
        if not dry_run:
            self.held = {name: self.held[name] for name in live}
            assert report.spared == {}

    @rule(payload=st.binary(max_size=50))
    def root(self, payload: bytes) -> None:
        self.store.append_root(payload)
        self.roots = [*self.roots, payload][-3:]

    @rule(pick=st.integers(0, 10**6), at=st.integers(64, 80))
    @precondition(lambda self: self.held)
    def damage(self, pick: int, at: int) -> None:
        self.store.close()
        self.store = BlockStore.open(self.folder, OPTIONS)
        self.forget_copies()
        names = sorted(self.held)
        name = names[pick % len(names)]
        place = self.store.locate([name])[name]
        position = place.offset + min(at, 63 + place.length)
        with (self.folder / "packs" / pack_name(place.pack)).open("r+b") as file:
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 0x20]))
        with pytest.raises(ChunkDamaged) as caught:
            self.store.fetch([name])
        assert caught.value.chunk_id == name
        shared = [n for n, p in self.store.locate(names).items() if p[:2] == place[:2]]
        self.store.put([self.held[n] for n in shared])  # repairs it, and its group
        assert self.store.fetch([name])[name] == self.held[name]
        self.store.sync()
        # The damaged record stays behind in its pack until that is collected.
        self.store.collect([list(self.held)], waste_max=0.0)

    def forget_copies(self) -> None:
        """Have no second copy of anything that damage could be read from instead."""

    @invariant()
    def everything_is_readable(self) -> None:
        assert self.store.fetch(list(self.held)) == self.held
        assert [root.payload for root in self.store.roots()] == self.roots


StoreMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStoreMachine = StoreMachine.TestCase


def test_a_long_fixed_history_is_sound(tmp_path: Path) -> None:
    store = BlockStore.open(tmp_path, OPTIONS)
    held: dict[ChunkId, bytes] = {}
    for turn in range(30):
        chunks = [blob(turn * 20 + n, 200 + n) for n in range(20)]
        held.update(zip(store.put(chunks), chunks, strict=True))
        if turn % 7 == 6:
            held = {name: chunk for name, chunk in held.items() if name[0] % 3}
            store.collect([list(held)])
            assert_sound(store)
    assert store.fetch(list(held)) == held
    store.close()

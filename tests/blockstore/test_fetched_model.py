"""The store with its cache against two dicts: own data always there, blocks right or missing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from blockstore import BlockStore, ChunkId, ChunkMissing, StorageFull, chunk_id
from tests.blockstore.conftest import blob
from tests.blockstore.test_model import OPTIONS, StoreMachine

LIMIT = OPTIONS.fetched.bytes_max + OPTIONS.fetched.slack_bytes


def block(seed: int, *, text: bool) -> bytes:
    """Some of them are chunks that the other rules put as own data."""
    return b"text %d " % seed * 100 if text else blob(seed, 10 + 7 * seed)


class FetchedMachine(StoreMachine):
    """`blocks`: all that were ever fetched; `sure`: pinned ones that must be resident."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[ChunkId, bytes] = {}
        self.pinned: set[ChunkId] = set()
        self.sure: set[ChunkId] = set()
        self.graves: list[Path] = []

    def teardown(self) -> None:
        for result in self.store.check(data=True):
            assert result.ok or not result.name.startswith("fetched"), result.problems
        super().teardown()
        for folder in self.graves:
            folder.rmdir()

    def fetched_ids(self) -> set[ChunkId]:
        """What only the cache has."""
        names = [name for name in self.blocks if name not in self.held]
        here = self.store.resident(names)
        return {name for name, resident in zip(names, here, strict=True) if resident}

    @rule(seeds=st.lists(st.integers(0, 200), max_size=12), text=st.booleans())
    def put_fetched(self, seeds: list[int], text: bool) -> None:
        chunks = [block(seed, text=text) for seed in seeds]
        ids = [chunk_id(chunk) for chunk in chunks]
        self.blocks.update(zip(ids, chunks, strict=True))
        try:
            assert self.store.put_fetched(chunks) == ids
        except StorageFull:
            assert len(self.sure) > 10  # only pins are in the way
        else:
            if sum(map(len, chunks)) < LIMIT / 4:
                assert all(self.store.resident(ids))
        assert self.store.stats().fetched.bytes < 1.5 * LIMIT

    @rule(pick=st.integers(0, 6), modulus=st.integers(2, 7))
    def pin(self, pick: int, modulus: int) -> None:
        wanted = {name for name in self.blocks if name[1] % modulus == pick}
        self.pinned |= wanted
        self.sure |= wanted & self.fetched_ids()

    @rule()
    def unpin(self) -> None:
        self.pinned.clear()
        self.sure.clear()

    @rule(pick=st.integers(0, 6), modulus=st.integers(1, 7))
    def evict(self, pick: int, modulus: int) -> None:
        names = [name for name in self.blocks if name[2] % modulus == pick]
        self.sure.difference_update(names)
        self.store.evict(names)
        here = self.store.resident(names)
        assert here == [name in self.held for name in names]

    @rule(steps=st.integers(1, 30))
    def hand(self, steps: int) -> None:
        for _ in range(steps):
            if not self.store.evict_step().more:
                break

    @rule(pick=st.integers(0, 10**6))
    @precondition(lambda self: self.blocks)
    def damage_fetched(self, pick: int) -> None:
        packs = sorted((self.folder / "fetched").glob("*.pack"))
        if packs:
            self.store.close()
            path = packs[pick % len(packs)]
            raw = bytearray(path.read_bytes())
            raw[pick % len(raw)] ^= 0x40
            path.write_bytes(raw)
            self.store = BlockStore.open(self.folder, OPTIONS)
            # What was hit is found by reading; its neighbours are not touched.
            before = self.fetched_ids()
            lost = {name for name in before if not self.readable(name)}
            assert len(lost) <= 1
            self.sure -= lost

    @rule()
    def kill(self) -> None:
        """What was written is there for the next process, whatever was not told to the index."""
        grave = Path(tempfile.mkdtemp(prefix="store-killed-"))
        shutil.copytree(self.folder, grave / "store")
        self.store.close()
        shutil.rmtree(self.folder)
        self.graves.append(grave)
        self.folder = grave / "store"
        self.store = BlockStore.open(self.folder, OPTIONS)

    @rule()
    def lose_fetched_index(self) -> None:
        self.store.close()
        (self.folder / "fetched.db").unlink(missing_ok=True)
        self.store = BlockStore.open(self.folder, OPTIONS)

    def forget_copies(self) -> None:
        self.sure.clear()
        self.store.evict(list(self.blocks))

    def readable(self, name: ChunkId) -> bool:
        try:
            assert self.store.fetch([name]) == {name: self.blocks[name]}
        except ChunkMissing:
            return False
        return True

    @invariant()
    def blocks_are_right_or_missing(self) -> None:
        self.store.set_pinned(self.pinned.intersection)
        # What own data had when it was pinned was dropped by the hand, and may be collected since.
        self.sure.difference_update(self.held)
        here = self.store.resident(list(self.blocks))
        for name, resident in zip(self.blocks, here, strict=True):
            cached = self.store.cached(name) is not None
            if self.readable(name):
                assert resident or cached
            else:  # damaged while own data had it, too
                assert self.store.resident([name]) == [False]
        assert self.sure <= self.fetched_ids()
        assert not self.store.damaged().keys() & self.held.keys()


FetchedMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestFetchedMachine = FetchedMachine.TestCase

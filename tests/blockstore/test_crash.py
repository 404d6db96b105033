"""Power cuts on the simulated disk, at every change and in random histories.

After each one: the store opens, every check is clean with all data read back, and all that was
promised durable is there byte for byte. `SEED` in a failure's parameters reproduces it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blockstore import BlockStore, ChunkId, OrbitError, StoreOptions, chunk_id
from tests.blockstore.conftest import assert_sound
from tests.simdisk import SimDisk, SimulatedCrash, abandon

FOLDER = Path("/store")
OPTIONS = StoreOptions(pack_bytes_max=1 << 13, pending_chunks_max=12, cache_bytes_max=0)


@dataclass
class Promises:
    """What the store has acknowledged so far."""

    contents: dict[ChunkId, bytes] = field(default_factory=dict)
    durable: set[ChunkId] = field(default_factory=set)
    wanted: set[ChunkId] = field(default_factory=set)  # what collections keep
    root: int = 0  # durable roots
    roots: int = 0  # appended roots


def history(store: BlockStore, disk: SimDisk, rng: random.Random, promises: Promises) -> None:
    """Run random operations; note a promise only after it was made."""
    unsynced: set[ChunkId] = set()
    for _ in range(rng.randint(5, 40)):
        action = rng.random()
        if action < 0.55:
            chunks = [
                rng.randbytes(rng.randint(1, 900)) * rng.choice((1, 1, 3))
                for _ in range(rng.randint(1, 8))
            ]
            if promises.contents and rng.random() < 0.4:
                chunks.append(rng.choice(list(promises.contents.values())))
            ids = store.put(chunks)
            promises.contents.update(zip(ids, chunks, strict=True))
            promises.wanted.update(ids)
            unsynced.update(ids)
        elif action < 0.8:
            store.sync()
            promises.durable |= unsynced
            promises.root = promises.roots
            unsynced.clear()
        elif action < 0.87:
            store.append_root(b"%d" % (promises.roots + 1))
            promises.roots += 1
        elif action < 0.95:
            dropped = {name for name in promises.wanted if rng.random() < 0.3}
            promises.wanted -= dropped
            promises.durable -= dropped
            unsynced -= dropped
            store.collect([sorted(promises.wanted)], waste_max=0.2)
        else:
            names = sorted(promises.wanted)[:20]
            assert store.fetch(names) == {name: promises.contents[name] for name in names}


def verify(disk: SimDisk, promises: Promises) -> BlockStore:
    """Open after the crash and compare with what was promised."""
    store = BlockStore.open(FOLDER, OPTIONS, disk)
    assert_sound(store)
    kept = sorted(promises.durable)
    assert store.fetch(kept) == {name: promises.contents[name] for name in kept}
    found = [int(root.payload) for root in store.roots()]
    assert found == sorted(found)
    assert max(found, default=0) >= promises.root
    return store


def crashing_run(seed: int, lives: int) -> None:
    """Several histories on one store, each ended by a power cut."""
    rng = random.Random(seed)
    disk = SimDisk(seed)
    promises = Promises()
    for _ in range(lives):
        disk.crash_at(int(rng.expovariate(1 / 60)) + 1)
        store = None
        try:
            store = BlockStore.open(FOLDER, OPTIONS, disk)
            history(store, disk, rng, promises)
            if rng.random() < 0.3:
                store.close()
        except (SimulatedCrash, OrbitError):
            # SQLite shows the crash as an I/O error (tests/simdisk/vfs.py).
            assert disk.crashed
        after = disk.crash()
        if store is not None:
            abandon(store.close)
        disk = after
        store = verify(disk, promises)
        # What was not promised may be gone; what is still there is now as good as promised.
        present = store.contains(promises.wanted)
        promises.wanted = set(present)
        promises.durable &= present
        promises.roots = max((int(root.payload) for root in store.roots()), default=0)
        store.close()


@pytest.mark.parametrize("seed", range(150))
def test_random_histories(seed: int) -> None:
    crashing_run(seed, lives=3)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(100))
def test_many_random_histories(block: int) -> None:
    for seed in range(1000 + block * 50, 1050 + block * 50):
        crashing_run(seed, lives=4)


def crashing_script(disk: SimDisk, promises: Promises) -> SimDisk:
    """Run the script until its crash; return the disk afterwards."""
    store = None
    try:
        store = BlockStore.open(FOLDER, OPTIONS, disk)
        scripted(store, promises)
    except (SimulatedCrash, OrbitError):
        assert disk.crashed
    after = disk.crash()
    if store is not None:
        abandon(store.close)
    return after


def scripted(store: BlockStore, promises: Promises) -> None:
    """Touch every step of a store's life: seals, index batches, merges, roots, collection."""
    rng = random.Random(0)
    for turn in range(12):
        chunks = [rng.randbytes(400) for _ in range(2)]
        chunks += [rng.randbytes(40) * 9 for _ in range(5)]  # a group
        ids = store.put(chunks)
        promises.contents.update(zip(ids, chunks, strict=True))
        promises.wanted.update(ids)
        store.sync()
        promises.durable.update(ids)
        if turn % 5 == 4:
            store.append_root(b"%d" % turn)
            store.sync()
            promises.root = turn
    keep = sorted(promises.wanted)[::2]
    promises.wanted = promises.durable = set(keep)
    store.collect([keep])
    store.close()


def operations_of_script() -> int:
    disk = SimDisk(0)
    scripted(BlockStore.open(FOLDER, OPTIONS, disk), Promises())  # closes it
    return disk.operations


@pytest.mark.parametrize("part", range(8))
def test_power_cut_at_every_single_change(part: int) -> None:
    total = operations_of_script()
    assert total > 150
    for number in range(1 + part, total + 1, 8):
        disk = SimDisk(number)
        disk.crash_at(number)
        promises = Promises()
        verify(crashing_script(disk, promises), promises).close()


@pytest.mark.parametrize("part", range(4))
def test_power_cut_during_recovery(part: int) -> None:
    """Crash, and crash again at every change that the recovery makes."""
    rng = random.Random(part)
    for seed in range(part, 40, 4):
        first = SimDisk(seed)
        first.crash_at(rng.randint(20, 140))
        promises = Promises()
        disk = crashing_script(first, promises)
        disk.crash_at(1 + seed % 7)
        try:
            BlockStore.open(FOLDER, OPTIONS, disk).close()
        except (SimulatedCrash, OrbitError):
            assert disk.crashed
        verify(disk.crash(), promises).close()


def test_what_was_never_synced_may_be_lost_but_not_the_rest() -> None:
    """The simulation does lose things: otherwise the tests above would prove nothing."""
    lost = 0
    for seed in range(30):
        disk = SimDisk(seed)
        store = BlockStore.open(FOLDER, OPTIONS, disk)
        first = store.put([b"first"])
        store.sync()
        second = store.put([b"second" * 20])
        survivor = disk.crash()
        abandon(store.close)
        after = BlockStore.open(FOLDER, OPTIONS, survivor)
        assert after.contains(first) == set(first)
        lost += not after.contains(second)
        after.close()
    assert 5 < lost < 30


def test_a_killed_process_loses_nothing_it_appended() -> None:
    """kill -9: the page cache survives, only our memory does not."""
    disk = SimDisk(1)
    store = BlockStore.open(FOLDER, OPTIONS, disk)
    ids = store.put([b"%d" % n * 50 for n in range(100)])
    killed = store
    disk._inode(FOLDER / "lock").locked = False  # the kernel lets go of a dead process's lock
    store = BlockStore.open(FOLDER, OPTIONS, disk)
    assert store.contains(ids) == set(ids)
    assert_sound(store)
    # And it is durable now, not only in the page cache.
    survivor = disk.crash()
    abandon(killed.close)
    abandon(store.close)
    after = BlockStore.open(FOLDER, OPTIONS, survivor)
    assert after.fetch(ids)[chunk_id(b"7" * 50)] == b"7" * 50
    after.close()

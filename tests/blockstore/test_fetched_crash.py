"""Power cuts and kills in the life of the cache, at every change.

Own data keeps its promises whatever the cache does. Blocks are right or missing; a killed process
loses none that it had stored; pinned blocks that were durable survive being carried forward.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from blockstore import BlockStore, ChunkId, ChunkMissing, FetchedOptions, OrbitError, StorageFull
from blockstore.errors import StorageFailed
from tests.blockstore.conftest import assert_sound, blob
from tests.blockstore.test_crash import FOLDER, OPTIONS, Promises
from tests.simdisk import SimDisk, SimulatedCrash, abandon

CACHED = replace(
    OPTIONS,
    fetched=FetchedOptions(
        bytes_max=24_000, free_bytes_floor=0, pack_bytes_max=4096, pending_blocks_max=10
    ),
)
PINNED_SEEDS = range(3, 600, 7)
STRIDE = 24  # changes from one tried to the next; `make soak` tries those between
PARTS = [pytest.param(part, marks=[pytest.mark.soak] if part % 4 else []) for part in range(STRIDE)]


def seeded(seed: int) -> bytes:
    return blob(9_000_000 + seed, 300 + seed % 5 * 100)


class World:
    """What was told to a store and its cache, and what they said to it."""

    def __init__(self) -> None:
        self.own = Promises()
        self.blocks: dict[ChunkId, bytes] = {}
        self.kept: set[ChunkId] = set()  # stored, and never evicted by request
        self.pinned: set[ChunkId] = set()

    def pins(self, ids: Sequence[ChunkId]) -> set[ChunkId]:
        return self.pinned.intersection(ids)

    def put_fetched(self, store: BlockStore, seeds: Sequence[int]) -> None:
        contents = [seeded(seed) for seed in seeds]
        ids = store.put_fetched(contents)
        self.blocks.update(zip(ids, contents, strict=True))
        self.kept.update(ids)
        self.pinned.update(n for n, seed in zip(ids, seeds, strict=True) if seed in PINNED_SEEDS)

    def put_own(self, store: BlockStore, seeds: Sequence[int]) -> None:
        contents = [seeded(seed) for seed in seeds]
        ids = store.put(contents)
        self.own.contents.update(zip(ids, contents, strict=True))
        self.own.wanted.update(ids)
        store.sync()
        self.own.durable.update(ids)


def script(store: BlockStore, world: World) -> None:
    """Appends, seals, index batches, the hand with pins, eviction by request, own data between."""
    store.set_pinned(world.pins)
    for turn in range(30):
        first = turn * 6
        world.put_fetched(store, range(first, first + 6))
        if turn % 4 == 1:
            world.put_own(store, range(first, first + 3))  # what the cache has as well
        if turn % 9 == 8:
            names = sorted(world.blocks)[::11]
            world.kept.difference_update(names)
            world.pinned.difference_update(names)
            store.evict(names)
        store.fetch([next(reversed(world.blocks))])
        store.evict_step()
    keep = sorted(world.own.wanted)[::2]
    world.own.wanted = world.own.durable = set(keep)
    store.collect([keep], waste_max=0.1)
    store.close()


def run(disk: SimDisk, world: World) -> BlockStore | None:
    store = None
    try:
        store = BlockStore.open(FOLDER, CACHED, disk)
        script(store, world)
    except (SimulatedCrash, OrbitError):
        # SQLite shows the crash as an I/O error (tests/simdisk/vfs.py).
        assert disk.crashed
    return store


def verify(disk: SimDisk, world: World) -> BlockStore:
    """Open after the crash: own data as promised, blocks right or missing, and all goes on."""
    store = BlockStore.open(FOLDER, CACHED, disk)
    kept = sorted(world.own.durable)
    assert store.fetch(kept) == {name: world.own.contents[name] for name in kept}
    for name, content in world.blocks.items():
        try:
            assert store.fetch([name]) == {name: content}
        except ChunkMissing:
            assert store.resident([name]) == [False]
    assert_sound(store)
    assert store.damaged() == {}
    store.set_pinned(lambda ids: set())
    for start in itertools.count(0, 20):
        contents = list(world.blocks.values())[start : start + 20]
        if not contents:
            break
        ids = store.put_fetched(contents)
        assert store.fetch(ids) == dict(zip(ids, contents, strict=True))
    assert store.fetch(kept) == {name: world.own.contents[name] for name in kept}
    assert_sound(store)
    return store


def operations_of_script() -> int:
    disk = SimDisk(0)
    world = World()
    run(disk, world)
    assert len(world.own.contents) > 20
    return disk.operations


@pytest.mark.parametrize("part", PARTS)
def test_power_cut_at_every_single_change(part: int) -> None:
    total = operations_of_script()
    assert total > 400
    for number in range(1 + part, total + 1, STRIDE):
        disk = SimDisk(number)
        disk.crash_at(number)
        world = World()
        store = run(disk, world)
        after = disk.crash()
        if store is not None:
            abandon(store.close)
        verify(after, world).close()


@pytest.mark.parametrize("part", PARTS)
def test_a_kill_at_every_single_change(part: int) -> None:
    total = operations_of_script()
    for number in range(1 + part, total + 1, STRIDE):
        disk = SimDisk(number)
        disk.crash_at(number)
        world = World()
        store = run(disk, world)
        after = disk.kill()
        if store is not None:
            abandon(store.close)
        again = BlockStore.open(FOLDER, CACHED, after)
        pinned = sorted((world.pinned & world.kept) - world.own.contents.keys())
        assert again.fetch(pinned) == {name: world.blocks[name] for name in pinned}, number
        abandon(again.close)
        verify(after, world).close()


def make_durable(disk: SimDisk) -> None:
    """As after a while without a power cut."""
    for inode in disk._names.values():
        inode.sync()
    disk._durable_names = dict(disk._names)
    disk._waiting_names = []


@pytest.mark.parametrize("part", range(4))
def test_durable_pinned_blocks_survive_a_power_cut_while_they_are_carried(part: int) -> None:
    for number in itertools.count(1 + part, 4):
        disk = SimDisk(number)
        world = World()
        store = BlockStore.open(FOLDER, CACHED, disk)
        store.set_pinned(world.pins)
        world.put_fetched(store, range(38))
        make_durable(disk)
        pinned = sorted(world.pinned)
        assert len(pinned) >= 5
        disk.crash_at(number)
        finished = False
        try:
            for first in range(60, 150, 6):
                store.put_fetched([seeded(seed + 10_000) for seed in range(first, first + 6)])
                while store.evict_step().more:
                    pass
            assert store.stats().fetched.carried >= len(pinned)
            finished = True
        except (SimulatedCrash, OrbitError):
            assert disk.crashed
        after = disk.crash()
        abandon(store.close)
        again = BlockStore.open(FOLDER, CACHED, after)
        assert again.fetch(pinned) == {name: world.blocks[name] for name in pinned}, number
        again.close()
        if finished:
            break


@pytest.mark.parametrize("error", [StorageFull("full"), StorageFailed("broken")])
@pytest.mark.parametrize("part", PARTS[::3])
def test_every_single_failure_in_turn(error: OrbitError, part: int) -> None:
    """Let each change fail once: the error comes out or is nobody's business, work goes on."""
    total = operations_of_script()
    failed = 0
    for number in range(1 + part, total + 1, STRIDE):
        disk = SimDisk(number)
        disk.fail_at(number, error)
        world = World()
        try:
            store = BlockStore.open(FOLDER, CACHED, disk)
        except OrbitError:
            store = BlockStore.open(FOLDER, CACHED, disk)
        try:
            script(store, world)
        except OrbitError:
            failed += 1
        abandon(store.close)
        verify(disk, world).close()
    assert failed > 2


def random_life(seed: int) -> None:
    rng = random.Random(seed)
    disk = SimDisk(seed)
    world = World()
    for _ in range(3):
        disk.crash_at(int(rng.expovariate(1 / 150)) + 1)
        store = None
        try:
            store = BlockStore.open(FOLDER, CACHED, disk)
            store.set_pinned(world.pins)
            for _ in range(rng.randint(5, 60)):
                action = rng.random()
                seeds = rng.sample(range(300), rng.randint(1, 8))
                if action < 0.5:
                    try:
                        world.put_fetched(store, seeds)
                    except StorageFull:
                        world.pinned.clear()
                elif action < 0.65:
                    world.put_own(store, seeds)
                elif action < 0.85:
                    store.evict_step()
                elif action < 0.93:
                    names = [n for n in world.blocks if rng.random() < 0.2]
                    world.pinned.difference_update(names)
                    store.evict(names)
                else:
                    keep = {n for n in world.own.wanted if rng.random() < 0.8}
                    world.own.wanted = keep
                    world.own.durable &= keep
                    store.collect([sorted(keep)], waste_max=0.2)
            if rng.random() < 0.3:
                store.close()
        except (SimulatedCrash, OrbitError):
            assert disk.crashed
        after = disk.crash() if rng.random() < 0.7 else disk.kill()
        if store is not None:
            abandon(store.close)
        disk = after
        store = verify(disk, world)
        world.own.wanted = store.contains(world.own.wanted)
        world.own.durable &= world.own.wanted
        store.close()


@pytest.mark.parametrize("seed", range(40))
def test_random_lives(seed: int) -> None:
    random_life(seed)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(40))
def test_many_random_lives(block: int) -> None:
    for seed in range(1000 + block * 25, 1025 + block * 25):
        random_life(seed)

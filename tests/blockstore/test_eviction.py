"""The cache keeps to its limits, keeps what is used or pinned, and gives way to own data."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore import BlockStore, ChunkId, FetchedOptions, StorageFull, chunk_id
from blockstore.eviction import BlockUse, plan_pack
from tests.blockstore.conftest import SMALL, Opener, assert_sound, blob
from tests.blockstore.test_fetched import blocks, fetched_packs, read
from tests.simdisk import SimDisk, abandon

FOLDER = Path("/store")
PACK = 1 << 14
LIMITED = replace(
    SMALL,
    cache_bytes_max=0,
    fetched=FetchedOptions(
        bytes_max=16 * PACK, free_bytes_floor=0, pack_bytes_max=PACK, pending_blocks_max=20
    ),
)
PER_PACK = 11  # blocks of 1,500 bytes
LIMIT = LIMITED.fetched.bytes_max + LIMITED.fetched.slack_bytes


def settle(store: BlockStore) -> None:
    """Evict until there is no more to do."""
    for _ in range(1000):
        if not store.evict_step().more:
            return
    raise AssertionError("eviction goes on for ever")


def fill(store: BlockStore, count: int, *, seed: int = 0) -> dict[ChunkId, bytes]:
    data = blocks(count, seed=seed)
    ids: list[ChunkId] = []
    for start in range(0, count, 5):
        ids += store.put_fetched(data[start : start + 5])
    return dict(zip(ids, data, strict=True))


def disk_bytes(store: BlockStore) -> int:
    return sum(path.stat().st_size for path in fetched_packs(store))


def assert_agrees(store: BlockStore, known: dict[ChunkId, bytes]) -> set[ChunkId]:
    """Each block is resident and right, or missing; return the resident ones."""
    resident = {name for name, here in zip(known, store.resident(list(known)), strict=True) if here}
    for name, content in known.items():
        assert read(store, name) == (content if name in resident else None)
    stats = store.stats().fetched
    assert stats.bytes == disk_bytes(store)
    assert stats.packs == len(fetched_packs(store))
    return resident


@given(
    st.lists(st.builds(BlockUse, st.integers(64, 5000), st.booleans(), st.booleans()), max_size=30),
    st.booleans(),
)
def test_plan_of_a_pack(uses: list[BlockUse], squeeze: bool) -> None:
    size = sum(use.bytes for use in uses) + 200
    keep = plan_pack(uses, size, squeeze=squeeze)
    kept = set(keep.blocks)
    for position, use in enumerate(uses):
        assert (position in kept) == (use.pinned or (use.used and not squeeze))
    copied = sum(uses[position].bytes for position in kept)
    assert keep.leave == (copied > (0.95 if squeeze else 0.75) * size)


def test_the_oldest_go_first_and_the_limit_is_kept(open_store: Opener) -> None:
    store = open_store(LIMITED)
    known = fill(store, 40 * PER_PACK)
    assert disk_bytes(store) <= LIMIT  # storing evicts by itself when nobody else does
    settle(store)
    assert disk_bytes(store) <= LIMITED.fetched.bytes_max
    resident = assert_agrees(store, known)
    order = [name in resident for name in known]
    assert order == sorted(order)
    assert sum(order) > 12 * PER_PACK
    stats = store.stats().fetched
    assert stats.blocks == len(resident)
    assert stats.evicted == len(known) - len(resident)
    assert stats.carried == stats.refused == 0
    assert_sound(store)
    store.close()
    store = open_store(LIMITED)
    assert assert_agrees(store, known) == resident


def test_used_blocks_are_carried_forward_once(open_store: Opener) -> None:
    store = open_store(LIMITED)
    hot = list(fill(store, 20))
    store.fetch(hot[:4])
    assert all(store.fetch_nowait(name) for name in hot[4:7])
    store.put_fetched(blocks(8)[7:])
    known = fill(store, 16 * PER_PACK, seed=1)
    settle(store)
    assert store.resident(hot) == [True] * 8 + [False] * 12
    assert store.stats().fetched.carried == 8
    fill(store, 20 * PER_PACK, seed=2)
    settle(store)
    assert not any(store.resident([*hot, *known]))  # not used since
    assert store.stats().fetched.carried == 8


def test_pinned_blocks_stay_and_are_asked_for_in_batches(open_store: Opener) -> None:
    store = open_store(LIMITED)
    known = fill(store, 40)
    pinned = set(list(known)[::3])
    asked: list[int] = []

    def ask(ids: Sequence[ChunkId]) -> set[ChunkId]:
        asked.append(len(ids))
        return pinned.intersection(ids)

    store.set_pinned(ask)
    for seed in range(1, 6):
        known |= fill(store, 20 * PER_PACK, seed=seed)
        settle(store)
        assert pinned <= assert_agrees(store, known)
    assert max(asked) > 5
    assert_sound(store)


def test_a_cache_of_pinned_blocks_refuses_others_and_takes_them_when_unpinned(
    open_store: Opener,
) -> None:
    store = open_store(LIMITED)
    pinned = set(fill(store, 15 * PER_PACK))
    store.set_pinned(pinned.intersection)
    for block in blocks(8 * PER_PACK, seed=1):
        pinned.add(chunk_id(block))
        try:
            store.put_fetched([block])
        except StorageFull as error:
            assert "unpin" in str(error)  # noqa: PT017
            pinned.discard(chunk_id(block))
            break
    assert store.stats().fetched.refused == 1
    assert len(pinned) > 15 * PER_PACK
    assert disk_bytes(store) <= LIMIT
    resident = {n for n, here in zip(pinned, store.resident(list(pinned)), strict=True) if here}
    assert resident == pinned
    with pytest.raises(StorageFull):
        store.put_fetched(blocks(PER_PACK, seed=50))
    pinned.clear()
    names = fill(store, 8 * PER_PACK, seed=51)
    assert all(store.resident(list(names)))


def test_a_pack_that_is_mostly_used_stays_until_nobody_uses_it(open_store: Opener) -> None:
    store = open_store(LIMITED)
    hot = list(fill(store, 3 * PER_PACK))
    for seed in range(1, 8):
        store.fetch(hot)
        fill(store, 5 * PER_PACK, seed=seed)
        settle(store)
        assert all(store.resident(hot))
    assert store.stats().fetched.carried < 3 * len(hot)  # of seven rounds that kept them


def test_when_everything_is_used_something_goes_all_the_same(open_store: Opener) -> None:
    store = open_store(LIMITED)
    known: dict[ChunkId, bytes] = {}
    for seed in range(12):
        known |= fill(store, 3 * PER_PACK, seed=seed)
        store.fetch([n for n, here in zip(known, store.resident(list(known)), strict=True) if here])
    settle(store)
    assert disk_bytes(store) <= LIMITED.fetched.bytes_max
    assert len(assert_agrees(store, known)) > 8 * PER_PACK


def test_what_own_data_has_is_not_carried(open_store: Opener) -> None:
    store = open_store(LIMITED)
    known = fill(store, 10)
    store.put(list(known.values()))
    store.fetch(list(known))
    fill(store, 20 * PER_PACK, seed=1)
    settle(store)
    assert store.stats().fetched.carried == 0
    assert store.fetch(list(known)) == known


def test_evicted_by_request(open_store: Opener) -> None:
    store = open_store(replace(LIMITED, cache_bytes_max=1 << 20))
    known = fill(store, 8 * PER_PACK)
    names = list(known)
    store.fetch(names)
    gone = names[::4] + names[: 2 * PER_PACK]
    own = store.put([known[names[0]]])
    assert store.evict([*gone, ChunkId(bytes(32))]) == len(set(gone))
    assert store.evict(gone) == 0
    expected = set(names) - set(gone) | set(own)
    assert assert_agrees(store, known) == expected
    before = disk_bytes(store)
    store.close()
    store = open_store(LIMITED)
    assert assert_agrees(store, known) == expected
    settle(store)  # packs that are mostly evicted go without the limit being reached
    assert disk_bytes(store) <= before - PACK
    assert assert_agrees(store, known) == expected
    again = store.put_fetched([known[name] for name in gone])
    assert again == gone
    assert all(store.resident(names))
    assert_sound(store)


def test_memory_does_not_grow_with_what_was_evicted(open_store: Opener) -> None:
    store = open_store(LIMITED)
    for seed in range(30):
        names = list(fill(store, 3 * PER_PACK, seed=seed))
        store.fetch(names)
        store.evict(names[::2])
        settle(store)
    series, hand = store._fetched._series, store._fetched._hand
    assert series is not None
    assert hand is not None
    alive = set(series.index.packs) | {place.pack for place in series.writer.pending.values()}
    assert set(series.index.void_counts()) <= alive
    assert set(hand.used._bits) <= alive
    assert len(series.writer.pending) <= 20 + PER_PACK
    assert len(alive) <= 19


def test_everything_at_once(open_store: Opener) -> None:
    """Fetching, reading, evicting, own data and collections in parallel: right or missing."""
    store = open_store(LIMITED)
    data = blocks(600)
    names = [chunk_id(block) for block in data]
    content = dict(zip(names, data, strict=True))
    pinned = set(names[:30])
    store.set_pinned(pinned.intersection)
    store.put_fetched(data[:30])
    own = store.put(blocks(50, seed=1))
    store.sync()
    failures: list[BaseException] = []
    stop = threading.Event()

    def guarded(work: Callable[[random.Random], None], seed: int) -> threading.Thread:
        def run() -> None:
            rng = random.Random(seed)
            try:
                while not stop.is_set():
                    work(rng)
            except BaseException as error:  # noqa: BLE001 (shown by the test)
                failures.append(error)
                stop.set()

        return threading.Thread(target=run)

    def fetch(rng: random.Random) -> None:
        some = rng.sample(names, 8)
        assert store.put_fetched([content[name] for name in some]) == some

    turns = itertools.count()

    def look(rng: random.Random) -> None:
        for name in rng.sample(names, 20):
            got = store.fetch_nowait(name) or read(store, name)
            assert got in {None, content[name]}
        some = rng.sample(names[:30], 10)
        assert store.fetch(some) == {name: content[name] for name in some}
        store.resident(rng.sample(names, 50))
        if next(turns) > 300:
            stop.set()

    def evict(rng: random.Random) -> None:
        store.evict_step()
        store.evict(rng.sample(names[30:], 3))

    def own_data(rng: random.Random) -> None:
        store.put(rng.sample(data[100:], 3))
        store.sync()
        store.collect([own], waste_max=0.1)

    threads = [
        guarded(work, seed) for seed, work in enumerate((fetch, fetch, look, look, evict, own_data))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stats = store.stats().fetched
    assert stats.dropped == 0
    assert stats.evicted > 100
    assert store.damaged() == {}
    assert_agrees(store, content)
    assert_sound(store)


@pytest.fixture
def short_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On these small disks the logs of the two indexes would take most of the room."""
    monkeypatch.setattr("blockstore.database.LOG_PAGES_MAX", 20)


@pytest.mark.usefixtures("short_logs")
@pytest.mark.parametrize("pin", [False, True])
def test_the_cache_gives_way_to_own_data_on_a_full_disk(*, pin: bool) -> None:
    disk = SimDisk(2, size_bytes=1_000_000)
    options = replace(LIMITED, fetched=replace(LIMITED.fetched, bytes_max=1 << 20))
    store = BlockStore.open(FOLDER, options, disk)
    fetched = fill(store, 20 * PER_PACK)
    pinned = set(list(fetched)[-2 * PER_PACK :]) if pin else set()
    store.set_pinned(pinned.intersection)
    own: dict[ChunkId, bytes] = {}
    full = False
    number = 0
    while not full:
        chunk = blob(number, 9000)
        number += 1
        try:
            ids = store.put([chunk])
            store.sync()
            own[ids[0]] = chunk
        except StorageFull:
            full = True
    assert sum(map(len, own.values())) > 600_000
    assert store.stats().fetched.packs <= 1 + 3 * pin
    assert {n for n, here in zip(fetched, store.resident(list(fetched)), strict=True) if here} >= (
        pinned
    )
    assert store.fetch(list(own)) == own
    with pytest.raises(StorageFull):
        store.put_fetched([blob(1, 200_000)])
    survivor = disk.crash()
    abandon(store.close)
    survivor.size_bytes = 1 << 30
    store = BlockStore.open(FOLDER, options, survivor)
    assert store.fetch(list(own)) == own
    store.close()


@pytest.mark.usefixtures("short_logs")
def test_the_floor_of_free_space_is_kept() -> None:
    disk = SimDisk(2, size_bytes=1_200_000)
    floor = 400_000
    options = replace(
        LIMITED, fetched=replace(LIMITED.fetched, bytes_max=1 << 20, free_bytes_floor=floor)
    )
    store = BlockStore.open(FOLDER, options, disk)
    for seed in range(40):
        fill(store, PER_PACK, seed=seed)
        settle(store)
        assert store.free_bytes() >= floor - 4 * PACK  # what the index writes is no block
    stats = store.stats().fetched
    assert stats.refused == 0
    assert stats.packs > 10
    assert stats.evicted > 0
    disk.size_bytes = disk.used_bytes + 100_000  # others fill the disk
    settle(store)
    assert store.stats().fetched.packs < stats.packs - 5
    store.close()

"""Chunks that share a record: what they save, and that each is still on its own."""

from __future__ import annotations

import pytest

from blockstore import BlockStore, ChunkDamaged, StoreOptions, chunk_id
from blockstore.grouping import GROUP_BYTES
from blockstore.packfile import GROUP_CHUNKS_MAX
from tests.blockstore.conftest import SMALL, Opener, assert_sound, blob
from tests.blockstore.test_faults import FOLDER, open_on
from tests.simdisk import SimDisk

NOTHING_CACHED = StoreOptions(pack_bytes_max=1 << 16, cache_bytes_max=0)


def texts(count: int, *, first: int = 0) -> list[bytes]:
    """Small files that compress and have something in common."""
    return [
        b"def function_%d(argument):\n    return argument + 1\n" % n * 6
        for n in range(first, first + count)
    ]


def places(store: BlockStore, chunks: list[bytes]) -> set[tuple[int, int]]:
    """The records that chunks lie in."""
    found = store.locate([chunk_id(chunk) for chunk in chunks])
    return {place[:2] for place in found.values()}


def test_small_neighbours_share_records_of_bounded_size(open_store: Opener) -> None:
    store = open_store()
    chunks = texts(GROUP_CHUNKS_MAX + 10)
    ids = store.put(chunks)
    assert len(places(store, chunks)) == 2
    large = [b"%d " % n * (GROUP_BYTES // 4) for n in range(4)]  # half a group each
    store.put(large)
    assert len(places(store, large)) == 2
    assert store.fetch(ids) == dict(zip(ids, chunks, strict=True))


def test_together_they_take_less_room_than_alone(open_store: Opener, tmp_path) -> None:
    chunks = texts(50)
    together = open_store()
    together.put(chunks)
    alone = open_store(folder=tmp_path / "alone")
    for chunk in chunks:
        alone.put([chunk])
    sizes = [
        sum(path.stat().st_size for path in store.folder.glob("packs/*"))
        for store in (together, alone)
    ]
    assert sizes[0] < sizes[1] / 2


def test_what_does_not_compress_keeps_a_record_of_its_own(open_store: Opener) -> None:
    store = open_store()
    noise = [blob(n, 20_000) for n in range(3)]
    text = texts(3)
    mixed = [part for pair in zip(text, noise, strict=True) for part in pair]
    ids = store.put(mixed)
    assert len(places(store, noise)) == 3
    assert len(places(store, text)) == 1
    assert store.fetch(ids) == dict(zip(ids, mixed, strict=True))


def test_a_known_chunk_is_not_stored_again_in_a_group(open_store: Opener) -> None:
    store = open_store()
    old = texts(5)
    store.put(old)
    before = store.locate([chunk_id(chunk) for chunk in old])
    store.put([*old, *texts(5, first=5)])
    assert store.stats().new_chunks == 10
    assert store.locate(before) == before


@pytest.mark.parametrize("kept", [1, 2, 39])
def test_collection_keeps_what_is_live_of_a_group(open_store: Opener, kept: int) -> None:
    store = open_store(NOTHING_CACHED)
    chunks = texts(40)
    ids = store.put(chunks)
    live = ids[:kept]
    report = store.collect([live], waste_max=0.0)
    assert report.records_copied == kept
    assert store.contains(ids) == set(live)
    assert store.fetch(live) == dict(zip(live, chunks, strict=False))
    assert_sound(store)
    again = store.collect([live], waste_max=0.0)
    assert again.packs_removed == 0  # nothing in it is dead any more


def test_waste_is_seen_inside_groups(open_store: Opener) -> None:
    store = open_store(NOTHING_CACHED)
    ids = store.put(texts(GROUP_CHUNKS_MAX))
    plan = store.collect([ids[::8]], dry_run=True).plan
    assert plan.condemned
    assert plan.bytes_to_copy < plan.bytes_to_free / 5


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("at", [0, 30, 64, 70, 400])
def test_damage_takes_the_group_and_putting_it_again_repairs_all(
    open_store: Opener, at: int, sealed: bool
) -> None:
    store = open_store(NOTHING_CACHED)
    chunks = texts(10)
    ids = store.put(chunks)
    other = store.put([b"elsewhere"])
    store.sync()
    if sealed:
        store.begin_touch()
        store.end_touch()
    place = store.locate(ids)[ids[0]]
    path = store.folder / "packs" / f"{place.pack:010d}.pack"
    with path.open("r+b") as file:
        file.seek(place.offset + at)
        byte = file.read(1)[0]
        file.seek(place.offset + at)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ChunkDamaged):
        store.fetch([ids[3]])
    for chunk in chunks:  # one at a time: nothing binds to the damaged record
        store.put([chunk])
    assert store.fetch(ids) == dict(zip(ids, chunks, strict=True))
    assert store.fetch(other)[other[0]] == b"elsewhere"


def test_the_index_is_rebuilt_with_groups(open_store: Opener) -> None:
    store = open_store(SMALL)
    chunks = [*texts(200), *(blob(n, 3_000) for n in range(30))]
    ids = store.put(chunks)
    before = store.locate(ids)
    store.close()
    store = BlockStore.rebuild(store.folder, SMALL)
    assert store.locate(ids) == before
    assert_sound(store)
    store.close()


def test_known_data_reads_a_table_not_every_header() -> None:
    disk = SimDisk(3)
    store = open_on(disk)
    chunks = [blob(n, 600) for n in range(40)]
    store.put(chunks)
    store.close()
    store = BlockStore.open(FOLDER, NOTHING_CACHED, disk)
    before = disk.reads
    store.put(chunks)
    assert store.stats().new_chunks == 0
    assert disk.reads - before < len(chunks) / 2
    store.close()
